"""Copy frames to where a batch holds them. The plain twin is fastrl/replay/reference.py."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset


cdef inline void _copy(const uint8_t[:, ::1] frames, int64_t number, uint8_t *to) noexcept nogil:
    if number < 0:
        memset(to, 0, frames.shape[1])
    else:
        memcpy(to, &frames[number, 0], frames.shape[1])


cdef int _gather(const uint8_t[:, ::1] frames, const int64_t[:, ::1] numbers, uint8_t[:, ::1] out, Py_ssize_t begin,
                 Py_ssize_t end) except -1 nogil:
    cdef Py_ssize_t b, k, stack = numbers.shape[1]
    for b in range(begin, end):
        for k in range(stack):
            _copy(frames, numbers[b, k], &out[b * stack + k, 0])
    return 0


cdef int _gather_both(const uint8_t[:, ::1] frames, const int64_t[:, :, ::1] numbers, uint8_t[:, ::1] one,
                      uint8_t[:, ::1] other, Py_ssize_t begin, Py_ssize_t end) except -1 nogil:
    # The two stacks share most of their frames: one that is in both is copied twice while it is in the caches.
    cdef Py_ssize_t b, k, j, stack = numbers.shape[2]
    for b in range(begin, end):
        j = 0
        for k in range(stack):
            _copy(frames, numbers[0, b, k], &one[b * stack + k, 0])
            while j < stack and numbers[1, b, j] == numbers[0, b, k]:
                _copy(frames, numbers[1, b, j], &other[b * stack + j, 0])
                j += 1
        while j < stack:
            _copy(frames, numbers[1, b, j], &other[b * stack + j, 0])
            j += 1
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
