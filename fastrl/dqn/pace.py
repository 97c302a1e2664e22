"""The pace: how many samples are learned per agent step, and from when on. Nothing else holds either side back."""

from __future__ import annotations

from typing import Any


class Pace:
    """Says when a batch is due.

    Each agent step brings a credit of ``samples_per_step`` samples, once the replay has passed its warm-up; a batch
    takes ``batch_size`` of it.

    Parameters
    ----------
    samples_per_step : float
        Samples learned per agent step.
    batch_size : int
        Samples in one update.
    warm_up_rows : int
        Rows of the replay that can be drawn before learning starts.
    """

    def __init__(self, samples_per_step: float, batch_size: int, warm_up_rows: int) -> None:
        self._samples_per_step, self._batch_size = samples_per_step, batch_size
        self._warm_up_rows = max(warm_up_rows, 1)
        self._credit, self._warm = 0.0, False

    def due(self) -> bool:
        """Whether a batch is due; one that is counts as learned."""
        if self._credit < self._batch_size:
            return False
        self._credit -= self._batch_size
        return True

    def added(self, steps: int, drawable: int) -> None:
        """Count agent steps whose rows were added to the replay, of which ``drawable`` rows can be drawn now."""
        if self._warm:
            self._credit += steps * self._samples_per_step
        self._warm = self._warm or drawable >= self._warm_up_rows

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-able."""
        return {"credit": self._credit, "warm": self._warm}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self._credit, self._warm = state["credit"], state["warm"]
