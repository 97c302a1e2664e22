"""Stacks of frames, as agents see them."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import at_least
from fastrl.base.errors import ConfigError
from fastrl.envs.frames import Frame, FrameDtype, FrameShape, per_array

Array = npt.NDArray[Any]


class FrameStack:
    """The last `stack` frames of each environment, oldest first: what the network sees.

    Built for ``N`` environments and frames of one shape and type; of several arrays, of one shape and type each, and
    all as high. `padding` fills the places before a game's first frame: ``"first"`` repeats that frame (as EnvPool
    does), ``"zero"`` is black. Raises ConfigError for less than one environment or frame, or another padding.
    """

    def __init__(
        self,
        num_envs: int,
        stack: int,
        frame_shape: FrameShape,
        dtype: FrameDtype,
        padding: Literal["first", "zero"] = "first",
    ) -> None:
        at_least(1, num_envs=num_envs, stack=stack)
        if padding not in ("first", "zero"):
            raise ConfigError(f"padding is {padding!r}; give 'first' or 'zero'")
        self._stacks: Frame = per_array(lambda *one: np.zeros((num_envs, stack, *one[0]), one[1]), frame_shape, dtype)
        self._started = np.zeros(num_envs, np.bool_)
        self._padding = padding

    def push(self, frame: Frame, first: Array, env_id: Array | None = None) -> Frame:
        """Append one frame to each stack and return the stacks.

        Parameters
        ----------
        frame : [n, *frame_shape], the newest frame of each environment; of several arrays a dict.
        first : [n] bool, the frame opens a game: its stack starts over, as at an environment's first push
            ever. A lost life is no such start.
        env_id : [n] integers, the environment of each row (default: all, in order).

        Returns [n, stack, *frame_shape], of several arrays a dict: without `env_id` the object's own array, valid until
        the next push; with it a copy. Raises ValueError if the shape or type of the frames does not fit.
        """
        rows = len(self._started) if env_id is None else len(env_id)

        def check(stacks: Array, frame: Array) -> None:
            shape = (rows, *stacks.shape[2:])
            if frame.shape != shape or frame.dtype != stacks.dtype:
                raise ValueError(f"frame is {frame.dtype} {frame.shape}; give {stacks.dtype} {shape}")

        per_array(check, self._stacks, frame)
        ids = np.arange(rows) if env_id is None else env_id
        new = first | ~self._started[ids]

        def append(stacks: Array, frame: Array) -> Array:
            if env_id is None:
                for k in range(stacks.shape[1] - 1):  # slot by slot: no temporary copy of the whole
                    stacks[:, k] = stacks[:, k + 1]
            else:
                stacks[ids, :-1] = stacks[ids, 1:]
            stacks[ids[new]] = frame[new, None] if self._padding == "first" else 0
            stacks[ids, -1] = frame
            return stacks if env_id is None else stacks[ids]

        seen = per_array(append, self._stacks, frame)
        self._started[ids] = True
        return seen

    def state(self) -> dict[str, Any]:
        """Return copies of ``stacks`` [N, stack, *frame_shape] and ``started`` [N] bool."""
        return {"stacks": per_array(np.copy, self._stacks), "started": self._started.copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; ValueError, and no change, if shape or type differ."""
        mine = {"stacks": self._stacks, "started": self._started}

        def check(mine: Array, other: Array, name: str) -> None:
            other = np.asarray(other)
            if other.shape != mine.shape or other.dtype != mine.dtype:
                wanted = f"load one of {mine.dtype} {mine.shape}, from a stack built with the same arguments"
                raise ValueError(f"state[{name!r}] is {other.dtype} {other.shape}; {wanted}")

        for name, array in mine.items():
            per_array(partial(check, name=name), array, state[name])
        for name, array in mine.items():
            per_array(np.copyto, array, state[name])

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a copy that shared memory with this object would push into its stacks
