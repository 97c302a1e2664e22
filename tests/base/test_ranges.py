"""Ranges stand on the fields that they belong to, and one check reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest

from fastrl.base.errors import ConfigError
from fastrl.base.ranges import Above, AtLeast, Between, OneFolder, Printable, check, fields_of

ONE = "the name of one folder: printable, without slashes, at most 255 bytes"


@dataclass(frozen=True, kw_only=True)
class Base:
    count: Annotated[int, AtLeast(1)] = 1
    name: Annotated[str | None, OneFolder()] = None


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    few: Annotated[int | None, Between(1, 10_000)] = None
    share: Annotated[float, Between(0, 1)] = 0.5
    rate: Annotated[float, Above(0)] = 1.0
    kind: Literal["a", "b", "c"] = "a"
    other: Literal["x", "y"] | None = None
    on: bool = True
    text: str = ""
    place: Annotated[str, Printable()] = "here"

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    "good",
    [
        {"count": 10**12},
        {"count": np.int64(3), "share": np.float32(0.5)},
        {"few": 1},
        {"few": 10_000},
        {"few": None},
        {"share": 0},
        {"share": 1.0},
        {"rate": 1e-300},
        {"kind": "c", "other": "y"},
        {"name": "a-1.5"},
        {"name": "Größe 🎮 it's"},
        {"name": "ü" * 127},
        {"place": "a b/🎮"},
        {"count": 2**63 - 1},
        {"on": False, "text": "\n"},
    ],
)
def test_a_value_in_its_range_is_kept(good):
    assert {name: getattr(Settings(**good), name) for name in good} == good


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"count": 0}, "--count is 0; give at least 1"),
        ({"count": True}, "--count is True; give a whole number"),
        ({"count": 2.0}, "--count is 2.0; give a whole number"),
        ({"count": "3"}, "--count is '3'; give a whole number"),
        ({"count": None}, "--count is None; give a whole number"),
        ({"few": 10_001}, "--few is 10001; give between 1 and 10,000"),
        ({"share": math.nan}, "--share is nan; give between 0 and 1"),
        ({"share": False}, "--share is False; give a number"),
        ({"share": 1.1}, "--share is 1.1; give between 0 and 1"),
        ({"rate": 0}, "--rate is 0; give a finite number above 0"),
        ({"rate": math.inf}, "--rate is inf; give a finite number above 0"),
        ({"rate": math.nan}, "--rate is nan; give a finite number above 0"),
        ({"kind": "d"}, "--kind is 'd'; give a, b or c"),
        ({"kind": None}, "--kind is None; give a, b or c"),
        ({"other": "z"}, "--other is 'z'; give x or y"),
        ({"name": ""}, f"--name is ''; give {ONE}"),
        ({"name": "a/b"}, f"--name is 'a/b'; give {ONE}"),
        ({"name": "a\nb"}, f"--name is 'a\\nb'; give {ONE}"),
        ({"name": "\udcff"}, f"--name is '\\udcff'; give {ONE}"),  # a byte that is no UTF-8, as argv has it
        ({"name": "ü" * 128}, f"--name is '{'ü' * 128}'; give {ONE}"),  # 256 bytes
        ({"place": "a\tb"}, "--place is 'a\\tb'; give printable characters"),
        ({"count": 10**24}, f"--count is {10**24}; give at most 9,223,372,036,854,775,807"),
        ({"on": "no"}, "--on is 'no'; give True or False"),
        ({"on": 1}, "--on is 1; give True or False"),
        ({"text": 5}, "--text is 5; give text"),
        ({"rate": 0, "count": 0}, "--count is 0; give at least 1"),  # that of the base is declared first
    ],
)
def test_a_value_out_of_its_range_is_named_with_flag_and_remedy(bad, message):
    with pytest.raises(ConfigError) as refused:
        Settings(**bad)
    assert str(refused.value) == message


def test_a_field_is_described_by_its_annotation():
    fields = {field.name: field for field in fields_of(Settings)}
    assert list(fields)[:3] == ["count", "name", "few"]
    assert (fields["few"].type, fields["few"].optional, fields["few"].ranges) == (int, True, (Between(1, 10_000),))
    assert (fields["other"].type, fields["other"].optional, fields["other"].choices) == (str, True, ("x", "y"))
    assert (fields["on"].type, fields["on"].optional, fields["on"].flag) == (bool, False, "--on")
