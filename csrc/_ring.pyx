"""Append rows to the rings of many environments, and keep track of which rows may be drawn.

Ring of environment e, T slots, row r in slot e T + r mod T (row numbers only ever grow):

    oldest = count - T                pending                         count - 1
      | stack reaches an overwritten    | window still open             | newest
      | row: not drawable               | not yet drawable              |

The marks are those of fastrl/replay/_marks.pxd. The plain twin is fastrl/replay/reference.py.
"""

cimport cython
from libc.stdint cimport int8_t, int64_t, uint8_t

from fastrl.replay._marks cimport FINAL, ROW, TERMINATED, TRUNCATED, UNKNOWN

MARKS = {"ROW": ROW, "TRUNCATED": TRUNCATED, "TERMINATED": TERMINATED, "FINAL": FINAL, "UNKNOWN": UNKNOWN}


@cython.final
@cython.auto_pickle(False)
cdef class Rings:
    """Columns and cursors of the rings, arrays that Python owns."""

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
        # episode would have brought stays unknown.
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

        Returns the position of the first name that belongs to no row, or -1.
        """
        cdef Py_ssize_t unknown
        with nogil:
            unknown = self._locate(index, slots, alive)
        return unknown
