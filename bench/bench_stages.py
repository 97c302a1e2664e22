"""Where the time goes: each stage of the loop alone, then the loop, in turns and in one process.

On a CPU the stages share the cores: the loop should take little more than the sum of what they take alone. On a
GPU they run beside each other: it should take little more than the slowest.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

from loops import NEVER, run_in_progress, seconds_of

from fastrl.dqn.collector import build_collector
from fastrl.dqn.run.build import build_replay

ROUNDS = 9
VECTOR_STEPS = 8
"""Vector steps in one round; the other stages do what these need."""


class FixedActions:
    """A policy that looks and does not think: it notes the stacks and returns actions made before."""

    def __init__(self, actions):
        self._turns, self.obs = itertools.cycle(actions), None

    def act(self, obs, env_id, mask=None):
        self.obs = obs
        return next(self._turns)


def stages_of(run, games):
    """Return what each stage does for `VECTOR_STEPS` vector steps of one group, as functions without arguments.

    ``games`` is a collector of its own: that of the run must continue where it was.
    """
    config = run.config
    n, B = config.group_size, config.batch_size
    rng = np.random.default_rng(0)
    actions = rng.integers(run.envs.num_actions, size=(VECTOR_STEPS, n))
    policy = FixedActions(actions)
    games.start(policy)
    games.send(policy)
    obs, rows = policy.obs, games.recv()
    frame, reward, no = obs[:, -1].copy(), np.zeros(n, np.float32), np.zeros(n, bool)
    buffer, _ = build_replay(config, run.envs, 0, run.learner.device)  # its rows are not for the run to learn
    updates = max(1, round(VECTOR_STEPS * n * config.samples_per_step / B))
    batch = run.buffer.sample(B, 0.5)
    abs_td = rng.random(B).astype(np.float32)

    def environments():
        for _ in range(VECTOR_STEPS):
            games.send(policy)
            games.recv()

    def add():
        for sent in actions:
            buffer.add(frame, sent, reward, no, no, no, env_id=rows.env_id)

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
    settings = {"learn_start_steps": 1_000, "capacity": 60_000, "log_every_frames": NEVER}
    settings["compile"] = benchmark.enabled  # a pass that measures nothing need not wait for the compiler
    with run_in_progress(tmp_path, updates=2, **settings) as run:

        def loop():
            for _ in range(VECTOR_STEPS):
                run.step()

        games = build_collector(run.config, 7)
        stages = stages_of(run, games) | {"loop": loop}
        rounds = 1 if benchmark.disabled else ROUNDS
        turns = [{name: seconds_of(stage) for name, stage in stages.items()} for _ in range(rounds)]
        benchmark.pedantic(loop, rounds=1)
        assert run.learner.updates > 2
        games.close()
    medians = {name: float(np.median([turn[name] for turn in turns])) for name in turns[0]}
    total = medians.pop("loop")
    benchmark.extra_info |= {f"{name}_ms": 1e3 * seconds for name, seconds in medians.items()} | {
        "loop_ms": 1e3 * total,
        "agent_steps_per_second": VECTOR_STEPS * run.config.group_size / total,
        "loop_over_sum_of_stages": total / sum(medians.values()),
        "loop_over_slowest_stage": total / max(medians.values()),
    }
    with capsys.disabled():
        print("\n" + "\n".join(f"  {name:26} {value:8.2f}" for name, value in benchmark.extra_info.items()))
