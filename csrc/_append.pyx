"""Add whole vector steps in one call, straight from the memory of their arrays (Python's buffer protocol).

Every argument is checked before anything changes. Steps that do not match exactly are declined, and
fastrl/replay/buffer.py takes them by the plain path, which is also the plain twin of this module.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int8_t, int64_t, uint8_t
from libc.string cimport memcpy, strcmp

from fastrl.replay._marks cimport ROW, TERMINATED, TRUNCATED, UNKNOWN
from fastrl.replay._ring cimport Rings
from fastrl.replay._sum_tree cimport repair


cdef struct Kind:  # dtype of an array, and its shape behind the axes of steps and environments
    const char *format
    Py_ssize_t itemsize
    int ndim
    Py_ssize_t shape[64]  # no buffer has more axes


cdef struct Taken:  # views that must be released
    Py_buffer *views
    int count


cdef struct Steps:  # T vector steps of n rows, step by step; row i of step t is number t n + i
    int lead  # axes before those of a row: environments, or steps and environments
    Py_ssize_t lengths[2]  # of these axes
    Py_ssize_t steps  # T
    Py_ssize_t n
    const int64_t *env  # [n]
    const uint8_t *actions
    const uint8_t *terminated
    const uint8_t *truncated
    const uint8_t *first  # or NULL
    const float *floats  # rewards: one of these two,
    const double *doubles  # and the other is NULL


cdef enum:
    ARGUMENTS = 7  # views of all arguments but columns; rewards are tried twice
    VIEWS = 3  # of each column; final values are tried twice
    FEW_BYTES = 1 << 14  # copied sooner than the GIL is released and taken again

cdef int64_t DECLINED = -(1 << 62)


cdef const void *_take(object array, const Kind *kind, int lead, const Py_ssize_t *lengths, Taken *taken,
                       Py_ssize_t *strides=NULL) except? NULL:
    """Return the memory of an array whose first axes have these lengths and that matches ``kind``, else NULL.

    There are ``lead`` of these axes; a length of -1 fits any.

    Rows must follow each other without gaps, unless ``strides`` is given: it gets the bytes from one row to the next,
    for each of these axes.
    """
    cdef Py_buffer *view = &taken.views[taken.count]
    cdef Py_ssize_t size = kind.itemsize
    cdef int axis
    if not PyObject_CheckBuffer(array):
        return NULL
    try:
        PyObject_GetBuffer(array, view, PyBUF_FORMAT | (PyBUF_C_CONTIGUOUS if strides == NULL else PyBUF_STRIDES))
    except (BufferError, ValueError):  # with gaps, or of a dtype that no buffer has
        return NULL
    taken.count += 1
    if view.ndim != lead + kind.ndim or view.format == NULL or strcmp(view.format, kind.format) != 0:
        return NULL
    if <size_t>view.buf % <size_t>kind.itemsize != 0:  # misaligned: a memoryview may be cast anywhere
        return NULL
    for axis in range(kind.ndim - 1, -1, -1):
        if (view.shape[lead + axis] != kind.shape[axis]
                or (view.shape[lead + axis] > 1 and view.strides[lead + axis] != size)):
            return NULL
        size *= kind.shape[axis]
    for axis in range(lead):
        if lengths[axis] not in (-1, view.shape[axis]):
            return NULL
        if strides != NULL:
            strides[axis] = view.strides[axis]
    return view.buf


cdef int _set_kind(Kind *kind, object like, const char *format) except -1:
    """Require the shape of this memoryview behind axis 0; the caller keeps the format alive."""
    cdef int axis
    kind.ndim, kind.format, kind.itemsize = like.ndim - 1, format, like.itemsize
    for axis in range(kind.ndim):
        kind.shape[axis] = like.shape[axis + 1]
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class Column:
    """One array of a row, such as its frame: where it is kept, and where the arrays of the current call lie.

    Columns form a chain, so that rows are written without the GIL. Unless a method says otherwise, it does its work for
    this column and those after it.

    Parameters
    ----------
    memory : [slots, bytes] uint8
        Where it is kept, as bytes.
    like : array
        With no rows: the dtype and, behind axis 0, the shape that arrays must have.
    has_final : bool
        Whether rows that end an episode come with a final value; if not, their own is repeated.
    is_frame : bool
        Whether stacks hold it, so that a missing final value leaves a gap in those that continue.
    after : Column, optional
        The next one.
    """

    cdef uint8_t[:, ::1] memory
    cdef bytes format
    cdef Kind kind, object_kind
    cdef bint has_final, is_frame
    cdef Column after
    # The call in progress. Final values are an array, or were copied from objects.
    cdef const uint8_t *rows
    cdef Py_ssize_t[2] strides, final_strides
    cdef const uint8_t *finals  # or NULL
    cdef PyObject **objects  # or NULL
    cdef bytes copies
    cdef int64_t *places  # byte of ``finals`` where the copy for each row begins, or -1: none; NULL for an array

    def __init__(self, uint8_t[:, ::1] memory, like, bint has_final, bint is_frame, Column after=None):
        cdef object view = memoryview(like)
        self.memory, self.has_final, self.is_frame, self.after = memory, has_final, is_frame, after
        self.format = view.format.encode()
        _set_kind(&self.kind, view, self.format)
        self.object_kind.format, self.object_kind.itemsize, self.object_kind.ndim = b"O", sizeof(void *), 0

    cdef bint read(self, Steps *steps, Taken *taken, object rows, object finals) except -1:
        """Find the memory of this column's rows and final values; return whether they match."""
        self.finals, self.objects, self.places, self.copies = NULL, NULL, NULL, None
        if finals is not None:
            self.finals = <const uint8_t *>_take(
                finals, &self.kind, steps.lead, steps.lengths, taken, self.final_strides
            )
            if self.finals == NULL:
                self.objects = <PyObject **>_take(finals, &self.object_kind, steps.lead, steps.lengths, taken)
                if self.objects == NULL:
                    return False
        self.rows = <const uint8_t *>_take(rows, &self.kind, steps.lead, steps.lengths, taken, self.strides)
        if steps.lead == 1:
            self.strides[1], self.final_strides[1] = self.strides[0], self.final_strides[0]
            self.strides[0] = self.final_strides[0] = 0
        return self.rows != NULL

    cdef bint copy_objects(self, const Steps *steps) except -1:
        """Copy this column's final values that came as objects; return whether they match.

        Only those of episodes that ended are read.
        """
        cdef Py_ssize_t k, size = self.memory.shape[1], rows = steps.steps * steps.n, ended = 0, begin
        cdef uint8_t *copies
        if self.objects == NULL:
            return True
        for k in range(rows):
            ended += steps.terminated[k] or steps.truncated[k]
        if not ended:
            return True
        begin = rows * sizeof(int64_t)
        self.copies = PyBytes_FromStringAndSize(NULL, begin + ended * size)
        copies = <uint8_t *>PyBytes_AS_STRING(self.copies)
        self.finals, self.places = copies, <int64_t *>copies
        for k in range(rows):
            self.places[k] = -1
        for k in range(rows):
            if not (steps.terminated[k] or steps.truncated[k]) or self.objects[k] == NULL:
                continue
            if <object>self.objects[k] is None:
                continue
            if begin == len(self.copies) or not self._copy(<object>self.objects[k], copies + begin):
                return False
            self.places[k] = begin
            begin += size
        return True

    cdef bint _copy(self, object source, uint8_t *to) except -1:
        """Copy a final value that matches exactly; return whether it does."""
        cdef Py_buffer view
        cdef Taken taken
        cdef const void *found = NULL
        cdef int i
        taken.views, taken.count = &view, 0
        try:
            if self.kind.ndim > 0:
                found = _take(source, &self.kind, 0, NULL, &taken)
            if found != NULL:
                memcpy(to, found, self.memory.shape[1])
        finally:
            for i in range(taken.count):
                PyBuffer_Release(&view)
        return found != NULL

    cdef inline bint given(self, Py_ssize_t k) noexcept nogil:
        """Return whether this column's final value was given for row k."""
        return self.finals != NULL and (self.places == NULL or self.places[k] >= 0)

    cdef bint all_given(self, Py_ssize_t k) except -1 nogil:
        """Return whether no final value that row k needs is missing."""
        return (not self.has_final or self.given(k)) and (self.after is None or self.after.all_given(k))

    cdef bint frames_given(self, Py_ssize_t k) except -1 nogil:
        """Return whether no final frame of row k is missing."""
        return (not self.is_frame or self.given(k)) and (self.after is None or self.after.frames_given(k))

    cdef int write(self, int64_t slot, Py_ssize_t t, Py_ssize_t i) except -1 nogil:
        """Keep what row i of step t holds."""
        memcpy(&self.memory[slot, 0], self.rows + t * self.strides[0] + i * self.strides[1], self.memory.shape[1])
        if self.after is not None:
            self.after.write(slot, t, i)
        return 0

    cdef int write_final(self, int64_t slot, Py_ssize_t t, Py_ssize_t i, Py_ssize_t k) except -1 nogil:
        """Keep the final values of row k, which is row i of step t; where one was not given, what that row holds."""
        cdef const uint8_t *source = self.rows + t * self.strides[0] + i * self.strides[1]
        if self.given(k):
            source = self.finals
            source += t * self.final_strides[0] + i * self.final_strides[1] if self.places == NULL else self.places[k]
        memcpy(&self.memory[slot, 0], source, self.memory.shape[1])
        if self.after is not None:
            self.after.write_final(slot, t, i, k)
        return 0

    cdef int forget(self) except -1:
        """Drop the copies of the call that is over."""
        self.copies = None
        if self.after is not None:
            self.after.forget()
        return 0


