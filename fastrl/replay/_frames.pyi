from typing import final

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

@final
class Crew:
    def __init__(self, looks: int) -> None: ...
    def serve(self) -> None: ...
    def stop(self) -> None: ...
    def gather(
        self,
        frames: NDArray[np.uint8],
        numbers: NDArray[np.int64],
        one: NDArray[np.uint8],
        other: NDArray[np.uint8],
        piece: int,
    ) -> None: ...
