"""Ranges of settings, stated where a field is declared, and the one check that reads them (standard library only).

>>> from dataclasses import dataclass
>>> from typing import Annotated
>>> @dataclass
... class Settings:
...     batch_size: Annotated[int, AtLeast(1)] = 64
...
...     def __post_init__(self) -> None:
...         check(self)
>>> Settings(batch_size=0)
Traceback (most recent call last):
fastrl.base.errors.ConfigError: --batch-size is 0; give at least 1
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin, get_type_hints

from fastrl.base.errors import ConfigError


class Range(Protocol):
    """A condition on a field's value. Its ``str()`` is the remedy of an error, after the word "give"."""

    def allows(self, value: Any) -> bool:
        """Whether the field may hold the value, which is of the field's type and not None."""


@dataclass(frozen=True)
class AtLeast:
    """From ``least`` up."""

    least: float

    def allows(self, value: float) -> bool:
        """Whether the value lies in the range; NaN lies in none."""
        return value >= self.least

    def __str__(self) -> str:
        return f"at least {self.least:,}"


@dataclass(frozen=True)
class Between:
    """From ``low`` to ``high``, both included."""

    low: float
    high: float

    def allows(self, value: float) -> bool:
        """Whether the value lies in the range; NaN lies in none."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"between {self.low:,} and {self.high:,}"


@dataclass(frozen=True)
class Above:
    """Finite and more than ``low``."""

    low: float

    def allows(self, value: float) -> bool:
        """Whether the value lies in the range; NaN lies in none."""
        return self.low < value < math.inf

    def __str__(self) -> str:
        return f"a finite number above {self.low:,}"


@dataclass(frozen=True)
class Points:
    """A schedule: pairs (step, value) with whole steps that ascend from 0; no pairs are no schedule."""

    values: Range
    """What each value may be."""
    whole: bool = False
    """Whether values are whole numbers."""

    def allows(self, value: Any) -> bool:
        """Whether the value is a tuple of such pairs."""
        if not isinstance(value, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
            return False
        steps, values = [step for step, _ in value], [one for _, one in value]
        return (
            all(_is_number(step, numbers.Integral) for step in steps)
            and steps[:1] in ([], [0])
            and all(before < after for before, after in itertools.pairwise(steps))
            and all(_is_number(one, numbers.Integral if self.whole else numbers.Real) for one in values)
            and all(self.values.allows(one) for one in values)
        )

    def __str__(self) -> str:
        kind = "a whole number " if self.whole else ""
        return f"words STEP:VALUE, where steps ascend from 0 and each value is {kind}{self.values}"


@dataclass(frozen=True)
class Falling:
    """Two numbers in (0, 1], the second no larger than the first; or none."""

    def allows(self, value: Any) -> bool:
        """Whether the value is an empty tuple, or one of two such numbers."""
        if not isinstance(value, tuple) or not all(_is_number(one, numbers.Real) for one in value):
            return False
        return not value or (len(value) == 2 and 1 >= value[0] >= value[1] > 0)

    def __str__(self) -> str:
        return "two numbers, the first at most 1, the second at most the first and above 0"


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def flag_of(name: str) -> str:
    """Return the flag of a command line that sets a field, by the field's name."""
    return f"--{name.replace('_', '-')}"


def as_flag(name: str, *values: Any) -> str:
    """Return a field as a command line gives it: ``--head quantile or iqn``, ``--no-prioritized``."""
    flag = flag_of(name)
    if isinstance(values[0], bool):
        return flag if values[0] else f"--no-{flag[2:]}"
    return f"{flag} {' or '.join(map(str, values))}"


ReadWith = tuple[str, tuple[Any, ...] | AtLeast]
"""Another field, and what it has to be: one of some values, or at least a number."""


def refuse_unread(settings: Any, given: Collection[str], read_with: Mapping[str, ReadWith]) -> None:
    """Raise ConfigError for a field, among those given by name, that has no effect beside another one.

    Parameters
    ----------
    settings : dataclass
        All fields.
    given : collection of str
        Names of those that were given.
    read_with : mapping of str to ReadWith
        By name, what a field is read with.
    """
    for name, (other, wanted) in read_with.items():
        value, found = getattr(settings, name), getattr(settings, other)
        if name not in given or (wanted.allows(found) if isinstance(wanted, AtLeast) else found in wanted):
            continue
        said = f"{as_flag(name, value)} is given" if isinstance(value, bool) else f"{flag_of(name)} is {value}"
        needed = f"{flag_of(other)} N" if isinstance(wanted, AtLeast) else as_flag(other, *wanted)
        raise ConfigError(f"{said}, and {as_flag(other, found)} does not read it; give {needed}, or leave it out")


