"""Frames in memory, as they come."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.stores.copy_threads import Team


class RamStore:
    """Frames as one array in memory, ``[count, *shape]``: a gather is one ``memcpy`` per piece of a stack.

    Parameters
    ----------
    count : int
        Frames to hold.
    shape, dtype
        Shape and dtype of one frame.
    threads : int
        Threads that share the copying of a large gather, the caller included: ``store=functools.partial(RamStore,
        threads=2)``. The caller alone does small gathers.

    Raises
    ------
    ValueError
        If ``threads`` is less than 1.
    """

    def __init__(self, count: int, shape: tuple[int, ...], dtype: np.dtype[Any], threads: int = 1) -> None:
        self.frames = np.zeros((count, *shape), dtype)  # pages are mapped when first written
        self._team = Team(threads)

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The same memory as ``[count, bytes of a frame] uint8``; made at each call, since a pickled view is a copy."""
        return self.frames.reshape(len(self.frames), -1).view(np.uint8)

    def empty(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a fresh array for `gather` to fill."""
        return np.empty(shape, self.frames.dtype)

    def write(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Keep ``frames [n, *shape]`` under the numbers ``ids [n]``."""
        self.frames[ids] = frames

    def prepare(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> Callable[[], None]:
        """Return a call that does as `write`, and cannot fail."""
        return partial(self.write, ids, frames)

    def gather(self, ids: NDArray[np.int64], *outs: NDArray[Any]) -> None:
        """Put frame ``ids[m, b, k]`` into ``outs[m][b, k]``, one or two of them; -1 is a frame of zeros."""
        self._team.gather(self.bytes, ids, *[out.reshape(ids[0].size, -1).view(np.uint8) for out in outs])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the store takes when full."""
        return self.frames.nbytes

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a copy that shared memory with this store would overwrite its frames
