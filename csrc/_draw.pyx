"""Draw rows by their weight, and assemble all that a batch holds except its frames.

Slots of one environment are contiguous (slot e T + t, T slots each) and wrap within it. The plain twin is
fastrl/replay/reference.py.
"""

cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from fastrl.replay._marks cimport TERMINATED
from fastrl.replay._sum_tree cimport draw, prefetch


@cython.final
@cython.auto_pickle(False)
cdef class Drawer:
    """Draws from rings and tree, arrays that Python owns.

    Parameters
    ----------
    rows : int
        T.
    zero : bool
        What stands in a stack before the first frame of a game: zeros (frame -1), or that frame again.
    powers : [n + 1] float64
        gamma to the powers 0 to n, where n is the number of steps in a return.
    nodes, offsets
        Of the sum tree (see `_sum_tree`).
    count, first, reward, mark
        Of the rings (see `_ring`).
    action : [slots, bytes] uint8
        Actions, as bytes.
    """

    cdef int64_t rows
    cdef bint zero
    cdef const double[::1] powers, nodes
    cdef const int64_t[::1] offsets, count
    cdef const uint8_t[::1] first, mark
    cdef const float[::1] reward
    cdef const uint8_t[:, ::1] action

    def __init__(self, int64_t rows, bint zero, const double[::1] powers, const double[::1] nodes,
                 const int64_t[::1] offsets, const int64_t[::1] count, const uint8_t[::1] first,
                 const float[::1] reward, const uint8_t[::1] mark, const uint8_t[:, ::1] action):
        self.rows, self.zero, self.powers, self.nodes, self.offsets = rows, zero, powers, nodes, offsets
        self.count, self.first, self.reward, self.mark, self.action = count, first, reward, mark, action

    def draw(self, double[::1] uniforms, uint8_t[:, ::1] action, float[::1] returns, float[::1] discounts,
             int64_t[::1] index, int64_t[:, :, ::1] numbers):
        """Draw B rows, one from each of B equal strata of the sum, at the places that ``uniforms [B]`` choose.

        Parameters
        ----------
        uniforms : [B] float64
            Random numbers in [0, 1). Overwritten with the ratio of each row's weight to the least of them.
        action : [B, bytes] uint8
            Gets their actions, as bytes.
        returns, discounts : [B] float32
            Get their n-step returns and discounts.
        index : [B] int64
            Gets their names.
        numbers : [2, B, stack] int64
            Gets the frames of both their stacks, oldest first.
        """
        with nogil:
            draw(self.nodes, self.offsets, uniforms, index)
            self._assemble(uniforms, action, returns, discounts, index, numbers)

    cdef int _assemble(self, double[::1] weights, uint8_t[:, ::1] action, float[::1] returns, float[::1] discounts,
                       int64_t[::1] index, int64_t[:, :, ::1] numbers) except -1 nogil:
        """Fill in what `draw` returns, for rows whose slots stand in ``index``."""
        cdef Py_ssize_t b, batch = index.shape[0], stack = numbers.shape[2], size = action.shape[1]
        cdef int64_t slot
        cdef double least = INFINITY
        for b in range(batch):  # scattered in memory: start all the loads at once
            prefetch(&self.reward[index[b]])
            prefetch(&self.mark[index[b]])
            prefetch(&self.first[index[b]])
            prefetch(&self.action[index[b], 0])
        for b in range(batch):
            slot = index[b]
            weights[b] = self.nodes[slot]
            memcpy(&action[b, 0], &self.action[slot, 0], size)
            index[b] = self.name(slot)
            self.stack(slot, &numbers[0, b, 0], stack)
            slot = self.walk(slot, &returns[b], &discounts[b])
            self.stack(slot, &numbers[1, b, 0], stack)
            least = min(least, weights[b])
        for b in range(batch):
            weights[b] /= least  # infinity if they are too far apart
        return 0

    cdef inline int64_t name(self, int64_t slot) except -1 nogil:
        """Return the name of the newest row written to a slot."""
        cdef int64_t env = slot // self.rows, newest = self.count[env] - 1
        return (newest - (newest - (slot - env * self.rows)) % self.rows) * self.count.shape[0] + env

    cdef inline int64_t walk(self, int64_t slot, float *returned, float *discount) except -1 nogil:
        """Sum the rewards of a row's window; return the slot after the window."""
        cdef Py_ssize_t k = 0, n = self.powers.shape[0] - 1
        cdef double total = 0.0
        cdef uint8_t end = 0
        while k < n and not end:
            total += self.powers[k] * self.reward[slot]
            end = self.mark[slot]
            slot = slot + 1 if (slot + 1) % self.rows else slot + 1 - self.rows
            k += 1
        returned[0] = <float>total
        discount[0] = 0.0 if end == TERMINATED else <float>self.powers[k]
        return slot

    cdef inline int stack(self, int64_t slot, int64_t *numbers, Py_ssize_t size) except -1 nogil:
        """Write the numbers of the frames of the stack that ends in a slot."""
        cdef Py_ssize_t k = size - 2
        cdef int64_t pad
        numbers[size - 1] = slot
        while k >= 0 and not self.first[slot]:
            slot = slot - 1 if slot % self.rows else slot + self.rows - 1
            numbers[k] = slot
            k -= 1
        pad = -1 if self.zero else slot
        while k >= 0:
            numbers[k] = pad
            k -= 1
        return 0
