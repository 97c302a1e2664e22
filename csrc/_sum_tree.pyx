"""Sum tree with eight children per node: write leaves, find the leaf under a target.

The nodes of all levels lie in one float64 array, leaves first:

    offsets[0] .. leaves .. offsets[1] .. their sums .. offsets[2] .. … .. offsets[depth] root

Child c of node p on level k+1 is node 8 p + c on level k; every level but the root's is padded with
zeros to a multiple of eight. The plain twin is fastrl/replay/reference.py.
"""

from libc.stdint cimport int64_t


cdef inline double _sum8(const double *c) noexcept nogil:
    # Pairwise, in exactly this order: the twin adds in the same order and agrees to the last bit.
    return ((c[0] + c[1]) + (c[2] + c[3])) + ((c[4] + c[5]) + (c[6] + c[7]))


cdef int repair(double[::1] nodes, const int64_t[::1] offsets, const int64_t[::1] leaves) except -1 nogil:
    """Rebuild every sum above the leaves that were written."""
    cdef Py_ssize_t batch = leaves.shape[0], levels = offsets.shape[0], i, level
    cdef int64_t parent, last
    for level in range(1, levels):
        last = -1
        for i in range(batch):
            parent = leaves[i] >> (3 * level)
            if parent != last:
                nodes[offsets[level] + parent] = _sum8(&nodes[offsets[level - 1] + 8 * parent])
                last = parent
    return 0


cdef int _set(double[::1] nodes, const int64_t[::1] offsets, const int64_t[::1] leaves,
              const double[::1] weights) except -1 nogil:
    cdef Py_ssize_t i
    for i in range(leaves.shape[0]):
        nodes[leaves[i]] = weights[i]
    return repair(nodes, offsets, leaves)


cdef inline int _descend(const double *c, double *target) noexcept nogil:
    """Choose the child whose interval holds the target; leave the rest of the target in place."""
    cdef double upto = 0.0, before = 0.0
    cdef int child = 0, k
    cdef bint past
    for k in range(8):  # without a branch: the processor could not predict it
        upto += c[k]
        past = target[0] >= upto
        child += past
        before = upto if past else before
    if child == 8:
        # Rounding carried the target past the end: take the last child that weighs anything.
        child = 7
        while child > 0 and c[child] <= 0.0:
            child -= 1
        target[0] = c[child]
        return child
    target[0] -= before
    return child


cdef int _find(const double[::1] nodes, const int64_t[::1] offsets, double[::1] targets,
               int64_t[::1] leaves) except -1 nogil:
    cdef Py_ssize_t batch = targets.shape[0], i, level
    for i in range(batch):
        leaves[i] = 0
    # Level by level, so that the loads of a whole batch are in flight at once; each is started a level ahead.
    for level in range(offsets.shape[0] - 2, -1, -1):
        for i in range(batch):
            leaves[i] = 8 * leaves[i] + _descend(&nodes[offsets[level] + 8 * leaves[i]], &targets[i])
            if level:
                prefetch(&nodes[offsets[level - 1] + 8 * leaves[i]])
    return 0


cdef int draw(const double[::1] nodes, const int64_t[::1] offsets, double[::1] uniforms,
              int64_t[::1] leaves) except -1 nogil:
    """Put into ``leaves`` one leaf from each of B equal strata of the sum, as ``uniforms [B]`` choose; overwrites these."""
    cdef Py_ssize_t batch = uniforms.shape[0], i
    cdef double total = nodes[nodes.shape[0] - 1], width = total / batch, target
    for i in range(batch):
        target = (i + uniforms[i]) * width
        uniforms[i] = target if target < total else total
    return _find(nodes, offsets, uniforms, leaves)


cdef Py_ssize_t _bad_index(const int64_t[::1] index, int64_t count) except -2 nogil:
    cdef Py_ssize_t i
    for i in range(index.shape[0]):
        if not 0 <= index[i] < count:
            return i
    return -1


cdef Py_ssize_t _bad_number(const double[::1] numbers, double most) except -2 nogil:
    cdef Py_ssize_t i
    for i in range(numbers.shape[0]):
        if not 0.0 <= numbers[i] <= most:  # NaN too
            return i
    return -1


def bad_index(const int64_t[::1] index, int64_t count):
    """Return the position of the first index outside [0, count), or -1."""
    cdef Py_ssize_t bad
    with nogil:
        bad = _bad_index(index, count)
    return bad


def bad_number(const double[::1] numbers, double most):
    """Return the position of the first number outside [0, most], or -1."""
    cdef Py_ssize_t bad
    with nogil:
        bad = _bad_number(numbers, most)
    return bad


def set_leaves(double[::1] nodes, const int64_t[::1] offsets, const int64_t[::1] leaves,
               const double[::1] weights):
    """Write leaves (of a repeated leaf the last wins) and rebuild every sum above them."""
    with nogil:
        _set(nodes, offsets, leaves, weights)


def find_leaves(const double[::1] nodes, const int64_t[::1] offsets, double[::1] targets,
                int64_t[::1] leaves):
    """Put into ``leaves`` the leaf under each target; overwrites ``targets``."""
    with nogil:
        _find(nodes, offsets, targets, leaves)


def draw_leaves(const double[::1] nodes, const int64_t[::1] offsets, double[::1] uniforms,
                int64_t[::1] leaves):
    """Put into ``leaves`` one leaf from each of B equal strata of the sum, as ``uniforms [B]`` choose; overwrites these."""
    with nogil:
        draw(nodes, offsets, uniforms, leaves)
