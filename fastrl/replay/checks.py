"""What a buffer accepts: settings and rows are checked here, before anything changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Required, TypedDict

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastrl.base.checks import integer, number
from fastrl.replay.arrays import contiguous
from fastrl.replay.marks import ROW, TERMINATED, TRUNCATED
from fastrl.replay.stores.store import MakeStore

Autoreset = Literal["next_step", "same_step", "disabled"]
Seed = int | Sequence[int] | np.random.SeedSequence | None
"""What draws are seeded with; None: fresh entropy from the operating system."""


class Settings(TypedDict, total=False):
    """Keyword arguments of `ReplayBuffer`; its docstring explains them."""

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
    seed: Seed
    store: str | MakeStore
    folder: str | Path | None


class StepRows(NamedTuple):
    """The n rows of one vector step, checked."""

    env: NDArray[np.int64]
    obs: NDArray[Any]
    action: NDArray[Any] | None
    reward: NDArray[np.float32]
    mark: NDArray[np.uint8]
    first: NDArray[np.int8]
    final_obs: Sequence[NDArray[Any] | None] | NDArray[Any] | None

    def finals(self) -> tuple[StepRows, NDArray[np.bool_]]:
        """Return a row with the final frame for each done, as ``autoreset="next_step"`` would bring it.

        Also returns which of these frames were not given, ``[m] bool``: such a row repeats the frame of its done.
        """
        done = np.flatnonzero(self.mark)
        frames, unknown = self.obs[done], np.zeros(len(done), bool)
        for k, i in enumerate(done.tolist()):
            final = None if self.final_obs is None else self.final_obs[i]
            if final is None:
                unknown[k] = True
            else:
                frames[k] = final
        reward, mark = np.zeros(len(done), np.float32), np.zeros(len(done), np.uint8)
        default = np.full(len(done), -1, np.int8)
        return StepRows(self.env[done], frames, None, reward, mark, default, None), unknown


_INT64_MAX = np.iinfo(np.int64).max


def as_array(name: str, value: ArrayLike, wanted: str) -> NDArray[Any]:
    """Return an array of any dtype, or raise ValueError; other errors of an object's ``__array__`` pass through."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array ({error}); {wanted}") from error


def integers(name: str, value: ArrayLike, wanted: str) -> NDArray[np.int64]:
    """Return integers as contiguous ``[B] int64``, or raise ValueError."""
    array = as_array(name, value, wanted)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"{name} is {array.dtype} {array.shape}; {wanted}")
    if array.dtype.kind == "u" and array.size and array.max() > _INT64_MAX:  # would become negative
        raise ValueError(f"{name} holds {array.max()}; {wanted}")
    return contiguous(array, np.int64)


def numbers(name: str, value: ArrayLike, wanted: str) -> NDArray[np.float64]:
    """Return real numbers as float64, or raise ValueError; values beyond float64 become infinite."""
    array = as_array(name, value, wanted)
    if array.dtype.kind not in "biuf" and array.size:
        raise ValueError(f"{name} is {array.dtype} {array.shape}; {wanted}")
    if array.dtype == np.float64:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float64)


