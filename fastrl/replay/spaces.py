"""Settings of a buffer from spaces such as Gymnasium's, which is not imported: a space is known by what it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def settings_of(observation_space: Any, action_space: Any) -> dict[str, Any]:
    """Return the shapes and dtypes of frames and actions in these spaces.

    A space with ``spaces`` holds others: by name (Gymnasium's ``Dict``) or in order (``Tuple``). Any other must have a
    ``shape`` and a ``dtype``.

    Raises
    ------
    ValueError
        If a space holds no arrays of one shape and dtype.
    """
    if hasattr(action_space, "spaces"):
        raise ValueError(
            f"action_space is {action_space}, of several arrays; give the space of one of them, and keep the others as "
            "extra="
        )
    obs_shape, obs_dtype = _shape_and_dtype(observation_space, "observation_space")
    action_shape, action_dtype = _shape_and_dtype(action_space, "action_space")
    return {
        "obs_shape": obs_shape,
        "obs_dtype": obs_dtype,
        "action_shape": action_shape,
        "action_dtype": action_dtype,
    }


def _shape_and_dtype(space: Any, name: str) -> tuple[Any, Any]:
    inner = getattr(space, "spaces", None)
    if isinstance(inner, Mapping):
        parts = {key: _shape_and_dtype(part, f"{name}[{key!r}]") for key, part in inner.items()}
        return {key: shape for key, (shape, _) in parts.items()}, {key: dtype for key, (_, dtype) in parts.items()}
    if isinstance(inner, tuple | list):
        each = [_shape_and_dtype(part, f"{name}[{i}]") for i, part in enumerate(inner)]
        return tuple(shape for shape, _ in each), tuple(dtype for _, dtype in each)
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if not isinstance(shape, tuple) or dtype is None or np.dtype(dtype).kind not in "biufc":
        raise ValueError(f"{name} is {space}, which holds no arrays of one shape and numeric dtype; give one that does")
    return shape, dtype
