"""SARSA's speed: the whole loop of L learners at once, beside one learner in a plain Python loop.

``python bench/bench_sarsa.py`` lets all of them take turns in one process, in short rounds, and prints a table with
ratios. Seconds are processor time, since every loop is one thread and the machine may have other work; where a busy
neighbour halves the speed of a core, the fastest rounds show what it does alone. ``pytest bench/bench_sarsa.py`` times
each by itself. Learner steps are transitions learned from; rows that only reset a CartPole are none.
"""

from __future__ import annotations

import argparse
import random
from time import process_time
from typing import Any, Protocol

import gymnasium
import numpy as np
import pytest

from fastrl.config import SarsaConfig
from fastrl.sarsa.cartpole import SCALE, CartPoles
from fastrl.sarsa.learners import SarsaLearners

LEARNERS = [64, 256, 1024, 4096]
DYNAMICS = ["gymnasium", "own"]
ROWS = 20
"""Vector steps in one round: some milliseconds, so that other work of the machine spoils rounds, not all of them."""
PLAIN_STEPS = 200
"""Steps of the plain loop in one round."""
ROUNDS = 300
EPISODES = 1_000
"""Episodes to note down; more would fill the memory, and those beyond them are played and learned from all the same."""
WARM_UP_STEPS = 5_000
"""Steps before the first round: learners that balance, as they do for most of a run."""


class Loop(Protocol):
    """A loop that can be continued."""

    learner_steps: int

    def play(self) -> None:
        """Play one round."""


class AtOnce:
    """The learners of `fastrl.sarsa`."""

    def __init__(self, learners: int, dynamics: Any) -> None:
        config = SarsaConfig(version="v0", learners=learners, episodes=EPISODES, dynamics=dynamics)
        self._learners = SarsaLearners(config)
        for _ in range(WARM_UP_STEPS):
            self._learners.step()

    @property
    def learner_steps(self) -> int:
        return self._learners.learner_steps

    def play(self) -> None:
        for _ in range(ROWS):
            self._learners.step()


class Plain:
    """One learner and one Gymnasium environment, the same updates in the most direct code."""

    def __init__(self) -> None:
        self.learner_steps = 0
        self._config = SarsaConfig(version="v0")
        self._env = gymnasium.make("CartPole-v1", max_episode_steps=200, sutton_barto_reward=True)
        self._rng, self._weights, self._traces = np.random.default_rng(1), np.zeros((2, 4)), np.zeros((2, 4))
        self._s = self._env.reset(seed=1)[0] / SCALE
        self._a = self._choose(self._s)
        self.play(WARM_UP_STEPS)

    def _choose(self, s: np.ndarray) -> int:
        values = self._weights @ s
        return int(values.argmax()) if values[0] != values[1] else int(self._rng.integers(2))

    def play(self, steps: int = PLAIN_STEPS) -> None:
        config, env, weights, traces, s, a = self._config, self._env, self._weights, self._traces, self._s, self._a
        for _ in range(steps):
            observation, reward, terminated, truncated, _ = env.step(a)
            s_t = observation / SCALE
            a_t = self._choose(s_t)
            value_t = 0.0 if terminated else weights[a_t] @ s_t
            traces *= config.gamma * config.lam
            traces[a] += s
            weights += config.learning_rate * (reward + config.gamma * value_t - weights[a] @ s) * traces
            s, a = s_t, a_t
            if terminated or truncated:
                traces[:] = 0
                s = env.reset()[0] / SCALE
                a = self._choose(s)
        self._s, self._a = s, a
        self.learner_steps += steps


