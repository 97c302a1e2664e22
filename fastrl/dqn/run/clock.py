"""Clocks that count frames."""

from __future__ import annotations

from fastrl.dqn.callbacks import TrainingRun


class Clock:
    """Says when another ``every`` has passed."""

    def __init__(self, every: int) -> None:
        self._every, self._rung = every, 0

    def set(self, now: int) -> None:
        """Start at ``now``."""
        self._rung = now // self._every

    def due(self, now: int) -> bool:
        """Return True once each time a multiple of ``every`` is reached."""
        rung, self._rung = self._rung, now // self._every
        return self._rung > rung

    @property
    def next(self) -> int:
        """The multiple of ``every`` that is due next."""
        return (self._rung + 1) * self._every


def announce(run: TrainingRun, what: str, clock: Clock) -> None:
    """Tell the screen when something comes next: when its clock says so, and at the end of the run."""
    run.reporter.extras.due[what] = min(clock.next, run.config.total_frames)
