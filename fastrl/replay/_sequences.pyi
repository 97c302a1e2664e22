from typing import final

import numpy as np
from numpy.typing import NDArray

@final
class Stretches:
    def __init__(
        self,
        rows: int,
        stack: int,
        zero: bool,
        gamma: float,
        nodes: NDArray[np.float64],
        oldest: NDArray[np.int64],
        count: NDArray[np.int64],
        first: NDArray[np.uint8],
        reward: NDArray[np.float32],
        mark: NDArray[np.uint8],
        action: NDArray[np.uint8],
    ) -> None: ...
    def unfinished(self, length: int, slots: NDArray[np.int64]) -> int: ...
    def assemble(
        self,
        period: int,
        burn_in: int,
        index: NDArray[np.int64],
        weights: NDArray[np.float64],
        action: NDArray[np.uint8],
        reward: NDArray[np.float32],
        discount: NDArray[np.float32],
        mask: NDArray[np.uint8],
        numbers: NDArray[np.int64],
    ) -> None: ...
