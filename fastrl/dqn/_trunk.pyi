from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

ROLES: dict[str, int]

def supported() -> dict[str, int]: ...

@final
class Trunk:
    features: list[NDArray[Any]]
    image: tuple[int, int, int]
    dtype: np.dtype[Any]
    def __init__(
        self,
        kernels: str,
        image: tuple[int, int, int],
        layers: Sequence[tuple[int, int, int] | tuple[int, int, int, int, str]],
        batch: int,
        most: int,
        parts: int,
        parallel: int,
        pool: int = 0,
    ) -> None: ...
    def pack(self, net: int, layer: int, weight: NDArray[Any], bias: NDArray[Any]) -> None: ...
    def forward(self, obs: NDArray[Any], next_obs: NDArray[Any], online_next: bool = True) -> None: ...
    def act(self, obs: NDArray[Any]) -> None: ...
    def backward(self, obs: NDArray[Any], grad: NDArray[Any]) -> None: ...
    def gradient(self, layer: int, weight: NDArray[Any], bias: NDArray[Any]) -> None: ...
