from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

def supported() -> dict[str, int]: ...

class Trunk:
    features: list[Array]
    image: tuple[int, int, int]
    dtype: np.dtype[Any]
    def __init__(
        self,
        kernels: str,
        image: tuple[int, int, int],
        layers: list[tuple[int, int, int]],
        batch: int,
        most: int,
        parts: int,
        parallel: int,
    ) -> None: ...
    def pack(self, net: int, layer: int, weight: Array, bias: Array) -> None: ...
    def forward(self, obs: Array, next_obs: Array) -> None: ...
    def act(self, obs: Array) -> None: ...
    def backward(self, obs: Array, grad: Array) -> None: ...
    def gradient(self, layer: int, weight: Array, bias: Array) -> None: ...
