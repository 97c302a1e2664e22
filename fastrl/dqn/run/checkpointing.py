"""When a run saves: on a clock, and at its end."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.dqn.callbacks import Callback, TrainingRun
from fastrl.dqn.run.clock import Clock, announce


class Checkpoints(Callback):
    """Saves every ``checkpoint_every_frames``, in a thread, and at the end, whatever ends the run."""

    key = "checkpoints"

    def __init__(self) -> None:
        self._saved_at = -1  # of this process

    def on_start(self, run: TrainingRun) -> None:
        self._clock = Clock(run.config.checkpoint_every_frames)
        self._clock.set(run.frames)
        announce(run, "save", self._clock)

    def on_step(self, run: TrainingRun, actions: np.ndarray[Any, Any]) -> None:
        run.settle(wait=False)
        if self._clock.due(run.frames) and run.frames < run.config.total_frames:
            run.save(wait=False)
            self._saved_at = run.frames
            announce(run, "save", self._clock)

    def on_end(self, run: TrainingRun) -> None:
        if run.stop and self._saved_at == run.frames:  # a stop during the last save finds nothing new
            run.settle()
        else:
            run.save()
