"""Files by a name for their line. Those of other programs: steps become frames, scores those of metrics.csv.

Known by their columns are metrics.csv itself, Stable-Baselines3's progress.csv and monitor.csv, and what TensorBoard
exports. Of all other files the user names the columns.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastrl.base.console import printable
from fastrl.base.errors import ConfigError
from fastrl.runs.curves import Floats, MeasuredRun, not_utf8, read_run, whole_rows

FRAMES, SCORE, EVALUATION, MINUTES = "frames", "games/return_mean_100", "evaluation/return_mean", "time/minutes"
GAMES = 100
"""Games that a score is the mean of, where each row is a game: as many as in metrics.csv."""


@dataclass(frozen=True)
class Theirs:
    """What the user says of the files.

    Parameters
    ----------
    columns : (str, str) or None
        The column that counts steps, and the one that is drawn; None: they are known by their names.
    frames_per_step : float or None
        Emulator frames in one of their steps.
    rows : int or None
        Rows whose mean is a score; None: `GAMES` in a monitor.csv, 1 elsewhere.
    """

    columns: tuple[str, str] | None = None
    frames_per_step: float | None = None
    rows: int | None = None


class _Table:
    """A CSV file: its columns' names, and each column as ``[R]`` float64, NaN where a cell is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error}); give CSV files") from error
        self.is_monitor = lines[:1] != [] and lines[0].startswith("#{")
        table = csv.DictReader(lines[self.is_monitor :], skipinitialspace=True)
        self._rows = whole_rows(table, path, before=int(self.is_monitor))
        self.columns = list(table.fieldnames or [])
        if not self._rows:
            raise ConfigError(f"{path} holds no measurements; give CSV files with a line of names and rows below it")

    def require(self, name: str) -> None:
        """Raise ConfigError if there is no such column."""
        if name not in self.columns:
            there = ", ".join(map(printable, self.columns))
            raise ConfigError(f"--their-columns asks for {name}, which {self.path} has not; it has {there}")

    def __getitem__(self, name: str) -> Floats:
        self.require(name)
        try:
            return np.array([float(row[name] or "nan") for row in self._rows])
        except ValueError as error:
            raise ConfigError(
                f"{self.path} has something else than numbers in column {name} ({error}); correct the file, or name "
                "another column with --their-columns"
            ) from error


@dataclass(frozen=True, kw_only=True)
class TheirRun(MeasuredRun):
    """What another program's file says of a run, in columns of our names."""

    their_columns: list[str]
    """All columns of the file."""
    names: dict[str, str]
    """By our name, the file's column that is read as that, if the file has it."""

    def without(self, name: str, flag: str) -> str:
        """Return the message where no column is read as this one, in the file's own names."""
        read = {theirs: ours for ours, theirs in reversed(self.names.items()) if ours in self.columns}
        there = [
            f"{printable(theirs)} (read as {read[theirs]})" if theirs in read else printable(theirs)
            for theirs in self.their_columns
        ]
        serves = f"; {self.names[name]} would be" if name in self.names else ""
        axes = (FRAMES, MINUTES)
        remedies = [f"{flag} {ours}" for ours in self.columns if (ours in axes) == (flag == "--x")]
        if flag == "--y":
            unread = next((theirs for theirs in self.their_columns if theirs not in read), "COLUMN")
            remedies.append(f"the column to draw, as in --their-columns {_words([self.names[FRAMES], unread])}")
        return (
            f"{flag} asks for {name}, and no column of {self.path} is read as that{serves}; give "
            f"{', or '.join(remedies)}; the file has {', '.join(there)}"
        )

    def unmeasured(self, x: str, y: str) -> str:
        """Return the message where no row has both columns, in the file's own names."""
        names = " and ".join(printable(self.names.get(name, name)) for name in (x, y))
        return f"{self.path} has no row with a number in both {names}; give another file, or --their-columns others"


