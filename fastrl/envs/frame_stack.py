"""Stacks of frames, as agents see them."""

from __future__ import annotations

import copy
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import at_least
from fastrl.base.errors import ConfigError

Array = npt.NDArray[Any]


class FrameStack:
    """The last `stack` frames of each environment, oldest first: what the network sees.

    Built for ``N`` environments and frames of one shape and type. `padding` fills the places before a game's
    first frame: ``"first"`` repeats that frame (as EnvPool does), ``"zero"`` is black. Raises ConfigError for
    less than one environment or frame, or another padding.
    """

    def __init__(
        self,
        num_envs: int,
        stack: int,
        frame_shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        padding: Literal["first", "zero"] = "first",
    ) -> None:
        at_least(1, num_envs=num_envs, stack=stack)
        if padding not in ("first", "zero"):
            raise ConfigError(f"padding is {padding!r}; give 'first' or 'zero'")
        self._stacks: Array = np.zeros((num_envs, stack, *frame_shape), dtype)
        self._started = np.zeros(num_envs, np.bool_)
        self._padding = padding

    def push(self, frame: Array, first: Array, env_id: Array | None = None) -> Array:
        """Append one frame to each stack and return the stacks.

        Parameters
        ----------
        frame : [n, *frame_shape], the newest frame of each environment.
        first : [n] bool, the frame opens a game: its stack starts over, as at an environment's first push
            ever. A lost life is no such start.
        env_id : [n] integers, the environment of each row (default: all, in order).

        Returns [n, stack, *frame_shape]: without `env_id` the object's own array, valid until the next push;
        with it a copy. Raises ValueError if the shape or type of the frames does not fit.
        """
        rows = len(self._stacks) if env_id is None else len(env_id)
        shape = (rows, *self._stacks.shape[2:])
        if frame.shape != shape or frame.dtype != self._stacks.dtype:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}; give {self._stacks.dtype} {shape}")
        ids = np.arange(rows) if env_id is None else env_id
        new = first | ~self._started[ids]
        if env_id is None:
            for k in range(self._stacks.shape[1] - 1):  # slot by slot: no temporary copy of the whole
                self._stacks[:, k] = self._stacks[:, k + 1]
        else:
            self._stacks[ids, :-1] = self._stacks[ids, 1:]
        self._stacks[ids[new]] = frame[new, None] if self._padding == "first" else 0
        self._stacks[ids, -1] = frame
        self._started[ids] = True
        return self._stacks if env_id is None else self._stacks[ids]

    def state(self) -> dict[str, Array]:
        """Return copies of ``stacks`` [N, stack, *frame_shape] and ``started`` [N] bool."""
        return {"stacks": self._stacks.copy(), "started": self._started.copy()}

    def load_state(self, state: dict[str, Array]) -> None:
        """Take over what `state` returned; ValueError, and no change, if shape or type differ."""
        for name, mine in (("stacks", self._stacks), ("started", self._started)):
            other = np.asarray(state[name])
            if other.shape != mine.shape or other.dtype != mine.dtype:
                wanted = f"load one of {mine.dtype} {mine.shape}, from a stack built with the same arguments"
                raise ValueError(f"state[{name!r}] is {other.dtype} {other.shape}; {wanted}")
        self._stacks[:] = state["stacks"]
        self._started[:] = state["started"]

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a copy that shared memory with this object would push into its stacks
