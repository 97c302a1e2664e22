"""Draw learning curves as PNG and SVG: a line for each run, or a band for the seeds of one setting.

python -m fastrl.plot runs/NAME --x minutes
python -m fastrl.plot runs/NAME-s1 runs/NAME-s2 runs/NAME-s3 --out curve
python -m fastrl.plot runs/NAME --y evaluation --published
python -m fastrl.plot runs/NAME "SB3=sb3/*.csv" --their-frames-per-step 4
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take a moment: a signal is answered meanwhile
    from fastrl.__main__ import run_named

    run_named("plot")

import io
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from fastrl.base.commands import program
from fastrl.base.console import say
from fastrl.base.errors import ConfigError
from fastrl.base.extras import extra
from fastrl.base.files import require_place, write_atomically
from fastrl.base.ranges import Above, AtLeast, Between, check
from fastrl.base.stop import begun
from fastrl.cli import read, show_help
from fastrl.envs.levels import LEVELS, SOURCE
from fastrl.envs.names import game_name
from fastrl.runs.curves import (
    Band,
    Curve,
    Grouping,
    MeasuredRun,
    band_of,
    curve_of,
    group_runs,
    name_groups,
    read_run,
    spoken,
    summary_at,
)
from fastrl.runs.others import TheirRun, Theirs, is_others, read_others

if TYPE_CHECKING:  # Matplotlib is optional, and slow to import: not before the flags are read
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PROG = program("plot")
COLUMNS = {"minutes": "time/minutes", "score": "games/return_mean_100", "evaluation": "evaluation/return_mean"}
TITLES = {
    "time/minutes": "minutes",
    "samples": "samples learned",
    "games/return_mean_100": "score, mean of the last 100 training games",
    "evaluation/return_mean": "score, mean of an evaluation's games",
}
SCORES = ("games/return_mean_100", "evaluation/return_mean", "evaluation/return_median")

THEIRS = ("their_columns", "their_frames_per_step", "their_rows")
ENDINGS = (".png", ".svg")
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000".split()  # Okabe & Ito: safe for the colour-blind
STROKES = ("-", "-.", ":")  # of the first seven lines, the next seven, ...; dashes are for what others published
GREY = "#666666"
STYLE = {
    "svg.hashsalt": "fastrl",  # without it the names inside an SVG are random
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "text.parse_math": False,  # names are shown as they are given, a "$" too
}


@dataclass(frozen=True)
class Published:
    """A curve that others published: (million frames, score), with straight lines between."""

    name: str
    protocol: str
    points: tuple[tuple[float, float], ...]


_CLEANRL = "CleanRL, read off its figures by eye: no sticky actions, a lost life ends the episode."
_DOPAMINE = "Dopamine: sticky actions (0.25)."
_BTR = "BTR (Clark et al. 2024): sticky actions (0.25), a lost life is no end."
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "breakout": (
        Published("CleanRL DQN", _CLEANRL, ((10, 75), (20, 355))),
        Published("CleanRL C51", _CLEANRL, ((8, 210), (20, 465))),
        Published("CleanRL PQN", _CLEANRL, ((10, 50), (20, 180))),  # 8 environments
        Published("Dopamine DQN", _DOPAMINE, ((5, 23), (10, 52), (20, 93), (50, 100))),
        Published("Dopamine Rainbow", _DOPAMINE, ((5, 19), (10, 44), (20, 63), (50, 50))),
        Published("Dopamine IQN, Impala", _DOPAMINE, ((2, 17.8), (5, 149), (10, 261), (20, 288), (50, 241))),
        Published("BTR", _BTR, ((4, 57), (5, 67), (6, 190), (9, 304), (10, 239), (20, 450), (50, 578))),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to draw and how."""

    x: str = "frames"
    """`frames`, `minutes`, `updates`, `samples` (learned), or any column."""
    y: str = "score"
    """`score` (the last 100 training games), `evaluation` (drawn as points), or any column."""
    out: Path | None = None
    """Where the pictures go, without .png and .svg (default: pictures/curve in a single run's folder, else curve)."""
    labels: tuple[str, ...] = ()
    """Labels, one for each line (default: the runs' names)."""
    group: Grouping = "settings"
    """Runs that make one line: `settings`, those that differ only in the seed; `each`, each by itself; `all`, all as
    seeds of one setting."""
    game: str | None = None
    """Game, in any spelling, of CSV files that have no config.json beside them (default: unknown)."""
    levels: bool = False
    """Draw the scores of random play and of a human."""
    published: bool = False
    """Draw these levels, and curves that others published; over frames only."""
    x_max: Annotated[float | None, Above(0)] = None
    """Largest `x` to draw, in frames, minutes and so on (default: all)."""
    at: tuple[float, ...] = ()
    """Print the lines' values at these `x`, with their intervals."""
    their_columns: tuple[str, str] | None = None
    """Columns of files given as NAME=FILES: the steps, and what is drawn (default: those of Stable-Baselines3's
    progress.csv and monitor.csv, and of TensorBoard's exports)."""
    their_frames_per_step: Annotated[float | None, Above(0)] = None
    """Frames in a step of these files: 4 for Atari with a frame skip of 4, 1 if they count frames."""
    their_rows: Annotated[int | None, AtLeast(1)] = None
    """Rows of these files whose mean is a score, where each is a game (default: 100 in a monitor.csv, else 1)."""
    size: tuple[float, float] = (8.0, 4.5)
    """Width and height in inches."""
    dpi: Annotated[int, Between(20, 600)] = 100
    """Pixels per inch of the PNG."""

    def __post_init__(self) -> None:
        check(self)
        if self.game is not None:
            object.__setattr__(self, "game", _plain(self.game))
        if not all(2 <= side <= 20 for side in self.size):
            raise ConfigError(f"--size is {self.size[0]:g} {self.size[1]:g}; give two numbers between 2 and 20")
        for x in self.at:
            if not 0 <= x < math.inf:
                raise ConfigError(f"--at is {x:g}; give numbers from 0, such as --at 1e6 for a million frames")

    @property
    def columns(self) -> tuple[str, str]:
        """The columns that ``x`` and ``y`` mean."""
        return COLUMNS.get(self.x, self.x), COLUMNS.get(self.y, self.y)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    line = read(arguments, Arguments)
    if line.help:
        show_help(f"{PROG} RUN... [NAME=FILES...]", __doc__, Arguments())
    args = Arguments(**line.given)
    if not line.words:
        raise ConfigError(f"no run is given first; try {PROG} runs/NAME")
    begun()
    for text in plot(line.words, args):
        say(text)
    return 0


