"""The convolutions of a trunk on a CPU, from bytes to features and back; csrc/trunk/ has the kernels.

The plain twin is the eager trunk of `fastrl.dqn.network.QNetwork`.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uintptr_t

import numpy as np


ctypedef void (*trunk_work)(void *) noexcept nogil

cdef extern from "trunk/trunk.h":
    enum:
        TRUNK_LAYERS
        TRUNK_NETS
    enum trunk_role:
        TRUNK_RELU
        TRUNK_CONV
        TRUNK_POOL
        TRUNK_FIRST
        TRUNK_SECOND
    ctypedef struct trunk_layer:
        int c, n, k, s, h, w, ho, wo, role, pad, lh, lw
        size_t left
    ctypedef struct trunk_net:
        int from_ "from"
        int to, keep
        const void *weight[16]
        const float *bias[16]
        void *out[16]
        void *won[16]
        size_t apart
        void *features
    ctypedef struct trunk_job:
        int layers, planes, pool, blocks
        trunk_layer layer[16]
        const uint8_t *obs[2]
        int split, count, nets
        trunk_net net[2]
        const void *grad
        const void *back[16]
        int by_filter
        const float *zeros
        float *dweight[16]
        float *dbias[16]
        int parts
        char *scratch
        size_t scratch_bytes
    ctypedef void (*openmp_parallel)(void (*)(void *), void *, unsigned, unsigned) nogil
    ctypedef struct trunk_kernels:
        const char *name
        int pair
        int (*supported)() noexcept nogil
        void (*pack)(const trunk_layer *, const float *, int, float, void *, void *) noexcept nogil
        trunk_work forward
        trunk_work backward
        trunk_work forward_blocks
        trunk_work backward_blocks
        int by_filter
    const trunk_kernels trunk_all[]
    const int trunk_all_count
    size_t trunk_plan(trunk_job *) noexcept nogil
    void trunk_gradient(const trunk_job *, int, int, float, float *, float *) noexcept nogil
    void trunk_run(trunk_work, trunk_job *, openmp_parallel) noexcept nogil


ROLES = {"relu": TRUNK_RELU, "conv": TRUNK_CONV, "pool": TRUNK_POOL, "first": TRUNK_FIRST, "second": TRUNK_SECOND}


def supported():
    """Return the instruction sets that this processor has, the plainest first: {name: bytes of an element}."""
    return {
        trunk_all[i].name.decode(): 4 // trunk_all[i].pair for i in range(trunk_all_count) if trunk_all[i].supported()
    }


@cython.final
@cython.auto_pickle(False)  # it holds addresses
cdef class Trunk:
    """Convolutions over a batch of pairs of observations, with memory of their own.

    Network 0 sees all observations and learns, network 1 sees the second ones of the pairs.

    Parameters
    ----------
    kernels : str
        One of `supported`.
    image : (int, int, int)
        Planes, height and width of an observation.
    layers : list of (int, int, int) or (int, int, int, int, str)
        Filters (a multiple of 16), kernel and stride of each layer, at most sixteen, and its padding and role; without
        these 0 and ``"relu"``. Strides do not exceed kernels. What a layer makes of x, which is the image at first:
        ``"relu"``, x = relu(conv(x)), in a plain trunk, which has no other layers, and no padding;
        ``"conv"``, x = conv(x); ``"pool"``, x = pool(conv(x)), the largest of 3x3 positions at a stride of 2, padded by 1;
        ``"first"`` and ``"second"``, one behind the other, a residual block: y = conv(relu(x)), x = x + conv(relu(y)).
        The first layer is padded by 0 or 1; those behind it are 3x3, have a stride of 1 and are padded by 1. The last
        is a second one: features are relu(x).
    batch : int
        Pairs in a batch, B.
    most : int
        Observations in one call of `act`, at most.
    parts : int
        Threads that share the work.
    parallel : int
        Address of ``GOMP_parallel`` in the OpenMP library that the process has loaded, or 0: then one thread works.
    pool : int
        What follows the last layer: 0, nothing; 2, in a plain trunk a 2x2 max-pool, which leaves out the last row and
        column of an odd size; 3, behind blocks the pool of the role ``"pool"``.

    Attributes
    ----------
    features : [max(2 B, most), F] and [B, F] elements, as uint16 or float32
        What networks 0 and 1 made of the last batch, position by position, pooled if asked for.

    Raises
    ------
    ValueError
        If a parameter does not fit.
    """

    cdef trunk_job job
    cdef const trunk_kernels *kernels
    cdef trunk_work run_forward, run_backward
    cdef openmp_parallel parallel
    cdef int batch, most
    cdef list memory
    cdef readonly list features
    cdef readonly tuple image
    cdef readonly object dtype

    def __init__(self, str kernels, tuple image, list layers, int batch, int most, int parts,
                 uintptr_t parallel, int pool=0):
        cdef int i, j, c, h, w
        cdef trunk_layer *l
        self.kernels = NULL
        for i in range(trunk_all_count):
            if trunk_all[i].name.decode() == kernels and trunk_all[i].supported():
                self.kernels = &trunk_all[i]
        if self.kernels is NULL:
            raise ValueError(f"kernels is {kernels!r}; this processor has {', '.join(supported())}")
        if not 1 <= len(layers) <= TRUNK_LAYERS or batch < 1 or most < 0 or parts < 1:
            raise ValueError(f"layers is {layers}, batch {batch}, parts {parts}; give 1 to {TRUNK_LAYERS} layers")
        planes, h, w = image
        c = planes + planes % 2
        self.job.layers, self.job.planes, self.job.parts = len(layers), planes, parts
        self.job.by_filter = self.kernels.by_filter
        layers = [(*layer, 0, "relu") if len(layer) == 3 else layer for layer in layers]
        self.job.blocks = any(role != "relu" for *_, role in layers)
        self.run_forward = self.kernels.forward_blocks if self.job.blocks else self.kernels.forward
        self.run_backward = self.kernels.backward_blocks if self.job.blocks else self.kernels.backward
        for j, (n, k, s, padding, role) in enumerate(layers):
            if (n % 16 or n < 16 or not 1 <= s <= k or (k * c) % 2 or min(h, w) + 2 * padding < k
                    or not self._has_place(j, layers)):
                raise ValueError(f"layer {j} is {layers[j]}, which does not fit [{c}, {h}, {w}] or the layers beside it")
            l = &self.job.layer[j]
            l.c, l.n, l.k, l.s, l.pad, l.role = c, n, k, s, padding, ROLES[role]
            l.h, l.w = h + 2 * padding, w + 2 * padding
            l.ho, l.wo = (l.h - k) // s + 1, (l.w - k) // s + 1
            c, h, w = n, l.ho, l.wo
            if role == "pool":
                h, w = (h + 1) // 2, (w + 1) // 2
        if pool not in ((0, 3) if self.job.blocks else (0, 2)):
            raise ValueError(f"pool is {pool}; give 0, or {3 if self.job.blocks else 2} behind these layers")
        if pool == 2:
            l = &self.job.layer[self.job.layers - 1]
            l.ho, l.wo = h - h % 2, w - w % 2  # what the pool leaves out need not be computed
            if min(l.ho, l.wo) < 2:
                raise ValueError(f"pool is 2, and the last layer gives [{h}, {w}]; give one that gives [2, 2] or more")
        self.job.pool = pool
        self.image, self.batch, self.most = image, batch, most
        self.parallel = <openmp_parallel><void *>parallel
        self.dtype = np.dtype(np.uint16 if self.kernels.pair == 2 else np.float32)
        self.memory, self.features = [], []
        self._allocate()

    cdef bint _has_place(self, int j, list layers) except -1:
        """Whether a layer's role and padding fit its place among the others."""
        n, k, s, padding, role = layers[j]
        before, after = layers[j - 1] if j else None, layers[j + 1] if j + 1 < len(layers) else None
        if role not in ROLES or not self.job.blocks:
            return role == "relu" and padding == 0
        if not j:
            return role in ("conv", "pool") and padding in (0, 1) and after is not None
        starts = role == "first" and after is not None and after[4] == "second" and after[0] == n == before[0]
        ends = role == "second" and before[4] == "first"
        plain = role in ("conv", "pool") and before[4] != "first" and after is not None
        return (k, s, padding) == (3, 1, 1) and (starts or ends or plain)

    cdef void *_keep(self, shape, dtype) except NULL:
        """Return memory that lives as long as this object, aligned for whole registers."""
        cdef uintptr_t address
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        held = np.zeros(size + 128, np.uint8)
        address = held.ctypes.data
        start = -address % 64
        array = held[start:start + size].view(dtype).reshape(shape)
        self.memory.append(array)
        return <void *><uintptr_t>array.ctypes.data

    cdef int _allocate(self) except -1:
        cdef int i, j
        cdef trunk_layer *l
        cdef trunk_net *net
        self.job.scratch_bytes = trunk_plan(&self.job)
        self.job.scratch = <char *>self._keep((self.job.parts, self.job.scratch_bytes), np.uint8)
        for i in range(TRUNK_NETS):
            net, batch = &self.job.net[i], self.batch if i == 0 else 0
            for j in range(self.job.layers):
                l = &self.job.layer[j]
                net.weight[j] = self._keep((l.k * l.k * l.c, l.n), self.dtype)
                net.bias[j] = <const float *>self._keep((l.n,), np.float32)
                if not self.job.blocks and (j < self.job.layers - 1 or self.job.pool):
                    net.out[j] = self._keep((batch, l.ho * l.wo * l.n), self.dtype)
            if self.job.blocks:
                self._lay_out(net, batch)
            l = &self.job.layer[self.job.layers - 1]
            positions = l.ho * l.wo
            if self.job.pool == 2:
                positions //= 4
            elif self.job.pool == 3:
                positions = (l.ho + 1) // 2 * ((l.wo + 1) // 2)
            rows = max(2 * self.batch, self.most) if i == 0 else self.batch
            net.features = self._keep((rows, positions * l.n), self.dtype)
            if not self.job.pool and not self.job.blocks:
                net.out[self.job.layers - 1] = net.features
            self.features.append(self.memory[len(self.memory) - 1])
        for j in range(self.job.layers):
            l = &self.job.layer[j]
            self.job.back[j] = self._keep((l.k * l.k * l.n, l.c), self.dtype)
            self.job.dweight[j] = <float *>self._keep((self.job.parts, l.k * l.k * l.c, l.n), np.float32)
            self.job.dbias[j] = <float *>self._keep((self.job.parts, l.n), np.float32)
        self.job.zeros = <const float *>self._keep((max(self.job.layer[j].c for j in range(self.job.layers)),), np.float32)
        return 0

    cdef int _lay_out(self, trunk_net *net, batch) except -1:
        """Give a network with residual blocks memory for what it keeps of a batch."""
        cdef int j
        cdef trunk_layer *l
        cdef uintptr_t place
        outs, wins = [], []
        for j in range(self.job.layers):
            l = &self.job.layer[j]
            ends = j == self.job.layers - 1
            outs.append(0 if ends else l.left)
            wins.append(l.lh * l.lw * l.n if l.role == TRUNK_POOL else 0)
            if ends and self.job.pool:
                wins[j] = (l.lh + 1) // 2 * ((l.lw + 1) // 2) * l.n
        net.apart = sum(outs) + sum(wins)
        place = <uintptr_t>self._keep((batch, net.apart), self.dtype)
        for j in range(self.job.layers):
            net.out[j] = <void *>place
            place += <uintptr_t>(outs[j] * self.dtype.itemsize)
            net.won[j] = <void *>place
            place += <uintptr_t>(wins[j] * self.dtype.itemsize)
        return 0

    def pack(self, int net, int layer, const float[:, :, :, ::1] weight, const float[::1] bias):
        """Take over the weights [n, k, k, c] and biases [n] of a layer of a network."""
        cdef int channels = self._channels(net, layer, weight, bias)
        cdef float scale = <float>(1.0 / 255) if layer == 0 else 1
        cdef trunk_layer *l = &self.job.layer[layer]
        cdef float *to = <float *>self.job.net[net].bias[layer]
        cdef int i
        with nogil:
            for i in range(l.n):
                to[i] = bias[i]
            self.kernels.pack(l, &weight[0, 0, 0, 0], channels, scale, <void *>self.job.net[net].weight[layer],
                              <void *>self.job.back[layer] if net == 0 else NULL)

    def forward(self, const uint8_t[:, :, :, ::1] obs, const uint8_t[:, :, :, ::1] next_obs, bint online_next=True):
        """Fill `features` for observations [B, *image] uint8 and those that followed them.

        Without ``online_next`` network 0 does not see the latter, and ``features[0][B:]`` stays as it is.
        """
        self._image("obs", obs, self.batch)
        self._image("next_obs", next_obs, self.batch)
        self.job.obs[0], self.job.obs[1] = &obs[0, 0, 0, 0], &next_obs[0, 0, 0, 0]
        self.job.count, self.job.split, self.job.nets = 2 * self.batch, self.batch, 2
        self._span(0, 0, (2 if online_next else 1) * self.batch, self.batch)
        self._span(1, self.batch, 2 * self.batch, 0)
        with nogil:
            trunk_run(self.run_forward, &self.job, self.parallel)

    def act(self, const uint8_t[:, :, :, ::1] obs):
        """Fill ``features[0][:n]`` for observations [n, *image] uint8."""
        if not 1 <= obs.shape[0] <= self.most:
            raise ValueError(f"obs has {obs.shape[0]} rows; give 1 to {self.most}")
        self._image("obs", obs, obs.shape[0])
        self.job.obs[0], self.job.split = &obs[0, 0, 0, 0], obs.shape[0]
        self.job.count, self.job.nets = obs.shape[0], 1
        self._span(0, 0, obs.shape[0], 0)
        with nogil:
            trunk_run(self.run_forward, &self.job, self.parallel)

    def backward(self, const uint8_t[:, :, :, ::1] obs, grad):
        """Work out the gradients of network 0, after `forward` of the same observations.

        Parameters
        ----------
        obs : [B, *image] uint8
            The first ones of the pairs.
        grad : [B, F] elements
            Gradient with respect to the features.
        """
        self._image("obs", obs, self.batch)
        self._fits("grad", grad.shape, (self.batch, self.features[0].shape[1]))
        if grad.dtype != self.dtype or not grad.flags.c_contiguous:
            raise ValueError(f"grad is {grad.dtype}; give {self.dtype}, C-contiguous")
        self.job.obs[0] = &obs[0, 0, 0, 0]
        self.job.grad = <const void *><uintptr_t>grad.ctypes.data
        self.job.count = self.job.split = self.batch
        with nogil:
            trunk_run(self.run_backward, &self.job, self.parallel)

    def gradient(self, int layer, float[:, :, :, ::1] weight, float[::1] bias):
        """Write a layer's gradients, after `backward`: weight [n, k, k, c] and bias [n]."""
        cdef int channels = self._channels(0, layer, weight, bias)
        cdef float scale = <float>(1.0 / 255) if layer == 0 else 1
        with nogil:
            trunk_gradient(&self.job, layer, channels, scale, &weight[0, 0, 0, 0], &bias[0])

    cdef int _channels(self, int net, int layer, const float[:, :, :, ::1] weight, const float[::1] bias) except -1:
        """Return the channels of a layer's weights; ValueError if there is no such layer, or they do not fit it."""
        if not (0 <= net < TRUNK_NETS and 0 <= layer < self.job.layers):
            raise ValueError(f"network {net}, layer {layer}; there are {TRUNK_NETS} and {self.job.layers}")
        cdef trunk_layer *l = &self.job.layer[layer]
        cdef int channels = self.job.planes if layer == 0 else l.c
        shape = (weight.shape[0], weight.shape[1], weight.shape[2], weight.shape[3])
        self._fits("weight", shape, (l.n, l.k, l.k, channels))
        self._fits("bias", (bias.shape[0],), (l.n,))
        return channels

    cdef int _span(self, int net, int begin, int end, int keep) except -1:
        self.job.net[net].from_, self.job.net[net].to, self.job.net[net].keep = begin, end, keep
        return 0

    cdef int _image(self, name, const uint8_t[:, :, :, ::1] obs, rows) except -1:
        shape = (obs.shape[0], obs.shape[1], obs.shape[2], obs.shape[3])
        return self._fits(name, shape, (rows, *self.image))

    cdef int _fits(self, name, shape, wanted) except -1:
        if tuple(shape) != tuple(wanted):
            raise ValueError(f"{name} has shape {list(shape)}; give {list(wanted)}")
        return 0
