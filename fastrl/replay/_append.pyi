from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrl.replay._ring import Rings

@final
class Column:
    def __init__(
        self,
        memory: NDArray[np.uint8],
        like: NDArray[Any],
        has_final: bool,
        is_frame: bool,
        after: Column | None = None,
    ) -> None: ...

@final
class Appender:
    def __init__(
        self,
        rings: Rings,
        column: Column,
        several: bool,
        actions: NDArray[np.uint8],
        nodes: NDArray[np.float64],
        offsets: NDArray[np.int64],
        action: NDArray[Any],
        final_inside: bool,
        env: NDArray[np.int64],
        changed: NDArray[np.int64],
        named: NDArray[np.uint8],
    ) -> None: ...
    def add(
        self,
        rows: Any,
        action: ArrayLike,
        reward: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        first: ArrayLike | None,
        finals: Any,
        env_id: ArrayLike | None,
        weight: float,
    ) -> int | None: ...
    def extend(
        self,
        rows: Any,
        action: ArrayLike,
        reward: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        first: ArrayLike | None,
        finals: Any,
        env_id: ArrayLike | None,
        weight: float,
    ) -> int | None: ...