class Floats:
    """The same without NumPy on the learner's side: lists of floats, which are faster than arrays of four."""

    def __init__(self) -> None:
        self.learner_steps = 0
        self._config = SarsaConfig(version="v0")
        self._scale = SCALE.tolist()
        self._env = gymnasium.make("CartPole-v1", max_episode_steps=200, sutton_barto_reward=True)
        self._weights, self._traces = [[0.0] * 4, [0.0] * 4], [[0.0] * 4, [0.0] * 4]
        self._s = self._features(self._env.reset(seed=1)[0])
        self._a = self._choose(self._s)
        self.play(WARM_UP_STEPS)

    def _features(self, observation: np.ndarray) -> list[float]:
        return [o / unit for o, unit in zip(observation.tolist(), self._scale, strict=True)]

    def _value(self, s: list[float], a: int) -> float:
        w = self._weights[a]
        return w[0] * s[0] + w[1] * s[1] + w[2] * s[2] + w[3] * s[3]

    def _choose(self, s: list[float]) -> int:
        left, right = self._value(s, 0), self._value(s, 1)
        return int(right > left) if right != left else random.getrandbits(1)

    def _learn(self, s: list[float], a: int, rate: float, decay: float) -> None:
        for b in (0, 1):
            w, e = self._weights[b], self._traces[b]
            for i in range(4):
                e[i] *= decay
                if a == b:
                    e[i] += s[i]
                w[i] += rate * e[i]

    def play(self, steps: int = PLAIN_STEPS) -> None:
        alpha, gamma, decay = self._config.learning_rate, self._config.gamma, self._config.gamma * self._config.lam
        env, s, a = self._env, self._s, self._a
        for _ in range(steps):
            observation, reward, terminated, truncated, _ = env.step(a)
            s_t = self._features(observation)
            a_t = self._choose(s_t)
            value_t = 0.0 if terminated else self._value(s_t, a_t)
            self._learn(s, a, alpha * (reward + gamma * value_t - self._value(s, a)), decay)
            s, a = s_t, a_t
            if terminated or truncated:
                self._traces = [[0.0] * 4, [0.0] * 4]
                s = self._features(env.reset()[0])
                a = self._choose(s)
        self._s, self._a = s, a
        self.learner_steps += steps


def rate(loop: Loop) -> float:
    """Play one round; return learner steps per second of processor time."""
    before, started = loop.learner_steps, process_time()
    loop.play()
    return (loop.learner_steps - before) / (process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds that each plays, in turn ({ROUNDS})")
    rounds = parser.parse_args().rounds
    loops: dict[str, Loop] = {"plain Python loop, 1 learner": Plain(), "the same on lists of floats": Floats()}
    for dynamics in DYNAMICS:
        loops |= {f"{learners} learners, dynamics {dynamics}": AtOnce(learners, dynamics) for learners in LEARNERS}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds):
        for name in list(loops) if number % 2 == 0 else reversed(loops):
            rates[name].append(rate(loops[name]))
    print(*table(rates), sep="\n")


def table(rates: dict[str, list[float]]) -> list[str]:
    """Return the lines of a Markdown table; the first loop is what the others are compared to."""
    plain = np.array(next(iter(rates.values())))
    lines = ["| loop | learner steps/s: median | ratio | fastest twentieth of the rounds | ratio |", "|" + " --- |" * 5]
    for name, measured in rates.items():
        typical, fast = np.median(measured), np.percentile(measured, 95)
        ratio = np.median(np.array(measured) / plain)
        lines.append(f"| {name} | {typical:,.0f} | {ratio:.1f} | {fast:,.0f} | {fast / np.percentile(plain, 95):.1f} |")
    return lines


def measure(benchmark: Any, loop: Loop) -> None:
    before = loop.learner_steps
    benchmark.pedantic(loop.play, rounds=50, warmup_rounds=1)
    if benchmark.enabled:
        per_round = (loop.learner_steps - before) / 51
        benchmark.extra_info["learner_steps_per_second"] = per_round / benchmark.stats.stats.min


@pytest.mark.benchmark(group="sarsa: whole loop")
@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("learners", LEARNERS)
def bench_learners_at_once(benchmark, learners, dynamics):
    measure(benchmark, AtOnce(learners, dynamics))


@pytest.mark.benchmark(group="sarsa: whole loop")
def bench_plain_python_loop(benchmark):
    measure(benchmark, Plain())


@pytest.mark.benchmark(group="sarsa: whole loop")
def bench_plain_python_loop_on_floats(benchmark):
    measure(benchmark, Floats())


@pytest.mark.benchmark(group="sarsa: environment alone")
@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("learners", LEARNERS)
def bench_cartpoles(benchmark, learners, dynamics):
    cartpoles = CartPoles(learners, "v0", 1, dynamics=dynamics)
    actions = np.random.default_rng(0).integers(0, 2, (ROWS, learners))

    def steps() -> None:
        for action in actions:
            cartpoles.step(action)

    benchmark.pedantic(steps, rounds=50, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["learner_steps_per_second"] = ROWS * learners / benchmark.stats.stats.min


if __name__ == "__main__":
    main()
