"""Sum tree, eight children to a node: write leaves, find the leaf under a target.

The nodes of all levels lie in one float64 array, leaves first:

    offsets[0] .. leaves .. offsets[1] .. their sums .. offsets[2] .. … .. offsets[depth] root

Child c of node p on level k+1 is node 8 p + c on level k; every level but the root's is padded with
zeros to a multiple of eight. The plain twin is fastrl/replay/reference.py.
"""

from libc.stdint cimport int64_t


cdef inline double _sum8(const double *c) noexcept nogil:
    # Pairwise, in this order and no other: the twin adds the same way, to the last bit.
    return ((c[0] + c[1]) + (c[2] + c[3])) + ((c[4] + c[5]) + (c[6] + c[7]))


cdef int repair(double[::1] nodes, const int64_t[::1] offsets, const int64_t[::1] leaves) except -1 nogil:
    """Rebuild every sum above leaves that were written."""
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


cdef inline int _descend(const double[::1] nodes, Py_ssize_t first, double *target) except -1 nogil:
    """Choose the child whose interval holds the target; leave the rest of the target in place."""
    cdef double before = 0.0, upto = nodes[first]
    cdef int child = 0, c
    for c in range(1, 8):
        if target[0] >= upto:
            child = c
            before = upto
        upto = upto + nodes[first + c]
    if target[0] >= upto:
        # Rounding carried the target past the end: take the last child that weighs anything.
        child = 7
        while child > 0 and nodes[first + child] <= 0.0:
            child -= 1
        target[0] = nodes[first + child]
        return child
    target[0] -= before
    return child


cdef int _find(const double[::1] nodes, const int64_t[::1] offsets, double[::1] targets,
               int64_t[::1] leaves) except -1 nogil:
    cdef Py_ssize_t batch = targets.shape[0], i, level
    for i in range(batch):
        leaves[i] = 0
    # Level by level, so that the loads of a whole batch are in flight at once.
    for level in range(offsets.shape[0] - 2, -1, -1):
        for i in range(batch):
            leaves[i] = 8 * leaves[i] + _descend(nodes, offsets[level] + 8 * leaves[i], &targets[i])
    return 0


def set_leaves(double[::1] nodes, const int64_t[::1] offsets, const int64_t[::1] leaves,
               const double[::1] weights):
    """Write leaves (a repeated leaf: the last wins) and rebuild every sum above them."""
    with nogil:
        _set(nodes, offsets, leaves, weights)


def find_leaves(const double[::1] nodes, const int64_t[::1] offsets, double[::1] targets,
                int64_t[::1] leaves):
    """Put into ``leaves`` the leaf under each target; ``targets`` is used up."""
    with nogil:
        _find(nodes, offsets, targets, leaves)
