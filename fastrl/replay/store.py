"""Where frames lie. A store writes frames under numbers and gathers numbered frames; it knows nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastrl.replay import _frames


class FrameStore(Protocol):
    """What the buffer asks of a store; memory, compression or a GPU lie behind the same calls."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Return fresh memory of the store's own kind and dtype, ``shape`` long, for `gather` to fill."""

    def write(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Keep ``frames [n, *obs_shape]`` under the numbers ``ids [n]``, in place of what was there."""

    def gather(self, ids: NDArray[np.int64], out: Any) -> None:
        """Put frame ``ids[b, k]`` into ``out[b, k]``; -1 is a frame of zeros.

        ``out`` is what `empty` returned or a C-contiguous NumPy array: every store fills both.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the store takes when full."""


MakeStore = Callable[[int, tuple[int, ...], np.dtype[Any]], FrameStore]
"""What makes a store: called with the count of frames, and the shape and dtype of one."""


class RamStore:
    """Frames as one array in memory, ``[count, *shape]``: a gather is one ``memcpy`` per frame."""

    def __init__(self, count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.frames = np.zeros((count, *shape), dtype)  # pages are mapped when first written

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The same memory as bytes, ``[count, bytes of a frame]``: a view made anew, since a copied one is none."""
        return self.frames.reshape(len(self.frames), -1).view(np.uint8)

    def empty(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a fresh array for `gather` to fill."""
        return np.empty(shape, self.frames.dtype)

    def write(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Keep ``frames [n, *shape]`` under the numbers ``ids [n]``."""
        self.frames[ids] = frames

    def gather(self, ids: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Put frame ``ids[b, k]`` into ``out[b, k]``; -1 is a frame of zeros."""
        _frames.gather(self.bytes, ids.reshape(-1), out.reshape(ids.size, -1).view(np.uint8))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the store takes when full."""
        return self.frames.nbytes
