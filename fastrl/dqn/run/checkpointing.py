"""When a run saves: by two clocks, and at its end."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.dqn.callbacks import Callback, TrainingRun
from fastrl.dqn.run.clock import Clock, announce


class Checkpoints(Callback):
    """Saves every ``checkpoint_every_frames``, in a thread, and at the end, whatever ends the run.

    Where that takes longer than ``checkpoint_every_minutes``, it saves in between too: a checkpoint that the next one
    replaces. Saving changes nothing of the run, so metrics do not depend on the time that anything takes.
    """

    key = "checkpoints"

    def __init__(self) -> None:
        self._saved_at = -1  # of this process
        self._whole_at = math.inf  # time of the newest whole checkpoint; infinite while one is being written

    def on_start(self, run: TrainingRun) -> None:
        self._clock = Clock(run.config.checkpoint_every_frames)
        self._clock.set(run.frames)
        self._seconds = run.config.checkpoint_every_minutes * 60 or math.inf
        self._whole_at = time.monotonic()
        announce(run, "save", self._clock)

    def on_step(self, run: TrainingRun, actions: np.ndarray[Any, Any]) -> None:
        run.settle(wait=False)
        if run.over:
            return
        due = self._clock.due(run.frames)
        timed = run.peers.timed(not due and time.monotonic() - self._whole_at >= self._seconds)
        if due:
            self._save(run, timed=False)
            announce(run, "save", self._clock)
        elif timed:
            self._save(run, timed=True)

    def on_checkpoint(self, run: TrainingRun, folder: Path) -> None:
        self._whole_at = time.monotonic()

    def on_end(self, run: TrainingRun) -> None:
        if run.stop:  # said before, since what asked for the stop may not wait for a large replay
            run.reporter.line("stopping: saving a checkpoint (a second signal leaves at once, without it)")
        if run.stop and self._saved_at == run.frames:  # a stop during the last save finds nothing new
            run.settle()
        else:
            run.save()

    def _save(self, run: TrainingRun, *, timed: bool) -> None:
        self._saved_at, self._whole_at = run.frames, math.inf
        run.save(wait=False, timed=timed)
