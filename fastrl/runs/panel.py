"""The panel that a run shows on a terminal or in a notebook, drawn with rich.

It is redrawn by hand, at most twice a second: no thread beside the run, and none left over when it dies. The cursor is
never left hidden. So the terminal stays whole, even after `kill -9` or Ctrl-Z.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final

from fastrl.base.console import showable, though_closed
from fastrl.base.extras import extra
from fastrl.runs.screen import Plain, Silent, named

with extra("train"):
    import rich.console
    from rich.control import Control
    from rich.live import Live
    from rich.segment import ControlType
    from rich.text import Text

REDRAW_EVERY_SECONDS: Final = 0.5
"""Least time between two pictures of the panel where it is."""
PAUSE_SECONDS: Final = 2.0
"""A process that continues after less than that was not stopped by a Ctrl-Z."""
WIDEST: Final = 120
"""Columns that a panel takes at most."""
LABEL: Final = 10
"""Columns before each row's text."""
IN_NOTEBOOK: Final = '<pre style="white-space:pre;overflow-x:auto;line-height:1.2;font-family:monospace">{code}</pre>'
COLOURS: Final = ("cyan", "green", "magenta", "yellow", "red", "blue", "white")


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
    """
    if quiet:
        return Silent()
    if in_notebook():
        return NotebookPanel(total, unit)
    terminal = sys.stdout is not None and sys.stdout.isatty()  # none: started with a closed stdout
    redraws = terminal and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return Panel(total, unit) if redraws else Plain(total, unit)


class Rows(Plain):
    """What a panel shows, as rows of text."""

    pause_seconds = REDRAW_EVERY_SECONDS

    def rows(self, width: int, ascii_only: bool = False) -> Iterator[Text]:
        """Yield rows of text, the most important first."""
        if not self._marks:
            return
        yield self._progress(width, ascii_only)
        fields = dict(self.shown)
        score = fields.pop("score", None)
        if score is not None:
            yield self._scores(str(score), width, ascii_only)
        if due := [Text(words) for words in self._due()]:
            yield from self._flow("next", due, width)
        if self.extras.shares:
            yield from self._shares(width, ascii_only)
        if fields:
            yield from self._flow("now", [Text(words) for words in named(fields)], width)
        for label, pieces in self.extras.more.items():
            yield from self._flow(label, [Text(words) for words in pieces], width)

    def _progress(self, width: int, ascii_only: bool) -> Text:
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

    def _scores(self, words: str, width: int, ascii_only: bool) -> Text:
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

    def _shares(self, width: int, ascii_only: bool) -> Iterator[Text]:
        """Yield a bar of all stages and what its colours, or shades, mean."""
        shades = "#=+-:.~*" if ascii_only else "█▓▒░▞▪·▌"
        styles = zip(itertools.cycle(shades), itertools.cycle(COLOURS), strict=False)
        stages = [
            (name, share, *style) for (name, share), style in zip(self.extras.shares.items(), styles, strict=False)
        ]
        bar, words, cells, total = self._row("time"), [], min(60, width - LABEL), 0.0
        for name, share, shade, colour in stages:
            if round(share, 2) > 0:
                words.append(Text(shade, colour).append(f" {name} {share:.0%}", "default"))
            end = round((total + share) * cells)
            bar.append(shade * (end - round(total * cells)), colour)
            total += share
        yield bar
        yield from self._flow("", words, width)

    def _flow(self, label: str, pieces: Sequence[Text], width: int) -> Iterator[Text]:
        """Yield pieces side by side, in as many rows as that takes."""
        row = self._row(label)
        for piece in pieces:
            if row.cell_len > LABEL and row.cell_len + 2 + piece.cell_len > width:
                yield row
                row = self._row("")
            row.append("  " if row.cell_len > LABEL else "").append(piece)
        yield row

    def _row(self, label: str) -> Text:
        return Text(no_wrap=True, end="").append(f"{label:<{LABEL}}", "dim")


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows more than text."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


class Panel(Rows):
    """A few rows at the foot of a terminal, redrawn in place; messages scroll by above them."""

    def __init__(self, total: int, unit: str) -> None:
        super().__init__(total, unit)
        self._console = rich.console.Console()
        self._drawn: list[int] = []  # columns of each row of the last picture
        self._live = Live(self, console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._live.start()
        self._console.show_cursor(True)
        self._continued = 0.0  # when a pause ended; 0: it has been seen to, or there was none
        self._before: Any = None  # what heard SIGCONT
        with contextlib.suppress(ValueError, AttributeError):  # not the main thread, not Unix
            self._before = signal.signal(signal.SIGCONT, self._note_pause)

    def draw(self) -> None:
        with though_closed():
            self._forget_wrapped_rows()
            self._live.refresh()

    def _note_pause(self, number: int, frame: FrameType | None) -> None:
        # GNU timeout sends SIGCONT too, and the pause of a Ctrl-Z is longer than that between two pictures.
        if self._marks and self.now() - self._marks[-1][0] > PAUSE_SECONDS:
            self._continued = self.now()

    def _below_the_shell(self) -> None:
        """Leave what the shell printed after a Ctrl-Z, and forget the rate, which the pause would lower."""
        self._console.file.write("\n" * len(self._drawn))
        self._drawn = []
        while self._marks and self._marks[0][0] < self._continued:
            self._marks.popleft()
        self._continued = 0.0

    def line(self, text: str) -> None:
        with though_closed():
            self._forget_wrapped_rows()
            self._console.print(showable(text), markup=False, highlight=False)

    def close(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGCONT, self._before)
        with though_closed():
            self._forget_wrapped_rows()
            self._live.stop()

    def _forget_wrapped_rows(self) -> None:
        """Erase what a terminal that was made narrower has wrapped: the picture is higher now than it was drawn.

        After a Ctrl-Z the shell has written below the picture, which stays then.
        """
        if self._continued:
            self._below_the_shell()
        extra = sum(-(-columns // self._console.width) - 1 for columns in self._drawn if columns)
        if extra > 0:
            codes = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * extra
            self._console.control(Control(*codes))
        self._drawn = []

    # --- the picture ----------------------------------------------------------------------------------

    def __rich_console__(self, console: rich.console.Console, options: rich.console.ConsoleOptions) -> Iterator[Text]:
        """Yield the rows that fit: one column stays free, so that no terminal wraps, and one row for messages."""
        width = max(1, min(options.max_width - 1, WIDEST))
        rows = list(itertools.islice(self.rows(width, options.ascii_only), max(1, console.height - 1)))
        for row in rows:
            row.truncate(width, overflow="ellipsis" if not options.ascii_only else "crop")
        self._drawn = [row.cell_len for row in rows]
        yield Text("\n", no_wrap=True).join(rows)


class NotebookPanel(Rows):
    """The same rows below a notebook's cell, redrawn in place; messages follow below them."""

    def __init__(self, total: int, unit: str) -> None:
        super().__init__(total, unit)
        self._shown_as: Any = None  # IPython's handle of what is displayed

    def draw(self) -> None:
        console = rich.console.Console(
            record=True, file=io.StringIO(), width=WIDEST, color_system="truecolor", force_jupyter=False
        )
        for row in self.rows(WIDEST - 1):
            console.print(row)
        picture = {  # consoles of kernels show text alone
            "text/plain": console.export_text(clear=False).rstrip(),
            "text/html": console.export_html(inline_styles=True, code_format=IN_NOTEBOOK),
        }
        if self._shown_as is None:
            display = importlib.import_module("IPython.display").display  # this process is its kernel
            self._shown_as = display(picture, raw=True, display_id=True)
        else:
            self._shown_as.update(picture, raw=True)


def sparkline(values: Sequence[float], ascii_only: bool = False) -> str:
    """Return one character for each value, ``▁▂▃▄▅▆▇█`` from the lowest to the highest; if all are equal, ``▄``."""
    levels = "_.-=+*%#" if ascii_only else "▁▂▃▄▅▆▇█"
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low == high:
        return levels[3] * len(values)
    return "".join(levels[min(int((value - low) / (high - low) * 8), 7)] for value in values)


def _minutes(seconds: float) -> str:
    """Write a duration as ``0.4 min`` or ``25 min``."""
    minutes = max(seconds, 0.0) / 60
    return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:,.0f} min"
