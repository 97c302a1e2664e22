from libc.stdint cimport int64_t

cdef extern from *:
    """
    #if defined(__GNUC__)
      #define fastrl_prefetch(address) __builtin_prefetch(address)
    #else
      #define fastrl_prefetch(address) ((void)(address))
    #endif
    """
    void prefetch "fastrl_prefetch"(const void *address) noexcept nogil

cdef int repair(double[::1] nodes, const int64_t[::1] offsets, const int64_t[::1] leaves) except -1 nogil
cdef int draw(const double[::1] nodes, const int64_t[::1] offsets, double[::1] uniforms,
              int64_t[::1] leaves) except -1 nogil
