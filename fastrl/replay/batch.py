"""What a draw returns, and the pool of arrays that draws write into."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B transitions, each over up to ``n_step`` steps.

    ``obs`` and ``next_obs`` are what the frame store makes: NumPy arrays for the stores of this package.
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


_NAMES = tuple(field.name for field in fields(Batch))
_FRAMES = ("obs", "next_obs")


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
    obs_shape, obs_dtype, action_shape, action_dtype
        Shape behind the batch axis, and dtype, of ``obs`` and ``next_obs``, and of ``action``.
    empty : callable
        Makes memory for frames of a given shape (see `FrameStore.empty`).
    keep : int
        Sets of arrays of one batch size to remember. If more are in use, the pool forgets the oldest.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        obs_dtype: np.dtype[Any],
        action_shape: tuple[int, ...],
        action_dtype: np.dtype[Any],
        empty: Callable[[tuple[int, ...]], Any],
        keep: int = 4,
    ) -> None:
        shapes = [obs_shape, action_shape, (), obs_shape, (), (), ()]
        dtypes = [np.dtype(d) for d in (obs_dtype, action_dtype, "f4", obs_dtype, "f4", "f4", "i8")]
        self._fields = list(zip(_NAMES, shapes, dtypes, strict=True))
        self._obs_shape, self._empty, self._keep = obs_shape, empty, keep
        sample = empty((1, *obs_shape))
        self._frames_lent = isinstance(sample, np.ndarray) and bool(sample.flags.owndata)
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
        return Batch(**arrays) if self._frames_lent else Batch(**arrays, **self._frames(size))

    def check(self, batch: Batch, size: int) -> None:
        """Raise ValueError unless ``batch`` holds writable C-contiguous NumPy arrays of the right shapes and dtypes."""
        for name, shape, dtype in self._fields:
            array, wanted = getattr(batch, name, None), (size, *shape)
            if not isinstance(array, np.ndarray) or array.shape != wanted or array.dtype != dtype:
                got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise ValueError(f"out.{name} is {got}; give a NumPy array, {dtype} {wanted}")
            if not array.flags.carray:
                raise ValueError(
                    f"out.{name} is read-only, misaligned or not contiguous; give a writable C-contiguous array"
                )
        where = sorted((array.ctypes.data, array.nbytes) for array in (getattr(batch, name) for name in _NAMES))
        if any(begin + nbytes > after for (begin, nbytes), (after, _) in pairwise(where)):
            raise ValueError("two arrays of out share their memory; give each field a separate array")

    def _remember(self, size: int) -> dict[str, Any]:
        """Return a new set of arrays to lend again, without frames if these are made anew for every batch."""
        with naming_size(size):
            arrays = {
                name: np.empty((size, *shape), dtype) for name, shape, dtype in self._fields if name not in _FRAMES
            }
        if self._frames_lent:
            arrays |= self._frames(size)
        others = [arrays for arrays in self._sets if len(arrays["index"]) != size]
        alike = [arrays for arrays in self._sets if len(arrays["index"]) == size]
        self._sets = [*others[-self._keep :], *alike[-self._keep + 1 :], arrays]
        return arrays

    def _frames(self, size: int) -> dict[str, Any]:
        with naming_size(size):
            return {name: self._empty((size, *self._obs_shape)) for name in _FRAMES}
