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

from fastrl.base.errors import ConfigError
from fastrl.config import SarsaConfig
from fastrl.sarsa import cartpole
from fastrl.sarsa.cartpole import ACTIONS, FEATURES, SCALES, SOLVED_RETURN, CartPoles

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

WINDOW: Final = 100
"""Consecutive episodes whose average return decides whether a learner has solved the task."""
LOG_EVERY_STEPS: Final = 1_000
"""Steps between two calls of ``on_log``."""
_EVERY_ACTION: Final = np.arange(ACTIONS)[:, None]


def state_action_features(features: Floats, action: Ints) -> Floats:
    """Lay the features into the block of the chosen action: ``[F, L]`` and ``[L]`` to ``[A, F, L]``."""
    chosen = (_EVERY_ACTION == action).astype(np.float64)  # bool times float is a slow loop
    laid_out: Floats = chosen[:, None, :] * features
    return laid_out


def action_values(weights: Floats, features: Floats) -> Floats:
    """Return Q(s, a) = w_a·s for every action: ``[A, F, L]`` and ``[F, L]`` to ``[A, L] float64``."""
    values: Floats = np.einsum("afl,fl->al", weights, features)  # no array of products in between
    return values


def choose_actions(values: Floats, epsilon: float | Floats, rng: np.random.Generator) -> Ints:
    """Choose epsilon-greedily for each learner by itself; equal best values are broken at random.

    Parameters
    ----------
    values : float64 [2, L]
        A learner for which one of them is NaN chooses at random.
    epsilon : float or float64 [L]
        Share of uniformly random actions; each learner tosses its own coin.
    rng : Generator

    Returns
    -------
    int64 [L]
    """
    right, left = values[1] > values[0], values[0] > values[1]
    action: Ints = right.astype(np.int64)
    tied = right == left
    if tied.any():
        action[tied] = rng.integers(ACTIONS, size=np.count_nonzero(tied))
    if isinstance(epsilon, np.ndarray) or epsilon > 0:
        explores = np.flatnonzero(rng.random(len(action)) < epsilon)
        action[explores] = rng.integers(ACTIONS, size=len(explores))
    return action


