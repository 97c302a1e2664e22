"""Linear SARSA(lambda) on many CartPoles at once, in NumPy (Sutton & Barto 2018, section 12.7).

Learners are independent: each has its own weights, traces and CartPole, and they share nothing but the
vector operation that moves them all. Arrays run over them in their last axis, so that every operation is
one loop over contiguous memory: ``[A, F, L]`` has A = 2 actions, F = 4 features, L learners.

*Steps* are agent steps of one learner; *learner steps* are those of all learners together.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastrl import cartpole
from fastrl.cartpole import ACTIONS, FEATURES, SCALE, SOLVED_RETURN, CartPoles
from fastrl.config import ConfigError, SarsaConfig

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

WINDOW: Final = 100
"""Consecutive episodes whose average return decides whether a learner has solved the task."""
LOG_EVERY_STEPS: Final = 1_000
"""Steps between two calls of ``on_log``."""


def state_action_features(features: Floats, action: Ints) -> Floats:
    """Lay the features into the block of the chosen action: ``[F, L]`` and ``[L]`` to ``[A, F, L]``."""
    chosen = np.arange(ACTIONS)[:, None] == action
    laid_out: Floats = chosen[:, None, :] * features
    return laid_out


def action_values(weights: Floats, features: Floats) -> Floats:
    """Return Q(s, a) = w_a·s for every action: ``[A, F, L]`` and ``[F, L]`` to ``[A, L] float64``."""
    values: Floats = (weights * features).sum(axis=1)
    return values


def choose_actions(values: Floats, epsilon: float, rng: np.random.Generator) -> Ints:
    """Choose epsilon-greedily for each learner by itself; equal best values are broken at random.

    Parameters
    ----------
    values : float64 [A, L]
    epsilon : float
        Share of uniformly random actions; each learner tosses its own coin.
    rng : Generator

    Returns
    -------
    int64 [L]
    """
    lottery = rng.random(values.shape, dtype=np.float32)
    action: Ints = np.where(values < values.max(axis=0), -1.0, lottery).argmax(axis=0)
    if epsilon > 0:
        learners = values.shape[1]
        explores = rng.random(learners) < epsilon
        action = np.where(explores, rng.integers(len(values), size=learners), action)
    return action


def sarsa_update(
    weights: Floats,
    traces: Floats,
    features: Floats,
    action: Ints,
    reward: Floats,
    next_features: Floats,
    next_action: Ints,
    *,
    discount: Floats,
    alpha: Floats,
    decay: Floats,
) -> Floats:
    """Learn from one transition per learner; changes ``weights`` and ``traces`` in place.

    With x = x(s, a) and x' = x(s', a')::

        delta = r + discount w·x' - w·x
        e     = decay e + x                  accumulating traces
        w     = w + alpha delta e

    Parameters
    ----------
    weights, traces : float64 [A, F, L]
    features, next_features : float64 [F, L]
        s and s'.
    action, next_action : int64 [L]
        a, and the a' that the policy will really take in s' (on-policy).
    reward : float64 [L]
    discount : float64 [L]
        gamma, or 0 where s' is terminal; a truncated episode keeps gamma.
    alpha : float64 [L]
        Step size, or 0 for a learner that has no transition in this row.
    decay : float64 [L]
        gamma lambda, or 0 at the first transition of an episode, which clears the traces.

    Returns
    -------
    float64 [L]
        The TD errors delta.

    Notes
    -----
    Sutton & Barto 2018, equations 12.5 to 12.7 with the traces of section 12.7.
    """
    x_tm1 = state_action_features(features, action)
    x_t = state_action_features(next_features, next_action)
    value_tm1, value_t = (weights * x_tm1).sum(axis=(0, 1)), (weights * x_t).sum(axis=(0, 1))
    td_error: Floats = reward + discount * value_t - value_tm1
    traces *= decay
    traces += x_tm1
    weights += alpha * td_error * traces
    return td_error


def solved_at(returns: Ints, played: Ints, threshold: float, window: int = WINDOW) -> tuple[Ints, Ints]:
    """Say when each learner had solved the task: where its first good window of episodes begins.

    A window is ``window`` consecutive episodes, and it is good if their average return is at least
    ``threshold``. The episode returned is the first one of the first good window, so 0 means that the very
    first window was good.

    Parameters
    ----------
    returns : int64 [L, E]
        Return of each episode; for CartPole also its length in steps. Entries from ``played`` on are ignored.
    played : int64 [L]
        Episodes that each learner has finished.
    threshold : float
    window : int

    Returns
    -------
    episode : int64 [L]
        Episodes played before the window; -1: not solved.
    steps : int64 [L]
        Steps taken before the window; -1: not solved.

    Notes
    -----
    Linear in ``returns``.
    """
    learners, episodes = returns.shape
    if episodes < window:
        return np.full(learners, -1), np.full(learners, -1)
    total = np.zeros((learners, episodes + 1), np.int64)
    returns.cumsum(axis=1, out=total[:, 1:])
    window_sum = total[:, window:] - total[:, :-window]
    finished = np.arange(window_sum.shape[1]) + window <= played[:, None]
    good = finished & (window_sum >= threshold * window)
    solved = good.any(axis=1)
    first = good.argmax(axis=1)
    return np.where(solved, first, -1), np.where(solved, total[np.arange(learners), first], -1)


@dataclass(frozen=True, kw_only=True)
class SarsaResult:
    """What a run of `SarsaLearners` came to."""

    solved_at_episode: Ints
    """int64 [L]: episodes played before the first window that qualifies; -1: not solved (`solved_at`)."""
    solved_at_step: Ints
    """int64 [L]: steps taken before that window; -1: not solved."""
    returns: Ints
    """int64 [L, E]: return of each learner's first E = `episodes` episodes; 0 where not played."""
    played: Ints
    """int64 [L]: how many of them were played; E unless `max_steps` ended the run."""
    weights: Floats
    """float64 [L, A, F]."""
    learner_steps: int
    """Steps of all learners together since the start, those before a resume included."""
    seconds: float
    """Wall-clock time of this call of `SarsaLearners.run`."""
    learner_steps_per_second: float
    """Speed of this call."""

    @property
    def solved_share(self) -> float:
        """Share of the learners that solved the task."""
        return float((self.solved_at_episode >= 0).mean())


