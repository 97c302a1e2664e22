"""What a buffer accepts: settings and rows are checked here, before anything is touched."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Required, TypedDict

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastrl.replay.reference import TERMINATED, TRUNCATED
from fastrl.replay.store import MakeStore

Autoreset = Literal["next_step", "same_step", "disabled"]


class Settings(TypedDict, total=False):
    """Keyword arguments of `ReplayBuffer`, which its docstring explains."""

    capacity: Required[int]
    num_envs: Required[int]
    obs_shape: Required[tuple[int, ...]]
    obs_dtype: DTypeLike
    action_shape: tuple[int, ...]
    action_dtype: DTypeLike
    stack: int
    stack_padding: Literal["first", "zero"]
    n_step: int
    gamma: float
    autoreset: Autoreset
    seed: int | list[int] | np.random.SeedSequence | None
    store: str | MakeStore


class Rows(NamedTuple):
    """Rows of one vector step, checked: n environments."""

    env: NDArray[np.int64]
    obs: NDArray[Any]
    action: NDArray[Any] | None
    reward: NDArray[np.float32]
    mark: NDArray[np.uint8]
    first: NDArray[np.int8]
    final_obs: NDArray[Any] | None

    def finals(self) -> tuple[Rows, NDArray[np.bool_]]:
        """Return rows of the final frames after each done, as if ``autoreset`` were next_step.

        Also which of them nobody gave: these hold the done's own frame.
        """
        done = np.flatnonzero(self.mark)
        frames, unknown = self.obs[done], np.zeros(len(done), bool)
        for k, i in enumerate(done):
            if self.final_obs is not None and self.final_obs[i] is not None:
                frames[k] = self.final_obs[i]
            else:
                unknown[k] = True
        reward, mark = np.zeros(len(done), np.float32), np.zeros(len(done), np.uint8)
        default = np.full(len(done), -1, np.int8)
        return Rows(self.env[done], frames, None, reward, mark, default, None), unknown


def require(condition: object, message: str) -> None:
    """Raise AssertionError unless the condition holds; unlike ``assert``, under ``python -O`` too."""
    if not condition:
        raise AssertionError(message)


def integer(name: str, value: Any, least: int = 1) -> int:
    """Return an integer from ``least`` up, or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value!r}; give an integer from {least} up")
    return int(value)


