"""Which arrays a row holds: an observation of one array or several, and fields of one's own.

An observation of several arrays is nested: dictionaries and tuples of arrays, as deep as you like, as in Gymnasium's
``Dict`` and ``Tuple`` spaces. Inside, all arrays of a row stand side by side in one list: those of the observation in
the order of their nesting, then the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

Shape = tuple[int, ...]
Shapes = Mapping[str, Any] | Sequence[Any]
"""Shape of one array; or a dictionary or tuple of shapes, nested as the observations are."""
Nesting = dict[str, Any] | tuple[Any, ...] | None
"""How arrays are nested; None: a single one."""
Extra = Mapping[str, tuple[Shape, DTypeLike]]


class Field(NamedTuple):
    """One array of a row."""

    name: str
    """As messages name it: ``obs``, ``obs['image']``, ``extra['mask']``."""
    shape: Shape
    dtype: np.dtype[Any]
    stack: int
    """How many rows' values a batch holds of it; 0: one, without an axis for them (a field of one's own)."""
    in_next: bool
    """Whether a batch also holds it at the state after the last step."""

    @property
    def is_obs(self) -> bool:
        """Whether it is part of the observation."""
        return self.stack > 0

    @property
    def setting(self) -> str:
        """What to give another dtype by, as messages say it."""
        path = self.name.removeprefix("obs").removeprefix("extra")
        return f"obs_dtype{path}=" if self.is_obs else f"{self.name} of dtype "

    @property
    def final_name(self) -> str:
        """As messages name its value after the end of an episode."""
        return f"final_{self.name}"


def nesting(shapes: Shapes) -> Nesting:
    """Return how observations are nested that have these shapes; it does not look at single shapes."""
    if isinstance(shapes, Mapping):
        return {key: nesting(part) for key, part in shapes.items()}
    if isinstance(shapes, tuple | list) and any(isinstance(part, tuple | list | Mapping) for part in shapes):
        return tuple(nesting(part) for part in shapes)
    return None


def split(like: Nesting, value: Any, name: str) -> list[Any]:
    """Return what stands in place of each array of a nesting, in order.

    Raises
    ------
    ValueError
        If the value is nested in another way; the message calls it ``name``.
    """
    leaves: list[Any] = []
    _split(like, value, name, leaves)
    return leaves


def _split(like: Nesting, value: Any, name: str, leaves: list[Any]) -> None:
    if like is None:
        leaves.append(value)
    elif isinstance(like, dict):
        if not isinstance(value, Mapping) or value.keys() != like.keys():
            raise ValueError(f"{name} is {_described(value)}; give a dictionary of {_quoted(like)}")
        for key, part in like.items():
            if part is None:
                leaves.append(value[key])
            else:
                _split(part, value[key], f"{name}[{key!r}]", leaves)
    else:
        if not isinstance(value, tuple | list) or len(value) != len(like):
            raise ValueError(f"{name} is {_described(value)}; give a tuple of {len(like)}")
        for i, part in enumerate(like):
            _split(part, value[i], f"{name}[{i}]", leaves)


def join(like: Nesting, leaves: Iterator[Any]) -> Any:
    """Return what `split` falls into these leaves."""
    if like is None:
        return next(leaves)
    if isinstance(like, dict):
        return {key: join(part, leaves) for key, part in like.items()}
    return tuple(join(part, leaves) for part in like)


def spread(like: Nesting, value: Any, name: str) -> Any:
    """Return a setting nested like the observations: one value stands for all arrays below it.

    Raises
    ------
    ValueError
        If it is nested in another way; the message calls it ``name``.
    """
    if like is None:
        return value
    if isinstance(like, dict):
        if not isinstance(value, Mapping):
            return {key: spread(part, value, f"{name}[{key!r}]") for key, part in like.items()}
        if value.keys() != like.keys():
            raise ValueError(
                f"{name} is {_described(value)}; give a dictionary of {_quoted(like)}, as obs_shape is, or one for all"
            )
        return {key: spread(part, value[key], f"{name}[{key!r}]") for key, part in like.items()}
    if not isinstance(value, tuple | list):
        return tuple(spread(part, value, f"{name}[{i}]") for i, part in enumerate(like))
    if len(value) != len(like):
        raise ValueError(f"{name} is {_described(value)}; give a tuple of {len(like)}, as obs_shape is, or one for all")
    return tuple(spread(part, value[i], f"{name}[{i}]") for i, part in enumerate(like))


def paths(like: Nesting, path: str = "") -> Iterator[str]:
    """Yield where each array stands, as Python writes it: ``['image']``, ``['goal'][0]``; of a single one, nothing."""
    if like is None:
        yield path
    elif isinstance(like, dict):
        for key, part in like.items():
            yield from paths(part, f"{path}[{key!r}]")
    else:
        for i, part in enumerate(like):
            yield from paths(part, f"{path}[{i}]")


def _quoted(keys: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, keys)) or "nothing"


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary of {_quoted(value)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"of type {type(value).__name__}"


class _Misfit:
    """Stands for one environment's final values that are nested in another way; no check of an array passes it."""


