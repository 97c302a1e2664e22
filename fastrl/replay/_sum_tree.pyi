import numpy as np
from numpy.typing import NDArray

def bad_index(index: NDArray[np.int64], count: int) -> int: ...
def bad_number(numbers: NDArray[np.float64], most: float) -> int: ...
def set_leaves(
    nodes: NDArray[np.float64],
    offsets: NDArray[np.int64],
    leaves: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> None: ...
def find_leaves(
    nodes: NDArray[np.float64],
    offsets: NDArray[np.int64],
    targets: NDArray[np.float64],
    leaves: NDArray[np.int64],
) -> None: ...
def draw_leaves(
    nodes: NDArray[np.float64],
    offsets: NDArray[np.int64],
    uniforms: NDArray[np.float64],
    leaves: NDArray[np.int64],
) -> None: ...

__pyx_capi__: dict[str, object]  # what _append and _draw cimport