def number(name: str, value: Any, most: float = np.finfo(np.float64).max) -> float:
    """Return a number from 0 to ``most``, or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= most:
        wanted = "a finite number from 0 up" if most > 1 else f"a number from 0 to {most:g}"
        raise ValueError(f"{name} is {value!r}; give {wanted}")
    return float(value)


def check_index(index: ArrayLike) -> NDArray[np.int64]:
    """Return names of rows as contiguous ``[B] int64``, or raise ValueError."""
    names = np.asarray(index)
    if names.ndim != 1 or (names.dtype.kind not in "iu" and names.size):
        raise ValueError(f"index is {names.dtype} {names.shape}; give a batch's own index, int64 [B]")
    return np.ascontiguousarray(names, np.int64)


def check_settings(**settings: Any) -> dict[str, Any]:
    """Return the settings in plain, saveable types; raise ValueError for one that is out of range."""
    for name in ("capacity", "num_envs", "stack", "n_step"):
        settings[name] = integer(name, settings[name])
    settings["gamma"] = number("gamma", settings["gamma"], 1.0)
    for name, choices in (
        ("stack_padding", ("first", "zero")),
        ("autoreset", ("next_step", "same_step", "disabled")),
    ):
        if settings[name] not in choices:
            raise ValueError(f"{name} is {settings[name]!r}; give one of {', '.join(map(repr, choices))}")
    for name in ("obs", "action"):
        given, kind = settings[f"{name}_shape"], settings[f"{name}_dtype"]
        if not isinstance(given, tuple | list):
            raise ValueError(f"{name}_shape is {given!r}; give a tuple of lengths")
        shape = tuple(integer(f"{name}_shape", length) for length in given)
        try:
            dtype = np.dtype(kind)
        except TypeError as error:
            raise ValueError(f"{name}_dtype is {kind!r}; give a boolean or numeric NumPy dtype") from error
        if dtype.kind not in "biufc":
            raise ValueError(f"{name}_dtype is {dtype}; give a boolean or numeric one")
        settings[f"{name}_shape"], settings[f"{name}_dtype"] = shape, dtype.str
    rows, least = settings["capacity"] // settings["num_envs"], settings["stack"] + settings["n_step"] + 1
    if rows < least:
        raise ValueError(
            f"capacity is {settings['capacity']}, which is {rows} rows for each of {settings['num_envs']} "
            f"environments; stack + n_step + 1 = {least} are needed: give {least * settings['num_envs']} or more"
        )
    return settings


def check_rows(
    settings: dict[str, Any],
    obs: ArrayLike,
    action: ArrayLike,
    reward: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    first: ArrayLike | None,
    final_obs: ArrayLike | None,
    env_id: ArrayLike | None,
) -> Rows:
    """Return the rows as arrays of the right types; raise ValueError for an argument that does not fit."""
    num_envs = settings["num_envs"]
    env = _env_ids(env_id, num_envs)
    n = len(env)
    frames = _array("obs", obs, (n, *settings["obs_shape"]), settings["obs_dtype"])
    actions = _array("action", action, (n, *settings["action_shape"]), settings["action_dtype"], cast="same_kind")
    with np.errstate(over="ignore"):
        rewards = _array("reward", reward, (n,), np.float32, cast="unsafe")
    if not np.isfinite(rewards).all():
        raise ValueError(f"reward holds {rewards[~np.isfinite(rewards)][0]}; give finite numbers")
    ends_true = _flags("terminated", terminated, n)
    ends_short = _flags("truncated", truncated, n)
    mark = np.where(ends_true, TERMINATED, np.where(ends_short, TRUNCATED, 0)).astype(np.uint8)
    opens = np.full(n, -1, np.int8) if first is None else _flags("first", first, n).astype(np.int8)
    finals = None
    if settings["autoreset"] == "next_step":
        if final_obs is not None:
            raise ValueError("final_obs is given, but with autoreset='next_step' the next row carries it; leave it out")
    else:
        finals = _final_frames(final_obs, mark, n, settings)
    return Rows(env, frames, actions, rewards, mark, opens, finals)


def _env_ids(env_id: ArrayLike | None, num_envs: int) -> NDArray[np.int64]:
    if env_id is None:
        return np.arange(num_envs)
    env = np.asarray(env_id)
    if env.ndim != 1 or (env.dtype.kind not in "iu" and env.size):
        raise ValueError(f"env_id is {env.dtype} {env.shape}; give integers of shape [n]")
    env = env.astype(np.int64)
    if env.size and not (0 <= env.min() and env.max() < num_envs):
        bad = env[(env < 0) | (env >= num_envs)][0]
        raise ValueError(f"env_id holds {bad}; give 0 to {num_envs - 1}, or build the buffer with more num_envs")
    if len(np.unique(env)) < len(env):
        raise ValueError("env_id names an environment twice; add its rows in separate calls")
    return env


def _array(name: str, value: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike, cast: Any = "equiv") -> NDArray[Any]:
    try:
        array, dtype = np.asarray(value), np.dtype(dtype)
    except ValueError as error:
        raise ValueError(f"{name} is no array ({error}); expected shape {shape}") from error
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}, one row per environment")
    loses = array.dtype.kind == "c" and dtype.kind != "c"
    if not np.can_cast(array.dtype, dtype, cast) or array.dtype.kind not in "biufc" or loses:
        raise ValueError(
            f"{name} is {array.dtype}; expected {dtype}: convert it, or build the buffer with {name}_dtype"
        )
    converted = np.ascontiguousarray(array, dtype)
    if dtype.kind in "iu" and dtype != array.dtype and (converted != array).any():
        raise ValueError(f"{name} holds {array[converted != array][0]}, which {dtype} cannot hold; give {name}_dtype")
    return converted


def _flags(name: str, value: ArrayLike, n: int) -> NDArray[np.bool_]:
    array = np.asarray(value)
    if array.shape != (n,) or array.dtype.kind not in "biu" or ((array != 0) & (array != 1)).any():
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected bool ({n},)")
    return array.astype(np.bool_)


def _final_frames(
    final_obs: ArrayLike | None, mark: NDArray[np.uint8], n: int, settings: dict[str, Any]
) -> NDArray[Any] | None:
    """Check the frames that follow dones; others are not looked at."""
    shape, dtype = settings["obs_shape"], np.dtype(settings["obs_dtype"])
    finals = None if final_obs is None else _maybe_objects(final_obs)
    if finals is not None and finals.dtype != object:
        return _array("final_obs", finals, (n, *shape), dtype)
    if finals is not None and finals.shape != (n,):
        raise ValueError(f"final_obs is an object array of shape {finals.shape}; expected ({n},)")
    for i in np.flatnonzero(mark):
        frame = None if finals is None else finals[i]
        if frame is None and mark[i] == TRUNCATED:
            raise ValueError(f"final_obs is None in row {i}, which was truncated; give the frame after the last action")
        if frame is not None and (np.shape(frame) != shape or np.asarray(frame).dtype != dtype):
            raise ValueError(f"final_obs[{i}] is {np.asarray(frame).dtype} {np.shape(frame)}; expected {dtype} {shape}")
    return finals


def _maybe_objects(final_obs: ArrayLike) -> NDArray[Any]:
    """Return an array of frames, or one of objects if there are gaps."""
    if isinstance(final_obs, list | tuple) and any(frame is None for frame in final_obs):
        objects = np.empty(len(final_obs), object)
        for i, frame in enumerate(final_obs):
            objects[i] = frame
        return objects
    return np.asarray(final_obs)
