"""What saving the replay costs: the picture that the loop waits for, and the loop's time while a thread writes.

`python bench/bench_saves.py` plays Breakout with the preset of this device and a full replay, lets it save what one
checkpoint clock brings, and prints how much of the loop's time that took: a step's usual time is measured before and
after each save, and what the steps until its end took beyond that, with the moment in which the loop waits, is lost. It
needs 7 GB of memory and twice as much disk; ``--rows`` changes that, the frames to save stay those of the clock.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from loops import NEVER, run_in_progress, synchronize
from machine_card import machine_card

from fastrl.replay import PrioritizedReplayBuffer
from fastrl.replay.saves import Save


def add(buffer: PrioritizedReplayBuffer, rows: int, seed: int = 0) -> None:
    """Add N rows of noise, over all environments."""
    n, shape = buffer.settings["num_envs"], buffer.settings["obs_shape"]
    rng, no = np.random.default_rng(seed), np.zeros(n, bool)
    steps = [rng.integers(256, size=(n, *shape), dtype=np.uint8) for _ in range(8)]
    for frames, _ in zip(itertools.cycle(steps), range(-(-rows // n)), strict=False):
        buffer.add(frames, np.zeros(n, int), np.zeros(n), no, no)


@pytest.fixture(scope="module")
def full():
    """Return a full ring of 100,000 frames, 0.7 GB."""
    buffer = PrioritizedReplayBuffer(capacity=100_000, num_envs=64, obs_shape=(84, 84), stack=4, n_step=3, seed=0)
    add(buffer, 110_000)
    return buffer


@pytest.mark.parametrize("new", [25_000, 100_000])
@pytest.mark.parametrize("what", ["picture", "write"])
@pytest.mark.benchmark(group="saves of 100,000 frames: the picture, and what is new")
def bench_save(benchmark, full, tmp_path, what, new):
    numbers = itertools.count()
    saves: list[Save] = []

    def picture(*asked):
        saves.append(full.begin_save(*asked))

    def write():
        while saves:
            saves.pop().write()

    def ready():
        write()
        folders = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
        for folder in folders[:-1]:
            shutil.rmtree(folder)
        add(full, new)
        asked = (tmp_path / str(next(numbers)), folders[-1] if folders else None)
        if what == "write":
            picture(*asked)
        return asked if what == "picture" else (), {}

    benchmark.pedantic(picture if what == "picture" else write, setup=ready, rounds=3, warmup_rounds=1)
    write()


def seconds_for(run: Any, steps: int) -> float:
    """Play N vector steps and return the seconds that they took."""
    start = perf_counter()
    for _ in range(steps):
        run.step()
    synchronize()
    return perf_counter() - start


def one_save(run: Any, new: int, steps: int) -> dict[str, float]:
    """Save N new rows while the loop continues; return what it cost, in seconds, frames and shares."""
    add(run.buffer, new)
    usual = seconds_for(run, steps)
    start = perf_counter()
    run.save(wait=False)
    waited = perf_counter() - start
    played, longest = 0, 0.0
    while run.saver.in_progress:  # a step looks whether it is over
        longest = max(longest, seconds_for(run, 1))
        played += 1
    took = perf_counter() - start
    usual = (usual + seconds_for(run, steps)) / (2 * steps)
    config = run.config
    clock = new / config.group_size * usual
    lost = took - played * usual
    return {
        "the loop waited, s": waited, "until the checkpoint was whole, s": took, "steps meanwhile": played,
        "usual step, ms": usual * 1e3, "longest step meanwhile, ms": longest * 1e3, "lost, s": lost,
        "the whole clock, s": clock, "lost of it, %": 100 * lost / clock,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the replay (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="saves (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="vector steps before and after (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to save (default: that of temporary files)")
    parser.add_argument("--frame-store", default="auto")
    asked = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine_card().items()))
    never = {"log_every_frames": NEVER, "evaluate_every_frames": NEVER}
    with tempfile.TemporaryDirectory(dir=asked.folder) as runs_dir:
        settings = {"capacity": asked.rows, "learn_start_steps": 500, "frame_store": asked.frame_store} | never
        with run_in_progress(runs_dir, updates=20, **settings) as run:
            new = run.config.checkpoint_every_frames // run.config.frame_skip
            add(run.buffer, asked.rows)
            start = perf_counter()
            run.save()
            print(f"all {len(run.buffer):,} frames, written once: {perf_counter() - start:.1f} s", flush=True)
            rounds = [one_save(run, min(new, asked.rows), asked.steps) for _ in range(asked.rounds)]
    print(f"\n{new:,} new frames, a checkpoint clock's\n\n| | median | of |\n| --- | --- | --- |")
    for name in rounds[0]:
        values = [each[name] for each in rounds]
        print(f"| {name} | {median(values):,.4g} | {', '.join(f'{value:,.4g}' for value in values)} |")


if __name__ == "__main__":
    main()
