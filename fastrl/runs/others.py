"""CSV files that other programs wrote, read as runs: their steps become frames, their scores those of metrics.csv.

Known by their columns are Stable-Baselines3's progress.csv and monitor.csv, and what TensorBoard exports. Of all other
files the user names the columns.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np

from fastrl.base.errors import ConfigError
from fastrl.runs.curves import Floats, MeasuredRun

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
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); give CSV files") from error
        self.is_monitor = lines[:1] != [] and lines[0].startswith("#{")
        table = csv.DictReader(lines[self.is_monitor :])
        self._rows = [row for row in table if None not in row.values()]  # a last row may be cut short
        self.columns = list(table.fieldnames or [])
        if not self._rows:
            raise ConfigError(f"{path} holds no measurements; give CSV files with a line of names and rows below it")

    def require(self, name: str) -> None:
        """Raise ConfigError if there is no such column."""
        if name not in self.columns:
            raise ConfigError(
                f"--their-columns asks for {name}, which {self.path} has not; it has {', '.join(self.columns)}"
            )

    def __getitem__(self, name: str) -> Floats:
        self.require(name)
        try:
            return np.array([float(row[name] or "nan") for row in self._rows])
        except ValueError as error:
            raise ConfigError(f"{self.path} has something else than numbers in column {name}: {error}") from error


def _progress(table: _Table) -> dict[str, Floats]:
    """Stable-Baselines3's logger: a row per rollout or evaluation."""
    columns = {FRAMES: table["time/total_timesteps"]}
    names = {SCORE: "rollout/ep_rew_mean", EVALUATION: "eval/mean_reward", MINUTES: "time/time_elapsed"}
    columns |= {ours: table[theirs] for ours, theirs in names.items() if theirs in table.columns}
    if MINUTES in columns:
        columns[MINUTES] = columns[MINUTES] / 60
    return columns


def _monitor(table: _Table) -> dict[str, Floats]:
    """Stable-Baselines3's Monitor: a row per game, with its score, its length in steps and the seconds since start."""
    return {FRAMES: table["l"].cumsum(), SCORE: table["r"], MINUTES: table["t"] / 60}


def _tensorboard(table: _Table) -> dict[str, Floats]:
    """One scalar, as TensorBoard's page exports it."""
    return {FRAMES: table["Step"], SCORE: table["Value"], EVALUATION: table["Value"]}


FORMS: tuple[tuple[frozenset[str], Callable[[_Table], dict[str, Floats]]], ...] = (
    (frozenset({"time/total_timesteps"}), _progress),
    (frozenset({"r", "l", "t"}), _monitor),
    (frozenset({"Wall time", "Step", "Value"}), _tensorboard),
)
"""Columns that tell whose file it is, and what reads it: steps, not yet frames, beside what was measured."""


def is_others(word: str) -> bool:
    """Whether a word of the command line, ``NAME=FILES``, stands for other people's files."""
    name, equals, files = word.partition("=")
    return bool(name and equals and files) and os.sep not in name and not os.path.exists(word)


def read_others(words: Iterable[str], theirs: Theirs, y: str, game: str | None) -> dict[str, list[MeasuredRun]]:
    """Read the files of words ``NAME=FILES``; return the runs of each word, which are the seeds of one line.

    Parameters
    ----------
    words : iterable of str
        FILES is a file, a folder of CSV files, or a pattern with ``*``.
    theirs : Theirs
        What is in the files. Its columns are read from those that have them; others must be of a known program.
    y : str
        The column that is drawn, by its name in metrics.csv; ``theirs.columns`` is read as that.
    game : str or None
        The game that they play.

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
    columns = {id(table): _columns(table, theirs, y) for table in every}
    if every and theirs.frames_per_step is None:
        raise ConfigError(
            f"it is not said how many frames a step of {next(iter(tables)).partition('=')[0]} has; give "
            "--their-frames-per-step 4 for Atari with a frame skip of 4, or 1 if the files count frames"
        )
    return {
        word: [_run(word.partition("=")[0], table, columns[id(table)], theirs, y, game) for table in each]
        for word, each in tables.items()
    }


def _paths(word: str) -> list[Path]:
    name, _, files = word.partition("=")
    pattern = os.path.join(files, "*.csv") if os.path.isdir(files) else files
    paths = [Path(path) for path in sorted(glob(pattern, recursive=True)) if os.path.isfile(path)]
    if not paths:
        raise ConfigError(f"{word} matches no file; give {name}= and a CSV file, a folder of them, or a pattern with *")
    return paths


def _run(name: str, table: _Table, columns: dict[str, Floats], theirs: Theirs, y: str, game: str | None) -> MeasuredRun:
    assert theirs.frames_per_step is not None
    columns[FRAMES] = columns[FRAMES] * theirs.frames_per_step
    rows = theirs.rows or (GAMES if table.is_monitor else 1)
    for one in {SCORE, EVALUATION, y} & columns.keys() - {FRAMES, MINUTES}:
        columns[one] = _mean_of_last(columns[one], rows)
    cells = zip(*columns.values(), strict=True)
    texts = [{key: "" if np.isnan(x) else repr(float(x)) for key, x in zip(columns, row, strict=True)} for row in cells]
    path = table.path
    return MeasuredRun(path=path, name=path.stem, settings={}, game=game, columns=list(columns), rows=texts, line=name)


def _columns(table: _Table, theirs: Theirs, y: str) -> dict[str, Floats]:
    """Return the columns of a file by our names, steps not yet frames: those that the user names, if it has them."""
    if theirs.columns is not None and set(theirs.columns) <= set(table.columns):
        steps, drawn = theirs.columns
        return {FRAMES: table[steps], y: table[drawn]}
    for names, read in FORMS:
        if names <= set(table.columns):
            return read(table)
    for name in theirs.columns or ():
        table.require(name)
    frames = "" if theirs.frames_per_step else " --their-frames-per-step 4"
    raise ConfigError(
        f"{table.path} is of no known program; name its column of steps and the one to draw, as in --their-columns "
        f"{' '.join(repr(name) if ' ' in name else name for name in _two(table.columns))}{frames}; it has "
        f"{', '.join(table.columns)}"
    )


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
