"""What a draw returns, and the pool of arrays that draws write into."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.stores.layout import Layout


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B transitions, each over up to ``n_step`` steps.

    ``obs`` and ``next_obs`` are what the frame store makes: NumPy arrays for the stores of this package. Observations
    of several arrays are nested here as they were added.
    """

    obs: Any
    """``[B, stack, *obs_shape]``, oldest frame first."""
    action: NDArray[Any]
    """``[B, *action_shape]``: action taken at ``obs``."""
    reward: NDArray[np.float32]
    """``[B]``: sum of gamma^k r_k over the steps taken."""
    next_obs: Any
    """``[B, stack, *obs_shape]`` after the last of these steps."""
    discount: NDArray[np.float32]
    """``[B]``: gamma to the number of steps taken, 0 after a termination."""
    weight: NDArray[np.float32]
    """``[B]``: importance weights, the largest 1."""
    index: NDArray[np.int64]
    """``[B]``: names of the rows, for `update_priorities`; opaque."""

    @property
    def extra(self) -> dict[str, NDArray[Any]]:
        """``[B, *shape]`` each: fields of one's own at ``obs``, by name; see `ExtraBatch`."""
        return {}

    @property
    def next_extra(self) -> dict[str, NDArray[Any]]:
        """``[B, *shape]`` each: those of the fields that were asked for, at ``next_obs``, by name."""
        return {}


@dataclass(frozen=True, slots=True, eq=False)
class ExtraBatch(Batch):
    """The batch of a buffer with fields of one's own; as a `Batch` otherwise."""

    extra: dict[str, NDArray[Any]] = field()
    """``[B, *shape]`` each: fields at ``obs``, by name."""
    next_extra: dict[str, NDArray[Any]] = field()
    """``[B, *shape]`` each: those of the fields that were asked for, at ``next_obs``, by name."""


_NAMES = tuple(each.name for each in fields(Batch))
_SCALARS: dict[str, np.dtype[Any]] = {
    "reward": np.dtype("f4"),
    "discount": np.dtype("f4"),
    "weight": np.dtype("f4"),
    "index": np.dtype("i8"),
}


def held(arrays: dict[str, Any]) -> int:
    """Return the highest reference count among these arrays."""
    return max(map(sys.getrefcount, arrays.values()))


# What `held` returns for arrays that nothing else refers to; it depends on the version of the interpreter.
FREE = held({"index": np.empty(1)})


@contextmanager
def naming_size(size: int) -> Iterator[None]:
    """Name the argument that asked for more memory than there is, or than an array can span."""
    try:
        yield
    except (MemoryError, ValueError) as error:
        raise MemoryError(f"batch_size is {size}, too much for memory ({error}); draw fewer rows at a time") from error


