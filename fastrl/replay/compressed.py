"""Frames in memory, each compressed by lz4."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.extras import need


class Lz4Store:
    """Frames as blocks of lz4, one for each: images of Atari's games shrink to a tenth, more or less.

    Each is compressed by itself, since frames are overwritten and drawn one by one, in lz4's default mode: its high
    compression takes an eighth to a fifth off and many times as long. A block is a ``bytes`` object, which with its
    header, its place in a list and the allocator's gaps takes some 110 bytes beside. Noise grows by half a percent.

    There are no threads as in `RamStore`: lz4 gives the GIL away for a microsecond or two at a time, too little to pay
    for handing it over. `ReplayBuffer.prefetch` helps, as with every store.

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
        _lz4()  # missing, it is missed now
        self._items, self._dtype = math.prod(shape), dtype
        self._blocks = [b""] * count  # empty: never written
        self._zeros = bytes(self._items * dtype.itemsize)

    def empty(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a fresh array for `gather` to fill."""
        return np.empty(shape, self._dtype)

    def write(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Keep ``frames [n, *shape]`` under the numbers ``ids [n]``; compresses each."""
        compress = _lz4().compress
        rows = np.ascontiguousarray(frames, self._dtype).reshape(-1, self._items).view(np.uint8)
        blocks = [compress(row, store_size=False) for row in rows]  # all of them first: there may be too little memory
        for number, block in zip(ids.tolist(), blocks, strict=True):
            self._blocks[number] = block

    def gather(self, ids: NDArray[np.int64], *outs: NDArray[Any]) -> None:
        """Put frame ``ids[m, b, k]`` into ``outs[m][b, k]``, one or two of them; -1 is a frame of zeros.

        Frames are taken in order of their numbers, so that each is decompressed once, wherever it goes.
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
        """Bytes of memory that the frames held take now, objects' headers included: looks at every frame."""
        return sys.getsizeof(self._blocks) + sum(sys.getsizeof(block) for block in self._blocks if block)


def _lz4() -> ModuleType:
    return need("lz4.block", "lz4")
