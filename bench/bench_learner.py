"""The learner: one update and one action of a vector step, eager beside compiled."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastrl.config import preset_for  # noqa: E402
from fastrl.dqn.learner import Learner  # noqa: E402
from fastrl.replay import Batch  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
TRUNKS = [("small", 256), ("nature", 512)]


def make_learner(device, trunk, hidden, compiled, batch_size):
    config = preset_for("breakout", device).config.replace(
        trunk=trunk, hidden=hidden, compile=compiled, batch_size=batch_size
    )
    return Learner(config, (4, 84, 84), np.uint8, 4, torch.device(device), seed=0), config


def random_batch(size):
    rng = np.random.default_rng(0)
    obs = rng.integers(256, size=(2, size, 4, 84, 84), dtype=np.uint8)
    scalars = rng.random((3, size)).astype(np.float32)
    return Batch(obs[0], rng.integers(4, size=size), scalars[0], obs[1], scalars[1], scalars[2], np.arange(size))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("trunk", "hidden"), TRUNKS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.benchmark(group="learner: update of 128")
def bench_update(benchmark, device, trunk, hidden, compiled):
    learner, _ = make_learner(device, trunk, hidden, compiled, 128)
    batch = random_batch(128)

    def update():
        learner.learn(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(update, rounds=10, warmup_rounds=3)
    if benchmark.enabled:
        benchmark.extra_info["samples_per_second"] = 128 / benchmark.stats.stats.median


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("trunk", "hidden"), TRUNKS)
@pytest.mark.benchmark(group="learner: act for 64 games")
def bench_act(benchmark, device, trunk, hidden):
    learner, _ = make_learner(device, trunk, hidden, False, 64)
    obs = random_batch(64).obs
    actions = benchmark.pedantic(learner.act, args=(obs,), rounds=20, warmup_rounds=3)
    assert actions.shape == (64,)
