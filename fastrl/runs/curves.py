"""Learning curves: read from runs, grouped over seeds, summarised with an interval.

Several seeds are summarised by the interquartile mean and a percentile interval of a stratified bootstrap
(Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"). A stratum there is a
game. All runs of a group here play one game, so the bootstrap draws whole runs from the group with replacement.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastrl.base.console import counted, printable
from fastrl.base.errors import ConfigError
from fastrl.base.extras import extra
from fastrl.config import read_record
from fastrl.config.record import NOT_SETTINGS, run_near

Floats = NDArray[np.float64]
Grouping = Literal["settings", "each", "all"]

CONFIDENCE = 0.95
RESAMPLES = 2_000
MOST_POINTS = 500  # of a band: a picture does not show more, and each costs RESAMPLES means
LARGEST = 1e100  # that is drawn: the range of an axis stays far below the largest float64
IGNORED = (*NOT_SETTINGS, "seed", "name", "runs_dir")  # in the record of a run: runs that differ here are one line


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """What a run measured, and its settings."""

    path: Path
    name: str
    settings: dict[str, Any]
    """The record in config.json, lifted to the newest format; empty if the run is a CSV file alone."""
    game: str | None
    """None if it is unknown."""
    columns: list[str]
    rows: list[dict[str, str]]
    line: str | None = None
    """The line that it belongs to, as one of its seeds; None: its settings say so."""

    def column(self, name: str, flag: str) -> Floats:
        """Return a column as ``[R]`` float64, NaN where nothing was measured.

        Raises
        ------
        ConfigError
            If there is no such column, or a cell of it is no number; the message names ``flag``.

        Notes
        -----
        Where an older version left ``"samples"`` out, they are ``updates`` times the run's batch size; if that is not
        true of the rows that have both, the run has had several sizes, and the others stay NaN.
        """
        if name == "samples" and "batch_size" in self.settings and "updates" in self.columns:
            return self._samples(flag)
        return self._numbers(name, flag)

    def _samples(self, flag: str) -> Floats:
        counted = self.column("updates", flag) * float(self.settings["batch_size"])
        if "samples" not in self.columns:
            return counted
        written = self._numbers("samples", flag)
        both = np.isfinite(written) & np.isfinite(counted)
        return np.where(np.isfinite(written), written, counted) if (written == counted)[both].all() else written

    def _numbers(self, name: str, flag: str) -> Floats:
        if name not in self.columns:
            raise ConfigError(self.without(name, flag))
        try:
            return np.array([float(row[name] or "nan") for row in self.rows])
        except ValueError as error:
            remedy = "restore it from a copy" if self.settings else "correct the file, or give another one"
            raise ConfigError(f"{self.path} is damaged in column {name} ({error}); {remedy}") from error

    def without(self, name: str, flag: str) -> str:
        """Return the message where there is no column of this name, which ``flag`` asked for."""
        words = f"{flag} asks for {name}, which {self.path} has not; it has {', '.join(map(printable, self.columns))}"
        named = shlex.quote(f"NAME={self.path}")
        return words if self.settings else f"{words}; if another program wrote the file, give {named}"

    def unmeasured(self, x: str, y: str) -> str:
        """Return the message where no row has both columns."""
        return f"{self.path} has no row with both {x} and {y}; give another --x or --y, or wait for one"


@dataclass(frozen=True)
class Curve:
    """``y [K]`` over ``x [K]``, float64 and finite, x rising."""

    x: Floats
    y: Floats

    def until(self, x_max: float) -> Curve:
        """Return the part up to ``x_max``, which may be empty."""
        return Curve(self.x[self.x <= x_max], self.y[self.x <= x_max])


@dataclass(frozen=True)
class Band:
    """Curves of ``runs`` runs as one: ``middle``, and the interval from ``low`` to ``high``; all ``[G]`` float64."""

    x: Floats
    middle: Floats
    low: Floats
    high: Floats
    runs: int


def read_run(path: Path, game: str | None = None) -> MeasuredRun:
    """Read a run's folder, or a CSV file of the same form.

    A run's last row without a line end is left out: the run is still writing it, or a crash cut it short.

    Parameters
    ----------
    path : Path
        The folder, its metrics.csv, or any CSV file; the last has no settings.
    game : str, optional
        Game of a run whose settings do not name one.

    Raises
    ------
    ConfigError
        If there is no such run, nothing measured in it, or its files are damaged.
    """
    if path.name == "metrics.csv" and os.path.exists(path.parent / "config.json"):
        path = path.parent
    table, settings = path, {}
    if os.path.isdir(path):
        table, settings = path / "metrics.csv", read_record(path / "config.json")
    columns, rows = _read_table(table, written=bool(settings))
    game = settings.get("game") or ("cartpole" if settings.get("kind") == "sarsa" else game)
    name = path.resolve().name if os.path.isdir(path) else path.stem
    return MeasuredRun(path=path, name=name, settings=settings, game=game, columns=columns, rows=rows)


def whole_rows(lines: csv.DictReader[str], path: Path, before: int = 0) -> list[dict[str, str]]:
    """Return the rows of a table, each with a cell for every column; the last one is left out if it is too short.

    Parameters
    ----------
    lines : csv.DictReader
        The table.
    path : Path
        Its file.
    before : int
        Lines of the file before the table.

    Raises
    ------
    ConfigError
        If another row has more cells or fewer, two columns have one name, or something else than a comma separates
        cells; the message names the file.
    """
    names = list(lines.fieldnames or [])
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise ConfigError(f"{path} has several columns named {', '.join(map(printable, twice))}; rename all but one")
    if len(names) == 1 and (other := [mark for mark in (";", "\t") if mark in names[0]]):
        raise ConfigError(f"{path} separates its cells by {other[0]!r}; give commas, and points in numbers")
    rows: list[dict[str, str]] = []
    short: ConfigError | None = None
    for row in lines:
        if short:
            raise short
        further = row.pop(None, [])  # cells behind the last column's
        cells = len(further) + sum(cell is not None for cell in row.values())
        if cells < len(row) or any(further):
            error = ConfigError(
                f"{path} has {counted(cells, 'cell')} in line {before + lines.line_num}, and {len(row)} names "
                "of columns; give each line a cell for every column, or take this line out"
            )
            if further:
                raise error
            short = error  # unless the table ends here: a crash cuts rows short
        else:
            rows.append(row)
    if short and not rows:
        raise short
    return rows


def _read_table(path: Path, *, written: bool) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns' names and the rows by them, whole rows only; a run may be writing the last one still."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = csv.DictReader((text.rpartition("\n")[0] if written else text).splitlines(), skipinitialspace=True)
        rows = whole_rows(lines, path)
    except FileNotFoundError:
        remedy = run_near(path) or "give a folder that a run made, or a CSV file of metrics"
        raise ConfigError(f"there is no {path}; {remedy}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, UnicodeDecodeError) and not written:
            raise not_utf8(path, error) from error
        raise ConfigError(f"{path} cannot be read ({error}); give a CSV file of metrics") from error
    if not rows:
        raise ConfigError(f"{path} holds no measurements; wait for the run's first line, or give another run")
    return list(lines.fieldnames or []), rows


def not_utf8(path: Path, error: UnicodeDecodeError) -> ConfigError:
    """Return the error to raise for a table of another encoding."""
    return ConfigError(f"{path} is no text in UTF-8 ({error}); give a CSV file, saved as UTF-8")


def group_runs(runs: Sequence[MeasuredRun], by: Grouping) -> list[list[MeasuredRun]]:
    """Group runs, each group one line: by ``"settings"``, runs that differ only in the seed.

    Raises
    ------
    ConfigError
        If a run is given twice, or two runs of a group have one seed.
    """
    paths = [run.path.resolve() for run in runs]
    twice = next((run for i, run in enumerate(runs) if paths[i] in paths[:i]), None)
    if twice:
        raise ConfigError(f"{twice.path} is given twice; give it once")
    if by == "all":
        return [list(runs)]
    groups: dict[str, list[MeasuredRun]] = {}
    for run, path in zip(runs, paths, strict=True):
        settings = {name: value for name, value in run.settings.items() if name not in IGNORED}
        alone = by == "each" or not settings
        line = None if by == "each" else run.line
        key = f"line {line}" if line else str(path) if alone else json.dumps(settings, sort_keys=True)
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        if not group[0].line:
            _check_seeds(group)
    return list(groups.values())


def _check_seeds(group: list[MeasuredRun]) -> None:
    seen: dict[Any, MeasuredRun] = {}
    for run in group:
        seed = run.settings.get("seed")
        if seed in seen:
            raise ConfigError(
                f"{seen[seed].path} and {run.path} are the same run twice, settings and seed {seed}, which no interval "
                "over seeds may count; give one of them, or --group each"
            )
        seen[seed] = run


def name_groups(groups: Sequence[Sequence[MeasuredRun]]) -> list[str]:
    """Return a label for each group: the name of its runs, with settings or games where those tell groups apart."""
    names = [_common_name(group) for group in groups]
    if len(set(names)) < len(names):  # a name that the user gave, and one that a run has
        names = [_with_files(group) if group[0].line else name for name, group in zip(names, groups, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} ({apart})" for name, apart in zip(names, _what_differs(groups), strict=True)]
    if len({group[0].game for group in groups}) > 1:
        names = [f"{spoken(group[0].game)}: {name}" for name, group in zip(names, groups, strict=True)]
    return [
        f"{name}, {len(group)} seeds" if len(group) > 1 else name for name, group in zip(names, groups, strict=True)
    ]


def spoken(game: str | None) -> str:
    """Return a game's name as titles spell it."""
    return "unknown game" if game is None else game.replace("_", " ").title()