class _Form(NamedTuple):
    """What a program's files are known by, and read as."""

    known_by: frozenset[str]
    """Columns that no other program's files have; empty where the user names the two that are read."""
    names: dict[str, str]
    """The file's columns by our names: steps, which are not yet frames, and seconds for minutes."""
    counts_games: bool = False
    """Whether the column of steps has the length of a game in each row."""
    by_date: bool = False
    """Whether seconds are a date, since 1970: minutes then count from the first row."""


OWN = _Form(frozenset({FRAMES, SCORE}), {})
"""metrics.csv, and files of its form: read as they are."""
FORMS = (
    OWN,
    # Stable-Baselines3's logger: a row per rollout or evaluation.
    _Form(
        frozenset({"time/total_timesteps"}),
        {
            FRAMES: "time/total_timesteps", SCORE: "rollout/ep_rew_mean", EVALUATION: "eval/mean_reward",
            MINUTES: "time/time_elapsed",
        },
    ),
    # Its Monitor: a row per game, with its score, its length in steps and the seconds since start.
    _Form(frozenset({"r", "l", "t"}), {FRAMES: "l", SCORE: "r", MINUTES: "t"}, counts_games=True),
    # One scalar, as TensorBoard's page exports it.
    _Form(
        frozenset({"Wall time", "Step", "Value"}),
        {FRAMES: "Step", SCORE: "Value", EVALUATION: "Value", MINUTES: "Wall time"},
        by_date=True,
    ),
)  # fmt: skip


def is_others(word: str) -> bool:
    """Whether a word of the command line is ``NAME=FILES``."""
    name, equals, files = word.partition("=")
    return bool(name and equals and files) and os.sep not in name and not os.path.exists(word)


def read_others(
    words: Iterable[str],
    theirs: Theirs,
    y: str,
    game: str | None,
    beside: Iterable[MeasuredRun] = (),
    *,
    x: str = FRAMES,
) -> dict[str, list[MeasuredRun]]:
    """Read the files of words ``NAME=FILES``; return the runs of each word, which are the seeds of one line.

    Parameters
    ----------
    words : iterable of str
        FILES is a file, a folder of CSV files, or a pattern with ``*`` of files or of runs' folders.
    theirs : Theirs
        What is in the files. Its columns are read from those that have them; others must be of a known program.
    y : str
        The column that is drawn, by its name in metrics.csv; ``theirs.columns`` is read as that.
    game : str or None
        The game that they play; None: that of the own runs among them and beside them, if it is one.
    beside : iterable of MeasuredRun
        Own runs without a name for their line.
    x : str
        The column that it is drawn over, by its name in metrics.csv. Only frames need to know the frames of a step.

    Raises
    ------
    ConfigError
        If no file matches, a file's columns are not known, no file has those that are named, or it is not said how many
        frames a step has.
    """
    tables = {word: [_Table(path) for path in _paths(word)] for word in words}
    every = [table for each in tables.values() for table in each]
    wanted = theirs.columns or ()
    if every and wanted and not any(set(wanted) <= set(table.columns) for table in every):
        for name in wanted:
            every[0].require(name)
    forms = {id(table): _form(table, theirs, y) for table in every}
    for word, each in tables.items():
        if other := next((table for table in each if forms[id(table)] != forms[id(each[0])]), None):
            raise ConfigError(
                f"{word} is {each[0].path} and {other.path}, tables of different columns, which are no seeds of one "
                f"setting; name the files of one kind, such as {word.partition('=')[0]}={each[0].path}"
            )
    others = [word for word, each in tables.items() if forms[id(each[0])] is not OWN]
    if others and theirs.frames_per_step is None:
        if x == FRAMES:
            raise ConfigError(
                f"it is not said how many frames a step of {others[0].partition('=')[0]} has; give "
                "--their-frames-per-step 4 for Atari with a frame skip of 4, or 1 if the files count frames"
            )
        theirs = dataclasses.replace(theirs, frames_per_step=1.0)  # over another axis steps only order the rows
    own = {id(table): read_run(table.path, game) for table in every if forms[id(table)] is OWN}
    games = {run.game for run in (*beside, *own.values())}
    game = game or (games.pop() if len(games) == 1 else None)
    return {
        word: [
            dataclasses.replace(own[id(table)], line=word.partition("=")[0])
            if id(table) in own
            else _run(word.partition("=")[0], table, forms[id(table)], theirs, y, game)
            for table in each
        ]
        for word, each in tables.items()
    }


