import numpy as np
from numpy.typing import NDArray

def stack_numbers(
    first: NDArray[np.uint8],
    rows: int,
    slots: NDArray[np.int64],
    zero: bool,
    numbers: NDArray[np.int64],
) -> None: ...
def n_step(
    reward: NDArray[np.float32],
    mark: NDArray[np.uint8],
    rows: int,
    slots: NDArray[np.int64],
    powers: NDArray[np.float64],
    returns: NDArray[np.float32],
    discounts: NDArray[np.float32],
    next_slots: NDArray[np.int64],
) -> None: ...
def gather(
    frames: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    out: NDArray[np.uint8],
    begin: int,
    end: int,
) -> None: ...
def gather_both(
    frames: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    one: NDArray[np.uint8],
    other: NDArray[np.uint8],
    begin: int,
    end: int,
) -> None: ...
