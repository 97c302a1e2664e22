"""Add a whole vector step in one call, straight from the memory of its arrays (Python's buffer protocol).

Every argument is checked before anything changes. A step that does not match exactly is declined, and
fastrl/replay/buffer.py takes it by the plain path, which is also the plain twin of this module.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from libc.math cimport isfinite
from libc.stdint cimport int8_t, int64_t, uint8_t
from libc.string cimport memcpy, strcmp

from fastrl.replay._marks cimport ROW, TERMINATED, TRUNCATED, UNKNOWN
from fastrl.replay._ring cimport Rings
from fastrl.replay._sum_tree cimport repair


cdef struct Kind:  # dtype and shape that an array must have
    const char *format
    Py_ssize_t itemsize
    int ndim
    Py_ssize_t shape[64]  # from axis 1 on; no buffer has more axes


cdef struct Taken:  # views that must be released
    Py_buffer views[8]  # one for each of seven arguments; rewards are tried twice
    int count


cdef struct Step:  # one vector step
    Py_ssize_t n
    const int64_t *env
    const uint8_t *frames
    Py_ssize_t stride  # bytes from one frame to the next
    const uint8_t *actions
    const uint8_t *terminated
    const uint8_t *truncated
    const uint8_t *first  # or NULL
    const float *floats  # rewards: one of these two,
    const double *doubles  # and the other is NULL


cdef int64_t DECLINED = -(1 << 62)


cdef const void *_take(object array, const Kind *kind, Py_ssize_t n, Taken *taken,
                       Py_ssize_t *stride=NULL) except? NULL:
    """Return the memory of an array of n rows (-1: any number) that matches ``kind`` exactly, else NULL.

    Rows must follow each other without gaps, unless ``stride`` is given: it gets the bytes from one row to the next.
    """
    cdef Py_buffer *view = &taken.views[taken.count]
    cdef Py_ssize_t size = kind.itemsize
    cdef int axis
    if not PyObject_CheckBuffer(array):
        return NULL
    try:
        PyObject_GetBuffer(array, view, PyBUF_FORMAT | (PyBUF_C_CONTIGUOUS if stride == NULL else PyBUF_STRIDES))
    except (BufferError, ValueError):  # with gaps, or of a dtype that no buffer has
        return NULL
    taken.count += 1
    if view.ndim != kind.ndim or view.format == NULL or strcmp(view.format, kind.format) != 0:
        return NULL
    if <size_t>view.buf % <size_t>kind.itemsize != 0:  # misaligned: a memoryview may be cast anywhere
        return NULL
    for axis in range(kind.ndim - 1, 0, -1):
        if view.shape[axis] != kind.shape[axis] or (view.shape[axis] > 1 and view.strides[axis] != size):
            return NULL
        size *= view.shape[axis]
    if stride != NULL:
        stride[0] = view.strides[0]
    return view.buf if n in (-1, view.shape[0]) else NULL


cdef int _set_kind(Kind *kind, object like, const char *format) except -1:
    """Require the shape of this memoryview behind axis 0; the caller keeps the format alive."""
    cdef int axis
    kind.ndim, kind.format, kind.itemsize = like.ndim, format, like.itemsize
    for axis in range(1, kind.ndim):
        kind.shape[axis] = like.shape[axis]
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class Appender:
    """Adds a vector step in one call if its arrays match exactly; declines others and changes nothing then.

    To match, an array is C-contiguous (``obs``: each frame is) and aligned, and has the dtype and shape asked for.

    Parameters
    ----------
    rings : Rings
        Where the rows go, N rings.
    frames, actions : [slots, bytes] uint8
        Where frames and actions go, as bytes.
    nodes, offsets
        Of the sum tree (see `_sum_tree`).
    obs, action : array
        With no rows: their dtype, and their shape behind axis 0, are those of frames and actions.
    final_inside : bool
        Whether the row after a done holds the final observation. If not, steps with a done are declined.
    env : [N] int64
        All environments, in order.
    changed : [N (stack + n_step)] int64
        Working memory.
    named : [N] uint8
        Working memory, all zero.
    """

    cdef Rings rings
    cdef uint8_t[:, ::1] frames, actions
    cdef double[::1] nodes
    cdef const int64_t[::1] offsets, env
    cdef int64_t[::1] changed
    cdef uint8_t[::1] named
    cdef bint final_inside
    cdef tuple formats
    cdef Kind obs_kind, action_kind, flag_kind, float_kind, double_kind, env_kind

    def __init__(self, Rings rings, uint8_t[:, ::1] frames, uint8_t[:, ::1] actions, double[::1] nodes,
                 const int64_t[::1] offsets, obs, action, bint final_inside, env, int64_t[::1] changed,
                 uint8_t[::1] named):
        self.rings, self.frames, self.actions, self.nodes, self.offsets = rings, frames, actions, nodes, offsets
        self.final_inside, self.env, self.changed, self.named = final_inside, env, changed, named
        likes = [memoryview(like) for like in (obs, action, env)]
        self.formats = tuple([like.format.encode() for like in likes])
        _set_kind(&self.obs_kind, likes[0], self.formats[0])
        _set_kind(&self.action_kind, likes[1], self.formats[1])
        _set_kind(&self.env_kind, likes[2], self.formats[2])
        self.flag_kind = self.float_kind = self.double_kind = self.env_kind
        self.flag_kind.format, self.float_kind.format, self.double_kind.format = b"?", b"f", b"d"
        self.flag_kind.itemsize, self.float_kind.itemsize, self.double_kind.itemsize = 1, 4, 8

    def add(self, obs, action, reward, terminated, truncated, first, env_id, double weight):
        """Add one row for each environment; return how many more rows may be drawn now, or None if declined.

        The arguments are those of `ReplayBuffer.add`; rows that become drawable get this weight.
        """
        cdef Taken taken
        cdef Step step
        cdef int64_t gained = DECLINED
        cdef int i
        taken.count = 0
        try:
            if self._read(&step, &taken, obs, action, reward, terminated, truncated, first, env_id):
                with nogil:
                    if self._may_be_added(&step):
                        gained = self._add(&step, weight)
        finally:
            for i in range(taken.count):
                PyBuffer_Release(&taken.views[i])
        return None if gained == DECLINED else gained

    cdef bint _read(self, Step *step, Taken *taken, obs, action, reward, terminated, truncated, first,
                    env_id) except -1:
        """Find the memory of all arguments; return whether all match."""
        cdef Py_ssize_t n = self.env.shape[0]
        step.env, step.first, step.doubles = &self.env[0], NULL, NULL
        if env_id is not None:
            step.env = <const int64_t *>_take(env_id, &self.env_kind, -1, taken)
            if step.env == NULL:
                return False
            n = taken.views[0].shape[0]
        step.n = n
        if first is not None:
            step.first = <const uint8_t *>_take(first, &self.flag_kind, n, taken)
            if step.first == NULL:
                return False
        step.frames = <const uint8_t *>_take(obs, &self.obs_kind, n, taken, &step.stride)
        step.actions = <const uint8_t *>_take(action, &self.action_kind, n, taken)
        step.terminated = <const uint8_t *>_take(terminated, &self.flag_kind, n, taken)
        step.truncated = <const uint8_t *>_take(truncated, &self.flag_kind, n, taken)
        step.floats = <const float *>_take(reward, &self.float_kind, n, taken)
        if step.floats == NULL:
            step.doubles = <const double *>_take(reward, &self.double_kind, n, taken)
        return (step.frames != NULL and step.actions != NULL and step.terminated != NULL
                and step.truncated != NULL and (step.floats != NULL or step.doubles != NULL))

    cdef bint _may_be_added(self, const Step *step) except -1 nogil:
        """Return whether all values are in range and no row needs a second one for its final frame."""
        cdef Py_ssize_t i, seen = 0
        cdef int64_t env
        cdef bint good = step.n <= self.env.shape[0], done
        while good and seen < step.n:
            env = step.env[seen]
            good = 0 <= env < self.env.shape[0] and not self.named[env]
            if good:
                self.named[env] = 1
                seen += 1
        for i in range(seen):
            env = step.env[i]
            self.named[env] = 0
            done = step.terminated[i] or step.truncated[i]
            good = good and step.terminated[i] <= 1 and step.truncated[i] <= 1 and isfinite(_reward(step, i))
            good = good and (self.final_inside or not done)
            if step.first != NULL:
                good = good and step.first[i] <= 1 and (step.first[i] or self.rings.opens[env] != UNKNOWN)
        return good

    cdef int64_t _add(self, const Step *step, double weight) except? -1 nogil:
        """Write all rows; return how many more may be drawn now."""
        cdef Py_ssize_t i, found = 0, frame = self.frames.shape[1], action = self.actions.shape[1]
        cdef int64_t env, slot, gained = 0
        cdef int64_t[::1] changed = self.changed
        cdef uint8_t mark
        cdef int8_t first = -1
        cdef float reward
        for i in range(step.n):
            env, reward = step.env[i], _reward(step, i)
            slot = env * self.rings.rows + self.rings.count[env] % self.rings.rows
            memcpy(&self.frames[slot, 0], step.frames + i * step.stride, frame)
            memcpy(&self.actions[slot, 0], step.actions + i * action, action)
            mark = TERMINATED if step.terminated[i] else TRUNCATED if step.truncated[i] else ROW
            if step.first != NULL:
                first = step.first[i]
            found = self.rings.push_row(env, reward, mark, first, changed, found)
        for i in range(found):
            slot = changed[i]
            self.nodes[slot] = weight if self.rings.drawable[slot] else 0.0
            gained += 1 if self.rings.drawable[slot] else -1
        changed = changed[:found]
        repair(self.nodes, self.offsets, changed)
        return gained


cdef inline float _reward(const Step *step, Py_ssize_t i) noexcept nogil:
    return step.floats[i] if step.floats != NULL else <float>step.doubles[i]
