"""Schedules. Functions of the step count; a checkpoint keeps the length of the run that they were planned for."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.config import DQNConfig


def linear(start: float, end: float, duration: float, step: int) -> float:
    """Go from ``start`` at step 0 to ``end`` at step ``duration`` on a straight line, then stay.

    Parameters
    ----------
    start, end : float
        Value at the beginning and from ``duration`` on.
    duration : float
        Length of the slope, in the unit that ``step`` counts; 0 gives ``end`` at once.
    step : int
        Where on the slope to look; negative counts as 0.
    """
    step = max(step, 0)
    if step >= duration:
        return end
    return start + (end - start) * step / duration


def discounts(start: float, end: float, duration: float, step: int) -> float:
    """Go from one discount to another as `linear` does, on a straight line in log(1 - gamma).

    1 / (1 - gamma) is how many steps ahead a return looks, about; it grows by equal factors in equal times, as in
    François-Lavet et al. 2015 (1 - gamma falls by one factor again and again) and Schwarzer et al. 2023 (BBF).
    ``start`` and ``end`` are below 1.
    """
    if start == end or not 0 < step < duration:
        return linear(start, end, duration, step)
    return -math.expm1(linear(math.log1p(-start), math.log1p(-end), duration, step))


def along(
    points: Sequence[tuple[int, float]],
    step: int,
    between: Callable[[float, float, float, int], float] = linear,
) -> float:
    """Return the value of a schedule after ``step`` steps.

    Parameters
    ----------
    points : sequence of (int, float)
        Steps, which never descend from 0, and values; of two values at one step the later holds.
    step : int
        Where to look; negative counts as 0.
    between : callable
        Goes from one value to the next, as `linear` does.
    """
    step = max(step, 0)
    reached = bisect.bisect_right(points, step, key=lambda point: point[0])
    begun, value = points[reached - 1]
    if reached == len(points):
        return value
    ends, following = points[reached]
    return between(value, following, ends - begun, step - begun)


def ladder(ends: Sequence[float], n: int) -> NDArray[np.float64]:
    """Return shares of random actions of n games, [n] float64, each the same factor below the one before.

    ``ends`` are those of the first game and the last: game i of N has first^(1 - x) last^x, where x = i / (N - 1).
    Horgan et al. 2018 write it as epsilon^(1 + alpha x): their 0.4 and 7 are the ends 0.4 and 0.4^8, 0.00066. One game
    alone has the last.
    """
    first, last = ends
    return np.geomspace(first, last, n) if n > 1 else np.array([float(last)])


class Schedules:
    """What changes over a run of deep Q-learning, by its settings and the agent steps played.

    All but beta count agent steps since learning started.

    Warm-up, epsilon and beta depend on the length of the run. A run that is resumed with another length keeps the
    warm-up and the slope of epsilon that it was planned with, so that nothing that has ended starts again; beta goes
    from where it stands to its end over the steps that are left.

    Parameters
    ----------
    config : DQNConfig
        All settings.
    """

    def __init__(self, config: DQNConfig) -> None:
        self._config = config
        self._planned = config  # of the length that the run was planned with
        self._ladder = ladder(config.epsilon_ladder, config.all_envs) if config.epsilon_ladder else None
        self._beta_from: tuple[int, float] = (0, config.beta_start)  # steps, value

    @property
    def warm_up_steps(self) -> int:
        """Agent steps before learning starts."""
        return self._planned.warm_up_steps

    def epsilon(self, steps: int) -> float:
        """Share of random actions after ``steps`` agent steps; with a ladder, mean over the games with scores."""
        if self._ladder is not None:
            return float(self._ladder[self._config.first_scored_env :].mean())
        return float(along(self._planned.epsilon_points, self._learned(steps)))

    def epsilons(self, steps: int) -> float | NDArray[np.float64]:
        """Share of random actions of all games after ``steps`` agent steps; with a ladder, of each, [N] float64."""
        return self.epsilon(steps) if self._ladder is None else self._ladder

    def beta(self, steps: int) -> float:
        """Exponent of the importance weights after ``steps`` agent steps."""
        return self._beta(self._config.total_steps, steps)

    def n_step(self, steps: int) -> int:
        """Rewards that a return sums after ``steps`` agent steps."""
        return round(along(self._config.n_step_points, self._learned(steps)))

    def gamma(self, steps: int) -> float:
        """Discount per agent step after ``steps`` agent steps."""
        return along(self._config.gamma_points, self._learned(steps), discounts)

    def target_period(self, steps: int) -> int:
        """Updates between two copies into the target network after ``steps`` agent steps."""
        return round(along(self._config.target_period_points, self._learned(steps)))

    def learning_rate(self, steps: int) -> float:
        """Step size of the optimizer after ``steps`` agent steps."""
        learned = self._learned(steps)
        warmth = linear(0.0, 1.0, self._config.rate_warm_up_steps, learned)
        return warmth * along(self._config.learning_rate_points, learned)

    def _learned(self, steps: int) -> int:
        """Agent steps since learning started, of ``steps``; negative before."""
        return steps - self.warm_up_steps

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-able."""
        return {
            "planned_frames": self._planned.total_frames,
            "total_frames": self._config.total_frames,
            "beta_from": None if self._beta_from[0] == 0 else list(self._beta_from),
        }

    def load_state(self, state: dict[str, Any], steps: int) -> bool:
        """Take over what `state` returned after ``steps`` agent steps; return whether the run's length has changed."""
        self._planned = self._config.replace(total_frames=state["planned_frames"])
        if state["beta_from"] is not None:
            begun, value = state["beta_from"]
            self._beta_from = (int(begun), float(value))
        if state["total_frames"] == self._config.total_frames:
            return False
        before = self._config.replace(total_frames=state["total_frames"])
        self._beta_from = (steps, self._beta(before.total_steps, steps))
        return True

    def _beta(self, total_steps: int, steps: int) -> float:
        """Return beta after ``steps`` agent steps of a run of ``total_steps``."""
        begun, value = self._beta_from
        return linear(value, self._config.beta_end, total_steps - begun, steps - begun)
