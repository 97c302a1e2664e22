"""Add a whole vector step in one call, straight from the memory of its arrays (Python's buffer protocol).

Every argument is checked before anything changes. A step that does not match exactly is declined, and
fastrl/replay/buffer.py takes it by the plain path, which is also the plain twin of this module.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int8_t, int64_t, uint8_t
from libc.string cimport memcpy, memset, strcmp

from fastrl.replay._marks cimport ROW, TERMINATED, TRUNCATED, UNKNOWN
from fastrl.replay._ring cimport Rings
from fastrl.replay._sum_tree cimport repair


cdef struct Kind:  # dtype and shape that an array must have
    const char *format
    Py_ssize_t itemsize
    int ndim
    Py_ssize_t shape[64]  # from axis 1 on; no buffer has more axes


cdef struct Taken:  # views that must be released
    Py_buffer views[10]  # one for each of eight arguments; rewards and final frames are tried twice
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
    const uint8_t *finals  # final frames, or NULL
    Py_ssize_t final_stride
    const uint8_t *missing  # which of the final frames were not given, or NULL
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

    To match, an array is C-contiguous (``obs`` and ``final_obs``: each frame is) and aligned, and has the dtype and shape
    asked for. Final frames may also be an array of objects: such frames, or None.

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
        Whether the row after a done holds the final observation. If not, one more row is added for it.
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
    cdef Kind obs_kind, action_kind, flag_kind, float_kind, double_kind, env_kind, object_kind, frame_kind

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
        self.flag_kind = self.float_kind = self.double_kind = self.object_kind = self.env_kind
        self.flag_kind.format, self.float_kind.format, self.double_kind.format = b"?", b"f", b"d"
        self.flag_kind.itemsize, self.float_kind.itemsize, self.double_kind.itemsize = 1, 4, 8
        self.object_kind.format, self.object_kind.itemsize = b"O", sizeof(void *)
        self.frame_kind = self.obs_kind
        self.frame_kind.ndim -= 1
        for axis in range(self.frame_kind.ndim):
            self.frame_kind.shape[axis] = self.obs_kind.shape[axis + 1]

    def add(self, obs, action, reward, terminated, truncated, first, final_obs, env_id, double weight):
        """Add one row for each environment; return how many more rows may be drawn now, or None if declined.

        The arguments are those of `ReplayBuffer.add`; rows that become drawable get this weight.
        """
        cdef Taken taken
        cdef Step step
        cdef int64_t gained = DECLINED
        cdef PyObject **objects
        cdef object copies = True  # holds memory that the step points to
        cdef int i
        taken.count = 0
        try:
            if self._read(&step, &taken, &objects, obs, action, reward, terminated, truncated, first, final_obs, env_id):
                if objects != NULL:
                    copies = self._copy_finals(&step, objects)
                if copies is None:
                    return None
                with nogil:
                    if self._may_be_added(&step):
                        gained = self._add(&step, weight)
        finally:
            for i in range(taken.count):
                PyBuffer_Release(&taken.views[i])
        return None if gained == DECLINED else gained

    cdef bint _read(self, Step *step, Taken *taken, PyObject ***objects, obs, action, reward, terminated, truncated,
                    first, final_obs, env_id) except -1:
        """Find the memory of all arguments; return whether all match. Final frames may be left as objects."""
        cdef Py_ssize_t n = self.env.shape[0]
        step.env, step.first, step.doubles, step.finals, step.missing = &self.env[0], NULL, NULL, NULL, NULL
        objects[0] = NULL
        if final_obs is not None and self.final_inside:  # an error
            return False
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
        if final_obs is not None:
            step.finals = <const uint8_t *>_take(final_obs, &self.obs_kind, n, taken, &step.final_stride)
            if step.finals == NULL:
                objects[0] = <PyObject **>_take(final_obs, &self.object_kind, n, taken)
                if objects[0] == NULL:
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

    cdef object _copy_finals(self, Step *step, PyObject **objects):
        """Copy final frames that came as objects; return what holds the copies, or None if one does not match.

        Only those of episodes that ended are read.
        """
        cdef Py_ssize_t i, frame = self.frames.shape[1]
        cdef bint ended = False
        cdef bytes memory
        cdef uint8_t *finals
        cdef uint8_t *missing
        for i in range(step.n):
            ended = ended or step.terminated[i] or step.truncated[i]
        if not ended:
            return True
        memory = PyBytes_FromStringAndSize(NULL, step.n * (frame + 1))
        finals = <uint8_t *>PyBytes_AS_STRING(memory)
        missing = finals + step.n * frame
        memset(missing, 0, step.n)
        for i in range(step.n):
            if not (step.terminated[i] or step.truncated[i]):
                continue
            missing[i] = objects[i] == NULL or <object>objects[i] is None
            if not missing[i] and not self._copy_frame(<object>objects[i], finals + i * frame):
                return None
        step.finals, step.final_stride, step.missing = finals, frame, missing
        return memory

    cdef bint _copy_frame(self, object source, uint8_t *to) except -1:
        """Copy a frame that matches exactly; return whether it does."""
        cdef Taken taken
        cdef const void *frame = NULL
        cdef int i
        taken.count = 0
        try:
            if self.frame_kind.ndim > 0:
                frame = _take(source, &self.frame_kind, self.frame_kind.shape[0], &taken)
            if frame != NULL:
                memcpy(to, frame, self.frames.shape[1])
        finally:
            for i in range(taken.count):
                PyBuffer_Release(&taken.views[i])
        return frame != NULL

    cdef bint _may_be_added(self, const Step *step) except -1 nogil:
        """Return whether all values are in range, and the final frames that are needed are there."""
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
            if done and not self.final_inside:
                good = good and (step.terminated[i] or _has_final(step, i))
            if step.first != NULL:
                good = good and step.first[i] <= 1 and (step.first[i] or self.rings.opens[env] != UNKNOWN)
        return good

    cdef int64_t _add(self, const Step *step, double weight) except? -1 nogil:
        """Write all rows; return how many more may be drawn now."""
        cdef Py_ssize_t i, found = 0, frame = self.frames.shape[1], action = self.actions.shape[1]
        cdef int64_t env, slot, gained
        cdef bint ended = False
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
            found = self.rings.push_row(env, reward, mark, first, self.changed, found)
            ended = ended or mark != ROW
        gained = self._weigh(found, weight)
        if ended and not self.final_inside:
            gained += self._weigh(self._add_finals(step), weight)
        return gained

    cdef Py_ssize_t _add_finals(self, const Step *step) except -1 nogil:
        """Append a row with the final frame to each ring whose episode ended; return how many slots changed.

        Where that frame was not given, the row repeats the frame of the done.
        """
        cdef Py_ssize_t i, found = 0, frame = self.frames.shape[1]
        cdef int64_t env, slot
        for i in range(step.n):
            if not (step.terminated[i] or step.truncated[i]):
                continue
            env = step.env[i]
            slot = env * self.rings.rows + self.rings.count[env] % self.rings.rows
            if _has_final(step, i):
                memcpy(&self.frames[slot, 0], step.finals + i * step.final_stride, frame)
            else:
                memcpy(&self.frames[slot, 0], step.frames + i * step.stride, frame)
            found = self.rings.push_row(env, 0, ROW, -1, self.changed, found)
            if not _has_final(step, i):
                self.rings.opens[env] = UNKNOWN
        return found

    cdef int64_t _weigh(self, Py_ssize_t found, double weight) except? -1 nogil:
        """Weigh the slots that changed; return how many more rows may be drawn now."""
        cdef Py_ssize_t i
        cdef int64_t slot, gained = 0
        cdef int64_t[::1] changed = self.changed[:found]
        for i in range(found):
            slot = changed[i]
            self.nodes[slot] = weight if self.rings.drawable[slot] else 0.0
            gained += 1 if self.rings.drawable[slot] else -1
        repair(self.nodes, self.offsets, changed)
        return gained


cdef inline float _reward(const Step *step, Py_ssize_t i) noexcept nogil:
    return step.floats[i] if step.floats != NULL else <float>step.doubles[i]


cdef inline bint _has_final(const Step *step, Py_ssize_t i) noexcept nogil:
    """Return whether the final frame of a row was given."""
    return step.finals != NULL and (step.missing == NULL or not step.missing[i])
