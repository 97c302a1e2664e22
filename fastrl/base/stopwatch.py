"""Where the time of a loop goes."""

from __future__ import annotations

from time import perf_counter


class Stopwatch:
    """A stopwatch with names: every moment belongs to the stage that ends with it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = perf_counter()

    def __call__(self, stage: str) -> None:
        """Book the time since the last call on ``stage``."""
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._mark
        self._mark = now

    def shares(self) -> dict[str, float]:
        """Return each stage's share of the time since the last such call, in [0, 1], and start anew."""
        total = sum(self.seconds.values())
        shares = {stage: seconds / total for stage, seconds in self.seconds.items()} if total else {}
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        return shares
