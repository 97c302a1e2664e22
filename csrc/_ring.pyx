"""Append rows to the rings of many environments and say which rows may be drawn from now on.

Ring of environment e, T slots, row r in slot e T + r mod T (row numbers only ever grow):

    oldest = count - T                pending                         count - 1
      | stack reaches an overwritten    | window still open             | newest
      | row: not drawable               | not yet drawable              |

Marks: 0 row, 1 truncated, 2 terminated, 3 final observation (its action was ignored). The plain twin of `Rings`
is in fastrl/replay/reference.py; that of `Appender` is the path that it declines to (fastrl/replay/buffer.py).
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from libc.math cimport isfinite
from libc.stdint cimport int8_t, int64_t, uint8_t
from libc.string cimport memcpy, strcmp

from fastrl.replay._sum_tree cimport repair

cdef enum Mark:
    ROW = 0
    TRUNCATED = 1
    TERMINATED = 2
    FINAL = 3

cdef enum Opens:
    UNKNOWN = 2  # the newest row is a final observation, but nobody gave its frame


@cython.final
@cython.auto_pickle(False)
cdef class Rings:
    """Columns and cursors of the rings, arrays that Python owns."""

    cdef int64_t rows, stack, n_step
    cdef int64_t[::1] count, pending
    cdef uint8_t[::1] ended, opens, first, mark, drawable
    cdef float[::1] reward

    def __init__(self, int64_t rows, int64_t stack, int64_t n_step, int64_t[::1] count, int64_t[::1] pending,
                 uint8_t[::1] ended, uint8_t[::1] opens, uint8_t[::1] first, float[::1] reward,
                 uint8_t[::1] mark, uint8_t[::1] drawable):
        self.rows, self.stack, self.n_step = rows, stack, n_step
        self.count, self.pending, self.ended, self.opens = count, pending, ended, opens
        self.first, self.reward, self.mark, self.drawable = first, reward, mark, drawable

    cdef Py_ssize_t push_row(self, int64_t env, float in_reward, uint8_t in_mark, int8_t in_first,
                             int64_t[::1] changed, Py_ssize_t found) except -1 nogil:
        """Append one row; return how many entries ``changed`` holds now."""
        cdef int64_t rows = self.rows, new = self.count[env], base = env * rows, slot = base + new % rows, r, at
        cdef bint final = self.ended[env] and in_first != 1
        cdef bint is_first = not final and (new == 0 or (self.opens[env] if in_first < 0 else in_first))

        # The row that lived here is gone, and so are the rows whose stacks reach back to it.
        if self.drawable[slot]:
            self.drawable[slot] = 0
            changed[found] = slot
            found += 1
        if new >= rows:
            for r in range(new - rows + 1, new - rows + self.stack):
                at = base + r % rows
                if self.first[at]:
                    break
                if self.drawable[at]:
                    self.drawable[at] = 0
                    changed[found] = at
                    found += 1

        self.first[slot] = is_first
        self.reward[slot] = 0 if final else in_reward
        self.mark[slot] = FINAL if final else in_mark
        self.count[env] = new + 1
        self.opens[env] = final
        self.ended[env] = not final and in_mark != ROW

        # The new frame closes the windows that waited for it. A new game closes none: what an abandoned
        # episode would have brought is unknown for good.
        if is_first:
            self.pending[env] = new
        for r in range(self.pending[env], new if final else new - self.n_step + 1):
            at = base + r % rows
            self.drawable[at] = 1
            changed[found] = at
            found += 1
            self.pending[env] = r + 1
        if final:
            self.pending[env] = new + 1
        return found

    cdef Py_ssize_t _push(self, const int64_t[::1] env, const float[::1] in_reward, const uint8_t[::1] in_mark,
                          const int8_t[::1] in_first, int64_t[::1] slots,
                          int64_t[::1] changed) except -1 nogil:
        cdef Py_ssize_t i, found = 0
        for i in range(env.shape[0]):
            slots[i] = env[i] * self.rows + self.count[env[i]] % self.rows
            found = self.push_row(env[i], in_reward[i], in_mark[i], in_first[i], changed, found)
        return found

    def push(self, const int64_t[::1] env, const float[::1] in_reward, const uint8_t[::1] in_mark,
             const int8_t[::1] in_first, int64_t[::1] slots, int64_t[::1] changed):
        """Append one row to the ring of each ``env[i]``; return how many slots ``changed`` names."""
        cdef Py_ssize_t found
        with nogil:
            found = self._push(env, in_reward, in_mark, in_first, slots, changed)
        return found

    cdef Py_ssize_t _locate(self, const int64_t[::1] index, int64_t[::1] slots, uint8_t[::1] alive) except -2 nogil:
        cdef Py_ssize_t i
        cdef int64_t env, row
        for i in range(index.shape[0]):
            row = index[i] // self.count.shape[0]
            env = index[i] - row * self.count.shape[0]
            if index[i] < 0 or row >= self.count[env]:
                return i
            slots[i] = env * self.rows + row % self.rows
            alive[i] = row >= self.count[env] - self.rows and self.drawable[slots[i]]
        return -1

    def locate(self, const int64_t[::1] index, int64_t[::1] slots, uint8_t[::1] alive):
        """Put into ``slots`` and ``alive`` where rows live and whether they may be drawn.

        Returns the position of the first name that is no row's, or -1.
        """
        cdef Py_ssize_t unknown
        with nogil:
            unknown = self._locate(index, slots, alive)
        return unknown


cdef struct Kind:  # what an array must be
    const char *format
    Py_ssize_t itemsize
    int ndim
    Py_ssize_t shape[64]  # from axis 1 on; no buffer has more axes


cdef struct Taken:  # memory that must be given back
    Py_buffer views[8]  # one for each argument, and the rewards tried twice
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
    const float *floats  # rewards, or NULL and
    const double *doubles


cdef int64_t DECLINED = -(1 << 62)


cdef const void *_take(object array, const Kind *kind, Py_ssize_t n, Taken *taken,
                       Py_ssize_t *stride=NULL) except? NULL:
    """Return the memory of an array of n rows (-1: of any number) that is just so, else NULL.

    If ``stride`` is asked for, the bytes from one row to the next, gaps may lie between rows.
    """
    cdef Py_buffer *view = &taken.views[taken.count]
    cdef Py_ssize_t size = kind.itemsize
    cdef int axis
    if not PyObject_CheckBuffer(array):
        return NULL
    try:
        PyObject_GetBuffer(array, view, PyBUF_FORMAT | (PyBUF_C_CONTIGUOUS if stride == NULL else PyBUF_STRIDES))
    except (BufferError, ValueError):  # strided, or of a dtype that no buffer has
        return NULL
    taken.count += 1
    if view.ndim != kind.ndim or view.format == NULL or strcmp(view.format, kind.format) != 0:
        return NULL
    if <size_t>view.buf % <size_t>kind.itemsize != 0:  # a memoryview cast anywhere
        return NULL
    for axis in range(kind.ndim - 1, 0, -1):
        if view.shape[axis] != kind.shape[axis] or (view.shape[axis] > 1 and view.strides[axis] != size):
            return NULL
        size *= view.shape[axis]
    if stride != NULL:
        stride[0] = view.strides[0]
    return view.buf if n in (-1, view.shape[0]) else NULL


cdef int _set_kind(Kind *kind, object like, const char *format) except -1:
    """Ask for arrays of this memoryview's shape behind axis 0; the caller keeps the format alive."""
    cdef int axis
    kind.ndim, kind.format, kind.itemsize = like.ndim, format, like.itemsize
    for axis in range(1, kind.ndim):
        kind.shape[axis] = like.shape[axis]
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class Appender:
    """Adds a vector step in one call where its arrays are just so; declines others, having changed nothing.

    Parameters
    ----------
    rings : Rings
        Where the rows go, N rings.
    frames, actions : [slots, bytes] uint8
        Where frames and actions go, as bytes.
    nodes, offsets
        Of the sum tree (see `_sum_tree`).
    obs, action : array
        Of no rows, with the shape behind them and the dtype of frames and actions.
    final_inside : bool
        The row after a done holds the final observation. Otherwise steps with a done are declined.
    env : [N] int64
        All environments, in order.
    changed : [N (stack + n_step)] int64
        Memory to work in.
    named : [N] uint8
        The same, all zero.
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
        """Add one row for each environment; return how many more rows may be drawn now, or None: declined.

        The arguments are those of `ReplayBuffer.add`; rows that may be drawn from now on get this weight.
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
        """Find the memory of all arguments; return whether all are just so."""
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
        """Return whether all values are in their range, and none needs a second row."""
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
