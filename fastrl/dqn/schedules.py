"""Schedules. Pure functions of the step count, so there is nothing to checkpoint."""

from __future__ import annotations

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


class Schedules:
    """What changes over a run of deep Q-learning, by its settings and the agent steps played so far."""

    config: DQNConfig
    steps: int

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        c = self.config
        return linear(c.epsilon_start, c.epsilon_end, c.epsilon_decay_steps, self.steps - c.warm_up_steps)

    @property
    def beta(self) -> float:
        """Exponent of the importance weights now."""
        return linear(self.config.beta_start, self.config.beta_end, self.config.total_steps, self.steps)

    @property
    def n_step(self) -> int:
        """Rewards that a return sums now."""
        c = self.config
        end = c.n_step if c.n_step_end is None else c.n_step_end
        return round(linear(c.n_step, end, c.n_step_steps, self.steps - c.warm_up_steps))

    @property
    def learning_rate(self) -> float:
        """Step size of the optimizer now."""
        c = self.config
        end = c.learning_rate if c.learning_rate_end is None else c.learning_rate_end
        learned = self.steps - c.warm_up_steps
        warmth = linear(0.0, 1.0, c.rate_warm_up_steps, learned)
        return warmth * linear(c.learning_rate, end, c.learning_rate_steps, learned)
