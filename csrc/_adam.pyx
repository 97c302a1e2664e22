"""Adam on a CPU in one pass over the memory, gradients clipped; csrc/adam/ has the kernels.

The plain twin is `torch.optim.Adam`.
"""

cimport cython
from libc.math cimport sqrt
from libc.stddef cimport size_t
from libc.stdint cimport uint16_t, uintptr_t

import numpy as np


cdef extern from "adam/adam.h":
    enum:
        ADAM_BLOCK
    ctypedef struct adam_piece:
        const void *grad
        int bfloat16
        size_t start, count
        uint16_t *copy
    ctypedef struct adam_job:
        int pieces
        adam_piece *piece
        float *value
        float *mean
        float *square
        double *sums
        float scale, rate, eps, beta2, less1, less2
        int next
    ctypedef void (*openmp_parallel)(void (*)(void *), void *, unsigned, unsigned) nogil
    ctypedef struct adam_kernels:
        const char *name
        int (*supported)()
    const adam_kernels adam_all[]
    const int adam_all_count
    size_t adam_blocks(const adam_job *job)
    float adam_step(const adam_kernels *, adam_job *, float max_norm, unsigned threads, openmp_parallel) nogil


def supported():
    """Return the names of the sets of kernels that this processor has, the fastest last."""
    return [adam_all[i].name.decode() for i in range(adam_all_count) if adam_all[i].supported()]


@cython.final
@cython.auto_pickle(False)  # it holds addresses
cdef class Adam:
    """Steps over P parameters that lie in one array, with moments like it.

    Parameters
    ----------
    values, mean, square : [total] float32
        Parameters and their moments; steps change them in place.
    starts, counts : list of int
        Of each parameter the place where it begins in these, and its elements.
    copies : list of ([count] uint16 or None)
        Of each parameter a bfloat16 copy that steps keep up to date, or None.
    kernels : str
        One of `supported`.
    threads : int
        Threads that share the work.
    parallel : int
        Address of ``GOMP_parallel`` in the OpenMP library that the process has loaded, or 0: then one thread works.

    Raises
    ------
    ValueError
        If a parameter does not fit.
    """

    cdef adam_job job
    cdef const adam_kernels *kernels
    cdef openmp_parallel parallel
    cdef unsigned threads
    cdef list held
    cdef object pieces, sums

    def __init__(self, values, mean, square, list starts, list counts, list copies, str kernels, int threads,
                 uintptr_t parallel):
        cdef int i
        cdef adam_piece *piece
        self.kernels = NULL
        for i in range(adam_all_count):
            if adam_all[i].name.decode() == kernels and adam_all[i].supported():
                self.kernels = &adam_all[i]
        if self.kernels is NULL:
            raise ValueError(f"kernels is {kernels!r}; this processor has {', '.join(supported())}")
        if threads < 1 or not len(starts) == len(counts) == len(copies) > 0:
            raise ValueError(f"{len(starts)} starts, {len(counts)} counts, {len(copies)} copies, {threads} threads")
        total = len(values)
        self.held = [values, mean, square, *copies]
        self.job.value = <float *>self._address("values", values, np.float32, total)
        self.job.mean = <float *>self._address("mean", mean, np.float32, total)
        self.job.square = <float *>self._address("square", square, np.float32, total)
        self.pieces = np.zeros(len(starts) * sizeof(adam_piece), np.uint8)
        self.job.pieces, self.job.piece = len(starts), <adam_piece *><uintptr_t>self.pieces.ctypes.data
        end = 0
        for i in range(self.job.pieces):
            piece = &self.job.piece[i]
            if not end <= starts[i] <= starts[i] + counts[i] <= total or counts[i] < 1:
                raise ValueError(f"parameter {i} is {counts[i]} elements at {starts[i]} of {total}; the last ended at {end}")
            piece.start, piece.count = starts[i], counts[i]
            end = starts[i] + counts[i]
            if copies[i] is not None:
                piece.copy = <uint16_t *>self._address(f"copies[{i}]", copies[i], np.uint16, counts[i])
        self.sums = np.zeros(adam_blocks(&self.job), np.float64)
        self.job.sums = <double *><uintptr_t>self.sums.ctypes.data
        self.threads, self.parallel = threads, <openmp_parallel><void *>parallel

    def step(self, list grads, long count, double rate, double beta1, double beta2, double eps, float max_norm):
        """Take step number ``count`` and return the norm that the gradients had.

        Parameters
        ----------
        grads : list of array
            Of each parameter the gradient, C-contiguous, [count] float32 or bfloat16 as uint16.
        count : int
            Steps taken, this one included: 1 at the first.
        rate, beta1, beta2, eps : float
            As in Kingma & Ba 2015.
        max_norm : float
            Gradients of a larger norm, all together, are scaled down to it.
        """
        cdef int i
        if len(grads) != self.job.pieces:
            raise ValueError(f"{len(grads)} gradients; give {self.job.pieces}")
        if count < 1:
            raise ValueError(f"count is {count}; give at least 1")
        for i in range(self.job.pieces):
            grad = grads[i]
            self.job.piece[i].bfloat16 = grad.dtype == np.uint16
            dtype = np.uint16 if grad.dtype == np.uint16 else np.float32
            self.job.piece[i].grad = self._address(f"grads[{i}]", grad, dtype, self.job.piece[i].count)
        correction = sqrt(1 - beta2 ** count)
        self.job.rate, self.job.eps = rate / (1 - beta1 ** count) * correction, eps * correction
        self.job.beta2, self.job.less1, self.job.less2 = beta2, 1 - beta1, 1 - beta2
        cdef float norm
        with nogil:
            norm = adam_step(self.kernels, &self.job, max_norm, self.threads, self.parallel)
        return norm

    cdef void *_address(self, name, array, dtype, size) except NULL:
        if array.dtype != dtype or array.size != size or not array.flags.c_contiguous:
            raise ValueError(f"{name} is {array.dtype} [{array.size}]; give {np.dtype(dtype)} [{size}], C-contiguous")
        return <void *><uintptr_t>array.ctypes.data
