"""What a buffer accepts: settings and rows are checked here, before anything changes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Required, TypedDict

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastrl.base.checks import integer, number
from fastrl.replay.arrays import contiguous
from fastrl.replay.marks import ROW, TERMINATED, TRUNCATED
from fastrl.replay.stores.layout import Extra, Field, Layout, Nesting, Shapes, join, nesting, per_array
from fastrl.replay.stores.store import Store

Autoreset = Literal["next_step", "same_step", "disabled"]
Seed = int | Sequence[int] | np.random.SeedSequence | None
"""What draws are seeded with; None: fresh entropy from the operating system."""


class Settings(TypedDict, total=False):
    """Keyword arguments of `ReplayBuffer`; its docstring explains them."""

    capacity: Required[int]
    num_envs: Required[int]
    obs_shape: Required[Shapes]
    obs_dtype: DTypeLike | Mapping[str, Any] | Sequence[Any]
    action_shape: tuple[int, ...]
    action_dtype: DTypeLike
    stack: int | Mapping[str, Any] | Sequence[Any]
    stack_padding: Literal["first", "zero"]
    n_step: int
    gamma: float
    autoreset: Autoreset
    seed: Seed
    store: Store
    folder: str | Path | None
    extra: Extra | None
    next_extra: Sequence[str]


class StepRows(NamedTuple):
    """The n rows of one vector step, checked."""

    env: NDArray[np.int64]
    arrays: tuple[NDArray[Any], ...]
    """``[n, *shape]`` each: one for each field of the buffer's `Layout`."""
    action: NDArray[Any] | None
    reward: NDArray[np.float32]
    mark: NDArray[np.uint8]
    first: NDArray[np.int8]
    finals: tuple[Finals, ...]
    """For each field, its values after a done."""

    def ends(self, fields: Sequence[Field]) -> tuple[StepRows, NDArray[np.bool_]]:
        """Return a row with the final values for each done, as ``autoreset="next_step"`` would bring it.

        Also returns in which of these a frame was not given, ``[m] bool``. What was not given repeats the done's.
        """
        done = np.flatnonzero(self.mark)
        arrays, unknown = tuple(array[done] for array in self.arrays), self.gaps(fields)[done]
        for array, finals in zip(arrays, self.finals, strict=True):
            for k, i in enumerate(done.tolist()):
                if finals is not None and finals[i] is not None:
                    array[k] = finals[i]
        reward, mark = np.zeros(len(done), np.float32), np.zeros(len(done), np.uint8)
        default = np.full(len(done), -1, np.int8)
        return StepRows(self.env[done], arrays, None, reward, mark, default, ()), unknown

    def gaps(self, fields: Sequence[Field]) -> NDArray[np.bool_]:
        """Return where an episode ended and a frame after it was not given, ``[n]``."""
        missing = np.zeros(len(self.env), np.bool_)
        for field, finals in zip(fields, self.finals, strict=True):
            if field.is_obs:
                missing |= True if finals is None else np.array([final is None for final in finals], np.bool_)
        missing &= self.mark != ROW
        return missing


Finals = Sequence[NDArray[Any] | None] | NDArray[Any] | None
"""What one array holds after a done, ``n`` rows or None; only the rows of dones are read, or all are missing."""


