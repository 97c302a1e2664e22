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


cdef int _gather(const uint8_t[:, ::1] frames, const int64_t[::1] numbers,
                 uint8_t[:, ::1] out) except -1 nogil:
    cdef Py_ssize_t i, size = frames.shape[1]
    for i in range(numbers.shape[0]):
        if numbers[i] < 0:
            memset(&out[i, 0], 0, size)
        else:
            memcpy(&out[i, 0], &frames[numbers[i], 0], size)
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


def gather(const uint8_t[:, ::1] frames, const int64_t[::1] numbers, uint8_t[:, ::1] out):
    """Copy the numbered frames, as bytes, into ``out``."""
    with nogil:
        _gather(frames, numbers, out)
