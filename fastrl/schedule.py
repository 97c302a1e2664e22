"""Values that change over a run: pure functions of a step count, so they need no saved state."""

from __future__ import annotations


def linear(start: float, end: float, duration: int, step: int) -> float:
    """Go from ``start`` at step 0 to ``end`` at step ``duration`` on a straight line, then stay.

    Parameters
    ----------
    start, end : float
        Value at the beginning and from ``duration`` on.
    duration : int
        Length of the slope, in the unit that ``step`` counts; 0 gives ``end`` at once.
    step : int
        Where on the slope to look; negative counts as 0.
    """
    step = max(step, 0)
    if step >= duration:
        return end
    return start + (end - start) * step / duration
