from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

@final
class Appender:
    def __init__(
        self,
        rings: Rings,
        frames: NDArray[np.uint8],
        actions: NDArray[np.uint8],
        nodes: NDArray[np.float64],
        offsets: NDArray[np.int64],
        obs: NDArray[Any],
        action: NDArray[Any],
        final_inside: bool,
        env: NDArray[np.int64],
        changed: NDArray[np.int64],
        named: NDArray[np.uint8],
    ) -> None: ...
    def add(
        self,
        obs: ArrayLike,
        action: ArrayLike,
        reward: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        first: ArrayLike | None,
        env_id: ArrayLike | None,
        weight: float,
    ) -> int | None: ...
