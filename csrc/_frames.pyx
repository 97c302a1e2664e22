"""Copy frames to where a batch holds them. The plain twin is fastrl/replay/reference.py.

Frames of one game follow each other in memory, so that most stacks are one piece of it, copied in one call.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset


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