def generator(seed: Seed) -> np.random.Generator:
    """Return the generator of a seed, or raise ValueError."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"seed is {seed!r}; give an integer from 0 up, a sequence of them, a SeedSequence or None"
        ) from error


def check_index(index: ArrayLike) -> NDArray[np.int64]:
    """Return names of rows as contiguous ``[B] int64``, or raise ValueError."""
    return integers("index", index, "give a batch's own index, int64 [B]")


_MOST_AXES = 62  # NumPy allows 64, and a batch has two more


def check_settings(**settings: Any) -> dict[str, Any]:
    """Return the settings as types that JSON can hold; raise ValueError for one that is out of range."""
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
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}_dtype is {kind!r}; give a boolean or numeric NumPy dtype") from error
        if dtype.kind not in "biufc":
            raise ValueError(f"{name}_dtype is {dtype}; give a boolean or numeric one")
        if len(shape) > _MOST_AXES or (math.prod(shape) * dtype.itemsize + 32) * settings["capacity"] > _INT64_MAX:
            raise ValueError(
                f"{name}_shape is {shape}; give at most {_MOST_AXES} axes, and lengths of which capacity = "
                f"{settings['capacity']} take fewer than 2**63 bytes"
            )
        settings[f"{name}_shape"], settings[f"{name}_dtype"] = shape, dtype.str
    rows, least = settings["capacity"] // settings["num_envs"], settings["stack"] + settings["n_step"] + 1
    if rows < least:
        most = {name: settings[name] + rows - least for name in ("stack", "n_step")}
        others = "".join(f", or {name}={length} or less" for name, length in most.items() if length >= 1)
        raise ValueError(
            f"capacity is {settings['capacity']}, which is {rows} rows for each of {settings['num_envs']} "
            f"environments; stack + n_step + 1 = {least} are needed: give capacity={least * settings['num_envs']} or "
            f"more{others}"
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
) -> StepRows:
    """Return the rows as arrays of the right dtypes; raise ValueError for an argument that does not fit."""
    num_envs = settings["num_envs"]
    env = _env_ids(env_id, num_envs)
    n = len(env)
    frames = _array("obs", obs, (n, *settings["obs_shape"]), settings["obs_dtype"])
    actions = _array("action", action, (n, *settings["action_shape"]), settings["action_dtype"], cast="same_kind")
    rewards = _array("reward", reward, (n,), np.float32, cast="unsafe")
    if not np.isfinite(rewards).all():
        raise ValueError(f"reward holds {rewards[~np.isfinite(rewards)][0]}; give finite numbers")
    ends_true = _flags("terminated", terminated, n)
    ends_short = _flags("truncated", truncated, n)
    mark = np.where(ends_true, TERMINATED, np.where(ends_short, TRUNCATED, ROW)).astype(np.uint8)
    opens = np.full(n, -1, np.int8) if first is None else _flags("first", first, n).astype(np.int8)
    finals = None
    if settings["autoreset"] == "next_step":
        if final_obs is not None:
            raise ValueError("final_obs is given, but with autoreset='next_step' the next row carries it; leave it out")
    else:
        finals = _final_frames(final_obs, mark, n, settings)
    return StepRows(env, frames, actions, rewards, mark, opens, finals)


def _env_ids(env_id: ArrayLike | None, num_envs: int) -> NDArray[np.int64]:
    if env_id is None:
        return np.arange(num_envs)
    env = integers("env_id", env_id, "give integers of shape [n]").copy()
    if env.size and not (0 <= env.min() and env.max() < num_envs):
        bad = env[(env < 0) | (env >= num_envs)][0]
        raise ValueError(f"env_id holds {bad}; give 0 to {num_envs - 1}, or build the buffer with more num_envs")
    if len(np.unique(env)) < len(env):
        raise ValueError("env_id names an environment twice; add its rows in separate calls")
    return env


_SETTING_OF = {"obs": "obs_dtype", "final_obs": "obs_dtype", "action": "action_dtype"}
"""The setting that says of what dtype an array may be; rewards are always float32."""


def _array(name: str, value: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike, cast: Any = "equiv") -> NDArray[Any]:
    array, dtype = as_array(name, value, f"expected shape {shape}"), np.dtype(dtype)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}, one row per environment")
    is_numeric, loses = array.dtype.kind in "biufc", array.dtype.kind == "c" and dtype.kind != "c"
    another = f"build the buffer with {_SETTING_OF[name]}={array.dtype.name!r}" if name in _SETTING_OF else ""
    if not np.can_cast(array.dtype, dtype, cast) or not is_numeric or loses:
        or_another = f", or {another}" if another and is_numeric else ""
        raise ValueError(f"{name} is {array.dtype}; expected {dtype}: convert it{or_another}")
    with np.errstate(over="ignore"):
        converted = contiguous(array, dtype)
    if cast != "equiv" and dtype != array.dtype:
        lost = converted != array if dtype.kind in "iu" else np.isinf(converted) & ~np.isinf(array)
        if lost.any():
            remedy = another or f"give numbers from {np.finfo(dtype).min:g} to {np.finfo(dtype).max:g}"
            raise ValueError(f"{name} holds {array[lost][0]!s}, which {dtype} cannot hold; {remedy}")
    return converted


def _flags(name: str, value: ArrayLike, n: int) -> NDArray[np.bool_]:
    array = as_array(name, value, f"expected bool ({n},)")
    if array.shape != (n,) or array.dtype.kind not in "biu":
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected bool ({n},)")
    neither = (array != 0) & (array != 1)
    if neither.any():
        raise ValueError(f"{name} is {array.dtype} and holds {array[neither][0]}; expected bool ({n},)")
    return array.astype(np.bool_)


def _final_frames(
    final_obs: ArrayLike | None, mark: NDArray[np.uint8], n: int, settings: dict[str, Any]
) -> Sequence[NDArray[Any] | None] | NDArray[Any] | None:
    """Return the frames that follow dones, checked; other entries are not looked at."""
    shape, dtype = settings["obs_shape"], np.dtype(settings["obs_dtype"])
    finals = None if final_obs is None else _maybe_objects(final_obs)
    if finals is not None and finals.dtype != object:
        return _array("final_obs", finals, (n, *shape), dtype)
    if finals is not None and finals.shape != (n,):
        raise ValueError(f"final_obs is an object array of shape {finals.shape}; expected ({n},)")
    # Each is converted once, so that what was checked is what is written.
    checked: list[NDArray[Any] | None] = [None] * n
    for i in np.flatnonzero(mark):
        given = None if finals is None else finals[i]
        if given is None and mark[i] == TRUNCATED:
            raise ValueError(f"final_obs is None in row {i}, which was truncated; give the frame after the last action")
        if given is None:
            continue
        frame = as_array(f"final_obs[{i}]", given, f"expected {dtype} {shape}")
        if frame.shape != shape or not np.can_cast(frame.dtype, dtype, "equiv"):
            raise ValueError(f"final_obs[{i}] is {frame.dtype} {frame.shape}; expected {dtype} {shape}")
        checked[i] = frame
    return checked


def _maybe_objects(final_obs: ArrayLike) -> NDArray[Any]:
    """Return an array of frames, or an array of objects if some are None."""
    if isinstance(final_obs, list | tuple) and any(frame is None for frame in final_obs):
        objects = np.empty(len(final_obs), object)
        for i, frame in enumerate(final_obs):
            objects[i] = frame
        return objects
    return as_array("final_obs", final_obs, "expected one frame per environment")
