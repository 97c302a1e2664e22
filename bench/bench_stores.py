"""Where frames lie in memory, as they come or compressed: what one takes, and adding 32 and drawing 256 of them.

`python bench/bench_stores.py [GAME ...]` prints what lz4 makes of the frames of these games, or of all.
"""

from __future__ import annotations

import argparse
import functools

import lz4.block
import numpy as np
import pytest

from fastrl.envs.make import make_envs
from fastrl.envs.names import game_names
from fastrl.envs.rules import Rules
from fastrl.replay import PrioritizedReplayBuffer

GAMES = ["breakout", "pong", "space_invaders"]
ROWS = 100_000  # as they come, 0.7 GB: far more than the caches hold
NO = np.zeros(32, bool)


@functools.cache
def frames(game: str, num_envs: int = 32, steps: int = 100, seed: int = 0) -> np.ndarray:
    """Return the frames of random play, ``[steps, num_envs, 84, 84] uint8``."""
    envs = make_envs(game, num_envs, rules=Rules(), seed=seed, threads=1, reward_clip=True)
    rng = np.random.default_rng(seed)
    shown = [envs.reset().frame]
    for _ in range(steps - 1):
        envs.send(rng.integers(envs.num_actions, size=num_envs))
        shown.append(envs.recv().frame)
    envs.close()
    return np.stack(shown)


@pytest.fixture(scope="module", params=GAMES)
def game(request):
    return request.param


@pytest.fixture(scope="module", params=["ram", "lz4"])
def full(request, game):
    """Return a full ring and the vector steps that filled it."""
    buffer = PrioritizedReplayBuffer(
        capacity=ROWS, num_envs=32, obs_shape=(84, 84), stack=4, n_step=3, seed=0, store=request.param
    )
    steps = [(frame, np.zeros(32, int), np.zeros(32), NO, NO) for frame in frames(game)]
    for t in range(ROWS // 32 + 50):
        buffer.add(*steps[t % len(steps)])
    return buffer, steps


def note_size(benchmark, buffer):
    benchmark.extra_info["bytes a frame"] = round(buffer._store.nbytes / ROWS, 1)


@pytest.mark.benchmark(group="stores: add 32")
def bench_add(benchmark, full):
    buffer, steps = full
    turn = iter(range(10**9))
    benchmark.pedantic(lambda: buffer.add(*steps[next(turn) % len(steps)]), rounds=300, warmup_rounds=50)
    note_size(benchmark, buffer)


@pytest.mark.benchmark(group="stores: sample 256")
def bench_sample(benchmark, full):
    buffer, _ = full
    benchmark.pedantic(buffer.sample, args=(256,), rounds=100, warmup_rounds=20)
    note_size(benchmark, buffer)


def sizes(game: str) -> np.ndarray:
    """Return the bytes of the blocks that lz4 makes of 400 frames of random play."""
    shown = frames(game, num_envs=4, steps=200, seed=3)[::2].reshape(-1, 84 * 84)
    return np.array([len(lz4.block.compress(frame, store_size=False)) for frame in shown])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("games", nargs="*", metavar="GAME")
    games = parser.parse_args().games or [name for name in game_names() if name != "catch"]
    print("| game | bytes of a frame, mean | 95 % are below | largest |\n| --- | --- | --- | --- |")
    means = {}
    for game in games:
        found = sizes(game)
        means[game] = found.mean()
        print(f"| {game} | {found.mean():.0f} | {np.percentile(found, 95):.0f} | {found.max()} |", flush=True)
    quantiles = ", ".join(f"{q:.0%} {np.quantile(list(means.values()), q):.0f}" for q in (0, 0.1, 0.5, 0.9, 1))
    print(f"\nmeans of {len(means)} games, quantiles: {quantiles}; {84 * 84} uncompressed")


if __name__ == "__main__":
    main()
