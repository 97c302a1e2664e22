"""Frames of one array, or of several by name. Environments, stacks, networks and batches have them alike.

Shapes, dtypes and the arrays themselves are then dictionaries of the same names, one level deep.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastrl.base.console import printable

Frame = Any
"""[n, *shape]; of several arrays a dict of such, by name."""
FrameShape = Any
"""Tuple of int: shape of one frame; of several arrays a dict of such, by name."""
FrameDtype = Any
"""NumPy dtype of a frame; of several arrays a dict of such, by name."""


def per_array(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Return what a function makes of one array's values; of several arrays, of each one's, as a dict.

    Parameters
    ----------
    function : callable
        Takes as many values as are given.
    first, *others
        Values of one array, such as its shape and its dtype; or dicts of them. The names of `first` count.
    """
    if isinstance(first, Mapping):
        return {name: function(value, *(other[name] for other in others)) for name, value in first.items()}
    return function(first, *others)


def listed(values: Any) -> list[Any]:
    """Return the values of all arrays; of a single one, a list of it."""
    return list(values.values()) if isinstance(values, Mapping) else [values]


def select(frame: Frame, rows: Any) -> Frame:
    """Return copies of some rows of frames, given by their positions [m] integers or as [n] bool."""
    return per_array(lambda array: array[rows], frame)


def count(frame: Frame) -> int:
    """Return how many rows frames are."""
    return len(listed(frame)[0])


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def no_array(place: str, value: Any, wanted: str) -> ValueError:
    """Return the error for a value that is not an array: where the value stands, what it is and what to give."""
    simple = isinstance(value, str | int | float | None)
    shown = reprlib.repr(value) if simple else f"of type {type(value).__name__}"
    return ValueError(f"{place} is {shown}; give {wanted}")


def require_equal_counts(name: str, frame: Frame) -> None:
    """Raise ValueError, which calls them by this name, if frames of several arrays are not all of as many rows."""
    if isinstance(frame, Mapping) and len(set(map(len, frame.values()))) > 1:
        rows = ", ".join(f"{len(array)} of {name}[{key!r}]" for key, array in frame.items())
        raise ValueError(f"{name} has {rows}; give as many rows of each array")


def stacked_shape(stack: int, frame_shape: FrameShape) -> FrameShape:
    """Return the shape [stack, *shape] of an observation."""
    return per_array(lambda shape: (stack, *shape), frame_shape)


def dtypes_in_words(frame_dtype: FrameDtype) -> str:
    """Return the dtype, or of several arrays ``several arrays (image uint8, state float32)``."""
    if not isinstance(frame_dtype, Mapping):
        return str(frame_dtype)
    return f"several arrays ({', '.join(f'{printable(name)} {dtype}' for name, dtype in frame_dtype.items())})"


def in_words(frame_shape: FrameShape, frame_dtype: FrameDtype | None = None) -> str:
    """Return shapes, and dtypes where given, as messages say them: ``[84, 84]``; ``image [84, 84], state [7]``."""
    if not isinstance(frame_shape, Mapping):
        dtype = "" if frame_dtype is None else f"{np.dtype(frame_dtype)} "
        return f"{dtype}{list(frame_shape)}"
    dtypes = frame_dtype or dict.fromkeys(frame_shape)
    return ", ".join(f"{printable(name)} {in_words(shape, dtypes[name])}" for name, shape in frame_shape.items())
