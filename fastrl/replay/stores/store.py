"""What a store of frames does: it writes frames under numbers, and gathers numbered frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class FrameStore(Protocol):
    """What the buffer asks of a store. Memory, compression and a GPU lie behind the same calls."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Return fresh memory of this shape, of the store's kind and dtype, for `gather` to fill."""

    def write(self, ids: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Keep ``frames [n, *obs_shape]`` under the numbers ``ids [n]``, in place of the frames there.

        All or none: if there is too little memory, it raises before anything changes.
        """

    def gather(self, ids: NDArray[np.int64], *outs: Any) -> None:
        """Put frame ``ids[m, b, k]`` into ``outs[m][b, k]``; -1 is a frame of zeros.

        ``ids`` is C-contiguous and has one row for each of ``outs``, of which there are one or two. Each of them is
        what `empty` returned or a C-contiguous NumPy array; every store fills either.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the store takes when full; if that depends on the frames, with those it holds now."""


MakeStore = Callable[[int, tuple[int, ...], np.dtype[Any]], FrameStore]
"""Makes a store, given the number of frames, and the shape and dtype of one."""

Store = str | MakeStore | Mapping[str, Any] | Sequence[Any]
"""The name of a store, or what makes one; of observations of several arrays, also nested like these."""
