"""A turn of one contender of ``bench_replay_kinds.py``: ``python bench/kind_turn.py NAME KIND FOLDER SECONDS CLOCK``.

It proves in a small ring that what the contender draws is right, fills a ring until it has wrapped, and
times adding 32 rows, drawing, and the cycle of both with an update, warm and cold. The answer is one line of JSON.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from contender import Drawn
from kinds import KINDS, NUM_ENVS, Kind, KindStep, check, kind_steps
from replay_turn import STATES, SWEEP_BYTES, Contender, answer_with, medians

CLOCKS = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}
PRIORITIES = 50
"""Batches that get new priorities before anything is timed."""


def contenders() -> dict[str, Contender]:
    """Return everyone by the name that ``--only`` knows."""
    return {
        "floor": Contender("floor", "peers_kinds:Floor"),
        "fastrl": Contender("fastrl", "peers_kinds:Fastrl", "fastrl-atari"),
        "cpprb": Contender("cpprb", "peers_kinds:Cpprb", "cpprb"),
        "tianshou": Contender("Tianshou", "peers_kinds:Tianshou", "tianshou"),
        "flashbax": Contender("flashbax", "peers_kinds:Flashbax", "flashbax"),
        "torchrl": Contender("TorchRL", "peers_kinds:TorchRL", "torchrl"),
    }


def run(contender: Contender, kind: Kind, folder: Path, seconds: float, clock: str) -> dict[str, Any]:
    """Check and measure; return facts and figures."""
    module, _, name = contender.factory.partition(":")
    make: Any = getattr(importlib.import_module(module), name)
    facts = {
        "about": make.about, "right": float("nan"),
        "version": importlib.metadata.version(contender.distribution) if contender.distribution else "",
    }  # fmt: skip
    if name != "Floor":
        facts["right"] = check(make, kind, place(folder))
    buffer, steps = make(kind, kind.rows, place(folder)), itertools.cycle(kind_steps(kind, 16))
    for _ in range(kind.rows // NUM_ENVS + 50):
        buffer.add(next(steps))
    rng, held, sweep = np.random.default_rng(0), [buffer.sample()], np.zeros(SWEEP_BYTES // 8)
    for _ in range(PRIORITIES if buffer.prioritized else 0):
        buffer.update(buffer.sample(), rng.random(kind.batch))
    priorities = itertools.cycle(rng.random((16, kind.batch)))
    figures: dict[str, dict[str, float]] = {state: {} for state in STATES}
    for operation, call in operations(buffer, steps, priorities, held).items():
        for state, median in medians(call, seconds, sweep, CLOCKS[clock]).items():
            figures[state][operation] = median
    return facts | {"figures": figures}


def place(folder: Path) -> Path:
    """Return a new folder within ``folder``, of its name: that says whether rows are to be in files."""
    inside = Path(tempfile.mkdtemp(dir=folder)) / folder.name
    inside.mkdir()
    return inside


def operations(buffer: Any, steps: Any, priorities: Any, held: list[Drawn]) -> dict[str, Any]:
    """Return what is timed. The batch drawn last is held until the next is there, as trainers do."""

    def add() -> None:
        step: KindStep = next(steps)
        buffer.add(step)

    def draw() -> None:
        held[0] = buffer.sample()

    def cycle() -> None:
        add()
        draw()
        buffer.update(held[0], next(priorities))

    return {"add 32": add, "draw": draw, "cycle": cycle}


def main(name: str, kind: str, folder: str, seconds: str, clock: str) -> None:
    """Take the turn, with files in a folder of its own."""
    contender, inside = contenders()[name], Path(tempfile.mkdtemp(dir=folder))
    where = inside / kind
    where.mkdir()
    try:
        answer_with(lambda: run(contender, KINDS[kind], where, float(seconds), clock), contender.threads)
    finally:
        shutil.rmtree(inside, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