class BatchPool:
    """Lends arrays, and lends them again once nothing else refers to them.

    Writing into memory that is mapped already is several times faster than writing into fresh pages. Arrays are never
    lent again while a batch, one of its arrays, or a view of one is still referred to.

    The reference count of an array that owns its memory shows this. Memory of any other kind, such as a tensor, can be
    held without a reference to the object at hand: such frames are made anew for every batch.

    Parameters
    ----------
    layout : Layout
        The arrays of a row.
    action_shape, action_dtype
        Shape and dtype of one action.
    empty : sequence of callable
        For each array of a row, what makes memory for it of a given shape (see `FrameStore.empty`).
    keep : int
        Sets of arrays of one batch size to remember. If more are in use, the pool forgets the oldest.
    """

    def __init__(
        self,
        layout: Layout,
        action_shape: tuple[int, ...],
        action_dtype: np.dtype[Any],
        empty: Sequence[Callable[[tuple[int, ...]], Any]],
        keep: int = 4,
    ) -> None:
        self._layout, self._keep = layout, keep
        scalars = [_Array(name, (), dtype) for name, dtype in _SCALARS.items()]
        self._columns = [_Array("action", action_shape, action_dtype), *scalars]
        now: list[_Array] = []  # one for each field
        after: list[_Array | None] = []
        for each, make in zip(layout.fields, empty, strict=True):
            shape = (each.stack, *each.shape) if each.is_obs else each.shape
            owned = owns(make((1, *shape)))
            now.append(_Array(each.name, shape, each.dtype, make, owned))
            after.append(_Array(f"next_{each.name}", shape, each.dtype, make, owned) if each.in_next else None)
        self._now, self._after = now, after
        rows = [array for array in (*now, *after) if array is not None]
        self._lent = [*self._columns, *(array for array in rows if array.owned)]
        self._fresh = [array for array in rows if not array.owned]
        self._batch: Callable[..., Batch] = Batch if layout.single else self._nested
        self._sets: list[dict[str, Any]] = []

    def lend(self, size: int) -> Batch:
        """Return a batch of ``size`` rows whose contents may be overwritten.

        Raises
        ------
        MemoryError
            If there is too little memory.
        """
        for arrays in self._sets:
            if len(arrays["index"]) == size and held(arrays) <= FREE:
                break
        else:
            arrays = self._remember(size)
        return self._batch(**arrays, **_made(self._fresh, size)) if self._fresh else self._batch(**arrays)

    def make(self, size: int, empty: Callable[[tuple[int, ...], np.dtype[Any]], Any] | None) -> Batch:
        """Return a batch of ``size`` rows in memory that the pool does not lend; see `ReplayBuffer.empty_batch`.

        Raises
        ------
        MemoryError
            If there is too little memory.
        """
        arrays = (*self._columns, *self._now, *filter(None, self._after))
        if empty is None:
            return self._batch(**_made(arrays, size))
        with naming_size(size):
            return self._batch(**{name: empty((size, *shape), dtype) for name, shape, dtype, *_ in arrays})

    def check(self, batch: Batch, size: int) -> None:
        """Raise ValueError unless ``batch`` holds writable C-contiguous NumPy arrays of the right shapes and dtypes."""
        single = self._layout.single
        found: dict[str, Any] = {name: getattr(batch, name, None) for name in _NAMES} if single else self._flat(batch)
        for name, shape, dtype, *_ in (*self._now, *self._columns, *filter(None, self._after)):
            array, wanted = found[name], (size, *shape)
            if not isinstance(array, np.ndarray) or array.shape != wanted or array.dtype != dtype:
                got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise ValueError(f"out.{name} is {got}; give a NumPy array, {dtype} {wanted}")
            if not array.flags.carray:
                raise ValueError(
                    f"out.{name} is read-only, misaligned or not contiguous; give a writable C-contiguous array"
                )
        where = sorted((array.ctypes.data, array.nbytes) for array in found.values())
        if any(begin + nbytes > after for (begin, nbytes), (after, _) in pairwise(where)):
            raise ValueError("two arrays of out share their memory; give each field a separate array")

    def _flat(self, batch: Batch) -> dict[str, Any]:
        """Return all arrays of a batch by the names that messages give them."""
        now, after = self._layout.of_batch(batch)
        named = {array.name: found for array, found in zip(self._now, now, strict=True)}
        named |= {array.name: found for array, found in zip(self._after, after, strict=True) if array is not None}
        return named | {array.name: getattr(batch, array.name, None) for array in self._columns}

    def _nested(self, **arrays: Any) -> Batch:
        """Return the batch of these arrays, whose names are those that messages give them."""
        columns = {array.name: arrays[array.name] for array in self._columns}
        obs, extra = self._layout.nest([arrays[array.name] for array in self._now])
        next_obs, next_extra = self._layout.nest([None if a is None else arrays[a.name] for a in self._after])
        if not self._layout.has_extra:
            return Batch(obs=obs, next_obs=next_obs, **columns)
        return ExtraBatch(obs=obs, next_obs=next_obs, extra=extra, next_extra=next_extra, **columns)

    def _remember(self, size: int) -> dict[str, Any]:
        """Return a new set of arrays to lend again, without those that are made anew for every batch."""
        arrays = _made(self._lent, size)
        others = [arrays for arrays in self._sets if len(arrays["index"]) != size]
        alike = [arrays for arrays in self._sets if len(arrays["index"]) == size]
        self._sets = [*others[-self._keep :], *alike[-self._keep + 1 :], arrays]
        return arrays


class _Array(NamedTuple):
    """One array of a batch."""

    name: str
    shape: tuple[int, ...]  # behind the batch axis
    dtype: np.dtype[Any]
    empty: Callable[[tuple[int, ...]], Any] | None = None
    owned: bool = True  # its reference count tells whether anything refers to its memory


def _made(arrays: Sequence[_Array], size: int) -> dict[str, Any]:
    with naming_size(size):
        return {
            name: np.empty((size, *shape), dtype) if empty is None else empty((size, *shape))
            for name, shape, dtype, empty, _ in arrays
        }


def owns(array: Any) -> bool:
    """Whether the reference count of an array tells whether anything refers to its memory."""
    return isinstance(array, np.ndarray) and bool(array.flags.owndata)
