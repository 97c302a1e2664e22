"""What benches of the loop share: a run in progress, and seconds that wait for the GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from fastrl.base.stop import Stop
from fastrl.config import preset_for
from fastrl.dqn.run import Run

import torch  # isort: skip  # after fastrl, which sets how its threads wait

os.environ["FASTRL_TUNE"] = "off"  # what is measured here does not hang on another measurement: all by the rule
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEVER = 10**12


def synchronize() -> None:
    """Wait for all that was asked of a GPU."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], object]) -> float:
    """Call a function and return how long it and what it asked of a GPU took."""
    start = perf_counter()
    function()
    synchronize()
    return perf_counter() - start


@contextmanager
def run_in_progress(runs_dir: object, updates: int, **settings: Any) -> Iterator[Run]:
    """Yield a run of Breakout with the device's preset and these settings, once it has made some updates."""
    config = preset_for("breakout", DEVICE).config.replace(dephase_steps=0, runs_dir=str(runs_dir), **settings)
    run = Run(config, [], Stop(), resume=None, quiet=True)
    try:
        with run.reporter:
            run.start()
            while run.learner.updates < updates:
                run.step()
            yield run
    finally:
        run.close()