class Layout:
    """The arrays of a row, from the settings of a buffer (see `checks.check_settings`).

    Attributes
    ----------
    obs : Nesting
        How observations are nested.
    fields : list of Field
        All arrays: those of the observation, then the fields of one's own.
    stack : int
        Frames of the deepest stack: a row can be drawn while all of these are held.
    has_extra : bool
        Whether there are fields of one's own.
    single : bool
        Whether an observation of one array is all that a row holds.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.obs = nesting(settings["obs_shape"])
        extra, in_next = settings.get("extra", {}), settings.get("next_extra", ())
        each = [split(self.obs, settings[name], name) for name in ("obs_shape", "obs_dtype", "stack")]
        self.fields = [
            Field(f"obs{path}", shape, np.dtype(dtype), stack, True)
            for path, shape, dtype, stack in zip(paths(self.obs), *each, strict=True)
        ]
        self.stack = max(field.stack for field in self.fields)
        self.obs_count = len(self.fields)
        self.fields += [
            Field(f"extra[{name!r}]", shape, np.dtype(dtype), 0, name in in_next)
            for name, (shape, dtype) in extra.items()
        ]
        self._extra: dict[str, None] = dict.fromkeys(extra)
        self._in_next: dict[str, None] = {name: None for name in extra if name in in_next}
        self.has_extra = bool(extra)
        self.single = self.obs is None and not extra

    def rows(self, obs: Any, extra: Any) -> tuple[Any, ...]:
        """Return the arrays of rows, one for each field, as they were given.

        Raises
        ------
        ValueError
            If observations or fields are nested in another way than the buffer was built for.
        """
        arrays = [] if self.obs is None else split(self.obs, obs, "obs")
        if self.obs is None:
            arrays.append(obs)
        if self._extra:
            arrays += split(self._extra, extra, "extra")
        elif extra is not None:
            raise ValueError(f"extra is {_described(extra)}; leave it out, or build the buffer with extra=")
        return tuple(arrays)

    def finals(self, final_obs: Any, final_extra: Any) -> tuple[Any, ...] | None:
        """Return the final values of rows, one for each field, None where there are none; None if all are None.

        Either is nested with arrays inside, or a sequence with one entry for each environment, nested or None.

        Raises
        ------
        ValueError
            If they are nested in another way.
        """
        if final_extra is not None and not self._in_next:
            raise ValueError(
                "final_extra is given, but batches hold no field at the next state; leave it out, or build the buffer "
                "with next_extra="
            )
        if final_obs is None and final_extra is None:
            return None
        arrays: list[Any] = [None] * len(self.fields)
        arrays[: self.obs_count] = _split_finals(self.obs, final_obs, "final_obs", self.obs_count)
        if self._in_next:
            found = iter(_split_finals(self._in_next, final_extra, "final_extra", len(self._in_next)))
            for k, field in enumerate(self.fields):
                if field.in_next and not field.is_obs:
                    arrays[k] = next(found)
        return tuple(arrays)

    def many_finals(self, final_obs: Any, final_extra: Any) -> tuple[Any, ...] | list[tuple[Any, ...] | None] | None:
        """Return the final values of many vector steps: as of `finals`, in arrays of one more axis, or step by step.

        Raises
        ------
        ValueError
            If they are nested in another way, or are sequences of unequal length.
        """
        obs_by_step, extra_by_step = isinstance(final_obs, list), isinstance(final_extra, list)
        if not obs_by_step and not extra_by_step:
            return self.finals(final_obs, final_extra)
        steps = len(final_obs) if obs_by_step else len(final_extra)
        both = []
        for name, values, by_step in (
            ("final_obs", final_obs, obs_by_step),
            ("final_extra", final_extra, extra_by_step),
        ):
            if values is not None and not by_step:
                raise ValueError(f"{name} is {_described(values)}; give a list with one entry for each step")
            if by_step and len(values) != steps:
                raise ValueError(f"{name} has {len(values)} entries; give one for each of {steps} steps")
            both.append(values if by_step else [None] * steps)
        return [self.finals(*each) for each in zip(*both, strict=True)]

    def of_batch(self, batch: Any) -> tuple[list[Any], list[Any]]:
        """Return the arrays of a batch at its states and at the next ones, one for each field, or None.

        Raises
        ------
        ValueError
            If they are nested in another way.
        """
        now = split(self.obs, getattr(batch, "obs", None), "out.obs")
        after = split(self.obs, getattr(batch, "next_obs", None), "out.next_obs")
        if self._extra:
            now += split(self._extra, getattr(batch, "extra", None), "out.extra")
            asked = split(self._in_next, getattr(batch, "next_extra", None), "out.next_extra")
            later = dict(zip(self._in_next, asked, strict=True))
            after += [later.get(name) for name in self._extra]
        return now, after

    def nest(self, arrays: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
        """Return the observation, and the fields by name, of arrays that stand one for each field; None is left out."""
        own = zip(self._extra, arrays[self.obs_count :], strict=True)
        return join(self.obs, iter(arrays)), {name: array for name, array in own if array is not None}


def _split_finals(like: Nesting, value: Any, name: str, count: int) -> list[Any]:
    """Return final values for each array of a nesting: arrays, or arrays of objects with one entry a row."""
    if like is None:
        return [value]
    if value is None:
        return [None] * count
    if isinstance(value, Mapping) or (isinstance(value, tuple) and isinstance(like, tuple)):
        return split(like, value, name)
    if not isinstance(value, list | tuple) and not (isinstance(value, np.ndarray) and value.dtype == object):
        return split(like, value, name)  # says what it should be
    columns = [np.full(len(value), None, object) for _ in range(count)]
    for i, entry in enumerate(value):
        if entry is None:
            continue
        try:
            parts = split(like, entry, f"{name}[{i}]")
        except ValueError:  # an error only where an episode ended; that is looked at later
            parts = [_Misfit()] * count
        for column, part in zip(columns, parts, strict=True):
            column[i] = part
    return columns


def per_array(like: Nesting, value: Any, name: str, one: Callable[[Any, str], Any]) -> list[Any]:
    """Return a setting of each array, after ``one(value, name)`` checked it; one value may stand for all."""
    found = split(like, spread(like, value, name), name)
    return [one(each, f"{name}{path}") for each, path in zip(found, paths(like), strict=True)]