def _common_name(group: Sequence[MeasuredRun]) -> str:
    """Return the name of a line, of its only run, or the common beginning of several names without the seed."""
    if group[0].line:
        return group[0].line
    if len(group) == 1:
        return group[0].name
    columns = zip(*(run.name for run in group), strict=False)
    common = "".join(letters[0] for letters in itertools.takewhile(lambda letters: len(set(letters)) == 1, columns))
    return re.sub(r"[-_. ]+((s|seed)[-_]?)?\d*$", "", common) or group[0].name


def _with_files(group: Sequence[MeasuredRun]) -> str:
    """Return the name that a line was given, with its file or the folder of its files."""
    paths = [run.path.absolute() for run in group]
    return f"{group[0].line} ({os.path.basename(os.path.commonpath(paths)) if len(paths) > 1 else paths[0].name})"


def _what_differs(groups: Sequence[Sequence[MeasuredRun]]) -> list[str]:
    """Return at most three settings in which the groups differ, or the folders of the runs if no setting differs."""
    settings = [group[0].settings for group in groups]
    names = dict.fromkeys(name for one in settings for name in one if name not in IGNORED)
    apart = [name for name in names if len({repr(one.get(name)) for one in settings}) > 1][:3]
    if not apart:
        return [group[0].path.resolve().parent.name for group in groups]
    return [", ".join(f"{name} {one.get(name)}" for name in apart) for one in settings]


