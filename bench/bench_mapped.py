"""Frames in files beside frames in memory: adding 32 rows, drawing 256, a flush, and drawing what only the disk has.

`python bench/bench_mapped.py FOLDER --rows 10000000 --shape 1024 --stack 1` measures one size in a new folder, which it
removes again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastrl.replay import PrioritizedReplayBuffer

NUM_ENVS, BATCH = 32, 256
NO, ZEROS = np.zeros(NUM_ENVS, bool), np.zeros(NUM_ENVS, int)
SIZES = {"1 kB": (100_000, (1024,), 1), "84x84": (32_000, (84, 84), 4)}


def build(store: str, folder: Path, rows: int, shape: tuple[int, ...], stack: int) -> PrioritizedReplayBuffer:
    where = {"store": store, "folder": folder} if store == "mmap" else {"store": store}
    return PrioritizedReplayBuffer(
        capacity=rows, num_envs=NUM_ENVS, obs_shape=shape, stack=stack, n_step=3, seed=0, **where
    )


def steps(shape: tuple[int, ...], count: int = 64) -> list[np.ndarray]:
    """Return vector steps of noise, ``[32, *shape] uint8`` each."""
    return list(np.random.default_rng(0).integers(0, 256, (count, NUM_ENVS, *shape), np.uint8))


def fill(buffer: PrioritizedReplayBuffer, frames: list[np.ndarray], count: int) -> None:
    for t in range(count):
        buffer.add(frames[t % len(frames)], ZEROS, ZEROS * 1.0, NO, NO)


def forget(folder: Path) -> None:
    """Let the system drop from memory what it holds of the frames; the buffer is closed."""
    handle = os.open(folder / "frames-0", os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


@pytest.fixture(params=["ram", "mmap"])
def store(request):
    return request.param


@pytest.fixture(params=SIZES)
def full(request, store, tmp_path):
    """Return a full buffer and the vector steps that filled it."""
    rows, shape, stack = SIZES[request.param]
    buffer, frames = build(store, tmp_path / "replay", rows, shape, stack), steps(shape)
    fill(buffer, frames, rows // NUM_ENVS)
    yield buffer, frames
    shutil.rmtree(tmp_path)


@pytest.mark.benchmark(group="mapped: add 32")
def bench_add(benchmark, full):
    buffer, frames = full
    turn = iter(range(10**9))
    benchmark.pedantic(
        lambda: buffer.add(frames[next(turn) % len(frames)], ZEROS, ZEROS * 1.0, NO, NO), rounds=300, warmup_rounds=50
    )


@pytest.mark.benchmark(group="mapped: sample 256")
def bench_sample(benchmark, full):
    buffer, _ = full
    benchmark.pedantic(buffer.sample, args=(BATCH,), rounds=100, warmup_rounds=20)


def seconds(call: Callable[[], object], rounds: int = 1) -> list[float]:
    """Return how long each call took."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shape", type=int, nargs="+", default=[1024])
    parser.add_argument("--stack", type=int, default=1)
    parser.add_argument("--store", choices=["ram", "mmap"], default="mmap")
    args = parser.parse_args()
    folder, frames = args.folder / "replay", steps(tuple(args.shape))
    try:
        buffer = build(args.store, folder, args.rows, tuple(args.shape), args.stack)
        filled = sum(seconds(lambda: fill(buffer, frames, args.rows // NUM_ENVS)))
        added = seconds(lambda: fill(buffer, frames, 1), 500)
        drawn = seconds(lambda: buffer.sample(BATCH), 110)[10:]
        print(f"{args.store}, {args.rows:,} rows of {args.shape}: {filled / args.rows * 1e6:.1f} us a row to fill")
        print(f"add 32: median {statistics.median(added) * 1e6:.1f} us, mean {statistics.mean(added) * 1e6:.1f}")
        print(f"sample 256: median {statistics.median(drawn) * 1e3:.3f} ms, mean {statistics.mean(drawn) * 1e3:.3f}")
        if args.store == "mmap":
            print(f"flush: {seconds(buffer.flush)[0]:.2f} s", end=", ")
            fill(buffer, frames, 100)
            print(f"after 3,200 more rows {seconds(buffer.flush)[0]:.2f} s", end=", ")
            buffer.close()
            forget(folder)
            start = time.perf_counter()
            buffer = PrioritizedReplayBuffer.from_folder(folder)
            print(f"from_folder: {time.perf_counter() - start:.2f} s")
            cold = seconds(lambda: buffer.sample(BATCH), 10)
            print(f"sample 256 of what only the disk has: {', '.join(f'{each * 1e3:.0f}' for each in cold)} ms")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