class SarsaLearners:
    """L learners, each on its own CartPole of Gymnasium's vectorised kind.

    That environment resets in the step *after* an episode's end (Gymnasium's NEXT_STEP mode): such a row takes
    no action, has no transition and counts for nothing; ``ended`` marks it here.

    Parameters
    ----------
    config : SarsaConfig

    Notes
    -----
    Weights start at 0, the reward is 0 and -1 on failure. The same ``config`` gives the same numbers; another
    number of learners gives other ones, for all draw from the same generator.
    """

    def __init__(self, config: SarsaConfig) -> None:
        if config.version == "both":
            raise ConfigError("--version is 'both', but these learners play one CartPole; give v0 or v1")
        learners = config.learners
        self.config = config
        self.weights: Floats = np.zeros((ACTIONS, FEATURES, learners))
        self.traces: Floats = np.zeros_like(self.weights)
        self.ended: Bools = np.zeros(learners, np.bool_)  # the coming row is a reset
        self.first: Bools = np.ones(learners, np.bool_)  # the coming row opens an episode
        self.length: Ints = np.zeros(learners, np.int64)  # steps of the episode under way
        self.returns: Ints = np.zeros((learners, config.episodes), np.int64)
        self.played: Ints = np.zeros(learners, np.int64)
        self.steps = 0  # rows, resets included
        self.learner_steps = 0
        self.rng = np.random.default_rng((config.seed, 1))  # apart from the CartPoles', which is (seed,)
        self._cartpoles = CartPoles(learners, config.version, config.seed)
        self.features = self._cartpoles.features
        self.action = self._choose(self.features)

    def step(self) -> Floats:
        """Take one step with every learner and learn from it; return the TD errors, ``[L] float64``."""
        config, live = self.config, ~self.ended
        reward, terminated, truncated = self._cartpoles.step(self.action)
        next_features = self._cartpoles.features
        next_action = self._choose(next_features)
        td_error = sarsa_update(
            self.weights,
            self.traces,
            self.features,
            self.action,
            reward,
            next_features,
            next_action,
            discount=np.where(terminated, 0.0, config.gamma),
            alpha=np.where(live, config.alpha, 0.0),
            decay=np.where(self.first, 0.0, config.gamma * config.lam),
        )
        self.features, self.action = next_features, next_action
        self.first, self.ended = self.ended, terminated | truncated
        self._count(live)
        return np.where(live, td_error, 0.0)

    def run(self, on_log: Callable[[dict[str, float], int], None] | None = None) -> SarsaResult:
        """Step until every learner has played ``config.episodes`` episodes, or ``config.max_steps`` are done.

        Parameters
        ----------
        on_log : callable, optional
            Called as ``on_log(values, steps)`` every 1,000 steps and at the end. ``steps`` is per learner.

        Raises
        ------
        ConfigError
            If the weights grow without bound.
        """
        started, already = time.perf_counter(), self.learner_steps
        td_errors, rows = np.zeros(self.config.learners), 0

        def speed() -> float:
            return (self.learner_steps - already) / max(time.perf_counter() - started, 1e-9)

        with np.errstate(over="ignore", invalid="ignore"):  # `_check_weights` says it in words
            while not self.finished:
                td_errors += np.abs(self.step())
                rows += 1
                if self.steps % LOG_EVERY_STEPS == 0 or self.finished:
                    self._check_weights()
                    if on_log is not None:
                        td_error = {"sarsa/td_error": float(td_errors.mean()) / rows}
                        on_log(self.metrics() | td_error | {"time/learner_steps_per_second": speed()}, self.steps)
                    td_errors[:], rows = 0.0, 0
        return self._result(time.perf_counter() - started, speed())

    @property
    def finished(self) -> bool:
        """Whether `run` would stop here."""
        return self.steps >= self.config.max_steps or bool((self.played >= self.config.episodes).all())

    def metrics(self) -> dict[str, float]:
        """Return what the learners have achieved so far; linear in the episodes."""
        episode = np.arange(self.config.episodes)
        recent = (episode < self.played[:, None]) & (episode >= self.played[:, None] - WINDOW)
        solved, _ = self._solved()
        return {
            "games/return_mean_100": float(self.returns[recent].mean()) if recent.any() else math.nan,
            "games/episodes_least": float(self.played.min()),
            "sarsa/solved_share": float((solved >= 0).mean()),
        }

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs to go on bit for bit: copied arrays, numbers, JSON."""
        return {
            **{name: getattr(self, name).copy() for name in _STATE_ARRAYS},
            "steps": self.steps,
            "learner_steps": self.learner_steps,
            "rng": json.dumps(self.rng.bit_generator.state),
            "cartpoles": self._cartpoles.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken.

        Raises
        ------
        ConfigError
            If the state belongs to another number of learners or episodes.
        """
        saved, episodes = np.shape(state["returns"])[1], self.config.episodes
        if saved != episodes:
            raise ConfigError(f"--episodes is {episodes}, but the state has {saved}; give --episodes {saved}")
        self._cartpoles.load_state(state["cartpoles"])
        for name in _STATE_ARRAYS:
            setattr(self, name, np.array(state[name]))
        self.steps, self.learner_steps = int(state["steps"]), int(state["learner_steps"])
        self.rng.bit_generator.state = json.loads(state["rng"])

    def _choose(self, features: Floats) -> Ints:
        return choose_actions(action_values(self.weights, features), self.config.epsilon, self.rng)

    def _count(self, live: Bools) -> None:
        """Count the row just learned, and note the return of the episodes that it ended."""
        self.steps += 1
        self.learner_steps += int(np.count_nonzero(live))
        self.length += live
        if not self.ended.any():
            return
        over = np.flatnonzero(self.ended)
        noted = over[self.played[over] < self.config.episodes]
        self.returns[noted, self.played[noted]] = self.length[noted]
        self.played[noted] += 1
        self.length[over] = 0

    def _solved(self) -> tuple[Ints, Ints]:
        return solved_at(self.returns, self.played, SOLVED_RETURN[self.config.version])

    def _check_weights(self) -> None:
        lost = int((~np.isfinite(self.weights).all(axis=(0, 1))).sum())
        if lost:
            raise ConfigError(
                f"--alpha is {self.config.alpha!r}, and the weights of {lost} of {self.config.learners} learners "
                "grew without bound; give a smaller --alpha or --lam"
            )

    def _result(self, seconds: float, speed: float) -> SarsaResult:
        episode, steps = self._solved()
        return SarsaResult(
            solved_at_episode=episode,
            solved_at_step=steps,
            returns=self.returns.copy(),
            played=self.played.copy(),
            weights=np.ascontiguousarray(np.moveaxis(self.weights, -1, 0)),
            learner_steps=self.learner_steps,
            seconds=seconds,
            learner_steps_per_second=speed,
        )


_STATE_ARRAYS: Final = tuple("weights traces features action ended first length returns played".split())


def act(weights: Floats, observation: npt.NDArray[np.floating[Any]]) -> int:
    """Return the best action of one learner: ``[A, F]`` weights and a raw ``[F]`` observation."""
    return int(np.argmax(weights @ (observation / SCALE)))


def film(weights: Floats, config: SarsaConfig, seed: int) -> list[npt.NDArray[np.uint8]]:
    """Film one learner's greedy play: ``[A, F]`` weights, such as ``result.weights[0]``; see `cartpole.film`."""
    return cartpole.film(lambda observation: act(weights, observation), config.version, seed)
