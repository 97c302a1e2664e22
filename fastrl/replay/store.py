"""What a store of frames is: it writes frames under numbers and gathers numbered frames; it knows nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class FrameStore(Protocol):
    """What the buffer asks of a store; memory, compression or a GPU lie behind the same calls."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Return fresh memory of the store's own kind and dtype, ``shape`` long, for `gather` to fill."""

    def write(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Keep ``frames [n, *obs_shape]`` under the numbers ``ids [n]``, in place of what was there.

        All or none: where there is too little memory, it raises before anything has changed.
        """

    def gather(self, ids: NDArray[np.int64], *outs: Any) -> None:
        """Put frame ``ids[m, b, k]`` into ``outs[m][b, k]``; -1 is a frame of zeros.

        ``ids`` is C-contiguous and has a row for each of ``outs``, one or two, which are what `empty` returned or
        C-contiguous NumPy arrays: every store fills both.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the store takes when full or, where that depends on the frames, with those it holds."""


MakeStore = Callable[[int, tuple[int, ...], np.dtype[Any]], FrameStore]
"""What makes a store: called with the count of frames, and the shape and dtype of one."""
