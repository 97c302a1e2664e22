"""Settings as a run's config.json keeps them: one flat record with its format and the kind of agent.

Format 2, since the rooms: ``{"format": 2, "kind": "dqn" or "sarsa", ...}`` and every field of the settings.
Format 1: no ``format``; the kind stands under ``agent``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from fastrl.base.errors import ConfigError
from fastrl.base.ranges import fields_of
from fastrl.config.settings import DQNConfig, RunConfig, SarsaConfig

RECORD = "config.json"
FORMAT = 2
KINDS: dict[str, type[RunConfig]] = {"dqn": DQNConfig, "sarsa": SarsaConfig}
NOT_SETTINGS = ("format", "kind")
"""Keys of a record that are not fields of the settings."""
OTHER_NAMES = ("distributional",)
"""Fields that set another one, which the record has. Older records hold them, and are read."""


def to_record(config: RunConfig) -> dict[str, Any]:
    """Return settings as a record of the newest format, ready for JSON."""
    kind = next(name for name, kind in KINDS.items() if isinstance(config, kind))
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in OTHER_NAMES}
    return {"format": FORMAT, "kind": kind} | fields


def read_record(path: Path) -> dict[str, Any]:
    """Read a run's config.json and return its record, lifted to the newest format; fields are not checked.

    Raises
    ------
    ConfigError
        If there is no such file, it is damaged, or its format is newer than `FORMAT`.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        remedy = run_near(path.parent) or "give one that a run made"
        raise ConfigError(f"{path.parent} is no run folder: it has no {path.name}; {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); make it readable") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    return lift(fields, path)


def run_near(path: Path) -> str | None:
    """Return words on the run that was meant by a path that is no run folder, None if none is near.

    Near are the run that the path lies in, the runs that it holds, and the one of its name among those that trainings
    make.
    """
    for above in path.parents:
        if os.path.exists(above / RECORD):
            return f"it lies in one: give {above}"
    if below := [file.parent for file in path.glob(f"*/{RECORD}")]:
        return f"it holds runs: give one of them, such as {max(below, key=os.path.getmtime)}"
    by_name = Path(RunConfig.runs_dir) / path
    return f"did you mean {by_name}?" if os.path.exists(by_name / RECORD) else None


def lift(fields: Any, path: Path) -> dict[str, Any]:
    """Return a record of any format in the newest one.

    Parameters
    ----------
    fields : Any
        What the file's JSON holds; it stays as it is.
    path : Path
        The file, for messages.

    Raises
    ------
    ConfigError
        If `fields` is no record, or its format is newer than `FORMAT`.
    """
    if not isinstance(fields, dict):
        raise _damaged(path, "it holds no settings")
    found = fields.get("format", 1)
    if type(found) is not int or found < 1:
        raise _damaged(path, f"its format is {found!r}")
    if found > FORMAT:
        raise ConfigError(
            f"{path} has format {found}, and this version reads formats 1 to {FORMAT}; install the version of fastrl "
            "that made the run, or a newer one"
        )
    if found == 1:
        fields = {"kind" if name == "agent" else name: _whole(name, value) for name, value in fields.items()}
    return {**fields, "format": FORMAT}


def from_record(record: dict[str, Any], path: Path) -> RunConfig:
    """Return the settings of a record of the newest format; fields that it lacks have their defaults.

    Raises
    ------
    ConfigError
        If the kind is unknown, a field is unknown, or a value is out of its range. `path` is the file, for messages.
    """
    kind = KINDS.get(str(record.get("kind")))
    if kind is None:
        raise _damaged(path, f"its kind is {record.get('kind')!r}, not {' or '.join(KINDS)}")
    values = {name: value for name, value in record.items() if name not in NOT_SETTINGS}
    unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise ConfigError(
            f"{path} has settings that this version does not know: {', '.join(unknown)}; install the version of fastrl "
            "that made the run, or a newer one, or restore the file from a copy"
        )
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; correct it in the file, or restore the file from a copy") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, repr(error)) from error


def _whole(name: str, value: Any) -> Any:
    """Return 1e6, which format 1 let stand for a whole number, as one."""
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and name in _WHOLE_NUMBERS else value


_WHOLE_NUMBERS = {field.name for kind in KINDS.values() for field in fields_of(kind) if field.type is int}


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path} is damaged ({reason}); restore it from a copy")
