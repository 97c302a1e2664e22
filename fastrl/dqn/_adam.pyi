from typing import Any, final

from numpy.typing import NDArray

def supported() -> list[str]: ...

@final
class Adam:
    def __init__(
        self,
        values: NDArray[Any],
        mean: NDArray[Any],
        square: NDArray[Any],
        starts: list[int],
        counts: list[int],
        copies: list[NDArray[Any] | None],
        kernels: str,
        threads: int,
        parallel: int,
    ) -> None: ...
    def step(
        self,
        grads: list[NDArray[Any]],
        count: int,
        rate: float,
        beta1: float,
        beta2: float,
        eps: float,
        max_norm: float,
    ) -> float: ...