@dataclass(frozen=True, slots=True, eq=False)
class ManyRows:
    """The n rows of each of T vector steps, checked; as `StepRows`, with one axis more before all but ``env``."""

    env: NDArray[np.int64]
    arrays: tuple[NDArray[Any], ...]
    action: NDArray[Any]
    reward: NDArray[np.float32]
    mark: NDArray[np.uint8]
    first: NDArray[np.int8]
    finals: list[tuple[Finals, ...]]
    """For each step, as of a `StepRows`."""

    def steps(self) -> Iterator[StepRows]:
        """Yield the steps in order."""
        for t, finals in enumerate(self.finals):
            arrays = tuple(array[t] for array in self.arrays)
            yield StepRows(self.env, arrays, self.action[t], self.reward[t], self.mark[t], self.first[t], finals)

    def count(self, num_envs: int, *, ends: bool) -> NDArray[np.int64]:
        """Return how many rows they add to each environment, ``[num_envs]``; with `ends` a done adds one more."""
        count = np.zeros(num_envs, np.int64)
        count[self.env] = len(self.mark) + ends * (self.mark != ROW).sum(axis=0)
        return count

    def flags(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_] | None]:
        """Return ``terminated``, ``truncated`` and ``first`` as they were given, ``[T, n]``."""
        first = None if (self.first < 0).all() else self.first == 1
        return self.mark == TERMINATED, self.mark == TRUNCATED, first

    def finals_of(self, fields: Sequence[Field]) -> tuple[NDArray[Any] | None, ...] | None:
        """Return the values of each field after a done as objects, ``[T, n]``; None if no step has any."""
        columns = []
        for k in range(len(fields)):
            objects = np.full(self.mark.shape, None, object)
            for t, i in np.argwhere(self.mark != ROW):
                values = self.finals[t][k]
                objects[t, i] = None if values is None else values[i]
            columns.append(objects)
        return tuple(columns) if (self.mark != ROW).any() else None


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


