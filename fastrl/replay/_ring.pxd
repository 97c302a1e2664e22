cimport cython
from libc.stdint cimport int8_t, int64_t, uint8_t


@cython.final
@cython.auto_pickle(False)
cdef class Rings:  # _append reads the fields and calls `push_row`
    cdef int64_t rows, stack, n_step
    cdef int64_t[::1] count, pending
    cdef uint8_t[::1] ended, opens, first, mark, drawable
    cdef float[::1] reward

    cdef Py_ssize_t push_row(self, int64_t env, float in_reward, uint8_t in_mark, int8_t in_first,
                             int64_t[::1] changed, Py_ssize_t found) except -1 nogil
    cdef Py_ssize_t _push(self, const int64_t[::1] env, const float[::1] in_reward, const uint8_t[::1] in_mark,
                          const int8_t[::1] in_first, int64_t[::1] slots, int64_t[::1] changed) except -1 nogil
    cdef Py_ssize_t _locate(self, const int64_t[::1] index, int64_t[::1] slots, uint8_t[::1] alive) except -2 nogil
