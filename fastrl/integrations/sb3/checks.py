"""Checks of arguments, with errors that name argument, value and remedy."""

from __future__ import annotations

from typing import Any

import numpy as np


def positive_integer(name: str, value: Any) -> int:
    """Return an argument that is an integer of at least 1, or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}; give an integer from 1 up")
    return int(value)


def fraction(name: str, value: Any) -> float:
    """Return an argument that is a number from 0 to 1, or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; give a number from 0 to 1")
    return float(value)