def path_of(name: str, value: Any) -> Path:
    """Return an argument that is a path, or raise ValueError; what is there is another question.

    A ``~`` at its beginning is refused: Python does not expand it, and would make a folder of that name.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ValueError(f"{name} is {value!r}, which is no path; give one as text or as a pathlib.Path")
    if not text:
        raise ValueError(f"{name} is ''; give the path of a place, such as './replay'")
    try:
        with suppress(OSError):
            os.lstat(text)
    except ValueError as error:  # a NUL, or half a character
        raise ValueError(f"{name} is {text!r}, which is no path ({error}); give another name") from error
    if (whole := os.path.expanduser(text)) != text:
        raise ValueError(f"{name} is {text!r}, whose '~' Python does not expand; give {whole!r}")
    return Path(text)


def unwritable(name: str, path: Path, error: OSError) -> OSError:
    """Return an error of the same class and number that names the argument whose place cannot be written to."""
    said = f"{name} is {str(path)!r}"
    if isinstance(error, FileExistsError):
        said += ", which is there already; give the name of a new folder"
    elif isinstance(error, FileNotFoundError) and not os.path.isdir(path.absolute().parent):
        said += f", and there is no folder {str(path.absolute().parent)!r}; make it, or give another path"
    else:
        said += f", which cannot be written ({error.strerror or error}); give a path with room and leave to write"
    explained = type(error)(said)
    explained.errno = error.errno
    return explained


_MOST_AXES = 62  # NumPy allows 64, and a batch has two more


def check_settings(**settings: Any) -> dict[str, Any]:
    """Return the settings as types that JSON can hold; raise ValueError for one that is out of range.

    Those of fields of one's own are left out where there are none.
    """
    for name in ("capacity", "num_envs", "n_step"):
        settings[name] = integer(name, settings[name])
    settings["gamma"] = number("gamma", settings["gamma"], 1.0)
    for name, choices in (
        ("stack_padding", ("first", "zero")),
        ("autoreset", ("next_step", "same_step", "disabled")),
    ):
        if settings[name] not in choices:
            raise ValueError(f"{name} is {settings[name]!r}; give one of {', '.join(map(repr, choices))}")
    deepest = _check_obs(settings)
    _check_extra(settings)
    settings["action_shape"], dtype = _shape_and_dtype(
        settings, "action_shape", settings["action_shape"], "action_dtype", settings["action_dtype"]
    )
    settings["action_dtype"] = dtype.str
    rows, least = settings["capacity"] // settings["num_envs"], deepest + settings["n_step"] + 1
    if rows < least:
        most = {"stack": deepest + rows - least, "n_step": settings["n_step"] + rows - least}
        others = "".join(f", or {name}={length} or less" for name, length in most.items() if length >= 1)
        raise ValueError(
            f"capacity is {settings['capacity']}, which is {rows} rows for each of {settings['num_envs']} "
            f"environments; stack + n_step + 1 = {least} are needed: give capacity={least * settings['num_envs']} or "
            f"more{others}"
        )
    return settings


def _check_obs(settings: dict[str, Any]) -> int:
    """Check the settings of observations, and put them into one nesting; return the deepest stack."""
    shapes = settings["obs_shape"]
    like = nesting(shapes)
    _check_nesting(like, "obs_shape")
    stacks: list[int] = per_array(like, settings["stack"], "stack", lambda value, name: integer(name, value))
    each = zip(
        per_array(like, shapes, "obs_shape", lambda value, name: (name, value)),
        per_array(like, settings["obs_dtype"], "obs_dtype", lambda value, name: (name, value)),
        strict=True,
    )
    checked = [_shape_and_dtype(settings, *shape, *dtype) for shape, dtype in each]
    settings["obs_shape"] = join(like, iter([shape for shape, _ in checked]))
    settings["obs_dtype"] = join(like, iter([dtype.str for _, dtype in checked]))
    settings["stack"] = join(like, iter(stacks))
    return max(stacks)


def _check_nesting(like: Nesting, name: str) -> None:
    if like is None:
        return
    if not like:
        raise ValueError(f"{name} is empty; give the shape of at least one array")
    if isinstance(like, dict):
        for key, part in like.items():
            if not isinstance(key, str):
                raise ValueError(f"{name} has the key {key!r}; give strings as keys")
            _check_nesting(part, f"{name}[{key!r}]")
    else:
        for i, part in enumerate(like):
            _check_nesting(part, f"{name}[{i}]")


def _check_extra(settings: dict[str, Any]) -> None:
    """Check the settings of fields of one's own; leave out those that name none."""
    extra, in_next = settings.pop("extra", None), settings.pop("next_extra", ())
    if not isinstance(extra, Mapping | None):
        raise ValueError(f"extra is {extra!r}; give a dictionary of fields, each a name with (shape, dtype)")
    if not isinstance(in_next, tuple | list):
        raise ValueError(f"next_extra is {in_next!r}; give a tuple of names of fields in extra")
    checked = {}
    for name, field in (extra or {}).items():
        if not isinstance(name, str):
            raise ValueError(f"extra has the key {name!r}; give strings as names of fields")
        if not isinstance(field, tuple | list) or len(field) != 2:
            raise ValueError(f"extra[{name!r}] is {field!r}; give (shape, dtype), such as ((), np.float32)")
        label = f"extra[{name!r}]"
        shape, dtype = _shape_and_dtype(settings, f"shape of {label}", field[0], f"dtype of {label}", field[1])
        checked[name] = (shape, dtype.str)
    for name in in_next:
        if name not in checked:
            raise ValueError(f"next_extra names {name!r}, which is no field in extra; give names of {list(checked)}")
    if checked:
        settings["extra"] = checked
    if in_next:
        settings["next_extra"] = tuple(in_next)


