"""Parameters and gradients of a network, each in one array: one pass over the memory for whatever is done to all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ALIGNED = 32
"""Every parameter begins at a multiple of this many elements; zeros lie between, and stay zeros in any optimizer."""


class FlatParameters:
    """Moves the parameters of a network into one array; they stay the network's, as views with their memory layout.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        Of one dtype, on one device, dense in memory.

    Attributes
    ----------
    values : nn.Parameter
        All of them, [total]; its gradient is `grads`.
    grads : Tensor
        [total]; each parameter's gradient is a view of it.
    starts : list of int
        Where each parameter begins in them.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self.starts: list[int] = []
        total = 0
        for p in self._parameters:
            self.starts.append(total)
            total += -(-p.numel() // ALIGNED) * ALIGNED
        first = self._parameters[0]
        self.values = nn.Parameter(torch.zeros(total, dtype=first.dtype, device=first.device))
        self.grads = torch.zeros_like(self.values.data)
        self.values.grad = self.grads
        with torch.no_grad():
            for p, view, grad in zip(
                self._parameters, self.views(self.values.data), self.views(self.grads), strict=True
            ):
                view.copy_(p)
                p.data = view
                if p.requires_grad:
                    p.grad = grad

    def __len__(self) -> int:
        """Parameters."""
        return len(self._parameters)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the part of each parameter in a tensor like `values`, in its shape and layout."""
        return [
            flat.as_strided(p.shape, p.stride(), start) for p, start in zip(self._parameters, self.starts, strict=True)
        ]


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor on a CPU as NumPy sees it, in the same memory; bfloat16 as uint16, which NumPy has."""
    array: NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
