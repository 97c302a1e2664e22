"""Several stores behind the calls of one: each holds one array of every row."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.stores.store import FrameStore


class SeveralStores:
    """Arrays of rows, each in a store of its own. What a `FrameStore` takes as one array is a list of them here.

    Parameters
    ----------
    stores : sequence of FrameStore
        One for each array of a row.
    stacks : sequence of int
        How many rows' values a batch holds of each.
    """

    def __init__(self, stores: Sequence[FrameStore], stacks: Sequence[int]) -> None:
        self.stores, self._stacks = tuple(stores), tuple(stacks)

    def write(self, ids: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> None:
        """Keep ``arrays[k] [n, *shape]`` under the numbers ``ids [n]``, for each store k.

        All or none, if all stores but one have a ``prepare``: it returns a call that writes and cannot fail. The others
        write first.
        """
        writes: list[Callable[[], None]] = []
        others: list[Callable[[], None]] = []
        for store, array in zip(self.stores, arrays, strict=True):
            prepare = getattr(store, "prepare", None)
            if prepare is None:
                others.append(partial(store.write, ids, array))
            else:
                writes.append(prepare(ids, array))
        for write in (*others, *writes):
            write()

    def gather(self, ids: NDArray[np.int64], *outs: Sequence[Any]) -> None:
        """Put array ``ids[m, b, k]`` of store j into ``outs[m][j][b, k]``; where that is None, nothing.

        ``ids [m, B, deepest stack]`` are the numbers of the deepest stacks. Of a shallower one, only the last count.
        """
        narrow = {ids.shape[2]: ids}
        for j, (store, stack) in enumerate(zip(self.stores, self._stacks, strict=True)):
            if stack not in narrow:
                narrow[stack] = np.ascontiguousarray(ids[:, :, -stack:])
            wanted = [m for m, out in enumerate(outs) if out[j] is not None]
            numbers = narrow[stack] if len(wanted) == len(ids) else np.ascontiguousarray(narrow[stack][wanted])
            if wanted:
                store.gather(numbers, *[outs[m][j] for m in wanted])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all stores take (see `FrameStore`)."""
        return sum(store.nbytes for store in self.stores)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a copy that shared memory with this one would overwrite its rows


class Records:
    """Several stores as one store of records: the arrays of a row side by side, as bytes. Saves hold these.

    Parameters
    ----------
    stores : SeveralStores
        The stores.
    shapes, dtypes
        Shape and dtype of one array of each.
    """

    def __init__(
        self, stores: SeveralStores, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype[Any]]
    ) -> None:
        self._several, self._shapes, self._dtypes = stores, shapes, dtypes
        each = zip(shapes, dtypes, strict=True)
        self._sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in each]

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return fresh memory for `gather` to fill."""
        return np.empty(shape, np.uint8)

    def write(self, ids: NDArray[np.int64], records: NDArray[np.uint8]) -> None:
        """Keep ``records [n, bytes]`` under the numbers ``ids [n]``."""
        arrays, begin = [], 0
        for shape, dtype, size in zip(self._shapes, self._dtypes, self._sizes, strict=True):
            part = np.ascontiguousarray(records[:, begin : begin + size])
            arrays.append(part.view(dtype).reshape(len(ids), *shape))
            begin += size
        self._several.write(ids, arrays)

    def gather(self, ids: NDArray[np.int64], *outs: NDArray[np.uint8]) -> None:
        """Put record ``ids[m, b, k]`` into ``outs[m][b, k]``."""
        for numbers, out in zip(ids, outs, strict=True):
            begin = 0
            for store, shape, dtype, size in zip(
                self._several.stores, self._shapes, self._dtypes, self._sizes, strict=True
            ):
                part = np.empty((*numbers.shape, *shape), dtype)
                store.gather(numbers[None], part)
                out[..., begin : begin + size] = part.reshape(*numbers.shape, -1).view(np.uint8)
                begin += size

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all stores take."""
        return self._several.nbytes