def curve_of(run: MeasuredRun, x: str, y: str) -> Curve:
    """Return the curve of one column over another; rows without ``y`` are skipped.

    Evaluations have rows of their own, which hold the first column but no other ``x``. That ``x`` is interpolated over
    the first column, between the rows before and after. Of rows with equal ``x`` the last counts.

    Raises
    ------
    ConfigError
        If a column is missing, no row has both, or a number is too large to draw.
    """
    xs, ys = filled(run, x), run.column(y, "--y")
    measured = np.isfinite(xs) & np.isfinite(ys)
    if not measured.any():
        raise ConfigError(run.unmeasured(x, y))
    for column, values in ((x, xs), (y, ys)):
        if (largest := np.abs(values[measured]).max()) > LARGEST:
            raise ConfigError(
                f"{run.path} has {largest:g} in column {column}; give numbers up to {LARGEST:g}, or --x or --y another "
                "column"
            )
    last_first = slice(None, None, -1)
    xs, at = np.unique(xs[measured][last_first], return_index=True)
    return Curve(xs, ys[measured][last_first][at])


def filled(run: MeasuredRun, x: str) -> Floats:
    """Return column ``x`` as ``[R]`` with its gaps filled over the first column, NaN before and after all of it.

    Raises
    ------
    ConfigError
        If the first column is needed and goes back somewhere.
    """
    xs = run.column(x, "--x")
    gap = ~np.isfinite(xs)
    if x != run.columns[0] and not gap.any():
        return xs
    first = run.column(run.columns[0], "--x")
    seen = first[np.isfinite(first)]
    if len(back := np.flatnonzero(np.diff(seen) < 0)):
        raise ConfigError(
            f"{run.path} goes back in {printable(run.columns[0])}, from {seen[back[0]]:g} to {seen[back[0] + 1]:g}; "
            "give each part as a file of its own, or sort the rows"
        )
    known = ~gap & np.isfinite(first)
    if known.any():
        xs[gap] = np.interp(first[gap], first[known], xs[known], left=np.nan, right=np.nan)
    return xs


