"""Stacked observations: split into frames, and joined again (NumPy only)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Padding = Literal["first", "zero"]


class Stacks:
    """How an observation that holds its last few frames side by side splits into these frames.

    Parameters
    ----------
    shape : tuple of int
        Shape of one stacked observation.
    stack : int
        Frames in it, at least 1; oldest first.
    axis : {0, -1}
        Axis of ``shape`` along which the frames follow each other.

    Raises
    ------
    ValueError
        If the shape does not split into ``stack`` frames of equal size.
    """

    def __init__(self, shape: tuple[int, ...], stack: int, axis: int) -> None:
        if stack > 1 and (not shape or shape[axis] % stack):
            raise ValueError(
                f"stack is {stack}, but observations of shape {shape} do not split into that many along axis {axis}; "
                "give VecFrameStack's n_stack and the channels_order in which it stacks, or stack=1"
            )
        self.shape, self.stack = shape, stack
        self._axis = axis if axis < 0 else axis + 1  # behind the axis of environments
        self._depth = shape[axis] // stack if stack > 1 else 0
        self.frame_shape = tuple(self.newest(np.empty((1, *shape), np.bool_)).shape[1:])

    def newest(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Return the last frames ``[N, *frame_shape]`` of ``obs [N, *shape]``: a view."""
        return obs if self.stack == 1 else self._part(obs, slice(-self._depth, None))

    def older(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Return all frames but the newest, side by side: a view. For stacks of at least 2."""
        return self._part(obs, slice(None, -self._depth))

    def newer(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Return all frames but the oldest, side by side: a view. For stacks of at least 2."""
        return self._part(obs, slice(self._depth, None))

    def padding(self, obs: NDArray[Any], kind: Padding) -> NDArray[Any]:
        """Return what `older` must give where ``obs [N, *shape]`` opens an episode. For stacks of at least 2."""
        if kind == "zero":
            return np.zeros_like(self.older(obs))
        return np.concatenate([self.newest(obs)] * (self.stack - 1), axis=self._axis)

    def join(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Return observations ``[B, *shape]`` made of ``frames [B, stack, *frame_shape]``, oldest first.

        A view where frames follow each other along the first axis, a copy along the last.
        """
        if self.stack > 1 and self._axis < 0:
            frames = np.moveaxis(frames, 1, -2)
        return frames.reshape(len(frames), *self.shape)

    def _part(self, obs: NDArray[Any], part: slice) -> NDArray[Any]:
        return obs[:, part] if self._axis == 1 else obs[..., part]


def differ(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether any bit differs in each row of two arrays ``[N, ...]`` of equal shape and dtype: ``[N] bool``."""
    raw = [np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in (a, b)]
    return np.asarray((raw[0] != raw[1]).any(axis=1))
