"""EnvPool alone, and the whole loop: act, step, add, learn."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastrl.atari import AtariEnvs  # noqa: E402
from fastrl.config import preset_for  # noqa: E402
from fastrl.dqn.run import Run  # noqa: E402
from fastrl.stop import Stop  # noqa: E402

STEPS = 40
"""Vector steps in one round."""


@pytest.mark.parametrize("num_envs", [16, 64])
@pytest.mark.benchmark(group="environments: 40 vector steps of Breakout")
def bench_envpool(benchmark, num_envs):
    envs = AtariEnvs("breakout", num_envs, seed=0)
    envs.reset()
    actions = np.random.default_rng(0).integers(4, size=(STEPS, num_envs))

    def steps():
        for action in actions:
            envs.step(action)

    benchmark.pedantic(steps, rounds=5, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["agent_steps_per_second"] = STEPS * num_envs / benchmark.stats.stats.median
    envs.close()


@pytest.mark.parametrize("samples_per_step", [2, 4, 8])
@pytest.mark.benchmark(group="whole loop: 40 vector steps of Breakout with learning")
def bench_loop(benchmark, tmp_path, samples_per_step):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = preset_for("breakout", device).config.replace(
        learn_start_steps=500, dephase_steps=0, samples_per_step=samples_per_step, capacity=50_000,
        runs_dir=str(tmp_path),
    )  # fmt: skip
    run = Run(config, [], Stop(), resume=None, quiet=True)

    def steps():
        for _ in range(STEPS):
            run.step()
        if device == "cuda":
            torch.cuda.synchronize()

    before = run.steps
    with run.reporter:
        run.start()
        benchmark.pedantic(steps, rounds=3, warmup_rounds=1)
    assert run.learner.updates > 0
    assert run.steps - before >= STEPS * config.group_size * 0.9
    if benchmark.enabled:
        benchmark.extra_info["agent_steps_per_second"] = STEPS * config.group_size / benchmark.stats.stats.median
    run.close()
