"""Hindsight: transitions that are drawn with a goal that their episode reached, and the rewards for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrl.base.checks import number
from fastrl.replay.batch import Batch, ExtraBatch
from fastrl.replay.checks import as_array
from fastrl.replay.checks import numbers as real_numbers
from fastrl.replay.marks import FINAL, ROW
from fastrl.replay.ring import Ring
from fastrl.replay.stores.layout import Field, Layout
from fastrl.replay.stores.store import FrameStore

OfGoals = Callable[[NDArray[Any], NDArray[Any]], ArrayLike]
"""A function of achieved and desired goals, ``[M, *shape]`` each; returns ``[M]``."""
_WIDTHS = 32, 1024  # rows that a search for the end of an episode looks at in its first turn, and at most in one turn


@dataclass(frozen=True, slots=True)
class Hindsight:
    """How `ReplayBuffer.sample_hindsight` replaces goals (Andrychowicz et al. 2017, sections 3.3 and 4.5).

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    reward: OfGoals
    """``reward(achieved, desired)`` returns the rewards ``[M]`` of M steps: ``achieved [M, *shape]`` was reached by the
    step, at its next state; ``desired [M, *shape]`` is the new goal. It must not change the buffer."""
    strategy: Literal["future", "final", "episode"] = "future"
    """Where the new goal was achieved: at a state of the episode after the row's own, at its last one, or at any."""
    share: float = 0.8
    """Probability that a row gets a new goal, from 0 to 1: k/(k + 1), where the paper stores k copies of it."""
    achieved: str = "achieved_goal"
    """Key of the goal that a state achieves, in the dictionary of observations."""
    desired: str = "desired_goal"
    """Key of the goal that the agent is told."""
    terminated: OfGoals | None = None
    """As ``reward``, and returns ``[M] bool``: whether the step ends the episode under the new goal. It decides alone
    then: an episode that terminated goes on where it says False. None: ends stay what they were."""

    def __post_init__(self) -> None:
        if self.strategy not in ("future", "final", "episode"):
            raise ValueError(f"strategy is {self.strategy!r}; give one of 'future', 'final', 'episode'")
        object.__setattr__(self, "share", number("share", self.share, 1.0))
        for name, function in (("reward", self.reward), ("terminated", self.terminated)):
            if not callable(function) and (name == "reward" or function is not None):
                raise ValueError(f"{name} is {function!r}; give a function of achieved and desired goals")
        if self.achieved == self.desired:
            raise ValueError(f"achieved and desired are both {self.desired!r}; give two arrays of the observation")


@dataclass(frozen=True, slots=True, eq=False)
class HindsightBatch(ExtraBatch):
    """Transitions, some with a goal of hindsight; as a `Batch` otherwise.

    In rows with a new goal, ``obs`` and ``next_obs`` show it in each frame of their stacks but padding of zeros,
    ``reward`` is the sum of the new rewards of the same steps, and ``weight`` and ``index`` are those of the row.
    """

    relabelled: NDArray[np.bool_] = field()
    """``[B]``: whether the row has a new goal."""


