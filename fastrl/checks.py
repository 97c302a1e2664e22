"""Checks of arguments, with the words that name argument, value and remedy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastrl.config import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise RuntimeError with the message unless the condition holds."""
    if not condition:
        raise RuntimeError(message)


def at_least(least: int, **settings: int) -> None:
    """Raise ConfigError for the first setting below the least."""
    for name, value in settings.items():
        if value < least:
            raise ConfigError(f"{name} is {value!r}; give at least {least}")


def numbers(name: str, values: npt.ArrayLike, limit: int) -> npt.NDArray[np.int32]:
    """Return `values` as [n] int32, checked: EnvPool itself would read past its tables."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; give a flat array of integers")
    if array.size and not (array.min() >= 0 and array.max() < limit):
        raise ValueError(f"{name} runs from {array.min()} to {array.max()}; give numbers from 0 to {limit - 1}")
    return array.astype(np.int32)
