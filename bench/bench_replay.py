"""The replay: add vector steps, draw batches, update priorities, on a full ring of 84x84 frames."""

from __future__ import annotations

import numpy as np
import pytest

from fastrl.replay import PrioritizedReplayBuffer

ROWS = 100_000  # 0.7 GB: far more than the caches hold


def full_buffer(num_envs=32, n_step=1):
    buffer = PrioritizedReplayBuffer(
        capacity=ROWS, num_envs=num_envs, obs_shape=(84, 84), stack=4, n_step=n_step, gamma=0.99, seed=0
    )
    rng = np.random.default_rng(0)
    steps = vector_steps(rng, num_envs)
    for t in range(ROWS // num_envs + 50):
        buffer.add(*steps[t % len(steps)])
    batch = buffer.sample(2048)
    buffer.update_priorities(batch.index, rng.random(2048))
    return buffer, steps, rng


def vector_steps(rng, num_envs):
    """Sixteen vector steps of random frames; episodes of 200 steps on average."""
    return [
        (
            rng.integers(256, size=(num_envs, 84, 84), dtype=np.uint8), rng.integers(4, size=num_envs),
            rng.random(num_envs), rng.random(num_envs) < 0.005, np.zeros(num_envs, bool),
        )
        for _ in range(16)
    ]  # fmt: skip


@pytest.mark.parametrize("num_envs", [1, 8, 32, 128])
@pytest.mark.benchmark(group="replay: add one vector step")
def bench_add(benchmark, num_envs):
    buffer, steps, _ = full_buffer(num_envs)
    turn = iter(range(10**9))
    benchmark.pedantic(lambda: buffer.add(*steps[next(turn) % 16]), rounds=300, warmup_rounds=50)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("batch_size", [32, 256, 512])
@pytest.mark.benchmark(group="replay: sample")
def bench_sample(benchmark, batch_size, n_step):
    buffer, _, _ = full_buffer(n_step=n_step)
    batch = benchmark.pedantic(buffer.sample, args=(batch_size,), rounds=100, warmup_rounds=20)
    assert batch.obs.shape == (batch_size, 4, 84, 84)


@pytest.mark.benchmark(group="replay: update priorities")
def bench_update_priorities(benchmark):
    buffer, _, rng = full_buffer()
    batches = [(buffer.sample(256).index.copy(), rng.random(256)) for _ in range(16)]
    turn = iter(range(10**9))
    benchmark.pedantic(lambda: buffer.update_priorities(*batches[next(turn) % 16]), rounds=200, warmup_rounds=20)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.benchmark(group="replay: cycle of add 32, sample 256, update 256")
def bench_cycle(benchmark, n_step):
    buffer, steps, rng = full_buffer(n_step=n_step)
    priorities, turn = rng.random(256), iter(range(10**9))

    def cycle():
        buffer.add(*steps[next(turn) % 16])
        buffer.update_priorities(buffer.sample(256).index, priorities)

    benchmark.pedantic(cycle, rounds=100, warmup_rounds=20)
