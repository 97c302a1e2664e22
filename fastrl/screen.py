"""What a run shows while it runs: a panel on a terminal, a line now and then elsewhere, or nothing.

A panel is redrawn by hand, at most twice a second: no thread beside the run, and none left over when it dies. The
cursor is never left hidden, so that whatever ends or stops the process, `kill -9` and Ctrl-Z too, finds the terminal
whole.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from fastrl.extras import need

PLAIN_EVERY_SECONDS: Final = 10.0
"""Least time between two progress lines where stdout is not a terminal."""
REDRAW_EVERY_SECONDS: Final = 0.5
"""Least time between two pictures of the panel where it is."""
RATE_OVER_SECONDS: Final = 60.0
"""The rate shown is the one of so many last seconds."""
WIDEST: Final = 120
"""Columns that a panel takes at most."""
LABEL: Final = 10
"""Columns before each row's text."""
COLOURS: Final = ("cyan", "green", "magenta", "yellow", "red", "blue", "white")

Shown = Mapping[str, float | str]


@dataclass
class Extras:
    """What a panel shows beside progress and fields; whoever knows it sets it."""

    scores: Sequence[float] = ()
    """Scores of whole games, oldest first; may grow in place."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Stages of the loop and their shares of its time, in [0, 1]."""
    due: dict[str, int] = field(default_factory=dict)
    """What comes next, and where in the run."""


def open_screen(total: int, unit: str, quiet: bool) -> Silent:
    """Return what fits the place that stdout leads to.

    Parameters
    ----------
    total : int
        Where the run ends, in ``unit``.
    unit : str
        What is counted, such as ``"frames"``.
    quiet : bool
        Show nothing.

    Raises
    ------
    ImportError
        If stdout is a terminal and rich is missing; the message names the extra.
    """
    if quiet:
        return Silent()
    redraws = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return Panel(total, unit) if redraws else Plain(total, unit)


@contextlib.contextmanager
def though_closed() -> Iterator[None]:
    """Go on where the terminal was closed: what is printed inside, and later, goes nowhere.

    A pipe without a reader is another matter: there BrokenPipeError comes out.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        print_nowhere()


def print_nowhere() -> None:
    """Let go of stdout, which takes nothing any more, so that leaving does not write to it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print a message."""
    with though_closed():
        print(text, flush=True)


class Silent:
    """Shows nothing."""

    def __init__(self) -> None:
        self.extras = Extras()

    def show(self, at: int, shown: Shown) -> None:
        """Renew the picture of how far the run is, if it is time; cheap if not."""

    def line(self, text: str) -> None:
        """Print a message."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Plain(Silent):
    """Prints a line now and then: for files, pipes and notebooks."""

    pause_seconds = PLAIN_EVERY_SECONDS

    def __init__(self, total: int, unit: str) -> None:
        super().__init__()
        self.total, self.unit = total, unit
        self.at, self.shown = 0, dict[str, float | str]()
        self._marks: deque[tuple[float, int]] = deque()  # (seconds, at) of the pictures of the last minute
        self._next_seconds = 0.0
        self._last = -1

    def show(self, at: int, shown: Shown) -> None:
        now = monotonic()
        ends = at >= self.total > self._last
        if now < self._next_seconds and not ends:
            return
        self._next_seconds, self._last = now + self.pause_seconds, at
        self._marks.append((now, at))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RATE_OVER_SECONDS:
            self._marks.popleft()
        self.at, self.shown = at, dict(shown)
        self.draw()

    def draw(self) -> None:
        """Say it all in one line: how far, rate, time to go, fields."""
        rate = f"{self.rate:,.0f} {self.unit}/s"
        self.line("  ".join([f"{self.at:,}/{self.total:,} {self.unit}", rate, self.left, *_named(self.shown)]))

    def line(self, text: str) -> None:
        say(text)

    @property
    def rate(self) -> float:
        """Units a second over the last minute; 0 if nobody can tell."""
        if not self._marks:
            return 0.0
        (then, done), (now, at) = self._marks[0], self._marks[-1]
        return (at - done) / (now - then) if now > then else 0.0

    @property
    def left(self) -> str:
        """The time to go, in words."""
        return f"{_clock((self.total - self.at) / self.rate)} left" if self.rate > 0 else "- left"


