"""Copy frames to where a batch holds them, in one thread or several. The plain twin is fastrl/replay/reference.py.

Frames of one game follow each other in memory, so that most stacks are one piece of it, copied in one call.
"""

cimport cython
from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock, WAIT_LOCK,
)
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(__i386__)
      #define fastrl_pause() __builtin_ia32_pause()
    #else
      #define fastrl_pause() ((void)0)
    #endif
    """
    void pause "fastrl_pause"() noexcept nogil

cdef enum:
    PAUSES = 20  # between two looks


cdef inline int _copy(const uint8_t[:, ::1] frames, const int64_t *numbers, Py_ssize_t stack, uint8_t[:, ::1] out,
                      Py_ssize_t row) except -1 nogil:
    """Copy one stack into ``out[row]`` and the rows after it, in pieces of frames that follow each other in memory."""
    cdef Py_ssize_t k = 0, count, size = frames.shape[1]
    cdef const uint8_t *begin
    while k < stack:
        count = 1
        if numbers[k] < 0:
            memset(&out[row + k, 0], 0, size)
        else:
            while k + count < stack and numbers[k + count] == numbers[k] + count:
                count += 1
            begin = &frames[numbers[k], 0]
            memcpy(&out[row + k, 0], begin, &frames[numbers[k] + count - 1, 0] - begin + size)
        k += count
    return 0


cdef int _gather(const uint8_t[:, ::1] frames, const int64_t[:, ::1] numbers, uint8_t[:, ::1] out, Py_ssize_t begin,
                 Py_ssize_t end) except -1 nogil:
    cdef Py_ssize_t b, stack = numbers.shape[1]
    for b in range(begin, end):
        _copy(frames, &numbers[b, 0], stack, out, b * stack)
    return 0


cdef int _gather_both(const uint8_t[:, ::1] frames, const int64_t[:, :, ::1] numbers, uint8_t[:, ::1] one,
                      uint8_t[:, ::1] other, Py_ssize_t begin, Py_ssize_t end) except -1 nogil:
    # The two stacks share most of their frames, which are still in the caches when the second is copied.
    cdef Py_ssize_t b, stack = numbers.shape[2]
    for b in range(begin, end):
        _copy(frames, &numbers[0, b, 0], stack, one, b * stack)
        _copy(frames, &numbers[1, b, 0], stack, other, b * stack)
    return 0


cdef int _gather_all(const uint8_t[:, ::1] frames, const int64_t[:, :, ::1] numbers, uint8_t[:, ::1] one,
                     uint8_t[:, ::1] other, Py_ssize_t begin, Py_ssize_t end) except -1 nogil:
    if numbers.shape[0] == 1:
        return _gather(frames, numbers[0], one, begin, end)
    return _gather_both(frames, numbers, one, other, begin, end)


def gather(const uint8_t[:, ::1] frames, const int64_t[:, ::1] numbers, uint8_t[:, ::1] out, Py_ssize_t begin,
           Py_ssize_t end):
    """Copy the frames ``numbers[b, k]``, as bytes, into ``out[b K + k]``, for b from begin to end."""
    with nogil:
        _gather(frames, numbers, out, begin, end)


def gather_both(const uint8_t[:, ::1] frames, const int64_t[:, :, ::1] numbers, uint8_t[:, ::1] one,
                uint8_t[:, ::1] other, Py_ssize_t begin, Py_ssize_t end):
    """Gather ``numbers[0]`` into ``one`` and ``numbers[1]`` into ``other``, as `gather` does, in one pass."""
    with nogil:
        _gather_both(frames, numbers, one, other, begin, end)


@cython.final
@cython.auto_pickle(False)
cdef class Crew:
    """Threads that share a gather. None of them needs the GIL, and nobody waits for one that wakes late.

    The rows are taken piece by piece, by whoever is awake: the caller of `gather`, and the threads inside `serve`, which
    sleep between gathers. ``lock`` guards all numbers below. ``wake`` and ``done`` are held but for a moment: to release
    one wakes a thread, or the caller.

    The arrays are kept only during a gather: a pool lends a batch again once nothing refers to it.

    Parameters
    ----------
    looks : int
        How often a caller who is done looks whether the threads are, before it sleeps until they wake it.
    """

    cdef PyThread_type_lock lock, wake, done, busy
    cdef const uint8_t[:, ::1] frames
    cdef const int64_t[:, :, ::1] numbers
    cdef uint8_t[:, ::1] one, other
    cdef Py_ssize_t next, end, piece  # rows: the first that nobody has taken, all, and how many to take at once
    cdef Py_ssize_t asleep, at_work  # threads
    cdef long looks
    cdef bint woken, waiting, over  # a thread was woken and has not said so; the caller sleeps; `stop` was called

    def __cinit__(self, *_):
        self.lock, self.wake = PyThread_allocate_lock(), PyThread_allocate_lock()
        self.done, self.busy = PyThread_allocate_lock(), PyThread_allocate_lock()
        if self.lock == NULL or self.wake == NULL or self.done == NULL or self.busy == NULL:
            raise MemoryError("too little memory for a lock")
        PyThread_acquire_lock(self.wake, WAIT_LOCK)
        PyThread_acquire_lock(self.done, WAIT_LOCK)

    def __init__(self, long looks):
        self.looks = looks

    def __dealloc__(self):
        cdef PyThread_type_lock *locks = [self.lock, self.wake, self.done, self.busy]
        cdef int k
        for k in range(4):
            if locks[k] != NULL:
                PyThread_free_lock(locks[k])

    def serve(self):
        """Help with every gather until `stop` is called; a thread does nothing else."""
        with nogil:
            self._serve()

    def stop(self):
        """Let all threads return from `serve`."""
        PyThread_acquire_lock(self.lock, WAIT_LOCK)
        self.over = True
        self._wake_one()
        PyThread_release_lock(self.lock)

    def gather(self, const uint8_t[:, ::1] frames, const int64_t[:, :, ::1] numbers, uint8_t[:, ::1] one,
               uint8_t[:, ::1] other, Py_ssize_t piece):
        """Do as `gather_both`, or where ``numbers`` is ``[1, B, stack]`` as `gather`, with the threads in `serve`.

        Parameters
        ----------
        piece : int
            Rows to take at once, at least 1.
        """
        if not PyThread_acquire_lock(self.busy, NOWAIT_LOCK):  # another thread gathers with them
            with nogil:
                _gather_all(frames, numbers, one, other, 0, numbers.shape[1])
            return
        try:
            self.frames, self.numbers, self.one, self.other = frames, numbers, one, other
            with nogil:
                self._share(numbers.shape[1], piece)
        finally:
            self.frames, self.numbers, self.one, self.other = None, None, None, None
            PyThread_release_lock(self.busy)

    cdef int _share(self, Py_ssize_t rows, Py_ssize_t piece) except -1 nogil:
        """Copy all rows; return when nobody copies any more."""
        cdef long looks = 0
        cdef int pauses
        PyThread_acquire_lock(self.lock, WAIT_LOCK)
        self.next, self.end, self.piece = 0, rows, piece
        PyThread_release_lock(self.lock)
        try:
            self._copy_pieces()
        finally:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            self.next = self.end
            while self.at_work:
                self.waiting = looks >= self.looks
                PyThread_release_lock(self.lock)
                if looks >= self.looks:
                    PyThread_acquire_lock(self.done, WAIT_LOCK)
                else:
                    for pauses in range(PAUSES):
                        pause()
                    looks += 1
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
            PyThread_release_lock(self.lock)
        return 0

    cdef int _serve(self) except -1 nogil:
        cdef bint over = False
        while not over:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            self.asleep += 1
            if self.over:
                self._wake_one()  # me, if nobody else
            PyThread_release_lock(self.lock)
            PyThread_acquire_lock(self.wake, WAIT_LOCK)
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            self.woken, over = False, self.over
            self.asleep -= 1
            self.at_work += 1
            if over:
                self._wake_one()
            PyThread_release_lock(self.lock)
            try:
                self._copy_pieces()
            finally:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
                self.at_work -= 1
                if self.waiting and not self.at_work:
                    self.waiting = False
                    PyThread_release_lock(self.done)
                PyThread_release_lock(self.lock)
        return 0

    cdef int _copy_pieces(self) except -1 nogil:
        """Take and copy pieces until none is left."""
        cdef Py_ssize_t begin, end
        while True:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            begin = self.next
            end = self.next = min(begin + self.piece, self.end)
            if end < self.end:
                self._wake_one()
            PyThread_release_lock(self.lock)
            if begin == end:
                return 0
            _gather_all(self.frames, self.numbers, self.one, self.other, begin, end)

    cdef inline void _wake_one(self) noexcept nogil:
        """Wake a thread if one sleeps, unless one is waking already; ``lock`` is held."""
        if self.asleep and not self.woken:
            self.woken = True
            PyThread_release_lock(self.wake)
