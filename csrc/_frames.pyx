"""From slots to what a batch holds: frame numbers of stacks, n-step returns, frames.

Slots of one environment are contiguous (slot e T + t, T slots each) and wrap within it. The plain twin
is fastrl/replay/reference.py.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset


cdef int _stack_numbers(const uint8_t[::1] first, int64_t rows, const int64_t[::1] slots, bint zero,
                        int64_t[:, ::1] numbers) except -1 nogil:
    cdef Py_ssize_t b, k, stack = numbers.shape[1]
    cdef int64_t slot, pad
    for b in range(slots.shape[0]):
        slot = slots[b]
        numbers[b, stack - 1] = slot
        k = stack - 2
        while k >= 0 and not first[slot]:
            slot = slot - 1 if slot % rows else slot + rows - 1
            numbers[b, k] = slot
            k -= 1
        pad = -1 if zero else slot
        while k >= 0:
            numbers[b, k] = pad
            k -= 1
    return 0


cdef int _n_step(const float[::1] reward, const uint8_t[::1] mark, int64_t rows,
                 const int64_t[::1] slots, const double[::1] powers, float[::1] returns,
                 float[::1] discounts, int64_t[::1] next_slots) except -1 nogil:
    cdef Py_ssize_t b, k, n = powers.shape[0] - 1
    cdef int64_t slot
    cdef double total
    cdef uint8_t end
    for b in range(slots.shape[0]):
        slot = slots[b]
        total = 0.0
        end = 0
        k = 0
        while k < n and not end:
            total += powers[k] * reward[slot]
            end = mark[slot]
            slot = slot + 1 if (slot + 1) % rows else slot + 1 - rows
            k += 1
        returns[b] = <float>total
        discounts[b] = 0.0 if end == 2 else <float>powers[k]
        next_slots[b] = slot
    return 0


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
    # A frame of both stacks goes into both while it is in the caches: stacks share most of theirs.
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


def stack_numbers(const uint8_t[::1] first, int64_t rows, const int64_t[::1] slots, bint zero,
                  int64_t[:, ::1] numbers):
    """Put into ``numbers [B, stack]`` the frames of each slot's stack, oldest first; -1 is a frame of zeros."""
    with nogil:
        _stack_numbers(first, rows, slots, zero, numbers)


def n_step(const float[::1] reward, const uint8_t[::1] mark, int64_t rows, const int64_t[::1] slots,
           const double[::1] powers, float[::1] returns, float[::1] discounts,
           int64_t[::1] next_slots):
    """Sum rewards over each slot's window; ``powers`` are gamma to the 0th … nth."""
    with nogil:
        _n_step(reward, mark, rows, slots, powers, returns, discounts, next_slots)


def gather(const uint8_t[:, ::1] frames, const int64_t[:, ::1] numbers, uint8_t[:, ::1] out, Py_ssize_t begin,
           Py_ssize_t end):
    """Copy the frames ``numbers[b, k]``, as bytes, into ``out[b K + k]``, for b from begin to end."""
    with nogil:
        _gather(frames, numbers, out, begin, end)


def gather_both(const uint8_t[:, ::1] frames, const int64_t[:, :, ::1] numbers, uint8_t[:, ::1] one,
                uint8_t[:, ::1] other, Py_ssize_t begin, Py_ssize_t end):
    """Do as `gather` with ``numbers[0]`` for ``one`` and ``numbers[1]`` for ``other``, in one pass."""
    with nogil:
        _gather_both(frames, numbers, one, other, begin, end)
