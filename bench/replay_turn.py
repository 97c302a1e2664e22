"""A turn of one contender of ``bench_replay_peers.py``: ``python bench/replay_turn.py NAME FRAMES SECONDS``.

It proves that the contender does what it says, fills its ring, and times each operation, warm and cold: between cold
calls 64 MB are written, so that neither tree nor outputs are left in the caches. The answer is one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.metadata
import itertools
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from contender import Buffer, Drawn, Step, check, vector_steps
from floor import Floor

BATCHES, N_STEPS, ADDS = (32, 256, 512), (1, 3), (1, 8, 32, 128)
NUM_ENVS, BATCH = 32, 256
TREE_LEAVES = 1 << 20
ADD_ROWS = 1 << 13
"""Of the rings for 1, 8 and 128 environments: what is written matters, not how much lies beside it."""
LIMIT_BYTES = 10 << 30
SWEEP_BYTES = 64 << 20
PRIORITIES = 50
"""Batches that get new priorities before anything is timed."""
STATES = ("warm", "cold")
WARM_UP_CALLS, LEAST_CALLS, MOST_CALLS = 3, 7, 100


class Contender(NamedTuple):
    """Who takes part: title, ``"module:class"``, distribution, threads, further arguments of the class."""

    title: str
    factory: str
    distribution: str | None = None
    threads: int = 1
    arguments: dict[str, Any] = {}  # noqa: RUF012 - never written


def contenders() -> dict[str, Contender]:
    """Return everyone by the name that ``--only`` knows."""
    two, reuse, turns = {"threads": 2}, {"reuse": True}, {"batches": 2}
    return {
        "floor": Contender("floor", "floor:Floor"),
        "floor-2": Contender("floor, 2 threads", "floor:Floor", None, 2, two),
        "floor-turns": Contender("floor, two batches", "floor:Floor", None, 1, turns),
        "floor-turns-2": Contender("floor, two batches, 2 threads", "floor:Floor", None, 2, two | turns),
        "fastrl": Contender("fastrl", "peers:Fastrl", "fastrl-atari"),
        "fastrl-2": Contender("fastrl, 2 threads", "peers:Fastrl", "fastrl-atari", 2, two),
        "fastrl-out": Contender("fastrl, one batch", "peers:Fastrl", "fastrl-atari", 1, reuse),
        "fastrl-out-2": Contender("fastrl, one batch, 2 threads", "peers:Fastrl", "fastrl-atari", 2, two | reuse),
        "cpprb": Contender("cpprb", "peers:Cpprb", "cpprb"),
        "tianshou": Contender("Tianshou", "peers:Tianshou", "tianshou"),
        "flashbax": Contender("flashbax", "peers:Flashbax", "flashbax"),
        "sb3": Contender("Stable-Baselines3", "peers_torch:StableBaselines3", "stable-baselines3"),
        "torchrl": Contender("TorchRL", "peers_torch:TorchRL", "torchrl"),
    }


def environment(threads: int) -> dict[str, str]:
    """Return the variables that hold all libraries to N threads."""
    pools = "OMP MKL OPENBLAS NUMBA".split()
    xla = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={threads}"
    return {f"{pool}_NUM_THREADS": str(threads) for pool in pools} | {"XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu"}


def resident_bytes() -> int:
    """Return the memory that this process has in use, after what was freed has gone back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; it would fill the gaps first and hide them
    if trim:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Turn:
    """Everything that is measured of one contender; microseconds gather in ``figures``, by state and operation."""

    def __init__(self, contender: Contender, frames: int, seconds: float) -> None:
        module, _, name = contender.factory.partition(":")
        self._class: Any = getattr(importlib.import_module(module), name)
        self._make = partial(self._class, **contender.arguments)
        self._frames, self._seconds, self._rng = frames, seconds, np.random.default_rng(0)
        self._sweep = np.zeros(SWEEP_BYTES // 8)
        self._steps = vector_steps(NUM_ENVS, 16)
        version = importlib.metadata.version(contender.distribution) if contender.distribution else ""
        self.facts: dict[str, Any] = {"about": self._class.about, "version": version}
        self.figures: dict[str, dict[str, float]] = {state: {} for state in STATES}

    def run(self) -> dict[str, Any]:
        """Check and measure everything; return facts and figures."""
        for n_step in N_STEPS:
            right = check(self._make, n_step) if self._class is not Floor else float("nan")
            self.facts[f"right, n = {n_step}"] = right
        for num_envs in ADDS:
            if num_envs != NUM_ENVS:
                self._add(self._make(ADD_ROWS, num_envs, 1), vector_steps(num_envs, 16), fill=ADD_ROWS)
        self._tree()
        buffer = self._full(N_STEPS[0])
        self._add(buffer, self._steps, fill=0)
        self._draws(buffer, N_STEPS[0])
        for n_step in N_STEPS[1:]:
            if not buffer.set_n_step(n_step):
                del buffer
                gc.collect()
                buffer = self._full(n_step)
            self._draws(buffer, n_step)
        return self.facts | {"figures": self.figures}

    def _full(self, n_step: int) -> Buffer:
        """Return a ring that has wrapped, its priorities of many values; note what it took."""
        rows = min(self._frames, LIMIT_BYTES // self._class.bytes_a_row(n_step)) // NUM_ENVS * NUM_ENVS
        before, started = resident_bytes(), time.perf_counter()
        buffer = self._make(rows, NUM_ENVS, n_step)
        constructed = time.perf_counter()
        fill = getattr(buffer, "fill", None)  # where one step costs too much, or where it is compiled for a length
        for _ in range(rows // NUM_ENVS // len(self._steps) + 2):
            if fill:
                fill(self._steps)
                continue
            for step in self._steps:
                buffer.add(step)
        self.facts |= {
            f"rows, n = {n_step}": buffer.rows,
            f"bytes, n = {n_step}": (resident_bytes() - before) / buffer.rows,
            f"construct, n = {n_step}": constructed - started,
            f"fill, n = {n_step}": time.perf_counter() - constructed,
        }
        for _ in range(PRIORITIES):
            buffer.update(buffer.sample(BATCH), self._rng.random(BATCH))
        return buffer

    def _add(self, buffer: Buffer, steps: list[Step], fill: int) -> None:
        """Time adds, once N more rows are in."""
        turns = itertools.cycle(steps)
        for _ in range(fill // len(steps[0].action)):
            buffer.add(next(turns))
        self._time(f"add {len(steps[0].action)}", lambda: buffer.add(next(turns)))

    def _tree(self) -> None:
        """Time the bare tree, where there is one."""
        tree = self._class.tree(TREE_LEAVES)
        if tree is None:
            return
        weights = self._rng.random((16, BATCH))
        leaves, turns = [tree.sample(BATCH) for _ in range(16)], itertools.cycle(range(16))
        self._time(f"tree: draw {BATCH}", lambda: tree.sample(BATCH))

        def update() -> None:
            k = next(turns)
            tree.update(leaves[k], weights[k])

        self._time(f"tree: update {BATCH}", update)

    def _draws(self, buffer: Buffer, n_step: int) -> None:
        """Time draws, and the cycle of a trainer. The last batch is held until the next is there, as trainers do."""
        held: list[Drawn | None] = [None]
        turns, priorities = itertools.cycle(self._steps), itertools.cycle(self._rng.random((16, BATCH)))

        def draw(size: int) -> None:
            held[0] = buffer.sample(size)

        def cycle() -> None:
            buffer.add(next(turns))
            draw(BATCH)
            buffer.update(held[0], next(priorities))

        for size in BATCHES:
            self._time(f"sample {size}, n = {n_step}", partial(draw, size))
        self._time(f"cycle {NUM_ENVS}, {BATCH}, {BATCH}, n = {n_step}", cycle)

    def _time(self, operation: str, call: Callable[[], object]) -> None:
        """Note the median over as many calls as fit into the seconds, warm, then cold."""
        for state, median in medians(call, self._seconds, self._sweep).items():
            self.figures[state][operation] = median


def medians(
    call: Callable[[], object], seconds: float, sweep: np.ndarray, clock: Callable[[], int] = time.perf_counter_ns
) -> dict[str, float]:
    """Return the median microseconds over as many calls as fit into the seconds, warm, then cold."""
    found = {}
    for _ in range(WARM_UP_CALLS):
        call()
    for state in STATES:
        taken: list[int] = []
        ends = time.perf_counter() + seconds
        while len(taken) < LEAST_CALLS or (len(taken) < MOST_CALLS and time.perf_counter() < ends):
            if state == "cold":
                sweep += 1.0
            started = clock()
            call()
            taken.append(clock() - started)
        found[state] = statistics.median(taken) / 1_000
    return found


def answer_with(turn: Callable[[], dict[str, Any]], threads: int) -> None:
    """Take a turn on so many cores and write the answer; libraries that print to stdout do so to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])  # whatever a library believes
    try:
        answer = turn()
    except Exception as error:  # whatever it was, the table says it
        answer = {"failure": f"{type(error).__name__}: {error}"}
        traceback.print_exc()
    answers.write(json.dumps(answer) + "\n")
    answers.close()


def main(name: str, frames: str, seconds: str) -> None:
    """Take the turn."""
    contender = contenders()[name]
    answer_with(lambda: Turn(contender, int(frames), float(seconds)).run(), contender.threads)


if __name__ == "__main__":
    main(*sys.argv[1:])