@cython.final
@cython.auto_pickle(False)
cdef class Appender:
    """Adds vector steps in one call if their arrays match exactly; declines others and changes nothing then.

    To match, an array is C-contiguous (of columns: each row is) and aligned, and has the dtype and shape asked for.
    Final values may also be an array of objects: such values, or None.

    Parameters
    ----------
    rings : Rings
        Where the rows go, N rings.
    column : Column
        The first of the columns.
    several : bool
        Whether rows and final values come as tuples with one entry for each column, or else for the only one.
    actions : [slots, bytes] uint8
        Where actions go, as bytes.
    nodes, offsets
        Of the sum tree (see `_sum_tree`).
    action : array
        With no rows: the dtype of actions, and their shape behind axis 0.
    final_inside : bool
        Whether the row after a done holds the final observation. If not, one more row is added for it.
    env : [N] int64
        All environments, in order.
    changed : [2 N (stack + n_step) or more] int64
        Working memory.
    named : [N] uint8
        Working memory, all zero.
    """

    cdef Rings rings
    cdef Column column
    cdef bint several, final_inside
    cdef uint8_t[:, ::1] actions
    cdef double[::1] nodes
    cdef const int64_t[::1] offsets, env
    cdef int64_t[::1] changed
    cdef uint8_t[::1] named
    cdef tuple formats
    cdef Kind action_kind, flag_kind, float_kind, double_kind, env_kind
    cdef Py_buffer *views
    cdef Py_ssize_t row_bytes  # about
    cdef bint busy  # a call is in progress: an argument's own code may call again

    def __cinit__(self, *_, **__):
        self.views = NULL

    def __init__(self, Rings rings, Column column, bint several, uint8_t[:, ::1] actions, double[::1] nodes,
                 const int64_t[::1] offsets, action, bint final_inside, env, int64_t[::1] changed, uint8_t[::1] named):
        cdef int columns = 0
        self.rings, self.column, self.several, self.actions = rings, column, several, actions
        self.nodes, self.offsets = nodes, offsets
        self.final_inside, self.env, self.changed, self.named = final_inside, env, changed, named
        likes = [memoryview(like) for like in (action, env)]
        self.formats = tuple([like.format.encode() for like in likes])
        _set_kind(&self.action_kind, likes[0], self.formats[0])
        _set_kind(&self.env_kind, likes[1], self.formats[1])
        self.flag_kind = self.float_kind = self.double_kind = self.env_kind
        self.flag_kind.format, self.float_kind.format, self.double_kind.format = b"?", b"f", b"d"
        self.flag_kind.itemsize, self.float_kind.itemsize, self.double_kind.itemsize = 1, 4, 8
        self.row_bytes = 64
        while column is not None:
            columns += 1
            self.row_bytes += column.memory.shape[1]
            column = column.after
        self.views = <Py_buffer *>PyMem_Malloc((ARGUMENTS + VIEWS * columns) * sizeof(Py_buffer))
        if self.views == NULL:
            raise MemoryError("too little memory for the views of a vector step")

    def __dealloc__(self):
        PyMem_Free(self.views)

    def add(self, rows, action, reward, terminated, truncated, first, finals, env_id, double weight):
        """Add one row for each environment; return how many more rows may be drawn now, or None if declined.

        The arguments are those of `ReplayBuffer.add`, but ``rows`` and ``finals`` hold the arrays of all columns;
        rows that become drawable get this weight.
        """
        return self._call(1, rows, action, reward, terminated, truncated, first, finals, env_id, weight)

    def extend(self, rows, action, reward, terminated, truncated, first, finals, env_id, double weight):
        """Do as `add` for T vector steps, in arrays of one more axis before all others."""
        return self._call(2, rows, action, reward, terminated, truncated, first, finals, env_id, weight)

    cdef object _call(self, int lead, rows, action, reward, terminated, truncated, first, finals, env_id,
                      double weight):
        cdef Taken taken
        cdef Steps steps
        cdef int64_t gained = DECLINED
        cdef int i
        if self.busy:
            return None
        self.busy, steps.lead, taken.views, taken.count = True, lead, self.views, 0
        try:
            if (self._read(&steps, &taken, action, reward, terminated, truncated, first, env_id)
                    and self._read_columns(&steps, &taken, rows, finals)):
                if steps.steps * steps.n * self.row_bytes < FEW_BYTES:
                    gained = self._add(&steps, weight) if self._may_be_added(&steps) else DECLINED
                else:
                    with nogil:
                        gained = self._add(&steps, weight) if self._may_be_added(&steps) else DECLINED
        finally:
            for i in range(taken.count):
                PyBuffer_Release(&taken.views[i])
            self.column.forget()
            self.busy = False
        return None if gained == DECLINED else gained

    cdef bint _read(self, Steps *steps, Taken *taken, action, reward, terminated, truncated, first,
                    env_id) except -1:
        """Find the memory of all arguments but the columns; return whether all match."""
        steps.n, steps.steps, steps.env, steps.first, steps.doubles = self.env.shape[0], 1, &self.env[0], NULL, NULL
        if env_id is not None:
            steps.lengths[0] = -1
            steps.env = <const int64_t *>_take(env_id, &self.env_kind, 1, steps.lengths, taken)
            if steps.env == NULL:
                return False
            steps.n = taken.views[taken.count - 1].shape[0]
        steps.lengths[0] = steps.lengths[1] = steps.n
        if steps.lead == 2:
            steps.lengths[0] = -1
        steps.terminated = <const uint8_t *>_take(terminated, &self.flag_kind, steps.lead, steps.lengths, taken)
        if steps.terminated == NULL:
            return False
        if steps.lead == 2:
            steps.steps = steps.lengths[0] = taken.views[taken.count - 1].shape[0]
        if first is not None:
            steps.first = <const uint8_t *>_take(first, &self.flag_kind, steps.lead, steps.lengths, taken)
            if steps.first == NULL:
                return False
        steps.actions = <const uint8_t *>_take(action, &self.action_kind, steps.lead, steps.lengths, taken)
        steps.truncated = <const uint8_t *>_take(truncated, &self.flag_kind, steps.lead, steps.lengths, taken)
        steps.floats = <const float *>_take(reward, &self.float_kind, steps.lead, steps.lengths, taken)
        if steps.floats == NULL:
            steps.doubles = <const double *>_take(reward, &self.double_kind, steps.lead, steps.lengths, taken)
        return steps.actions != NULL and steps.truncated != NULL and (steps.floats != NULL or steps.doubles != NULL)

    cdef bint _read_columns(self, Steps *steps, Taken *taken, rows, finals) except -1:
        """Find the memory of all columns, and copy final values that came as objects; return whether all match."""
        cdef Column column = self.column
        cdef int c = 0
        if finals is not None and self.final_inside:  # an error
            return False
        if not self.several:
            return column.read(steps, taken, rows, finals) and column.copy_objects(steps)
        while column is not None:
            if not column.read(steps, taken, (<tuple>rows)[c], None if finals is None else (<tuple>finals)[c]):
                return False
            column = column.after
            c += 1
        column = self.column
        while column is not None:
            if not column.copy_objects(steps):
                return False
            column = column.after
        return True

    cdef bint _may_be_added(self, const Steps *steps) except -1 nogil:
        """Return whether all values are in range, and the final values that are needed are there."""
        cdef Py_ssize_t i, t, k, seen = 0
        cdef int64_t env
        cdef bint good = steps.n <= self.env.shape[0], done
        while good and seen < steps.n:
            env = steps.env[seen]
            good = 0 <= env < self.env.shape[0] and not self.named[env]
            if good:
                self.named[env] = 1
                seen += 1
        for i in range(seen):
            env = steps.env[i]
            self.named[env] = 0
            good = good and (not steps.steps
                             or self._row_may_be_added(steps, i, i, self.rings.opens[env] == UNKNOWN))
            for t in range(1, steps.steps if good else 0):
                k = t * steps.n + i
                done = steps.terminated[k - steps.n] or steps.truncated[k - steps.n]
                good = good and self._row_may_be_added(
                    steps, i, k, done and not self.final_inside and not self.column.frames_given(k - steps.n)
                )
        return good

    cdef inline bint _row_may_be_added(self, const Steps *steps, Py_ssize_t i, Py_ssize_t k,
                                       bint gap) except -1 nogil:
        """Return whether row k is good; with a gap before it, a frame is missing from stacks that continue."""
        cdef bint good = steps.terminated[k] <= 1 and steps.truncated[k] <= 1 and isfinite(_reward(steps, k))
        if steps.truncated[k] and not steps.terminated[k] and not self.final_inside:
            good = good and self.column.all_given(k)
        if steps.first != NULL:
            good = good and steps.first[k] <= 1 and (steps.first[k] or not gap)
        return good

    cdef int64_t _add(self, const Steps *steps, double weight) except? -1 nogil:
        """Write all rows, environment by environment; return how many more may be drawn now."""
        cdef Py_ssize_t i, t, k, found = 0, action = self.actions.shape[1]
        cdef Py_ssize_t most = 2 * (self.rings.stack + self.rings.n_step)  # slots that two rows can change
        cdef int64_t env, slot, gained = 0
        cdef uint8_t mark
        cdef int8_t first = -1
        for i in range(steps.n):
            env = steps.env[i]
            for t in range(steps.steps):
                k = t * steps.n + i
                slot = self._slot(env)
                self.column.write(slot, t, i)
                memcpy(&self.actions[slot, 0], steps.actions + k * action, action)
                mark = TERMINATED if steps.terminated[k] else TRUNCATED if steps.truncated[k] else ROW
                if steps.first != NULL:
                    first = steps.first[k]
                found = self._push(env, _reward(steps, k), mark, first, found, &gained)
                if mark != ROW and not self.final_inside:
                    self.column.write_final(self._slot(env), t, i, k)
                    found = self._push(env, 0, ROW, -1, found, &gained)
                    if not self.column.frames_given(k):
                        self.rings.opens[env] = UNKNOWN
                if found + most > self.changed.shape[0]:
                    self._weigh(found, weight)
                    found = 0
        self._weigh(found, weight)
        return gained

    cdef inline int64_t _slot(self, int64_t env) except -1 nogil:
        """Return the slot of a ring's next row."""
        return env * self.rings.rows + self.rings.count[env] % self.rings.rows

    cdef inline Py_ssize_t _push(self, int64_t env, float reward, uint8_t mark, int8_t first, Py_ssize_t found,
                                 int64_t *gained) except -1 nogil:
        """Append one row; return how many slots have changed, and count those that may be drawn now or no longer."""
        cdef Py_ssize_t k, now = self.rings.push_row(env, reward, mark, first, self.changed, found)
        for k in range(found, now):
            gained[0] += 1 if self.rings.drawable[self.changed[k]] else -1
        return now

    cdef int _weigh(self, Py_ssize_t found, double weight) except -1 nogil:
        """Weigh the slots that changed."""
        cdef Py_ssize_t k
        cdef int64_t[::1] changed = self.changed[:found]
        for k in range(found):
            self.nodes[changed[k]] = weight if self.rings.drawable[changed[k]] else 0.0
        repair(self.nodes, self.offsets, changed)
        return 0


cdef inline float _reward(const Steps *steps, Py_ssize_t k) noexcept nogil:
    return steps.floats[k] if steps.floats != NULL else <float>steps.doubles[k]
