"""The fast trunk of a CPU: an image trunk from bytes to features, with a backward of its own.

`csrc/trunk` has its kernels, `fastrl.dqn.network` the eager trunk that is their twin. What lies behind the features,
heads and losses, is left to autograd and torch.compile.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.dqn.flat import FlatParameters, as_numpy
from fastrl.dqn.network import Dense as DenseLayer
from fastrl.dqn.network import QNetwork, Residual
from fastrl.dqn.noisy import NoisyLinear
from fastrl.dqn.openmp import openmp_parallel

try:
    from fastrl.dqn import _trunk
except ImportError:  # not built: on Windows, or in place by an older version
    _trunk = None  # type: ignore[assignment]

Array = NDArray[Any]


def pick_kernels(bfloat16: bool, wanted: str | None = None) -> str | None:
    """Return the fastest set of kernels on this processor for an arithmetic; None if it has none for it.

    Parameters
    ----------
    bfloat16 : bool
        Multiply bfloat16, else float32.
    wanted : str, optional
        The set to take, if it is there.
    """
    sizes = {} if _trunk is None else _trunk.supported()
    names = [name for name, size in sizes.items() if size == (2 if bfloat16 else 4) and wanted in (None, name)]
    return names[-1] if names else None


class FastTrunk:
    """The trunks of an online and a target network, over batches of one size.

    Parameters
    ----------
    online, target : QNetwork
        Two networks of one shape, with a trunk of images, on the CPU.
    flat : pair of FlatParameters
        Their parameters.
    batch_size : int
        Transitions in a batch, B.
    most : int
        Observations to act for at once, at most.
    kernels : str
        As `pick_kernels` returns.
    """

    def __init__(
        self,
        online: QNetwork,
        target: QNetwork,
        flat: Sequence[FlatParameters],
        batch_size: int,
        most: int,
        kernels: str,
    ) -> None:
        *planes, height, width = online.settings["obs_shape"]
        self._image = (int(np.prod(planes)), height, width)
        self._batch_size = batch_size
        convolutions = [[m for m in net.trunk.modules() if isinstance(m, nn.Conv2d)] for net in (online, target)]
        last = online.trunk[-1]
        # Of each network, (weight, bias) of each convolution, and the memory in which they stay.
        self._convolutions = [[(m.weight, cast(Tensor, m.bias)) for m in some] for some in convolutions]
        self._arrays = [
            [(_positions_first(weight.detach()), bias.detach().numpy()) for weight, bias in some]
            for some in self._convolutions
        ]
        self._trunk = _trunk.Trunk(
            kernels, self._image, _layers(online.trunk), batch_size, most, torch.get_num_threads(), openmp_parallel(),
            cast(int, last.kernel_size) if isinstance(last, nn.MaxPool2d) else 0,
        )  # fmt: skip
        self._versions = [[0], [0]]
        self._element = torch.bfloat16 if self._trunk.dtype == np.uint16 else torch.float32
        self._features = [torch.from_numpy(features).view(self._element) for features in self._trunk.features]
        self.weights = list(itertools.chain(*self._convolutions[0]))
        self._networks = (online, target)
        self._dense = [[net.hidden.weight, net.hidden.bias] for net in (online, target)]
        self._watched = [
            [all_.values, *itertools.chain(*some), *dense]
            for all_, some, dense in zip(flat, self._convolutions, self._dense, strict=True)
        ]
        if self._element == torch.float32:
            self.hidden = self._dense
        else:
            self.hidden = [
                [p.detach().to(self._element).requires_grad_(i == 0) for p in dense]
                for i, dense in enumerate(self._dense)
            ]

    def dense(self) -> list[DenseLayer]:
        """Return what takes the place of the dense layer of each network in `QNetwork.behind`."""
        return [
            _noisy_dense(net.hidden) if isinstance(net.hidden, NoisyLinear) else _dense(*hidden)
            for net, hidden in zip(self._networks, self.hidden, strict=True)
        ]

    def copy_of(self, parameter: Tensor) -> Tensor | None:
        """Return the bfloat16 copy of a parameter of the online network that gradients belong to; None if to itself."""
        copies = {id(p): mine for p, mine in zip(self._dense[0], self.hidden[0], strict=True) if p is not mine}
        return copies.get(id(parameter))

    def learned(self, *, copied: bool) -> None:
        """Take over the online network's weights again: optimizers change them unnoticed.

        With ``copied`` the optimizer has written the copies of the dense layer too.
        """
        if copied:
            self._pack_convolutions(0)
        else:
            self._versions[0] = []

    def take_over(self) -> None:
        """Take over the online network's weights, if they have changed: for those who use `dense` alone."""
        self._pack(0)

    def act(self, obs: Array) -> Tensor:
        """Return features [n, F] of obs [n, *image] uint8; they stay until the next call of any method."""
        self._pack(0)
        self._trunk.act(self._bytes(obs))
        return self._features[0][: len(obs)]

    def features(self, obs: Array, next_obs: Array, *, online_next: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Return features [B, F] of obs, which gradients pass through, of next_obs, and of next_obs by the target.

        They stay until the next call of any method. Without ``online_next`` the second are those of the third.
        """
        for net in (0, 1):
            self._pack(net)
        now, after = self._bytes(obs), self._bytes(next_obs)
        self._trunk.forward(now, after, online_next)
        b = self._batch_size
        online, target = self._features
        result: Tensor = _Features.apply(online[:b], self, now, *self.weights)  # type: ignore[no-untyped-call]
        return result, online[b : 2 * b] if online_next else target, target

    def gradients(self, obs: Array, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `weights`, after `features` of the same observations."""
        grad = grad.to(self._element).contiguous()
        self._trunk.backward(obs, as_numpy(grad))
        found: list[Tensor] = []
        for layer, parameters in enumerate(self._convolutions[0]):
            weight, bias = (torch.empty_like(p, requires_grad=False) for p in parameters)  # channels last, as they are
            self._trunk.gradient(layer, _positions_first(weight), bias.numpy())
            found += [weight, bias]
        return found

    def _pack(self, net: int) -> None:
        """Take over a network's weights, if they have changed."""
        versions = [p._version for p in self._watched[net]]
        if versions != self._versions[net]:
            self._pack_convolutions(net)
            if self.hidden is not self._dense:
                with torch.no_grad():
                    for mine, p in zip(self.hidden[net], self._dense[net], strict=True):
                        mine.copy_(p)
            self._versions[net] = versions

    def _pack_convolutions(self, net: int) -> None:
        for layer, (weight, bias) in enumerate(self._arrays[net]):
            self._trunk.pack(net, layer, weight, bias)

    def _bytes(self, obs: Array) -> Array:
        return np.ascontiguousarray(obs).reshape(-1, *self._image)


def _layers(trunk: nn.Sequential) -> list[tuple[int, int, int, int, str]]:
    """Return the layers of a trunk as the kernels take them: filters, kernel, stride, padding and role."""
    modules: list[nn.Module | None] = [*trunk, None]
    layers = []
    for m, then in itertools.pairwise(modules):
        if isinstance(m, Residual):
            layers += [_layer(m.first, "first"), _layer(m.second, "second")]
        elif isinstance(m, nn.Conv2d):
            roles = {nn.ReLU: "relu", nn.MaxPool2d: "pool"}
            layers.append(_layer(m, roles.get(type(then), "conv")))
    return layers


def _layer(m: nn.Conv2d, role: str) -> tuple[int, int, int, int, str]:
    return m.out_channels, m.kernel_size[0], m.stride[0], cast(int, m.padding[0]), role


class _Features(torch.autograd.Function):
    """Features that are known already; their gradients lead to the trunk's weights."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, trunk: FastTrunk, obs: Array, *weights: Tensor) -> Tensor:
        ctx.trunk, ctx.obs = trunk, obs
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *ctx.trunk.gradients(ctx.obs, grads[0]))


# An operator of its own: Inductor has a lowering for oneDNN's, which accepts weights of inference alone.
torch.library.define("fastrl::product", "(Tensor x, Tensor weight, Tensor? bias, str then) -> Tensor")


@torch.library.impl("fastrl::product", "cpu")
def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")
    return result


@torch.library.register_fake("fastrl::product")  # type: ignore[untyped-decorator]
def _product_shape(x: Tensor, weight: Tensor, bias: Tensor | None, then: str) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


class Dense(torch.autograd.Function):
    """relu(x w^T + b) of x [B, F], w [H, F] and b [H], by oneDNN, which beats MKL in float32 on some processors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = torch.ops.fastrl.product(x, weight, bias, "relu")
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        grad = torch.where(y > 0, grads[0], torch.zeros_like(y))
        return (
            torch.ops.fastrl.product(grad, weight.t(), None, "none"),
            torch.ops.fastrl.product(grad.t(), x.t(), None, "none"),
            grad.sum(dim=0, dtype=torch.float32).to(grad.dtype),
        )


def _dense(weight: Tensor, bias: Tensor) -> DenseLayer:
    return lambda x, _: Dense.apply(x, weight, bias)  # type: ignore[no-untyped-call]


def _noisy_dense(layer: NoisyLinear) -> DenseLayer:
    return lambda x, noise: Dense.apply(x, *(p.to(x.dtype) for p in layer.sample(noise)))  # type: ignore[no-untyped-call]


def _positions_first(weight: Tensor) -> Array:
    """Return weights [n, c, k, k] in channels-last memory as [n, k, k, c]."""
    array: Array = weight.permute(0, 2, 3, 1).numpy()
    return array
