"""Batches of a replay as PyTorch's tensors on a device, over pinned memory where that is a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import cycle
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrl.base.extras import extra

with extra("train"):
    import torch

from fastrl.dqn.device.transfer import Upload, copy_mark, torch_dtype
from fastrl.replay import Batch, Hindsight, HindsightBatch, PrioritizedReplayBuffer, ReplayBuffer, SequenceBatch

_Drawn = TypeVar("_Drawn", Batch, HindsightBatch, SequenceBatch)
_DEPTH = 2  # batches in pinned memory: one that is drawn while the device copies the other


class TensorReplay:
    """Draws from a buffer, and returns batches whose arrays are tensors on a device.

    Only ``index`` stays a NumPy array: `update_priorities` takes it. Draws, errors and generator are the buffer's.

    On a GPU, `sample` and `prefetch` copy frames straight into pinned memory, and the device copies them from there
    while the host goes on; two such pieces of memory take turns. Other draws go through an `Upload`. On a CPU, tensors
    are the arrays that the buffer lends, without a copy; it lends them again once no tensor holds them.

    Parameters
    ----------
    buffer : ReplayBuffer
        Rows are added to it as before.
    device : torch.device or str
        Where tensors are. Copies run on its current stream.
    staged : bool, optional
        Whether to copy (default: not on a CPU). On a CPU the memory between is not pinned: for tests.

    Raises
    ------
    ValueError
        If PyTorch does not have the dtype of an array, knows no such device, or cannot keep the arrays there; if the
        buffer is none.
    ImportError
        If PyTorch is not installed.
    """

    def __init__(self, buffer: ReplayBuffer, device: torch.device | str, *, staged: bool | None = None) -> None:
        if not isinstance(buffer, ReplayBuffer):
            raise ValueError(f"buffer is of type {type(buffer).__name__}; give a ReplayBuffer")
        self.buffer, self.device = buffer, _device(device)
        self._staged = self.device.type != "cpu" if staged is None else staged
        arrays = list(_leaves(buffer.empty_batch(1)))
        self._direct = self._staged and all(isinstance(array, np.ndarray) for array in arrays)
        for array in arrays:
            if isinstance(array, np.ndarray):
                _require(self.device, torch_dtype(array.dtype))
        self._hosts: Iterator[_Host] = iter(())
        self._size = 0  # of the batches of these
        self._ahead: _Host | None = None  # has a batch that was prefetched
        self._uploads: list[Upload] = []

    def sample(self, batch_size: int, **how: Any) -> Batch:
        """Draw transitions, as the buffer's ``sample``; ``how`` is its ``beta``."""
        if not self._direct:
            return self._send(self.buffer.sample(batch_size, **how))
        if self._ahead is None:
            host = self._next(batch_size)
            return host.send(self.buffer.sample(batch_size, **how, out=host.batch))
        batch = self.buffer.sample(batch_size, **how)
        host, self._ahead = self._ahead, None
        if batch is host.batch:
            return host.send(batch)
        self._size = 0  # the batch that was prefetched was taken from the buffer itself: its memory is another's now
        return self._send(batch)

    def prefetch(self, batch_size: int, **how: Any) -> None:
        """Draw the batch that the next `sample` returns, and let a thread copy its frames; as the buffer's."""
        if not self._direct:
            self.buffer.prefetch(batch_size, **how)
            return
        host = self._next(batch_size)
        self.buffer.prefetch(batch_size, **how, out=host.batch)
        self._ahead = host

    def sample_sequences(self, batch_size: int, length: int, burn_in: int = 0, **how: Any) -> SequenceBatch:
        """Draw stretches, as the buffer's ``sample_sequences``; with ``stacked=False`` each frame crosses once."""
        return self._send(self.buffer.sample_sequences(batch_size, length, burn_in, **how))

    def sample_hindsight(self, batch_size: int, hindsight: Hindsight, **how: Any) -> HindsightBatch:
        """Draw transitions with new goals, as the buffer's ``sample_hindsight``; rewards are computed in NumPy."""
        return self._send(self.buffer.sample_hindsight(batch_size, hindsight, **how))

    def update_priorities(self, index: ArrayLike, priority: torch.Tensor | ArrayLike) -> None:
        """Give rows new priorities, as a prioritized buffer's; waits for the device if these are there."""
        self._prioritized().update_priorities(index, _on_host(priority))

    def update_sequence_priorities(
        self, batch: SequenceBatch, error: torch.Tensor | ArrayLike, eta: float = 0.9
    ) -> None:
        """Give stretches new priorities, as a prioritized buffer's; ``batch`` is of `sample_sequences`."""
        batch = replace(batch, mask=_on_host(batch.mask))
        self._prioritized().update_sequence_priorities(batch, _on_host(error), eta)

    def _prioritized(self) -> PrioritizedReplayBuffer:
        if not isinstance(self.buffer, PrioritizedReplayBuffer):
            raise ValueError(f"buffer is a {type(self.buffer).__name__}, without priorities; leave the update out")
        return self.buffer

    def _next(self, size: int) -> _Host:
        """Return pinned memory for a batch of this size that the device has copied."""
        if size != self._size or self._ahead is not None:
            self._hosts = cycle([_Host(self.buffer, size, self.device) for _ in range(_DEPTH)])
            self._size = size
        host = next(self._hosts)
        host.wait()
        return host

    def _send(self, batch: _Drawn) -> _Drawn:
        """Return a batch of any kind with tensors in place of arrays."""
        count = sum(1 for _ in _leaves(batch))
        self._uploads += [Upload(self.device, _DEPTH, staged=self._staged) for _ in range(len(self._uploads), count)]
        uploads = iter(self._uploads)  # one for each array, since all are sent before the host waits

        def send(array: Any) -> torch.Tensor:
            upload = next(uploads)
            tensor: torch.Tensor = upload.send(array) if isinstance(array, np.ndarray) else array.to(self.device)
            return tensor

        return _with(batch, send)


