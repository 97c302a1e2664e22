"""Frames in memory, each compressed with LZ4."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastrl.base.extras import extra


class Lz4Store:
    """Frames as LZ4 blocks, one per frame. Images of Atari games shrink to about a tenth.

    Frames are overwritten and drawn one by one, so each is compressed by itself. The mode is LZ4's default: its high
    compression saves another eighth to fifth, but takes many times as long. A block is a ``bytes`` object; its header,
    its place in a list and the allocator's gaps take about 110 bytes more. Noise grows by half a percent.

    There are no threads as in `RamStore`: lz4 releases the GIL for a microsecond or two at a time, less than handing it
    over costs. `ReplayBuffer.prefetch` helps, as with every store.

    Parameters
    ----------
    count : int
        Frames to hold.
    shape, dtype
        Shape and dtype of one frame.

    Raises
    ------
    ImportError
        If the package ``lz4`` is not installed; the message names the extra that brings it.
    """

    def __init__(self, count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        _lz4()  # raises now if the package is missing
        self._items, self._dtype = math.prod(shape), dtype
        self._blocks = [b""] * count  # empty: never written
        self._zeros = bytes(self._items * dtype.itemsize)

    def empty(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a fresh array for `gather` to fill."""
        return np.empty(shape, self._dtype)

    def write(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Keep ``frames [n, *shape]`` under the numbers ``ids [n]``; compresses each."""
        self.prepare(ids, frames)()

    def prepare(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> Callable[[], None]:
        """Compress frames; return a call that keeps them as `write` does, and cannot fail."""
        compress = _lz4().compress
        rows = np.ascontiguousarray(frames, self._dtype).reshape(-1, self._items).view(np.uint8)
        blocks = [compress(row, store_size=False) for row in rows]  # all before any is kept: memory may run out
        numbers = ids.tolist()

        def keep() -> None:
            for number, block in zip(numbers, blocks, strict=True):
                self._blocks[number] = block

        return keep

    def gather(self, ids: NDArray[np.int64], *outs: NDArray[Any]) -> None:
        """Put frame ``ids[m, b, k]`` into ``outs[m][b, k]``, one or two of them; -1 is a frame of zeros.

        Frames are read in the order of their numbers, so that each is decompressed once, however often it is asked
        for.
        """
        decompress, size = _lz4().decompress, len(self._zeros)
        numbers = ids.reshape(-1)
        order = np.argsort(numbers, kind="stable")
        which, where = np.divmod(order, ids[0].size)
        parts = [out.reshape(-1).view(np.uint8).data for out in outs]
        latest, frame = -1, self._zeros
        for number, m, start in zip(numbers[order].tolist(), which.tolist(), (where * size).tolist(), strict=True):
            if number != latest:
                block = self._blocks[number]
                latest, frame = number, decompress(block, uncompressed_size=size) if block else self._zeros
            parts[m][start : start + size] = frame

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the frames held take now, headers of objects included; looks at every frame."""
        return sys.getsizeof(self._blocks) + sum(sys.getsizeof(block) for block in self._blocks if block)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # of the list; the blocks are shared, for they never change


def _lz4() -> ModuleType:
    with extra("lz4"):
        import lz4.block as block  # type: ignore[import-untyped]

    module: ModuleType = block
    return module
