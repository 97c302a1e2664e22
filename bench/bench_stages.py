"""Where the time goes: each stage of the loop alone, then the loop, in turns and in one process.

On a CPU the stages share the cores: the loop should take little more than the sum of what they take alone. On a
GPU they run beside each other: it should take little more than the slowest.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastrl.config import preset_for  # noqa: E402
from fastrl.dqn.build import build_groups, build_replay  # noqa: E402
from fastrl.dqn.run import Run  # noqa: E402
from fastrl.stop import Stop  # noqa: E402

ROUNDS = 9
VECTOR_STEPS = 8
"""Vector steps in one round, and what other stages do for so many."""


def stages_of(run, config):
    """Return what each stage does for `VECTOR_STEPS` vector steps of one group, as functions without arguments."""
    n, B = config.group_size, config.batch_size
    rng = np.random.default_rng(0)
    actions = rng.integers(run.envs.num_actions, size=(VECTOR_STEPS, n))
    own = deque(build_groups(config, 7))  # games of its own: those of the run must go on where they were
    for group in own:
        group.reset()
    for group, sent in zip(list(own)[1:], actions, strict=False):
        group.send(sent)
    obs, group = own[0].observe(), own[0]
    frame, no = obs[:, -1].copy(), np.zeros(n, bool)
    buffer, _ = build_replay(config, run.envs, 0, run.learner.device)  # its rows are not for the run to learn
    updates = max(1, round(VECTOR_STEPS * n * config.samples_per_step / B))
    batch = run.buffer.sample(B, 0.5)
    abs_td = rng.random(B).astype(np.float32)

    def environments():
        for sent in actions:
            own[0].send(sent)
            own.rotate(-1)
            own[0].recv()

    def add():
        for sent in actions:
            buffer.add(frame, sent, abs_td[:1].repeat(n), no, no, no, env_id=group.env_id)

    return {
        "environments": environments,
        "act": lambda: [run.learner.act(obs) for _ in range(VECTOR_STEPS)],
        "sample": lambda: [run.buffer.sample(B, 0.5) for _ in range(updates)],
        "update": lambda: [run.learner.learn(batch) for _ in range(updates)],
        "priorities": lambda: [run.buffer.update_priorities(batch.index, abs_td) for _ in range(updates)],
        "add": add,
    }


@pytest.mark.benchmark(group="whole loop beside its stages: 8 vector steps of Breakout")
def bench_stages(benchmark, tmp_path, capsys):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = preset_for("breakout", device).config.replace(
        learn_start_steps=1_000, dephase_steps=0, capacity=60_000, runs_dir=str(tmp_path), log_every_frames=10**9
    )
    run = Run(config, [], Stop(), resume=None, quiet=True)

    def loop():
        for _ in range(VECTOR_STEPS):
            run.step()

    def timed(function):
        start = perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - start

    with run.reporter:
        run.start()
        while run.learner.updates < 20:
            run.step()
        stages = stages_of(run, config)
        rounds = 1 if benchmark.disabled else ROUNDS
        turns = [{name: timed(stage) for name, stage in {**stages, "loop": loop}.items()} for _ in range(rounds)]
        benchmark.pedantic(loop, rounds=1)
    run.close()
    medians = {name: float(np.median([turn[name] for turn in turns])) for name in turns[0]}
    total = medians.pop("loop")
    benchmark.extra_info |= {f"{name}_ms": 1e3 * seconds for name, seconds in medians.items()} | {
        "loop_ms": 1e3 * total,
        "agent_steps_per_second": VECTOR_STEPS * config.group_size / total,
        "loop_over_sum_of_stages": total / sum(medians.values()),
        "loop_over_slowest_stage": total / max(medians.values()),
    }
    with capsys.disabled():
        print("\n" + "\n".join(f"  {name:26} {value:8.2f}" for name, value in benchmark.extra_info.items()))
    assert run.learner.updates > 20
