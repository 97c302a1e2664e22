"""The frames of a replay on a device: they are gathered where the network reads them."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.dqn.device.transfer import Upload, torch_dtype


class DeviceStore:
    """Frames as one tensor, ``[count, *shape]``: what is drawn never leaves the device.

    Only numbers of frames and newly written frames cross, on the current stream, and the host waits for neither
    (see `Upload`). A buffer takes the store as ``store=functools.partial(DeviceStore, device=device)``; the
    ``obs`` and ``next_obs`` of its batches are then tensors on that device, new ones in every batch.

    Parameters
    ----------
    count : int
        Frames to hold.
    shape, dtype
        Shape and NumPy dtype of one frame.
    device : torch.device
        Where they lie.
    staged : bool, optional
        As for `Upload`.

    Raises
    ------
    ValueError
        If PyTorch does not have the dtype.
    torch.OutOfMemoryError
        If the device has too little memory left.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        device: torch.device,
        *,
        staged: bool | None = None,
    ) -> None:
        self._count, self._dtype, self._device, self._staged = count, torch_dtype(dtype), device, staged
        self._bytes = int(np.prod(shape)) * dtype.itemsize  # of one frame
        # Frames move as integers, the widest that divide them: fewer to copy, and no dtype is too rare for that.
        widths = (torch.int64, torch.int32, torch.int16, torch.uint8)
        self._word = next(word for word in widths if self._bytes % word.itemsize == 0)
        # Frames never written are zeros, so that a saved file holds nothing by chance; the last is always zeros.
        self._words = torch.zeros((count + 1, self._bytes // self._word.itemsize), dtype=self._word, device=device)
        self._set_uploads()

    def _set_uploads(self) -> None:
        """Make the parts that a copy does not share."""
        self._numbers, self._new = (Upload(self._device, staged=self._staged) for _ in range(2))

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a copy that shared memory with this store would overwrite its frames

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_numbers", "_new")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_uploads()

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """Return fresh memory on the device for `gather` to fill."""
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def write(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Keep ``frames [n, *shape]`` under the numbers ``ids [n]``, none twice."""
        self._words.index_copy_(0, self._numbers.send(ids), self._as_words(self._new.send(frames)))

    def gather(self, ids: NDArray[np.int64], *outs: Tensor | NDArray[Any]) -> None:
        """Put frame ``ids[m, b, k]`` into ``outs[m][b, k]``; -1 is a frame of zeros.

        Waits for the device if one of ``outs`` is a NumPy array.
        """
        numbers = self._numbers.send(np.where(ids < 0, self._count, ids).reshape(len(outs), -1))
        for mine, out in zip(numbers, outs, strict=True):
            gathered = self.empty(out.shape) if isinstance(out, np.ndarray) else out
            torch.index_select(self._words, 0, mine, out=self._as_words(gathered))
            if isinstance(out, np.ndarray):
                out[...] = gathered.cpu().numpy()

    @property
    def nbytes(self) -> int:
        """Bytes that the frames take of the device's memory."""
        return self._words.nbytes

    def _as_words(self, frames: Tensor) -> Tensor:
        """Return frames, of any leading axes, as ``[n, words of a frame]`` over the same memory."""
        return frames.view(-1).view(self._word).view(-1, self._words.shape[1])