class Relabeller:
    """Gives rows that were drawn new goals.

    Parameters
    ----------
    ring : Ring
        Rows, without their frames.
    stores : sequence of FrameStore
        Their arrays, one store for each field of the layout.
    layout : Layout
        The arrays of a row.
    zero : bool
        Whether zeros stand in a stack before the first frame of a game, or that frame again.
    """

    def __init__(self, ring: Ring, stores: Sequence[FrameStore], layout: Layout, *, zero: bool) -> None:
        self._ring, self._stores, self._layout, self._zero = ring, stores, layout, zero

    def check(self, hindsight: Hindsight) -> None:
        """Raise ValueError if there are no such goals."""
        if not isinstance(hindsight, Hindsight):
            raise ValueError(f"hindsight is {hindsight!r}; give a fastrl.replay.Hindsight")
        obs = self._layout.obs
        arrays = [key for key, part in obs.items() if part is None] if isinstance(obs, dict) else []
        for name, key in (("achieved", hindsight.achieved), ("desired", hindsight.desired)):
            if key not in arrays:
                others = f"give one of {', '.join(map(repr, arrays))}, or " if arrays else ""
                raise ValueError(
                    f"{name} is {key!r}, which is no array of the observations; {others}build the buffer with a "
                    "dictionary of shapes as obs_shape that has it"
                )
        (_, achieved), (store, desired) = self._field(hindsight.achieved), self._field(hindsight.desired)
        if achieved.shape != desired.shape or achieved.dtype != desired.dtype:
            raise ValueError(
                f"{achieved.name} is {achieved.dtype} {achieved.shape} and {desired.name} {desired.dtype} "
                f"{desired.shape}, so that one cannot stand for the other; build the buffer with obs_shape and "
                "obs_dtype in which they are alike"
            )
        if not isinstance(store.empty((1, *desired.shape)), np.ndarray):
            raise ValueError(
                f"the store of {desired.name} makes no NumPy arrays, into which goals are written; build the buffer "
                "with store='ram' for it"
            )

    def relabel(
        self,
        hindsight: Hindsight,
        batch: Batch,
        numbers: NDArray[np.int64],
        rng: np.random.Generator,
        gamma: float,
        gather: Callable[[], None],
    ) -> HindsightBatch:
        """Return the batch with new goals and their rewards in a share of its rows.

        Parameters
        ----------
        hindsight : Hindsight
            Which goals; see `check`.
        batch : Batch
            Complete except for its frames.
        numbers : [2, B, stack] int64
            Frames of ``obs`` and of ``next_obs``; -1 is a frame of zeros. Changed where a new goal ends an episode.
        rng : Generator
            Gives 2 B numbers: whether a row gets a new goal, and which.
        gamma : float
            Discount per step.
        gather : callable
            Fills in the frames of ``numbers``.

        Raises
        ------
        ValueError
            If a function of the user's returns what does not fit.
        RuntimeError
            If it changed the buffer.
        """
        ring, size = self._ring, len(batch.index)
        coins, places = rng.random((2, size))
        relabelled = coins < hindsight.share
        which = np.flatnonzero(relabelled)
        row, env = np.divmod(batch.index[which], ring.num_envs)
        goals = self._achieved(hindsight, env, self._goal_rows(hindsight.strategy, env, row, places[which]))
        if len(which):
            length = self._window(env, row)
            taken, reward, ended = self._returns(hindsight, env, row, length, goals, gamma)
            with np.errstate(over="ignore"):
                batch.reward[which] = reward
            if hindsight.terminated is not None:
                batch.discount[which] = np.where(ended, 0.0, _powers(gamma, ring.n_step)[taken])
                short = taken < length
                numbers[1, which[short]] = self._stacks(env[short], (row + taken)[short])
        gather()
        for frames, of_frames in zip((batch.obs, batch.next_obs), numbers, strict=True):
            array = frames[hindsight.desired]
            there = of_frames[which][:, -array.shape[1] :] >= 0
            array[which] = np.where(there.reshape(*there.shape, *[1] * (goals.ndim - 1)), goals[:, None], 0)
        arrays = {name: getattr(batch, name) for name in Batch.__slots__}
        return HindsightBatch(**arrays, extra=batch.extra, next_extra=batch.next_extra, relabelled=relabelled)

    def _returns(
        self,
        hindsight: Hindsight,
        env: NDArray[np.int64],
        row: NDArray[np.int64],
        length: NDArray[np.int64],
        goals: NDArray[Any],
        gamma: float,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return of windows of ``length [M]`` steps, under new goals: steps taken, sums of rewards, and if they end."""
        ring = self._ring
        whose = np.repeat(np.arange(len(row)), length)  # [steps]
        k = np.arange(len(whose)) - np.repeat(np.cumsum(length) - length, length)
        achieved = self._achieved(hindsight, env[whose], row[whose] + k + 1)
        count = ring.count.copy()
        rewards = _rewards(hindsight.reward(achieved.copy(), goals[whose]), len(whose))
        taken, ended = length.copy(), np.zeros(len(row), np.bool_)
        if hindsight.terminated is not None:
            ends = _flags(hindsight.terminated(achieved, goals[whose]), len(whose))
            np.minimum.at(taken, whose[ends], k[ends] + 1)
            ended[whose[ends]] = True
        if not np.array_equal(count, ring.count):
            raise RuntimeError(
                "reward or terminated added rows to the buffer that calls it; add them before or after the draw"
            )
        counting = k < taken[whose]
        discounted = (_powers(gamma, ring.n_step)[k] * rewards)[counting]
        total = np.zeros(len(row))
        np.add.at(total, whose[counting], discounted)  # in the order of the steps, as the kernel does
        return taken, total, ended

    def _field(self, key: str) -> tuple[FrameStore, Field]:
        """Return the store and field of an array of the observations."""
        k = [each.name for each in self._layout.fields].index(f"obs[{key!r}]")
        return self._stores[k], self._layout.fields[k]

    def _achieved(self, hindsight: Hindsight, env: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[Any]:
        """Return the goals achieved at these rows, ``[M, *shape]``."""
        store, each = self._field(hindsight.achieved)
        goals = np.empty((len(row), 1, *each.shape), each.dtype)
        if len(row):
            store.gather(self._at(env, row)[None, :, None], goals)
        return goals[:, 0]

    def _goal_rows(
        self, strategy: str, env: NDArray[np.int64], row: NDArray[np.int64], places: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Return the rows whose achieved goals are taken, given numbers in [0, 1)."""
        last = self._last(env, row)
        if strategy == "final":
            return last
        first = row + 1 if strategy == "future" else self._begin(env, row)
        return first + (places * (last - first + 1)).astype(np.int64)

    def _last(self, env: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the last row of each row's episode: its final observation, or the newest so far."""
        ring = self._ring

        def stops(env: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            ends: NDArray[np.bool_] = (ring.mark[self._at(env, rows)] == FINAL) | (rows >= ring.count[env] - 1)
            ends |= ring.first[self._at(env, rows + 1)] != 0
            return ends

        return _search(env, row, 1, stops)

    def _begin(self, env: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first row of each row's episode that is held."""
        ring = self._ring
        oldest = ring.oldest

        def stops(env: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            begins: NDArray[np.bool_] = (ring.first[self._at(env, rows)] != 0) | (rows <= oldest[env])
            begins |= ring.mark[self._at(env, rows - 1)] == FINAL
            return begins

        return _search(env, row, -1, stops)

    def _window(self, env: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many steps are summed from each row on, as the kernel does."""
        length, going = np.ones(len(row), np.int64), np.ones(len(row), np.bool_)
        for k in range(1, self._ring.n_step):
            going &= self._ring.mark[self._at(env, row + k - 1)] == ROW
            length += going
        return length

    def _stacks(self, env: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the frames of the stacks of these rows, ``[M, stack]``, oldest first."""
        ring = self._ring
        numbers, going, row = np.empty((len(row), ring.stack), np.int64), np.ones(len(row), np.bool_), row.copy()
        for k in range(ring.stack - 1, -1, -1):
            slots = self._at(env, row)
            numbers[:, k] = np.where(going | (not self._zero), slots, -1)
            going = going & (ring.first[slots] == 0)
            row -= going
        return numbers

    def _at(self, env: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of rows."""
        return env * self._ring.rows + row % self._ring.rows


def _search(
    env: NDArray[np.int64],
    row: NDArray[np.int64],
    step: int,
    stops: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]],
) -> NDArray[np.int64]:
    """Return the first row, from each of ``row [M]`` on in steps of 1 or -1, where ``stops(env, rows)`` is True."""
    found, going, (width, most) = row.copy(), np.arange(len(row)), _WIDTHS
    while len(going):
        there = stops(env[going][:, None], found[going][:, None] + step * np.arange(width))
        stopped = there.any(axis=1)
        found[going] += step * np.where(stopped, there.argmax(axis=1), width)
        going, width = going[~stopped], min(2 * width, most)
    return found


def _powers(gamma: float, most: int) -> NDArray[np.float64]:
    """Return gamma to the powers 0 to ``most``, as the kernels have them."""
    return np.array([gamma**k for k in range(most + 1)])


def _rewards(value: ArrayLike, count: int) -> NDArray[np.float32]:
    """Return what the function of rewards returned, as `ReplayBuffer.add` would have kept it."""
    found = real_numbers("what reward returned", value, f"return one number for each goal, ({count},)")
    if found.shape != (count,):
        raise ValueError(f"reward returned shape {found.shape}; return one number for each goal, ({count},)")
    with np.errstate(over="ignore"):
        rewards = found.astype(np.float32)
    bad = ~np.isfinite(rewards)
    if bad.any():
        raise ValueError(f"reward returned {found[bad][0]}; return finite numbers that float32 holds")
    return rewards


def _flags(value: ArrayLike, count: int) -> NDArray[np.bool_]:
    """Return what the function of ends returned."""
    found = as_array("what terminated returned", value, f"return one bool for each goal, ({count},)")
    if found.shape != (count,) or found.dtype != np.bool_:
        raise ValueError(
            f"terminated returned {found.dtype} {found.shape}; return one bool for each goal, bool ({count},)"
        )
    return found
