"""How arrays lie in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LINE = 64  # bytes of a cache line
_NUMBERS = frozenset({bool, int, float, *(np.dtype(code).type for code in "?bhilqBHILQefdg")})


def contiguous(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Return the array as kernels read it: C-contiguous, aligned and of this dtype. Copies only if it is not."""
    array = np.ascontiguousarray(array, dtype)
    return array if array.flags.aligned else array.copy()


def from_list(value: Any) -> Any:
    """Return a list of numbers as an array of the dtype that NumPy finds for them, and anything else as it is."""
    numbers = type(value) is list and _NUMBERS.issuperset(map(type, value))  # of others, code could run
    return np.asarray(value) if numbers else value


def as_bytes(array: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """Return a view ``[count, bytes] uint8`` of a contiguous array that falls into ``count`` equal parts."""
    return array.reshape(count, -1).view(np.uint8)


def on_cache_lines(size: int) -> NDArray[np.float64]:
    """Return ``size`` zeros that begin at the start of a cache line, so that each group of eight shares one line."""
    memory = np.zeros(size + _LINE // 8)
    start = -(memory.ctypes.data // memory.itemsize) % (_LINE // 8)
    return memory[start : start + size]