def plot(words: Sequence[str], args: Arguments) -> list[str]:
    """Draw what the words stand for (`read_groups`); return what to print: values asked for, and the two files written.

    Raises
    ------
    ConfigError
        If something cannot be drawn; nothing is written then.
    """
    stem = _stem([Path(word) for word in words], args.out)
    groups = read_groups(words, args)
    labels = _labels(groups, args)
    return [*_table(groups, labels, args), *map(str, draw_groups(groups, labels, stem, args))]


def read_groups(words: Sequence[str], args: Arguments) -> list[list[MeasuredRun]]:
    """Read what the words of a command line stand for; return the seeds of each line, in the order of the words.

    Parameters
    ----------
    words : sequence of str
        Folders of runs, CSV files of their form, and ``NAME=FILES`` (`read_others`).
    args : Arguments
        What is drawn.

    Raises
    ------
    ConfigError
        If one cannot be read.
    """
    own = {word: read_run(Path(word), args.game) for word in words if not is_others(word)}
    theirs = Theirs(*(getattr(args, flag) for flag in THEIRS))
    x, y = args.columns
    named = read_others([word for word in words if word not in own], theirs, y, args.game, own.values(), x=x)
    if theirs != Theirs() and not any(isinstance(run, TheirRun) for each in named.values() for run in each):
        flag = next(flag for flag in THEIRS if getattr(args, flag) is not None).replace("_", "-")
        raise ConfigError(f"--{flag} is for other programs' files, and none is given; add NAME=FILES, or leave it out")
    runs = [run for word in words for run in ([own[word]] if word in own else named[word])]
    if args.game is not None and args.game not in {run.game for run in runs}:
        raise ConfigError(f"--game is {args.game}, and each run says itself that it plays another game; leave it out")
    return group_runs(runs, args.group)


def _plain(game: str) -> str:
    """Return the plain name of a game in any spelling; what is no Atari game stays as it is."""
    if game in LEVELS:
        return game
    try:
        return game_name(game)
    except (ConfigError, ImportError):
        return game


