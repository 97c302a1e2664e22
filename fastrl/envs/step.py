"""One record per step, whatever plays the games, and what environments of any kind offer.

*Steps* are agent steps (one action), *frames* are emulator frames, ``frame_skip`` of them per step.
Letters in shapes: ``N`` environments, ``n`` rows of one call (``n = N`` unless a subset was stepped).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import indices
from fastrl.envs.frames import Frame, FrameDtype, FrameShape, listed, per_array, select

Array = npt.NDArray[Any]
Autoreset = Literal["next_step", "same_step", "disabled"]
EachFrame = Callable[[Callable[[], npt.NDArray[np.uint8]]], object]
"""Takes a function that draws an emulator's current frame, [H, W, 3] uint8. What it raises reaches the caller."""


@dataclass(slots=True)
class Step:
    """What `n` environments returned, one row each."""

    frame: Frame
    """[n, *frame_shape] frame_dtype, the newest frame, unstacked; fresh, the caller's to keep. Of several arrays a
    dict, as the other frames here."""
    reward: npt.NDArray[np.float32]
    """[n] float32: the reward to learn from, clipped to its sign if the settings say so; 0 in reset rows."""
    terminated: npt.NDArray[np.bool_]
    """[n] bool: no value flows on past this frame: game over or, with episodic life, a lost life."""
    truncated: npt.NDArray[np.bool_]
    """[n] bool: cut off by a time limit; never together with `terminated`."""
    first: npt.NDArray[np.bool_]
    """[n] bool: the frame opens a new game; frame stacks start over."""
    reset: npt.NDArray[np.bool_]
    """[n] bool: no agent step led here. The row is `reset()`'s, or the environment ignored its action: it reset, or
    pressed FIRE for the player."""
    game_over: npt.NDArray[np.bool_]
    """[n] bool: a whole game ended, by its own rules or by the time limit."""
    score: npt.NDArray[np.float64]
    """[n] float64: unclipped reward of the whole game so far; in `game_over` rows, the score of that game."""
    length: npt.NDArray[np.int64]
    """[n] int64: agent steps of the whole game so far, reset rows not counted; as `score` in `game_over` rows."""
    env_id: npt.NDArray[np.int32]
    """[n] int32: the environment of each row, in the order in which they were sent."""
    final: Frame | None = None
    """[n, *frame_shape] frame_dtype: where an episode ended in this step, its last frame. None if none ended, or if
    `frame` itself has it (autoreset "next_step")."""
    mask: npt.NDArray[np.bool_] | None = None
    """[n, A] bool: the actions that are allowed at `frame`. None where the environments give no masks."""
    final_mask: npt.NDArray[np.bool_] | None = None
    """[n, A] bool: those allowed at `final`, None where that is; all True after a termination."""

    def update(self, part: Step) -> None:
        """Overwrite the rows of this step of all environments with those of another step's environments."""

        def put(column: Array, rows: Array) -> None:
            column[part.env_id] = rows

        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            if column is not None and field.name not in ("final", "final_mask"):
                per_array(put, column, getattr(part, field.name))

    def select(self, rows: Array) -> Step:
        """Return a step with copies of some rows, given by their positions [m] integers."""
        return selected(self, rows)


Record = TypeVar("Record", bound=Any)


def selected(record: Record, rows: Array) -> Record:
    """Return a dataclass of columns with copies of some rows, given by positions or as bool; None stays None."""
    columns = ((field.name, getattr(record, field.name)) for field in dataclasses.fields(record))
    chosen: dict[str, Any] = {name: None if column is None else select(column, rows) for name, column in columns}
    return dataclasses.replace(record, **chosen)


class Envs(Protocol):
    """Environments side by side, as training steps them; shapes and errors as of `fastrl.envs.atari.AtariEnvs`."""

    num_envs: int
    num_actions: int
    action_names: list[str]
    frame_skip: int
    frame_shape: FrameShape
    frame_dtype: FrameDtype
    autoreset: Autoreset
    """Where the last frame of an episode stands: `Step.frame` ("next_step") or `Step.final`."""

    def reset(self) -> Step: ...
    def send(self, actions: npt.ArrayLike) -> None: ...
    def recv(self) -> Step: ...
    def close(self) -> None: ...


def place(env_id: int, steps: int) -> str:
    """Return words on where an environment stood when it returned something."""
    when = f"in step {steps:,} of an episode" if steps else "in reset()"
    return f"{when}, environment {env_id}"


def frame_bytes(envs: Envs) -> int:
    """Return the bytes of one frame of these environments."""
    sizes = per_array(lambda shape, dtype: math.prod(shape) * dtype.itemsize, envs.frame_shape, envs.frame_dtype)
    return sum(listed(sizes))


class GameEnvs(Envs, Protocol):
    """Environments that whole games can be played on: some of them step, and the first one is drawn."""

    has_pictures: bool
    """`render` works."""
    shows_frames: bool
    """Each emulator frame is shown while a step runs, so that pictures of whole steps need not be."""

    @property
    def takes_actions(self) -> bool:
        """Whether the next step takes actions; if not, it presses FIRE for the player, whatever the action."""

    def send(self, actions: npt.ArrayLike, env_id: npt.ArrayLike | None = None) -> None:
        """Start a step of the environments `env_id` (default: all), which `recv` returns rows of, in this order."""

    def render(self, env_id: int = 0) -> npt.NDArray[np.uint8]:
        """Return a picture [H, W, 3] uint8 of one environment; RuntimeError unless `has_pictures`."""


def check_actions(
    actions: npt.ArrayLike, env_id: npt.ArrayLike | None, envs: Envs
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32] | None]:
    """Return what `send` was given as [n] int32 arrays, `env_id` None if it was; ValueError if they do not fit."""
    ids = None if env_id is None else indices("env_id", env_id, envs.num_envs)
    rows = envs.num_envs if ids is None else len(ids)
    acts = indices("actions", actions, envs.num_actions)
    if len(acts) != rows or rows == 0:
        raise ValueError(f"actions has {len(acts)} entries for {rows} environments; give one action for each")
    if ids is not None and len(np.unique(ids)) < rows:
        raise ValueError(f"env_id is {ids.tolist()}; name each environment at most once")
    return acts, ids
