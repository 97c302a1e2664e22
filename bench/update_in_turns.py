"""Time the update of two checkouts on one machine, in turns: python bench/update_in_turns.py BEFORE AFTER [CASE ...]

Each checkout (its kernels built in place) is a process of its own. A round is some updates in each; every other round
the order is reversed. Prints the medians of the rounds' medians, and the median of the ratios within rounds. A case is
TRUNK:HIDDEN:PRECISION:BATCH, of the agent `dueling`, or with ``:preset`` behind it of the CPU's preset; the batches are
of random bytes, which cost what games' do.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

CASES = [
    "small:256:bfloat16:64", "small:256:bfloat16:256", "small:256:float32:64", "small:256:float32:256",
    "nature:512:bfloat16:64", "nature:512:bfloat16:256", "nature:512:float32:64", "nature:512:float32:256",
    "impala-strided:256:bfloat16:64:preset", "impala-strided:256:float32:64:preset",
]  # fmt: skip
ROUNDS, UPDATES = 11, 15


def serve() -> None:
    """Answer each case on stdin with the median milliseconds of `UPDATES` updates."""
    import numpy as np
    import torch

    from fastrl.config import PRESETS, with_agent
    from fastrl.dqn.learner import Learner

    rng, known = np.random.default_rng(0), {}

    def batch(rows: int) -> Any:
        obs, next_obs = rng.integers(0, 256, (2, rows, 4, 84, 84), dtype=np.uint8)
        return SimpleNamespace(
            obs=obs, next_obs=next_obs, action=rng.integers(0, 4, rows), reward=rng.random(rows).astype(np.float32),
            discount=np.full(rows, 0.97, np.float32), weight=np.ones(rows, np.float32), index=np.arange(rows),
        )  # fmt: skip

    for line in sys.stdin:
        trunk, hidden, precision, rows, *preset = line.strip().split(":")
        if line not in known:
            config = PRESETS["cpu"].config if preset else with_agent(PRESETS["cpu"].config, "dueling")
            config = config.replace(trunk=trunk, hidden=int(hidden), precision=precision, batch_size=int(rows))
            learner = Learner(config, (4, 84, 84), np.uint8, 4, torch.device("cpu"), 0)
            known[line] = learner, [batch(int(rows)) for _ in range(4)]
        (learner, batches), seconds = known[line], []
        for i in range(UPDATES):
            start = time.perf_counter()
            learner.learn(batches[i % 4])
            seconds.append(time.perf_counter() - start)
        print(1_000 * statistics.median(seconds), flush=True)


def main(before: str, after: str, cases: list[str]) -> None:
    """Start a process for each checkout, and print a line for each case."""
    processes = [
        subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=tree, env=os.environ | {"PYTHONPATH": os.path.abspath(tree)},
        )
        for tree in (before, after)
    ]  # fmt: skip

    def ask(which: int, case: str) -> float:
        process = processes[which]
        assert process.stdin is not None
        assert process.stdout is not None
        print(case, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    for case in cases or CASES:
        rounds = []
        for number in range(ROUNDS + 1):
            order = (0, 1) if number % 2 else (1, 0)
            found = {which: ask(which, case) for which in order}
            rounds.append((found[0], found[1]))
        one, other = (statistics.median(pair[which] for pair in rounds[1:]) for which in (0, 1))
        ratio = statistics.median(pair[0] / pair[1] for pair in rounds[1:])
        rows = int(case.split(":")[3])
        print(
            f"{case:40} {one:7.2f} -> {other:7.2f} ms, {ratio:.2f} times, {1_000 * rows / other:,.0f} samples/s",
            flush=True,
        )
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve()
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
