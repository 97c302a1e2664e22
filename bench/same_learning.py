"""Does the fast path learn what the plain one learns? Catch, five seeds, eager float32 beside compiled bfloat16.

``python bench/same_learning.py`` prints the agent steps after which the last 100 games averaged 0.9 (of 1), by seed
and path, and fails unless the fast path's mean lies within the plain one's spread.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import tempfile
import warnings

from fastrl.config import PRESETS
from fastrl.dqn.run import train

import torch  # isort: skip  # after fastrl, which sets how its threads wait

PLAIN = {"compile": False, "precision": "float32"}
FAST = {"compile": True, "precision": "bfloat16"}
SOLVED = 0.9


def steps_to_solve(seed: int, **settings: object) -> float:
    """Train with one seed; return the agent steps at which Catch was solved, infinity if it was not."""
    with tempfile.TemporaryDirectory() as folder:
        config = PRESETS["catch"].config.replace(
            seed=seed, total_frames=30_000, log_every_frames=250, evaluate_every_frames=10**9, final_episodes=1,
            checkpoint_replay=False, runs_dir=folder, **settings,
        )  # fmt: skip
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # a compiler that fails would leave nothing to compare
            run = train(config, quiet=True)
        with (run.folder / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                if float(row["games/return_mean_100"] or -1) >= SOLVED:
                    return float(row["steps"])
    return math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(1, parser.parse_args().seeds + 1)
    plain, fast = ([steps_to_solve(seed, **path) for seed in seeds] for path in (PLAIN, FAST))
    print("| seed | eager float32 | compiled bfloat16 |\n| --- | --- | --- |")
    for seed, a, b in zip(seeds, plain, fast, strict=True):
        print(f"| {seed} | {a:,.0f} | {b:,.0f} |")
    print(f"| mean | {statistics.mean(plain):,.0f} | {statistics.mean(fast):,.0f} |")
    if math.inf in (*plain, *fast):
        raise SystemExit("a run did not solve Catch")
    if not min(plain) <= statistics.mean(fast) <= max(plain):
        raise SystemExit("the fast path learns at another pace than the plain one")


if __name__ == "__main__":
    main()
