"""Time the update of two checkouts on one machine, in turns: python bench/update_in_turns.py BEFORE AFTER [CASE ...]

Each checkout (its kernels built in place) is a contestant of `side_by_side`. Prints the medians of the rounds, and the
median of the ratios within rounds. A case is TRUNK:HIDDEN:PRECISION:BATCH, of the agent `dueling`, or with ``:preset``
behind it of the CPU's preset; the batches are of random bytes, which cost what games' do.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from side_by_side import Contestant, ratio, side_by_side

CASES = [
    "small:256:bfloat16:64", "small:256:bfloat16:256", "small:256:float32:64", "small:256:float32:256",
    "nature:512:bfloat16:64", "nature:512:bfloat16:256", "nature:512:float32:64", "nature:512:float32:256",
    "impala-strided:256:bfloat16:64:preset", "impala-strided:256:float32:64:preset",
]  # fmt: skip
ROUNDS, SECONDS = 11, 0.3


class Updates:
    """Updates of one case; a `side_by_side.Loop` whose steps are they."""

    unit = 1

    def __init__(self, case: str) -> None:
        import numpy as np
        import torch

        from fastrl.config import PRESETS, with_agent
        from fastrl.dqn.learner import Learner

        trunk, hidden, precision, size, *preset = case.split(":")
        rng, rows, self._done = np.random.default_rng(0), int(size), 0

        def batch() -> Any:
            obs, next_obs = rng.integers(0, 256, (2, rows, 4, 84, 84), dtype=np.uint8)
            return SimpleNamespace(
                obs=obs, next_obs=next_obs, action=rng.integers(0, 4, rows),
                reward=rng.random(rows).astype(np.float32), discount=np.full(rows, 0.97, np.float32),
                weight=np.ones(rows, np.float32), index=np.arange(rows),
            )  # fmt: skip

        config = PRESETS["cpu"].config if preset else with_agent(PRESETS["cpu"].config, "dueling")
        config = config.replace(trunk=trunk, hidden=int(hidden), precision=precision, batch_size=rows)
        self._learner = Learner(config, (4, 84, 84), np.uint8, 4, torch.device("cpu"), 0)
        self._batches, self.about = [batch() for _ in range(4)], {"batch_size": rows}

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self._learner.learn(self._batches[self._done % 4])
            self._done += 1

    def counts(self) -> dict[str, int]:
        return {"steps": self._done}

    def close(self) -> None:
        pass


def main(before: str, after: str, cases: list[str]) -> None:
    """Print a line for each case."""
    for tree in (before, after):
        if not Path(tree, "fastrl").is_dir():
            raise SystemExit(f"{tree!r} is no checkout: it has no folder fastrl; give two")
    for case in cases or CASES:
        contestants = [Contestant(tree, "update_in_turns:Updates", {"case": case}, tree) for tree in (before, after)]
        one, other = results = side_by_side(contestants, ROUNDS, SECONDS, lambda text: None)
        for result in results:
            if result.failure:
                raise SystemExit(f"{result.name}: {result.failure}")
        milliseconds = [1_000 / statistics.median(result.rates("steps")) for result in results]
        samples = other.about["batch_size"] * 1_000 / milliseconds[1]
        print(
            f"{case:40} {milliseconds[0]:7.2f} -> {milliseconds[1]:7.2f} ms, {ratio(other, one, 'steps'):.2f} times, "
            f"{samples:,.0f} samples/s",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