def _table(groups: Sequence[Sequence[MeasuredRun]], labels: Sequence[str], args: Arguments) -> list[str]:
    """Return the lines' values at the ``x`` asked for, as lines of text, and why one is missing."""
    if not args.at:
        return []
    curves = [[_curve(run, args) for run in group] for group in groups]
    cells = [[args.x, *labels]]
    for x in args.at:
        found = [summary_at(group, x) for group in curves]
        cells.append([f"{x:,.10g}", *("-" if one is None else _in_words(one) for one in found)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    missing = []
    for label, group in zip(labels, curves, strict=True):
        low, high = max(curve.x[0] for curve in group), min(curve.x[-1] for curve in group)
        if any(not low <= x <= high for x in args.at):
            missing.append(f"-: {args.y} of {label} goes from {low:,.10g} to {high:,.10g} {args.x}")
    return [*table, *missing]


def _in_words(summary: tuple[float, float, float]) -> str:
    middle, low, high = summary
    return f"{middle:.1f}" if low == high else f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def draw_groups(
    groups: Sequence[Sequence[MeasuredRun]], labels: Sequence[str], stem: Path, args: Arguments
) -> list[Path]:
    """Draw a line for each group of runs and return the two files written.

    Parameters
    ----------
    groups : sequence of sequences of MeasuredRun
        The seeds of each line.
    labels : sequence of str
        The lines' labels.
    stem : Path
        Where the pictures go, without .png and .svg.
    args : Arguments
        What to draw and how; ``out``, ``labels`` and ``group`` are not asked.

    Raises
    ------
    ConfigError
        If something cannot be drawn; nothing is written then.
    """
    for ending in ENDINGS:
        require_place(stem.with_name(stem.name + ending), "--out")
    game = _game(groups, args)
    bands = [band_of([_curve(run, args) for run in group]) for group in groups]
    with extra("train"):
        from matplotlib import style
    with style.context(["default", STYLE]):
        figure = draw(bands, labels, game, args)
        pictures = {
            ".png": _render(figure, format="png", dpi=args.dpi),
            ".svg": _render(figure, format="svg", metadata={"Date": None}),
        }
    return write_pictures(stem, pictures)


def _curve(run: MeasuredRun, args: Arguments) -> Curve:
    curve = curve_of(run, *args.columns)
    if args.x_max is None:
        return curve
    if args.x_max < curve.x[0]:
        raise ConfigError(f"--x-max is {args.x_max:g}, where {run.path} has no point yet; give at least {curve.x[0]:g}")
    return curve.until(args.x_max)


def _labels(groups: Sequence[Sequence[MeasuredRun]], args: Arguments) -> list[str]:
    if not args.labels:
        return name_groups(groups)
    if len(args.labels) != len(groups):
        lines = "; ".join(group[0].line or ", ".join(run.name for run in group) for group in groups)
        raise ConfigError(f"--labels has {len(args.labels)} for {len(groups)} lines; give one for each of: {lines}")
    return list(args.labels)


def _game(groups: Sequence[Sequence[MeasuredRun]], args: Arguments) -> str | None:
    """Return the one game of all runs, None if they play several or do not tell; refuse what needs one game then."""
    games = {run.game for group in groups for run in group}
    game = games.pop() if len(games) == 1 else None
    if not (args.levels or args.published):
        return game
    flag = "--published" if args.published else "--levels"
    if game is None:
        raise ConfigError(
            f"{flag} is for one game, and these runs play several or do not tell; give runs of one, or --game"
        )
    if game not in LEVELS:
        raise ConfigError(
            f"{flag} draws what random play and a human score, which {SOURCE} does not say of {game}; leave it out"
        )
    if args.columns[1] not in SCORES:
        raise ConfigError(f"{flag} is about scores, and --y is {args.y}; give --y score or evaluation, or leave it out")
    if args.published and args.x != "frames":
        raise ConfigError(f"--published is over frames, and --x is {args.x}; give --x frames, or --levels instead")
    return game


def draw(bands: Sequence[Band], labels: Sequence[str], game: str | None, args: Arguments) -> Figure:
    """Return the figure, made without pyplot and its global state."""
    with extra("train"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=args.size, layout="constrained")
    axes = figure.subplots()
    points = args.columns[1].startswith("evaluation/")
    lines = [_draw_band(axes, band, number, points=points) for number, band in enumerate(bands)]
    curves = _published_curves(game, args.x_max) if args.published else {}
    levels = LEVELS[str(game)] if args.levels or args.published else ()
    end = max([band.x[-1] for band in bands] + [curve.x[-1] for curve in curves.values()])
    start = min(0, *(band.x[0] for band in bands))
    axes.set_xlim(start, end if end > start else start + 1)
    _draw_grey(axes, args.size[1], curves, levels)
    _name_axes(axes, end, args)
    axes.set_title(spoken(game) if game else "", loc="left")
    across = max(1, 60 // (max(map(len, labels)) + 6))
    axes.legend(
        lines, labels, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=across
    )  # never over a curve
    figure.supxlabel(_footnote(bands, list(curves), levels, args), x=0.01, ha="left", fontsize="small", color=GREY)
    return figure


def _draw_band(axes: Axes, band: Band, number: int, *, points: bool) -> Line2D:
    """Draw a band and return its line, for the legend."""
    colour, stroke = COLOURS[number % len(COLOURS)], STROKES[number // len(COLOURS) % len(STROKES)]
    if points:
        (line,) = axes.plot(band.x, band.middle, "o", markersize=5, color=colour, clip_on=False)
        if band.runs > 1:
            axes.vlines(band.x, band.low, band.high, color=colour)
        return line
    (line,) = axes.plot(band.x, band.middle, stroke, marker="o" if len(band.x) == 1 else "", color=colour)
    if band.runs > 1:
        axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
    return line


def _published_curves(game: str | None, x_max: float | None) -> dict[str, Curve]:
    """Return what others published, by name, over frames: their points up to ``x_max``, and none between."""
    curves = {}
    for one in PUBLISHED.get(str(game), ()):
        millions, scores = np.array(one.points, np.float64).T
        curves[one.name] = Curve(millions * 1e6, scores).until(x_max or np.inf)
    return {name: curve for name, curve in curves.items() if len(curve.x)}


def _draw_grey(axes: Axes, height: float, curves: dict[str, Curve], levels: Sequence[float]) -> None:
    """Draw what others published and levels, each with its name beside its end; `height` is the figure's, in inches."""
    for curve in curves.values():
        axes.plot(curve.x, curve.y, "--", marker=".", color=GREY, linewidth=1, zorder=1, clip_on=False)
    for score in levels:
        axes.axhline(score, color=GREY, linewidth=0.6, zorder=1)
    names = [(curve.x[-1], curve.y[-1], name) for name, curve in curves.items()]
    names += [(axes.get_xlim()[1], y, f"{name} {y:g}") for name, y in zip(("random", "human"), levels, strict=False)]
    bottom, top = axes.get_ylim()
    line = (top - bottom) * 0.2 / height  # about the height of a name, in the units of y
    highest: dict[float, float] = {}
    for x, y, name in sorted(names):
        highest[x] = max(y, highest.get(x, -np.inf) + line)  # names that would overlap move up
        axes.annotate(
            name, (x, highest[x]), xytext=(4, 0), textcoords="offset points", va="center", fontsize="small", color=GREY
        )


def _name_axes(axes: Axes, end: float, args: Arguments) -> None:
    x, y = args.columns
    scale, unit = (1e6, " (millions)") if end >= 1e6 else (1e3, " (thousands)") if end >= 1e4 else (1, "")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / scale:g}")
    axes.set_xlabel(TITLES.get(x, x) + unit)
    axes.set_ylabel(TITLES.get(y, y))


def _footnote(bands: Sequence[Band], published: Sequence[str], levels: Sequence[float], args: Arguments) -> str:
    """Return what the picture must say of itself: statistics, sources, protocols."""
    notes = []
    if any(band.runs > 1 for band in bands):
        notes.append("Interquartile mean over seeds, with its 95 % bootstrap interval.")
    notes += dict.fromkeys(one.protocol for curves in PUBLISHED.values() for one in curves if one.name in published)
    if levels:
        notes.append(f"Random and human: {SOURCE}.")
    return "\n".join(textwrap.fill(note, int(args.size[0] * 15)) for note in notes)


def _render(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, **options)
    return file.getvalue()


def _stem(paths: Sequence[Path], out: Path | None) -> Path:
    """Return where the pictures go, without the ending."""
    if out is None:
        return paths[0] / "pictures" / "curve" if len(paths) == 1 and os.path.isdir(paths[0]) else Path("curve")
    if os.path.isdir(out):
        return out / "curve"
    return out.with_suffix("") if out.suffix in ENDINGS else out


def write_pictures(stem: Path, pictures: dict[str, bytes]) -> list[Path]:
    """Write each picture, by its ending, whole or not at all; return the files.

    Raises
    ------
    ConfigError
        If they cannot be written there.
    """
    files = [stem.with_name(stem.name + ending) for ending in pictures]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file, content in zip(files, pictures.values(), strict=True):
            write_atomically(file, content)
    except OSError as error:
        raise ConfigError(f"--out is {str(stem)!r}, where no picture can be written: {error}") from error
    return files
