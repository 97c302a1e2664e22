from libc.stdint cimport int64_t

cdef int repair(double[::1] nodes, const int64_t[::1] offsets, const int64_t[::1] leaves) except -1 nogil
