from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrl.replay._ring import Rings

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
        final_obs: ArrayLike | None,
        env_id: ArrayLike | None,
        weight: float,
    ) -> int | None: ...
