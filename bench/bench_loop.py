"""EnvPool alone, and the whole loop: act, step, add, learn."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from loops import run_in_progress, synchronize

from fastrl.envs.make import make_envs
from fastrl.envs.rules import Rules

STEPS = 40
"""Vector steps in one round."""


@pytest.mark.parametrize("num_envs", [16, 64])
@pytest.mark.benchmark(group="environments: 40 vector steps of Breakout")
def bench_envpool(benchmark, num_envs):
    envs = make_envs("breakout", num_envs, rules=Rules(), seed=0, reward_clip=True)
    envs.reset()
    actions = np.random.default_rng(0).integers(4, size=(STEPS, num_envs))

    def steps():
        for action in actions:
            envs.send(action)
            envs.recv()

    benchmark.pedantic(steps, rounds=5, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["agent_steps_per_second"] = STEPS * num_envs / benchmark.stats.stats.median
    envs.close()


@pytest.mark.parametrize("samples_per_step", [2, 4, 8])
@pytest.mark.benchmark(group="whole loop: 40 vector steps of Breakout with learning")
def bench_loop(benchmark, tmp_path, samples_per_step):
    settings = {"learn_start_steps": 500, "capacity": 50_000, "samples_per_step": samples_per_step}
    settings["compile"] = benchmark.enabled  # a pass that measures nothing need not wait for the compiler
    vector_steps = STEPS if benchmark.enabled else 2
    with run_in_progress(tmp_path, updates=1, **settings) as run:

        def steps():
            for _ in range(vector_steps):
                run.step()
            synchronize()

        before, n = run.steps, run.config.group_size
        benchmark.pedantic(steps, rounds=3, warmup_rounds=1)
        assert run.steps - before >= vector_steps * n
    if benchmark.enabled:
        benchmark.extra_info["agent_steps_per_second"] = STEPS * n / benchmark.stats.stats.median
