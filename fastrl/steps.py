"""What games give: one record per step whoever plays them, and the stacks of frames that agents see.

*Steps* are agent steps (one action), *frames* are emulator frames, ``frame_skip`` of them per step.
Letters in shapes: ``N`` environments, ``n`` rows of one call (``n = N`` unless a subset was stepped).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fastrl.checks import at_least
from fastrl.config import ConfigError

Array = npt.NDArray[Any]
Autoreset = Literal["next_step", "same_step", "disabled"]


@dataclass(slots=True)
class Step:
    """What `n` environments returned, one row each."""

    frame: Array
    """[n, *frame_shape] frame_dtype, the newest frame, unstacked; fresh, the caller's to keep."""
    reward: npt.NDArray[np.float32]
    """[n] float32: the reward to learn from, clipped to its sign if so asked; 0 in reset rows."""
    terminated: npt.NDArray[np.bool_]
    """[n] bool: no value flows on past this frame: game over or, with episodic life, a lost life."""
    truncated: npt.NDArray[np.bool_]
    """[n] bool: cut off by a time limit; never together with `terminated`."""
    first: npt.NDArray[np.bool_]
    """[n] bool: the frame opens a new game; frame stacks start over."""
    reset: npt.NDArray[np.bool_]
    """[n] bool: no agent step led here: the action was ignored for a reset, or the row is `reset()`'s."""
    game_over: npt.NDArray[np.bool_]
    """[n] bool: a whole game ended, by its own rules or by the time limit."""
    score: npt.NDArray[np.float32]
    """[n] float32: unclipped reward of the whole game so far; in `game_over` rows, the score of that game."""
    length: npt.NDArray[np.int64]
    """[n] int64: agent steps of the whole game so far, reset rows not counted; as `score` in `game_over` rows."""
    env_id: npt.NDArray[np.int32]
    """[n] int32: the environment of each row, in the order in which they were sent."""
    final: Array | None = None
    """[n, *frame_shape] frame_dtype: where an episode ended in this step, its last frame; None if none did, or if
    `frame` itself has it (autoreset "next_step")."""

    def update(self, part: Step) -> None:
        """Overwrite the rows of this step of all environments with those of another step's environments."""
        for field in dataclasses.fields(self):
            if field.name != "final":
                getattr(self, field.name)[part.env_id] = getattr(part, field.name)


class Envs(Protocol):
    """Environments side by side, as a run steps them; shapes and errors as of `fastrl.atari.AtariEnvs`."""

    num_envs: int
    num_actions: int
    action_names: list[str]
    frame_skip: int
    frame_shape: tuple[int, ...]
    frame_dtype: np.dtype[Any]
    autoreset: Autoreset
    """Where the last frame of an episode stands: `Step.frame` ("next_step") or `Step.final`."""

    def reset(self) -> Step: ...
    def send(self, actions: npt.ArrayLike) -> None: ...
    def recv(self) -> Step: ...
    def close(self) -> None: ...


class FrameStack:
    """The last `stack` frames of each environment, oldest first: what the network sees.

    Built for ``N`` environments and frames of one shape and type. `padding` stands in for the frames from
    before a game: ``"first"`` repeats its first frame (as EnvPool does), ``"zero"`` is black. Raises
    ConfigError for less than one environment or frame, or another padding.
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