class _Host:
    """A batch in memory that the device copies by itself."""

    def __init__(self, buffer: ReplayBuffer, size: int, device: torch.device) -> None:
        self._device, self._copied = device, copy_mark(device)
        self._tensors: dict[int, torch.Tensor] = {}  # by the identity of the arrays that are the same memory
        self.batch = buffer.empty_batch(size, self._empty)

    def wait(self) -> None:
        """Wait until the device has copied what was sent last."""
        if self._copied is not None:
            self._copied.synchronize()

    def send(self, batch: Batch) -> Batch:
        """Return the batch, which is this one, with tensors on the device, once it has done what was asked before."""
        waits = self._copied is None  # for each copy: nothing would tell later that it is done

        def send(array: Any) -> torch.Tensor:
            return self._tensors[id(array)].to(self._device, non_blocking=not waits, copy=True)

        sent = _with(batch, send)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._device))
        return sent

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        tensor = torch.empty(shape, dtype=torch_dtype(dtype), pin_memory=self._copied is not None)
        array: NDArray[Any] = tensor.numpy()
        self._tensors[id(array)] = tensor
        return array


def _device(device: Any) -> torch.device:
    """Return a device that holds tensors here; ValueError for any other."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}, which PyTorch does not know here; give {_devices()}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but PyTorch finds no usable GPU; give 'cpu'")
    if found.type == "cpu" and found.index:  # PyTorch takes any number, and puts the tensors on the CPU
        raise ValueError(f"device is {str(device)!r}, and PyTorch knows one CPU alone; give 'cpu'")
    _require(found, torch.uint8)
    return found


def _require(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError unless tensors of this dtype come back from a device: those of "meta" hold no numbers."""
    try:
        torch.zeros(1, dtype=dtype).to(device).cpu()
    except Exception as error:  # each backend has its own
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device is {str(device)!r}, from which no {str(dtype).removeprefix('torch.')} comes back ({reason}); give "
            f"{_devices()}"
        ) from error


def _devices() -> str:
    return "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu'"


def _with(batch: _Drawn, send: Callable[[Any], torch.Tensor]) -> _Drawn:
    """Return the batch with what ``send`` makes of each array, but of ``index`` a copy."""
    found = {each.name: _each(send, getattr(batch, each.name)) for each in fields(batch) if each.name != "index"}
    return replace(batch, **found, index=batch.index.copy())


def _each(send: Callable[[Any], torch.Tensor], value: Any) -> Any:
    """Return a nesting of arrays with something else in their place; numbers stay."""
    if isinstance(value, dict):
        return {key: _each(send, part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_each(send, part) for part in value)
    return value if isinstance(value, int) else send(value)


def _leaves(batch: Batch | SequenceBatch) -> Iterator[Any]:
    """Yield all arrays of a batch, as `_each` finds them."""
    found: list[Any] = []
    for each in fields(batch):
        _each(found.append, getattr(batch, each.name))  # type: ignore[arg-type]
    yield from found


def _on_host(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16
