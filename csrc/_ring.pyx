"""Append rows to the rings of many environments and say which rows may be drawn from now on.

Ring of environment e, T slots, row r in slot e T + r mod T (row numbers only ever grow):

    oldest = count - T                pending                         count - 1
      | stack reaches an overwritten    | window still open             | newest
      | row: not drawable               | not yet drawable              |

Marks: 0 row, 1 truncated, 2 terminated, 3 final observation (its action was ignored). The plain twin
is fastrl/replay/reference.py.
"""

from libc.stdint cimport int8_t, int64_t, uint8_t

cdef enum Mark:
    ROW = 0
    FINAL = 3


cdef Py_ssize_t _push_row(int64_t env, float in_reward, uint8_t in_mark, int8_t in_first, int64_t rows,
                          int64_t stack, int64_t n_step, int64_t[::1] count, int64_t[::1] pending,
                          uint8_t[::1] ended, uint8_t[::1] opens, uint8_t[::1] first, float[::1] reward,
                          uint8_t[::1] mark, uint8_t[::1] drawable, int64_t[::1] changed,
                          Py_ssize_t found) except -1 nogil:
    """Append one row; return how many entries ``changed`` holds now."""
    cdef int64_t new = count[env], base = env * rows, slot = base + new % rows, r, at
    cdef bint final = ended[env] and in_first != 1
    cdef bint is_first = not final and (new == 0 or (opens[env] if in_first < 0 else in_first))

    # The row that lived here is gone, and so are the rows whose stacks reach back to it.
    if drawable[slot]:
        drawable[slot] = 0
        changed[found] = slot
        found += 1
    if new >= rows:
        for r in range(new - rows + 1, new - rows + stack):
            at = base + r % rows
            if first[at]:
                break
            if drawable[at]:
                drawable[at] = 0
                changed[found] = at
                found += 1

    first[slot] = is_first
    reward[slot] = 0 if final else in_reward
    mark[slot] = FINAL if final else in_mark
    count[env] = new + 1
    opens[env] = final
    ended[env] = not final and in_mark != ROW

    # The new frame closes the windows that waited for it. A new game closes none: what an abandoned
    # episode would have brought is unknown for good.
    if is_first:
        pending[env] = new
    for r in range(pending[env], new if final else new - n_step + 1):
        at = base + r % rows
        drawable[at] = 1
        changed[found] = at
        found += 1
        pending[env] = r + 1
    if final:
        pending[env] = new + 1
    return found


cdef Py_ssize_t _push(const int64_t[::1] env, const float[::1] in_reward, const uint8_t[::1] in_mark,
                      const int8_t[::1] in_first, int64_t rows, int64_t stack, int64_t n_step,
                      int64_t[::1] count, int64_t[::1] pending, uint8_t[::1] ended, uint8_t[::1] opens,
                      uint8_t[::1] first, float[::1] reward, uint8_t[::1] mark, uint8_t[::1] drawable,
                      int64_t[::1] slots, int64_t[::1] changed) except -1 nogil:
    cdef Py_ssize_t i, found = 0
    for i in range(env.shape[0]):
        slots[i] = env[i] * rows + count[env[i]] % rows
        found = _push_row(env[i], in_reward[i], in_mark[i], in_first[i], rows, stack, n_step, count,
                          pending, ended, opens, first, reward, mark, drawable, changed, found)
    return found


def push(const int64_t[::1] env, const float[::1] in_reward, const uint8_t[::1] in_mark,
         const int8_t[::1] in_first, int64_t rows, int64_t stack, int64_t n_step,
         int64_t[::1] count, int64_t[::1] pending, uint8_t[::1] ended, uint8_t[::1] opens,
         uint8_t[::1] first, float[::1] reward, uint8_t[::1] mark, uint8_t[::1] drawable,
         int64_t[::1] slots, int64_t[::1] changed):
    """Append one row to the ring of each ``env[i]``; return how many slots ``changed`` names."""
    cdef Py_ssize_t found
    with nogil:
        found = _push(env, in_reward, in_mark, in_first, rows, stack, n_step, count, pending, ended,
                      opens, first, reward, mark, drawable, slots, changed)
    return found
