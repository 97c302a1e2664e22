"""Assemble stretches of consecutive rows: all that a batch of them holds except its frames.

A game in its ring, with ``period`` = 4, a stretch of 5 steps that begins at row 8, and 3 steps of burn-in:

    row     3     4     5     6     7   |  8     9    10    11   | 12    13    14
    what  first   .     .     .     .   |  .   done  final   .   |  .     .   newest
    cell  [3..]  [4 . . . . . . . . 7]    [8 . . . . . . . . 11]   [12 . . .
    burn-in             5     6     7
    stretch                                8     9    10    11     12
    mask                1     1     1      1     1     0     1      1

The rows of a game that lie between two multiples of ``period`` are a *cell*, and each cell has one stretch, which begins
at its first row that may be drawn. Row 10 is the final observation of a lost life: its frame belongs to later stacks,
but no action was taken there.

Slots of one environment are contiguous (slot e T + t, T slots each) and wrap within it. The plain twin is
fastrl/replay/reference.py.
"""

cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from fastrl.replay._marks cimport FINAL, TERMINATED


@cython.final
@cython.auto_pickle(False)
cdef class Stretches:
    """Reads stretches from rings and tree, arrays that Python owns.

    Parameters
    ----------
    rows : int
        T.
    stack : int
        Frames in an observation.
    zero : bool
        What stands in a stack before the first frame of a game: zeros (frame -1), or that frame again.
    gamma : float
        Discount per step.
    nodes
        Of the sum tree (see `_sum_tree`).
    oldest : [N] int64
        Number of the oldest row that each ring holds.
    count, first, reward, mark
        Of the rings (see `_ring`).
    action : [slots, bytes] uint8
        Actions, as bytes.
    """

    cdef int64_t rows, stack
    cdef bint zero
    cdef float gamma
    cdef const double[::1] nodes
    cdef const int64_t[::1] oldest, count
    cdef const uint8_t[::1] first, mark
    cdef const float[::1] reward
    cdef const uint8_t[:, ::1] action

    def __init__(self, int64_t rows, int64_t stack, bint zero, double gamma, const double[::1] nodes,
                 const int64_t[::1] oldest, const int64_t[::1] count, const uint8_t[::1] first,
                 const float[::1] reward, const uint8_t[::1] mark, const uint8_t[:, ::1] action):
        self.rows, self.stack, self.zero, self.gamma, self.nodes = rows, stack, zero, <float>gamma, nodes
        self.oldest, self.count, self.first, self.reward, self.mark = oldest, count, first, reward, mark
        self.action = action

    def unfinished(self, int64_t length, int64_t[::1] slots):
        """Put into ``slots [N min(length, T)]`` the rows of games in progress that have fewer than ``length`` steps yet.

        Returns how many there are.
        """
        cdef Py_ssize_t found
        with nogil:
            found = self._unfinished(length, slots)
        return found

    cdef Py_ssize_t _unfinished(self, int64_t length, int64_t[::1] slots) except -1 nogil:
        cdef Py_ssize_t found = 0
        cdef int64_t env, row, newest, last
        for env in range(self.count.shape[0]):
            newest = self.count[env] - 1
            last = max(self.oldest[env], newest - length + 1)
            row = newest
            if row < last or self.mark[self.at(env, newest)] == FINAL:
                continue
            while row >= last:
                slots[found] = self.at(env, row)
                found += 1
                if self.first[self.at(env, row)]:
                    break
                row -= 1
        return found

    def assemble(self, int64_t period, int64_t burn_in, int64_t[::1] index, double[::1] weights,
                 uint8_t[:, ::1] action, float[:, ::1] reward, float[:, ::1] discount, uint8_t[:, ::1] mask,
                 int64_t[:, ::1] numbers):
        """Read the B stretches whose cells hold the rows in the slots ``index [B]``, each over L steps with the burn-in.

        Parameters
        ----------
        period : int
            Rows between two starts.
        burn_in : int
            Steps before the start.
        index : [B] int64
            Overwritten with the names of the rows at which the stretches start.
        weights : [B] float64
            Gets the ratio of each cell's weight, the sum of its rows', to the least of them.
        action : [B L, bytes] uint8
            Gets the actions, as bytes.
        reward, discount, mask : [B, L]
            Get rewards and discounts of single steps, and whether there is one.
        numbers : [B, stack - 1 + L + 1] int64
            Gets the frames, oldest first: the stack of the first step, then one frame a row; -1 where there is none.
        """
        with nogil:
            self._assemble(period, burn_in, index, weights, action, reward, discount, mask, numbers)

    cdef int _assemble(self, int64_t period, int64_t burn_in, int64_t[::1] index, double[::1] weights,
                       uint8_t[:, ::1] action, float[:, ::1] reward, float[:, ::1] discount, uint8_t[:, ::1] mask,
                       int64_t[:, ::1] numbers) except -1 nogil:
        cdef Py_ssize_t b, batch = index.shape[0], steps = mask.shape[1]
        cdef int64_t env, newest, row, begin
        cdef double least = INFINITY
        for b in range(batch):
            env = index[b] // self.rows
            newest = self.count[env] - 1
            row = newest - (newest - (index[b] - env * self.rows)) % self.rows
            row = self.start_of_cell(env, row, period, &weights[b])
            least = min(least, weights[b])
            index[b] = row * self.count.shape[0] + env
            begin = self.begin_of_burn_in(env, row, burn_in)
            memset(&action[b * steps, 0], 0, steps * action.shape[1])
            memset(&reward[b, 0], 0, steps * sizeof(float))
            memset(&discount[b, 0], 0, steps * sizeof(float))
            memset(&mask[b, 0], 0, steps)
            self.read(env, begin, burn_in - (row - begin), &action[b * steps, 0], action.shape[1], &reward[b, 0],
                      &discount[b, 0], &mask[b, 0], steps, &numbers[b, 0])
        for b in range(batch):
            weights[b] /= least
        return 0

    cdef inline int64_t at(self, int64_t env, int64_t row) noexcept nogil:
        """Return the slot of a row."""
        return env * self.rows + row % self.rows

    cdef inline int64_t start_of_cell(self, int64_t env, int64_t row, int64_t period,
                                      double *weight) except -1 nogil:
        """Return the first row of weight in a row's cell; put the cell's weight into ``weight``."""
        cdef int64_t newest = self.count[env] - 1, floor = row - row % period, q = row, found = -1
        cdef int64_t slot
        while q > floor and q > self.oldest[env] and not self.first[self.at(env, q)]:
            q -= 1
        weight[0] = 0.0
        while q - floor < period and q <= newest:
            slot = self.at(env, q)
            if q > row and self.first[slot]:
                break
            weight[0] += self.nodes[slot]
            if found < 0 and self.nodes[slot] > 0:
                found = q
            q += 1
        return found

    cdef inline int64_t begin_of_burn_in(self, int64_t env, int64_t row, int64_t burn_in) except -1 nogil:
        """Return the first row of the burn-in before a row: of its game, with a stack whose frames are all held."""
        cdef int64_t q = row
        while q > self.oldest[env] and row - q < burn_in + self.stack - 1 and not self.first[self.at(env, q)]:
            q -= 1
        if not self.first[self.at(env, q)]:
            q = min(row, q + self.stack - 1)
        q = max(q, row - burn_in)
        while self.mark[self.at(env, q)] == FINAL:
            q += 1
        return q

    cdef inline int read(self, int64_t env, int64_t row, Py_ssize_t place, uint8_t *action, Py_ssize_t size,
                         float *reward, float *discount, uint8_t *mask, Py_ssize_t steps,
                         int64_t *numbers) except -1 nogil:
        """Read steps from a row on into ``place`` and after it, until they are full or the game ends."""
        cdef int64_t newest = self.count[env] - 1, q = row, slot = self.at(env, row), after, pad
        cdef Py_ssize_t before = self.stack - 1, k
        for k in range(place):
            numbers[k] = -1
        numbers[place + before] = slot
        k = place + before - 1
        while k >= place and not self.first[self.at(env, q)]:
            q -= 1
            numbers[k] = self.at(env, q)
            k -= 1
        pad = -1 if self.zero else self.at(env, q)
        while k >= place:
            numbers[k] = pad
            k -= 1

        while place < steps and row < newest:
            after = self.at(env, row + 1)
            if self.first[after]:
                break
            if self.mark[slot] != FINAL:
                memcpy(action + place * size, &self.action[slot, 0], size)
                reward[place] = self.reward[slot]
                discount[place] = 0.0 if self.mark[slot] == TERMINATED else self.gamma
                mask[place] = 1
            slot = after
            row += 1
            place += 1
            numbers[place + before] = slot
        for k in range(place + before + 1, before + steps + 1):
            numbers[k] = -1
        return 0
