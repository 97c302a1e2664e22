"""SARSA's speed: the whole loop of L learners at once, beside one learner in a plain Python loop.

Run with ``pytest bench/bench_sarsa.py``. ``extra_info`` holds learner steps per second, from the fastest round.
"""

import numpy as np
import pytest

from fastrl.cartpole import SCALE, CartPoles
from fastrl.config import SarsaConfig
from fastrl.sarsa import SarsaLearners

gymnasium = pytest.importorskip("gymnasium")

LEARNERS = [1, 64, 256, 1024]
STEPS = 500
"""Vector steps in one round."""
WARM_UP_STEPS = 5_000
"""Steps before the first round: learners that balance, as they do for most of a run."""


def measure(benchmark, function, learners):
    benchmark.pedantic(function, rounds=5, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["learner_steps_per_second"] = STEPS * learners / benchmark.stats.stats.min


@pytest.mark.benchmark(group="sarsa: whole loop")
@pytest.mark.parametrize("learners", LEARNERS)
def bench_learners_at_once(benchmark, learners):
    agents = SarsaLearners(SarsaConfig(version="v0", learners=learners, episodes=100_000))
    for _ in range(WARM_UP_STEPS):
        agents.step()

    def steps():
        for _ in range(STEPS):
            agents.step()

    measure(benchmark, steps, learners)


@pytest.mark.benchmark(group="sarsa: whole loop")
def bench_plain_python_loop(benchmark):
    """One learner and one Gymnasium environment, the same updates in the most direct code."""
    config = SarsaConfig(version="v0")
    env = gymnasium.make("CartPole-v1", max_episode_steps=200, sutton_barto_reward=True)
    rng, weights, traces = np.random.default_rng(1), np.zeros((2, 4)), np.zeros((2, 4))

    def choose(s):
        values = weights @ s
        return int(values.argmax()) if values[0] != values[1] else int(rng.integers(2))

    s = env.reset(seed=1)[0] / SCALE
    a = choose(s)

    def steps(number=STEPS):
        nonlocal s, a
        for _ in range(number):
            observation, reward, terminated, truncated, _ = env.step(a)
            s_t = observation / SCALE
            a_t = choose(s_t)
            value_t = 0.0 if terminated else weights[a_t] @ s_t
            traces[:] *= config.gamma * config.lam
            traces[a] += s
            weights[:] += config.alpha * (reward + config.gamma * value_t - weights[a] @ s) * traces
            s, a = s_t, a_t
            if terminated or truncated:
                traces[:] = 0
                s = env.reset()[0] / SCALE
                a = choose(s)

    steps(WARM_UP_STEPS)
    measure(benchmark, steps, 1)


@pytest.mark.benchmark(group="sarsa: environment alone")
@pytest.mark.parametrize("learners", LEARNERS)
def bench_cartpoles(benchmark, learners):
    cartpoles = CartPoles(learners, "v0", 1)
    actions = np.random.default_rng(0).integers(0, 2, (STEPS, learners))

    def steps():
        for action in actions:
            cartpoles.step(action)

    measure(benchmark, steps, learners)