class Panel(Plain):
    """A few rows at the foot of a terminal, redrawn in place; messages scroll by above them."""

    pause_seconds = REDRAW_EVERY_SECONDS

    def __init__(self, total: int, unit: str) -> None:
        super().__init__(total, unit)
        self._console = need("rich.console", "train").Console()
        self._control = need("rich.control", "train")
        self._text = need("rich.text", "train").Text
        self._drawn: list[int] = []  # columns of each row of the last picture
        self._live = need("rich.live", "train").Live(
            self, console=self._console, auto_refresh=False, vertical_overflow="crop"
        )
        self._live.start()
        self._console.show_cursor(True)

    def draw(self) -> None:
        with though_closed():
            self._forget_wrapped_rows()
            self._live.refresh()

    def line(self, text: str) -> None:
        with though_closed():
            self._forget_wrapped_rows()
            self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        with though_closed():
            self._forget_wrapped_rows()
            self._live.stop()

    def _forget_wrapped_rows(self) -> None:
        """Erase what a terminal that was made narrower has wrapped: the picture is higher now than it was drawn."""
        extra = sum(-(-columns // self._console.width) - 1 for columns in self._drawn if columns)
        if extra > 0:
            kinds = need("rich.segment", "train").ControlType
            codes = [(kinds.ERASE_IN_LINE, 2), (kinds.CURSOR_UP, 1)] * extra
            self._console.control(self._control.Control(*codes))
        self._drawn = []

    # --- the picture ----------------------------------------------------------------------------------

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Yield the rows that fit: one column stays free, lest a terminal wraps, and one row for messages."""
        width = max(1, min(options.max_width - 1, WIDEST))
        rows = list(itertools.islice(self.rows(width, options.ascii_only), max(1, console.height - 1)))
        for row in rows:
            row.truncate(width, overflow="ellipsis" if not options.ascii_only else "crop")
        self._drawn = [row.cell_len for row in rows]
        yield self._text("\n", no_wrap=True).join(rows)

    def rows(self, width: int, ascii_only: bool = False) -> Iterator[Any]:
        """Yield rows of text, the most important first."""
        if not self._marks:
            return
        yield self._progress(width, ascii_only)
        fields = dict(self.shown)
        score = fields.pop("score", None)
        if score is not None:
            yield self._scores(str(score), width, ascii_only)
        if due := [self._text(words) for words in self._due()]:
            yield from self._flow("next", due, width)
        if self.extras.shares:
            yield from self._shares(width, ascii_only)
        if fields:
            yield from self._flow("now", [self._text(words) for words in _named(fields)], width)

    def _progress(self, width: int, ascii_only: bool) -> Any:
        share = min(self.at / self.total, 1.0) if self.total else 1.0
        words = f"{share:4.0%}  {self.at:,} of {self.total:,}  {self.rate:,.0f}/s  {self.left}"
        cells = max(0, min(40, width - LABEL - len(words) - 1))
        full = round(share * cells)
        row = self._row(self.unit)
        if cells >= 4:
            row.append(("#" if ascii_only else "━") * full, "green")
            row.append(("." if ascii_only else "─") * (cells - full), "dim")
            row.append(" ")
        return row.append(words)

    def _scores(self, words: str, width: int, ascii_only: bool) -> Any:
        """Words first: a curve beside them may grow and move nothing."""
        row = self._row("score").append(words)
        cells = min(60, width - row.cell_len - 2)
        if cells >= 8:
            row.append("  ").append(sparkline(list(self.extras.scores)[-cells:], ascii_only), "green")
        return row

    def _due(self) -> Iterator[str]:
        for what, at in self.extras.due.items():
            if at > self.at:
                minutes = f" ({_minutes((at - self.at) / self.rate)})" if self.rate > 0 else ""
                yield f"{what} in {at - self.at:,} {self.unit}{minutes}"

    def _shares(self, width: int, ascii_only: bool) -> Iterator[Any]:
        """Yield a bar of all stages and what its colours, or shades, mean."""
        shades = "#=+-:." if ascii_only else "█▓▒░"
        styles = zip(itertools.cycle(shades), itertools.cycle(COLOURS), strict=False)
        stages = [
            (name, share, *style) for (name, share), style in zip(self.extras.shares.items(), styles, strict=False)
        ]
        bar, words, cells, total = self._row("time"), [], min(60, width - LABEL), 0.0
        for name, share, shade, colour in stages:
            if round(share, 2) > 0:
                words.append(self._text(shade, colour).append(f" {name} {share:.0%}", "default"))
            end = round((total + share) * cells)
            bar.append(shade * (end - round(total * cells)), colour)
            total += share
        yield bar
        yield from self._flow("", words, width)

    def _flow(self, label: str, pieces: Sequence[Any], width: int) -> Iterator[Any]:
        """Yield pieces side by side, in as many rows as that takes."""
        row = self._row(label)
        for piece in pieces:
            if row.cell_len > LABEL and row.cell_len + 2 + piece.cell_len > width:
                yield row
                row = self._row("")
            row.append("  " if row.cell_len > LABEL else "").append(piece)
        yield row

    def _row(self, label: str) -> Any:
        return self._text(no_wrap=True, end="").append(f"{label:<{LABEL}}", "dim")


def sparkline(values: Sequence[float], ascii_only: bool = False) -> str:
    """Return one character for each value, ``▁▂▃▄▅▆▇█`` from the lowest to the highest; if all are equal, ``▄``."""
    levels = "_.-=+*%#" if ascii_only else "▁▂▃▄▅▆▇█"
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low == high:
        return levels[3] * len(values)
    return "".join(levels[min(int((value - low) / (high - low) * 8), 7)] for value in values)


def _named(fields: Shown) -> Iterator[str]:
    for name, value in fields.items():
        yield f"{name} {value if isinstance(value, str) else f'{value:.4g}'}"


def _clock(seconds: float) -> str:
    """Write a duration as ``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _minutes(seconds: float) -> str:
    """Write a duration as ``0.4 min`` or ``25 min``."""
    minutes = max(seconds, 0.0) / 60
    return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:,.0f} min"
