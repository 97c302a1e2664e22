from typing import final

import numpy as np
from numpy.typing import NDArray

@final
class Drawer:
    def __init__(
        self,
        rows: int,
        zero: bool,
        powers: NDArray[np.float64],
        nodes: NDArray[np.float64],
        offsets: NDArray[np.int64],
        count: NDArray[np.int64],
        first: NDArray[np.uint8],
        reward: NDArray[np.float32],
        mark: NDArray[np.uint8],
        action: NDArray[np.uint8],
    ) -> None: ...
    def draw(
        self,
        uniforms: NDArray[np.float64],
        action: NDArray[np.uint8],
        returns: NDArray[np.float32],
        discounts: NDArray[np.float32],
        index: NDArray[np.int64],
        numbers: NDArray[np.int64],
    ) -> None: ...