def spelled(value: Any) -> str:
    """Return a value as messages show it: tuples as on a command line, ``0:10 200000:3``; all else as Python does."""
    if not isinstance(value, tuple):
        return repr(value)
    return " ".join(":".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)


def as_tuples(value: Any) -> Any:
    """Return lists in lists as tuples in tuples, and NumPy's numbers in them as Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(as_tuples, value))
    return plain_value(value)


def plain_value(value: Any) -> Any:
    """Return Python's own number, truth value or text for one that JSON may not know, such as NumPy's.

    All else stays as it is. An array without dimensions, or such a tensor, is its value.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value  # a long double's item is itself


@dataclass(frozen=True)
class Printable:
    """Text of one line that can be printed and stand in a file's name: no line ends, no control characters."""

    def allows(self, value: str) -> bool:
        """Whether all of the value can be printed and the file system has codes for it."""
        return bool(value) and value.isprintable() and _file_name_bytes(value) is not None

    def __str__(self) -> str:
        return "printable characters"


@dataclass(frozen=True)
class OneFolder(Printable):
    """The name of one folder, without the folders that it lies in."""

    def allows(self, value: str) -> bool:
        """Whether the value names one folder."""
        inside = super().allows(value) and "/" not in value and value not in (".", "..")
        return inside and len(_file_name_bytes(value) or b"") <= LONGEST_NAME

    def __str__(self) -> str:
        return f"the name of one folder: printable, without slashes, at most {LONGEST_NAME} bytes"


LONGEST_NAME = 255
"""Bytes that the usual file systems take for the name of one file or folder."""


def _file_name_bytes(name: str) -> bytes | None:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return None


LARGEST = 2**63 - 1
"""Largest whole number that any setting takes: what int64 holds."""


@dataclass(frozen=True)
class Field:
    """What the annotation of a dataclass's field says."""

    name: str
    type: Any
    """``int``, ``tuple[str, ...]`` and so on, without None and without ranges; ``str`` for a Literal."""
    optional: bool
    """Whether None is a value."""
    choices: tuple[str, ...]
    """The values of a Literal; empty for any other type."""
    ranges: tuple[Range, ...]

    @property
    def flag(self) -> str:
        """The field as a flag of a command line."""
        return flag_of(self.name)

    def wanted(self, value: Any) -> str | None:
        """Return what to give instead of a value, None if the field may hold it."""
        if value is None and self.optional:
            return None
        if self.choices:
            *others, last = self.choices
            return None if isinstance(value, str) and value in self.choices else f"{', '.join(others)} or {last}"
        if self.type is int and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
            return "a whole number"
        if self.type is float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            return "a number"
        if self.type is str and not isinstance(value, str):
            return "text"
        if self.type is bool and not isinstance(value, bool):
            return "True or False"
        outside = next((str(allowed) for allowed in self.ranges if not allowed.allows(value)), None)
        if outside is None and self.type is int and value > LARGEST:
            return f"at most {LARGEST:,}"
        return outside


def fields_of(kind: type) -> tuple[Field, ...]:
    """Return the fields of a dataclass, those of its bases first, as their annotations describe them.

    Ranges stand outermost in an annotation: ``Annotated[int | None, AtLeast(1)]``.
    """
    hints = get_type_hints(kind, include_extras=True)
    return tuple(_described(field.name, hints[field.name]) for field in dataclasses.fields(kind))


def _described(name: str, hint: Any) -> Field:
    ranges: tuple[Range, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        ranges = tuple(one for one in extras if hasattr(one, "allows"))
    optional = NoneType in get_args(hint)
    if optional:
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return Field(name, str if choices else hint, optional, choices, ranges)


def check(settings: Any) -> None:
    """Check the fields of a dataclass against their annotations: types of values, ranges, Literals.

    Parameters
    ----------
    settings : dataclass
        Fields are checked in the order of their declaration. Paths are not, nor are tuples without a range.

    Raises
    ------
    ConfigError
        For the first field with a value that it must not hold; the message names flag, value and remedy.
    """
    for field in fields_of(type(settings)):
        value = getattr(settings, field.name)
        if wanted := field.wanted(value):
            raise ConfigError(f"{field.flag} is {spelled(value)}; give {wanted}")
