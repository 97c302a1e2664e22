"""What a run shows while it runs: nothing, or a line now and then; `fastrl.runs.panel` has the panel of a
terminal or a notebook."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from fastrl.base.console import say

PLAIN_EVERY_SECONDS: Final = 10.0
"""Least time between two progress lines where stdout is not a terminal."""
RATE_OVER_SECONDS: Final = 60.0
"""Seconds, the last ones, over which the shown rate is measured."""

Shown = Mapping[str, float | str]


@dataclass
class Extras:
    """What a panel shows beside progress and fields."""

    scores: Sequence[float] = ()
    """Scores of whole games, oldest first; may grow in place."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Stages of the loop and their shares of its time, in [0, 1]."""
    due: dict[str, int] = field(default_factory=dict)
    """What comes next, and where in the run."""
    more: dict[str, Sequence[str]] = field(default_factory=dict)
    """More rows, by labels of at most 9 characters: pieces of text, the most important first."""


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
    """Prints a line now and then: for files and pipes."""

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
        """Say it all in one line: how far, rate and time to go if they are known, fields."""
        pace = [f"{self.rate:,.0f} {self.unit}/s", self.left] if self.rate > 0 else []
        self.line("  ".join([f"{self.at:,}/{self.total:,} {self.unit}", *pace, *named(self.shown)]))

    def line(self, text: str) -> None:
        say(text)

    def now(self) -> float:
        """Return the seconds of the clock that pictures are timed by."""
        return monotonic()

    @property
    def rate(self) -> float:
        """Units a second over the last minute; 0 before it is known."""
        if not self._marks:
            return 0.0
        (then, done), (now, at) = self._marks[0], self._marks[-1]
        return (at - done) / (now - then) if now > then else 0.0

    @property
    def left(self) -> str:
        """The time to go, in words."""
        return f"{_clock((self.total - self.at) / self.rate)} left" if self.rate > 0 else "- left"


def named(fields: Shown) -> Iterator[str]:
    """Yield each field's name and value as words."""
    for name, value in fields.items():
        yield f"{name} {value if isinstance(value, str) else f'{value:.4g}'}"


def _clock(seconds: float) -> str:
    """Write a duration as ``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
