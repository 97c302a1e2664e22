"""A run of fastrl as a contestant of `side_by_side`; it imports fastrl when it is made, others' processes never do."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

NEVER = 10**12


class TimedRun:
    """A run in progress: whole vector steps with all their learning; see `side_by_side.Loop`.

    Parameters
    ----------
    config : DQNConfig
        Settings. The run's folder is a temporary one; clocks and the end of the run are never due.
    updates : int
        Updates to make before it is ready.
    """

    def __init__(self, config: Any, updates: int) -> None:
        from fastrl.base.stop import Stop
        from fastrl.dqn.run import Run

        self._left_behind = contextlib.ExitStack()
        config = config.replace(
            total_frames=NEVER, total_samples=None, log_every_frames=NEVER, evaluate_every_frames=NEVER,
            checkpoint_every_frames=NEVER, dephase_steps=0,
            runs_dir=self._left_behind.enter_context(tempfile.TemporaryDirectory()),
        )  # fmt: skip
        self.about: dict[str, Any] = {}
        self._group_size = n = config.group_size
        self.unit = n * max(1, round(config.batch_size / config.samples_per_step / n))
        self._run = Run(config, [], Stop(), resume=None, quiet=True)
        self._left_behind.callback(self._run.close)
        self._left_behind.enter_context(self._run.reporter)
        self._run.start()
        while self._run.learner.updates < updates:
            self._run.step()

    def play(self, steps: int) -> None:
        """Play whole vector steps."""
        for _ in range(-(-steps // self._group_size)):
            self._run.step()

    def counts(self) -> dict[str, int]:
        """Return agent steps (rows that only reset a game are none), their frames and samples learned so far."""
        return {"steps": self._run.steps, "frames": self._run.frames, "samples": self._run.samples}

    def close(self) -> None:
        """Free the games and the run's folder."""
        self._left_behind.close()