def _paths(word: str) -> list[Path]:
    name, _, files = word.partition("=")
    pattern = escape(files) if os.path.exists(files) else files
    if os.path.isdir(files):
        pattern = os.path.join(pattern, "*.csv")
    found = [Path(path) for path in sorted(glob(pattern, recursive=True))]
    paths = [each for path in found if os.path.isfile(each := path / "metrics.csv" if path.is_dir() else path)]
    if not paths:
        raise ConfigError(f"{word} matches no file; give {name}= and a CSV file, a folder of them, or a pattern with *")
    return paths


def _run(name: str, table: _Table, form: _Form, theirs: Theirs, y: str, game: str | None) -> MeasuredRun:
    assert theirs.frames_per_step is not None
    columns = {ours: table[column] for ours, column in form.names.items() if column in table.columns}
    steps = columns[FRAMES].cumsum() if form.counts_games else columns[FRAMES]
    columns[FRAMES] = steps * theirs.frames_per_step
    if MINUTES in columns and form.known_by:
        columns[MINUTES] = columns[MINUTES] / 60
    if form.by_date:
        known = columns[MINUTES][np.isfinite(columns[MINUTES])]
        columns[MINUTES] -= known[0] if len(known) else 0.0
    rows = theirs.rows or (GAMES if table.is_monitor else 1)
    for one in {SCORE, EVALUATION, y} & columns.keys() - {FRAMES, MINUTES}:
        columns[one] = _mean_of_last(columns[one], rows)
    cells = zip(*columns.values(), strict=True)
    texts = [{key: "" if np.isnan(x) else repr(float(x)) for key, x in zip(columns, row, strict=True)} for row in cells]
    path = table.path
    return TheirRun(
        path=path, name=path.stem, settings={}, game=game, columns=list(columns), rows=texts, line=name,
        their_columns=table.columns, names=form.names,
    )  # fmt: skip


def _form(table: _Table, theirs: Theirs, y: str) -> _Form:
    """Return how a file is read: by the columns that the user names, if it has them, or as a known program's."""
    if theirs.columns is not None and set(theirs.columns) <= set(table.columns):
        steps, drawn = theirs.columns
        return _Form(frozenset(), {FRAMES: steps, y: drawn})
    if table.path.name == "metrics.csv" and (table.path.parent / "config.json").exists():
        return OWN
    for form in FORMS:
        if form.known_by <= set(table.columns):
            return form
    for name in theirs.columns or ():
        table.require(name)
    frames = "" if theirs.frames_per_step else " --their-frames-per-step 4"
    raise ConfigError(
        f"{table.path} is of no known program; name its column of steps and the one to draw, as in --their-columns "
        f"{_words(_two(table.columns))}{frames}; it has {', '.join(map(printable, table.columns))}"
    )


def _words(names: Iterable[str]) -> str:
    return " ".join(repr(name) if " " in name else printable(name) for name in names)


def _two(names: Sequence[str]) -> Sequence[str]:
    return names[:2] if len(names) > 1 else (*names, "SCORE")


def _mean_of_last(values: Floats, rows: int) -> Floats:
    """Return the mean of each value and those before it, at most ``rows`` of them; gaps stay and are not counted."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], values[known].cumsum()])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - rows, 0)
    means = np.full(len(values), np.nan)
    means[known] = (sums[ends] - sums[starts]) / (ends - starts)
    return means
