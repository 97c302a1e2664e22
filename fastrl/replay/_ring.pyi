from typing import final

import numpy as np
from numpy.typing import NDArray

MARKS: dict[str, int]  # what the kernels take them to be; see marks.py

@final
class Rings:
    def __init__(
        self,
        rows: int,
        stack: int,
        n_step: int,
        count: NDArray[np.int64],
        pending: NDArray[np.int64],
        ended: NDArray[np.uint8],
        opens: NDArray[np.uint8],
        first: NDArray[np.uint8],
        reward: NDArray[np.float32],
        mark: NDArray[np.uint8],
        drawable: NDArray[np.uint8],
    ) -> None: ...
    def push(
        self,
        env: NDArray[np.int64],
        in_reward: NDArray[np.float32],
        in_mark: NDArray[np.uint8],
        in_first: NDArray[np.int8],
        slots: NDArray[np.int64],
        changed: NDArray[np.int64],
    ) -> int: ...
    def locate(self, index: NDArray[np.int64], slots: NDArray[np.int64], alive: NDArray[np.uint8]) -> int: ...
