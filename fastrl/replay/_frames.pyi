import numpy as np
from numpy.typing import NDArray

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