def band_of(curves: Sequence[Curve]) -> Band:
    """Summarise curves as one band: a single curve as it is, several on a common grid.

    Raises
    ------
    ConfigError
        If the curves have no common range.
    """
    if len(curves) == 1:
        return Band(curves[0].x, curves[0].y, curves[0].y, curves[0].y, runs=1)
    grid = common_grid(curves)
    values = np.stack([np.interp(grid, curve.x, curve.y) for curve in curves])  # [S, G]
    low, high = interval(values)
    return Band(grid, interquartile_mean(values), low, high, runs=len(curves))


def summary_at(curves: Sequence[Curve], x: float) -> tuple[float, float, float] | None:
    """Return the interquartile mean over curves at one ``x`` and its interval; None if one of them has no data there.

    Of a single curve the interval is its value.
    """
    if any(x < curve.x[0] or x > curve.x[-1] for curve in curves):
        return None
    values = np.array([[np.interp(x, curve.x, curve.y)] for curve in curves])  # [S, 1]
    low, high = (values[0], values[0]) if len(curves) == 1 else interval(values)
    return float(interquartile_mean(values)[0]), float(low[0]), float(high[0])


def common_grid(curves: Sequence[Curve]) -> Floats:
    """Return ``[G]`` points of the range that all curves share, G <= MOST_POINTS: the points of the sparsest curve.

    Raises
    ------
    ConfigError
        If they share none.
    """
    low, high = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    if low > high:
        raise ConfigError(
            f"runs of one line share no range: one begins at {low:g}, one ends at {high:g}; give --group each"
        )
    inside = [curve.x[(low <= curve.x) & (curve.x <= high)] for curve in curves]
    grid = np.unique([low, *min(inside, key=len), high])
    return grid if len(grid) <= MOST_POINTS else np.linspace(low, high, MOST_POINTS)


def interquartile_mean(values: Floats, axis: int = 0) -> Floats:
    """Return the mean without the lowest and the highest quarter, rounded down: of fewer than four values, the mean."""
    middle: Floats = _stats().trim_mean(values, 0.25, axis=axis)
    return middle


def interval(values: Floats) -> tuple[Floats, Floats]:
    """Return the bootstrap interval of the interquartile mean: ``[S, G]``, S >= 2 runs, to two ``[G]``."""
    found = (
        _stats()
        .bootstrap(
            (values,),
            interquartile_mean,
            axis=0,
            vectorized=True,
            method="percentile",
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(0),
        )
        .confidence_interval
    )
    return found.low, found.high


def _stats() -> Any:
    """Return `scipy.stats`, which takes a second to import: only where several runs are summarised."""
    with extra("train"):
        from scipy import stats
    return stats