def _shape_and_dtype(
    settings: dict[str, Any], shape_name: str, given: Any, dtype_name: str, kind: Any
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and dtype of one array of a row, checked."""
    if not isinstance(given, tuple | list):
        raise ValueError(f"{shape_name} is {given!r}; give a tuple of lengths")
    shape = tuple(integer(shape_name, length) for length in given)
    try:
        dtype = np.dtype(kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{dtype_name} is {kind!r}; give a boolean or numeric NumPy dtype") from error
    if dtype.kind not in "biufc":
        raise ValueError(f"{dtype_name} is {dtype}; give a boolean or numeric one")
    if len(shape) > _MOST_AXES or (math.prod(shape) * dtype.itemsize + 32) * settings["capacity"] > _INT64_MAX:
        raise ValueError(
            f"{shape_name} is {shape}; give at most {_MOST_AXES} axes, and lengths of which capacity = "
            f"{settings['capacity']} take fewer than 2**63 bytes"
        )
    return shape, dtype


def check_rows(
    settings: dict[str, Any],
    layout: Layout,
    arrays: Sequence[ArrayLike],
    action: ArrayLike,
    reward: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    first: ArrayLike | None,
    finals: Sequence[Any] | None,
    env_id: ArrayLike | None,
) -> StepRows:
    """Return the rows as arrays of the right dtypes; raise ValueError for an argument that does not fit.

    ``arrays`` and ``finals`` hold one entry for each field of the layout.
    """
    env = _env_ids(env_id, settings["num_envs"])
    lead = (len(env),)
    columns = _columns(settings, layout, lead, arrays, action, reward, terminated, truncated, first)
    return StepRows(env, *columns, _finals(settings, layout, finals, columns[3]))


def check_many_rows(
    settings: dict[str, Any],
    layout: Layout,
    arrays: Sequence[ArrayLike],
    action: ArrayLike,
    reward: ArrayLike,
    terminated: NDArray[Any],
    truncated: ArrayLike,
    first: ArrayLike | None,
    finals: Sequence[Any] | None,
    env_id: ArrayLike | None,
) -> ManyRows:
    """Return T vector steps as `check_rows` returns one; ``finals`` are what `Layout.many_finals` returned."""
    env, steps = _env_ids(env_id, settings["num_envs"]), len(terminated)
    columns = _columns(settings, layout, (steps, len(env)), arrays, action, reward, terminated, truncated, first)
    each = finals if isinstance(finals, list) else _step_by_step(layout, finals, (steps, len(env)))
    if len(each) != steps:
        raise ValueError(f"final_obs has {len(each)} entries; expected {steps}, one for each step")
    checked = [
        _finals(settings, layout, final, mark, f" of step {t}")
        for t, (final, mark) in enumerate(zip(each, columns[3], strict=True))
    ]
    return ManyRows(env, *columns, checked)


def step_flags(terminated: ArrayLike) -> NDArray[Any]:
    """Return ``terminated`` as an array that tells how many vector steps there are, or raise ValueError."""
    array = as_array("terminated", terminated, "expected bool (T, n), T vector steps")
    if array.ndim != 2:
        raise ValueError(f"terminated is {array.dtype} {array.shape}; expected bool (T, n), T vector steps")
    return array


def _step_by_step(
    layout: Layout, finals: Sequence[Any] | None, lead: tuple[int, int]
) -> Sequence[Sequence[Any] | None]:
    """Return final values of T steps, given those of all steps in one array for each field."""
    if finals is None:
        return [None] * lead[0]
    whole = []
    for field, values in zip(layout.fields, finals, strict=True):
        array = None if values is None else as_array(field.final_name, values, f"expected shape {lead}")
        if array is not None and array.shape[:2] != lead:
            raise ValueError(f"{field.final_name} has shape {array.shape}; expected {(*lead, *field.shape)}")
        whole.append([None] * lead[0] if array is None else array)
    return list(zip(*whole, strict=True))


def _columns(
    settings: dict[str, Any],
    layout: Layout,
    lead: tuple[int, ...],
    arrays: Sequence[ArrayLike],
    action: ArrayLike,
    reward: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    first: ArrayLike | None,
) -> tuple[tuple[NDArray[Any], ...], NDArray[Any], NDArray[np.float32], NDArray[np.uint8], NDArray[np.int8]]:
    """Return all of a `StepRows` but the environments and final values; ``lead`` are the axes before a row's own."""
    rows = tuple(
        _array(each.name, array, (*lead, *each.shape), each.dtype, *_rule(each))
        for each, array in zip(layout.fields, arrays, strict=True)
    )
    actions = _array(
        "action", action, (*lead, *settings["action_shape"]), settings["action_dtype"], "same_kind", "action_dtype="
    )
    rewards = _array("reward", reward, lead, np.float32, "unsafe")
    if not np.isfinite(rewards).all():
        raise ValueError(f"reward holds {rewards[~np.isfinite(rewards)][0]}; give finite numbers")
    ends_true = _flags("terminated", terminated, lead)
    ends_short = _flags("truncated", truncated, lead)
    mark = np.where(ends_true, TERMINATED, np.where(ends_short, TRUNCATED, ROW)).astype(np.uint8)
    opens = np.full(lead, -1, np.int8) if first is None else _flags("first", first, lead).astype(np.int8)
    return rows, actions, rewards, mark, opens


def _finals(
    settings: dict[str, Any],
    layout: Layout,
    finals: Sequence[Any] | None,
    mark: NDArray[np.uint8],
    where: str = "",
) -> tuple[Finals, ...]:
    """Return what each field holds after a done, checked."""
    if settings["autoreset"] == "next_step":
        if finals is not None:
            name = next(
                each.final_name for each, final in zip(layout.fields, finals, strict=True) if final is not None
            ).split("[")[0]
            raise ValueError(f"{name} is given, but with autoreset='next_step' the next row carries it; leave it out")
        return (None,) * len(layout.fields)
    given = finals or [None] * len(layout.fields)
    return tuple(
        _final_values(each, final, mark, where) if each.is_obs or each.in_next else None
        for each, final in zip(layout.fields, given, strict=True)
    )


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


def _rule(field: Field) -> tuple[Any, str]:
    """Return how values of a field may be cast, and the setting that gives it another dtype."""
    return ("equiv" if field.is_obs else "same_kind"), field.setting


def _array(
    name: str, value: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike, cast: Any, setting: str = ""
) -> NDArray[Any]:
    """Return an array of this shape and dtype; ``setting`` is how a buffer is given another dtype for it."""
    array, dtype = as_array(name, value, f"expected shape {shape}"), np.dtype(dtype)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}, one row per environment")
    is_numeric, loses = array.dtype.kind in "biufc", array.dtype.kind == "c" and dtype.kind != "c"
    another = f"build the buffer with {setting}{array.dtype.name!r}" if setting else ""
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


