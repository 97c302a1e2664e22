"""Arrays on their way to a device and back, while the host does other work.

A GPU copies by itself only from and to pinned memory. Copies run on the current stream, so that what is asked
for later on that stream sees them done; the host waits for none of them, unless it needs the memory again.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 64
"""Of a column in bytes; compiled functions may count on 16."""


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Return PyTorch's name of a NumPy dtype; raise ValueError if it has none."""
    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except (TypeError, ValueError) as error:
        raise ValueError(f"dtype is {dtype}, which PyTorch does not have; convert to another") from error


class Upload:
    """Host arrays on their way to a device, each of any shape and dtype.

    Staged, an array is copied into pinned memory, from which the device copies it when its stream comes to that;
    `depth` such pieces of memory take turns, each grown to the largest array that it has held. Hence `depth`
    arrays may be in transfer; one more waits for the first of them, and with it for all work that was asked of
    the device before. Arrays sent one after another before the host waits anyway want as much depth, or an
    upload each.

    Parameters
    ----------
    device : torch.device
        Where arrays go.
    depth : int
        Arrays that may be in transfer at once.
    staged : bool, optional
        Whether to go through staging memory (default: on CUDA only). On the CPU it is not pinned: for tests.
    """

    def __init__(self, device: torch.device, depth: int = 4, *, staged: bool | None = None) -> None:
        self._device = device
        self._staged = device.type == "cuda" if staged is None else staged
        self._turns = cycle([_Staging(device) for _ in range(depth)])

    def send(self, array: NDArray[Any], into: Tensor | None = None) -> Tensor:
        """Return the array as a tensor on the device.

        Staged, the array may be overwritten once this returns. Unstaged on the CPU the tensor is the array itself,
        without a copy, and valid until the array changes; only what a tensor cannot be (read-only, or not
        C-contiguous) is copied.

        Parameters
        ----------
        array : ndarray
            Of any shape and dtype.
        into : Tensor, optional
            Memory on the device, of the array's shape, to copy it to and return; by default new memory.

        Raises
        ------
        ValueError
            If PyTorch does not have the dtype.
        """
        if self._staged:
            return next(self._turns).send(array, into)
        torch_dtype(array.dtype)
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        return tensor.to(self._device) if into is None else into.copy_(tensor)


class Columns:
    """Short arrays that cross to a device together, in one copy: each copy of its own costs the host as much.

    Parameters
    ----------
    specs : mapping of str to (tuple of int, torch.dtype)
        Shape and dtype of each, by name.
    device : torch.device
        Where they go.
    staged : bool, optional
        As for `Upload`.

    Attributes
    ----------
    tensors : dict of str to Tensor
        The columns on the device, zeros at first; always the same memory.
    """

    def __init__(
        self, specs: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device, *,
        staged: bool | None = None,
    ) -> None:  # fmt: skip
        starts, end = {}, 0
        for name, (shape, dtype) in specs.items():
            starts[name] = end
            end += -(-int(np.prod(shape)) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        host, self._there = torch.zeros(end, dtype=torch.uint8), torch.zeros(end, dtype=torch.uint8, device=device)

        def views(memory: Tensor) -> dict[str, Tensor]:
            parts = {name: memory[start:] for name, start in starts.items()}
            return {
                name: parts[name][: int(np.prod(shape)) * dtype.itemsize].view(dtype).view(shape)
                for name, (shape, dtype) in specs.items()
            }

        self.tensors = views(self._there)
        self._host, self._columns = host.numpy(), {name: t.numpy() for name, t in views(host).items()}
        self._upload = Upload(device, staged=staged)

    def send(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Bring new values, of the dtypes or such as NumPy casts to them, into `tensors`."""
        for name, column in self._columns.items():
            column[...] = columns[name]
        self._upload.send(self._host, self._there)


class Download:
    """A vector of float32 on its way back from a device.

    Parameters
    ----------
    size : int
        Its length.
    device : torch.device
        Where it comes from.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._device = device
        self._done = copy_mark(device)
        self._host = torch.empty(size, pin_memory=self._done is not None)

    def start(self, values: Tensor) -> None:
        """Start the way of ``values [size]``, as they are once the device has done what was asked of it before."""
        self._host.copy_(values, non_blocking=True)
        if self._done is not None:
            self._done.record(_stream(self._device))

    def finish(self) -> NDArray[np.float32]:
        """Wait for what was started last and return it, ``[size]``."""
        if self._done is not None:
            self._done.synchronize()
        values: NDArray[np.float32] = self._host.numpy().copy()
        return values


class _Staging:
    """Memory of the host that holds one array until the device has copied it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copied = copy_mark(device)
        self._memory = torch.empty(0, dtype=torch.uint8)

    def send(self, array: NDArray[Any], into: Tensor | None) -> Tensor:
        if self._copied is not None:
            self._copied.synchronize()
        if self._memory.numel() < array.nbytes:
            self._memory = torch.empty(array.nbytes, dtype=torch.uint8, pin_memory=self._copied is not None)
        staged = self._memory[: array.nbytes].view(torch_dtype(array.dtype)).view(array.shape)
        staged.numpy()[...] = array
        if into is None:
            into = staged.to(self._device, non_blocking=True, copy=True)
        else:
            into.copy_(staged, non_blocking=True)
        if self._copied is not None:
            self._copied.record(_stream(self._device))
        return into


def copy_mark(device: torch.device) -> torch.cuda.Event | None:
    """Return a mark to set on a stream and wait for; None where every copy is finished when it returns."""
    return torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return the stream of copies; None for that of the current device."""
    return None if device.index is None else torch.cuda.current_stream(device)