def sarsa_update(
    weights: Floats,
    traces: Floats,
    features: Floats,
    action: Ints,
    reward: Floats,
    next_value: Floats,
    *,
    discount: Floats,
    alpha: Floats,
    decay: Floats,
) -> Floats:
    """Learn from one transition per learner; changes ``weights`` and ``traces`` in place.

    With x = x(s, a)::

        delta = r + discount Q(s', a') - w·x
        e     = decay e + x                  accumulating traces
        w     = w + alpha delta e

    Parameters
    ----------
    weights, traces : float64 [A, F, L]
    features : float64 [F, L]
        s.
    action : int64 [L]
        a.
    reward : float64 [L]
    next_value : float64 [L]
        Q(s', a') by these weights, with the a' that the policy will really take in s' (on-policy).
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
    Sutton & Barto 2018, equations 12.5 to 12.7 with the traces of section 12.7. Nothing here asks whether numbers
    are finite: a learner whose weights overflow keeps NaN ones, without effect on its neighbours.
    """
    x = state_action_features(features, action)
    td_error: Floats = reward + discount * next_value - np.einsum("afl,afl->l", weights, x)
    traces *= decay
    traces += x
    weights += np.multiply(alpha * td_error, traces, out=x)  # x has served
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
    lost: Bools
    """bool [L]: the weights grew without bound; unsolved, unless the task was solved before that."""

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
    Weights start at 0. The same ``config`` gives the same numbers; another number of learners gives other ones,
    for all draw from the same generator.

    A learner whose weights grow without bound (large steps on raw features) ends up with NaN ones. That is an outcome,
    no error: it continues to play, at random, and its episodes count like any other's (`SarsaResult.lost`).

    ``learning_rate``, ``gamma``, ``lam`` and ``epsilon`` are the config's; an array ``[L]`` put in the place of one
    gives each learner its own, so that one run can try many settings.
    """

    def __init__(self, config: SarsaConfig) -> None:
        if config.version == "both":
            raise ConfigError("--version is 'both', but these learners play one CartPole; give v0 or v1")
        learners = config.learners
        self.config = config
        self.learning_rate: float | Floats = config.learning_rate
        self.gamma: float | Floats = config.gamma
        self.lam: float | Floats = config.lam
        self.epsilon: float | Floats = config.epsilon
        self.weights: Floats = np.zeros((ACTIONS, FEATURES, learners))
        self.traces: Floats = np.zeros_like(self.weights)
        self.ended: Bools = np.zeros(learners, np.bool_)  # the coming row is a reset
        self.first: Bools = np.ones(learners, np.bool_)  # the coming row opens an episode
        self.length: Ints = np.zeros(learners, np.int64)  # steps of the episode in progress
        self.returns: Ints = np.zeros((learners, config.episodes), np.int64)
        self.played: Ints = np.zeros(learners, np.int64)
        self.steps = 0  # rows, resets included
        self.learner_steps = 0
        self.rng = np.random.default_rng((config.seed, 1))  # apart from the CartPoles', which is (seed,)
        kind = {"reward": config.reward, "features": config.features, "dynamics": config.dynamics}
        self._cartpoles = CartPoles(learners, config.version, config.seed, **kind)
        self.features = self._cartpoles.features
        self.action, _ = self._choose(self.features)

    @np.errstate(over="ignore", invalid="ignore")  # lost learners are counted, not warned of
    def step(self) -> Floats:
        """Take one step with every learner and learn from it; return the TD errors, ``[L] float64``."""
        live = ~self.ended
        reward, terminated, truncated = self._cartpoles.step(self.action)
        next_features = self._cartpoles.features
        next_action, next_value = self._choose(next_features)
        td_error = sarsa_update(
            self.weights,
            self.traces,
            self.features,
            self.action,
            reward,
            next_value,
            discount=np.where(terminated, 0.0, self.gamma),
            alpha=np.where(live, self.learning_rate, 0.0),
            decay=np.where(self.first, 0.0, self.gamma * self.lam),
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
        """
        started, already = time.perf_counter(), self.learner_steps
        td_errors, rows, finished = np.zeros(self.config.learners), 0, self.finished

        def speed() -> float:
            return (self.learner_steps - already) / max(time.perf_counter() - started, 1e-9)

        while not finished:
            with np.errstate(over="ignore"):
                td_errors += np.abs(self.step())
            rows += 1
            finished = self.finished
            if self.steps % LOG_EVERY_STEPS == 0 or finished:
                if on_log is not None:
                    td_error = _mean(td_errors[np.isfinite(td_errors)]) / rows
                    clock = {"time/learner_steps_per_second": speed()}
                    on_log(self.metrics() | {"sarsa/td_error": td_error} | clock, self.steps)
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
            "games/return_mean_100": _mean(self.returns[recent]),
            "games/episodes_least": float(self.played.min()),
            "sarsa/solved_share": float((solved >= 0).mean()),
            "sarsa/lost_share": float(self._lost().mean()),
        }

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs to continue bit for bit: copied arrays, numbers, JSON."""
        return {
            **{name: getattr(self, name).copy() for name in _STATE_ARRAYS},
            "steps": self.steps,
            "learner_steps": self.learner_steps,
            "rng": json.dumps(self.rng.bit_generator.state),
            "cartpoles": self._cartpoles.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state` was taken.

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

    def _choose(self, features: Floats) -> tuple[Ints, Floats]:
        """Choose actions; return them and their values, ``[L]`` each."""
        values = action_values(self.weights, features)
        action = choose_actions(values, self.epsilon, self.rng)
        return action, np.where(action == 1, values[1], values[0])

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

    def _lost(self) -> Bools:
        return np.logical_not(np.isfinite(self.weights).all(axis=(0, 1)))

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
            lost=self._lost(),
        )


_STATE_ARRAYS: Final = tuple("weights traces features action ended first length returns played".split())


def _mean(values: npt.NDArray[Any]) -> float:
    """Return the mean; NaN, without a warning, where there are no values."""
    return float(values.mean()) if values.size else math.nan


def act(weights: Floats, observation: npt.NDArray[np.floating[Any]], features: str = "scaled") -> int:
    """Return the best action of one learner: ``[A, F]`` weights and a raw ``[F]`` observation."""
    return int(np.argmax(weights @ (observation / SCALES[features])))


def film(weights: Floats, config: SarsaConfig, seed: int) -> list[npt.NDArray[np.uint8]]:
    """Film one learner's greedy play: ``[A, F]`` weights, such as ``result.weights[0]``; see `cartpole.film`."""
    return cartpole.film(lambda observation: act(weights, observation, config.features), config.version, seed)