def _flags(name: str, value: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    array = as_array(name, value, f"expected bool {shape}")
    if array.shape != shape or array.dtype.kind not in "biu":
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected bool {shape}")
    neither = (array != 0) & (array != 1)
    if neither.any():
        raise ValueError(f"{name} is {array.dtype} and holds {array[neither][0]}; expected bool {shape}")
    return array.astype(np.bool_)


def _final_values(field: Field, given: ArrayLike | None, mark: NDArray[np.uint8], where: str) -> Finals:
    """Return the values of a field that follow dones, checked; other entries are not looked at."""
    name, shape, dtype, n = field.final_name, field.shape, field.dtype, len(mark)
    finals = None if given is None else _maybe_objects(name, given)
    if finals is not None and finals.dtype != object:
        return _array(name, finals, (n, *shape), dtype, *_rule(field))
    if finals is not None and finals.shape != (n,):
        raise ValueError(f"{name} is an object array of shape {finals.shape}; expected ({n},)")
    # Each is converted once, so that what was checked is what is written.
    checked: list[NDArray[Any] | None] = [None] * n
    for i in np.flatnonzero(mark):
        value = None if finals is None else finals[i]
        if value is None and mark[i] == TRUNCATED:
            what = "frame" if field.is_obs else "value"
            raise ValueError(
                f"{name} is None in row {i}{where}, which was truncated; give the {what} after the last action"
            )
        if value is None:
            continue
        array = as_array(f"{name}[{i}]{where}", value, f"expected {dtype} {shape}")
        if array.shape != shape or not np.can_cast(array.dtype, dtype, _rule(field)[0]):
            raise ValueError(f"{name}[{i}]{where} is {array.dtype} {array.shape}; expected {dtype} {shape}")
        checked[i] = array if field.is_obs else _array(f"{name}[{i}]{where}", array, shape, dtype, *_rule(field))
    return checked


def _maybe_objects(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return an array of values, or an array of objects if some are None."""
    if isinstance(values, list | tuple) and any(value is None for value in values):
        objects = np.empty(len(values), object)
        for i, value in enumerate(values):
            objects[i] = value
        return objects
    return as_array(name, values, "expected one frame per environment")
