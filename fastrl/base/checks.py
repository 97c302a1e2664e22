"""Checks of arguments and of the order of calls. Each message names argument, value and remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.errors import ConfigError


def check_state(condition: bool, message: str) -> None:
    """Raise RuntimeError with the message unless an object's state allows the call."""
    if not condition:
        raise RuntimeError(message)


def at_least(least: int, **settings: int) -> None:
    """Raise ConfigError for the first setting below the least."""
    for name, value in settings.items():
        if value < least:
            raise ConfigError(f"{name} is {value!r}; give at least {least}")


def share(**settings: float) -> None:
    """Raise ConfigError for the first setting that does not lie between 0 and 1."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}; give 0 to 1")


def indices(name: str, values: npt.ArrayLike, limit: int) -> npt.NDArray[np.int32]:
    """Return `values` as [n] int32; ValueError unless they are integers from 0 to `limit` - 1.

    EnvPool does not check them: it would read past its tables.
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; give a flat array of integers")
    if array.size and not (array.min() >= 0 and array.max() < limit):
        raise ValueError(f"{name} runs from {array.min()} to {array.max()}; give numbers from 0 to {limit - 1}")
    return array.astype(np.int32)


_MOST = 2**63 - 1  # of int64
_INTEGERS, _NUMBERS = (int, np.integer), (int, float, np.integer, np.floating)
_NO_NUMBERS = (bool, np.timedelta64)  # though Python and NumPy count them as integers


def integer(name: str, value: Any, least: int = 1) -> int:
    """Return an argument that is an integer of at least ``least`` and fits into int64, or raise ValueError."""
    if isinstance(value, _NO_NUMBERS) or not isinstance(value, _INTEGERS) or int(value) < least:
        raise ValueError(f"{name} is {_shown(value)}; give an integer from {least} up")
    if int(value) > _MOST:
        raise ValueError(f"{name} is above 2**63 - 1; give an integer from {least} up that int64 holds")
    return int(value)


def number(name: str, value: Any, most: float = float(np.finfo(np.float64).max)) -> float:
    """Return an argument that is a number from 0 to ``most``, or raise ValueError."""
    real = isinstance(value, _NUMBERS) and not isinstance(value, _NO_NUMBERS)
    if not real or not 0 <= value <= most:
        wanted = "a finite number from 0 up" if most > 1 else f"a number from 0 to {most:g}"
        raise ValueError(f"{name} is {_shown(value)}; give {wanted}")
    return float(value)


def _shown(value: Any) -> str:
    """Return a value as it is written, of a very long integer only that: CPython refuses to write those."""
    try:
        return repr(value)
    except ValueError:
        return "an integer of very many digits"


def assert_that(condition: object, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds.

    For invariants. Unlike ``assert``, it also checks under ``python -O``.
    """
    if not condition:
        raise AssertionError(message)
