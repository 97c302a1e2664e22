"""Rings of rows, one per environment: columns, cursors, row numbers, and which rows may be drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.replay import _draw, _ring
from fastrl.replay.checks import require
from fastrl.replay.memory import as_bytes
from fastrl.replay.reference import FINAL, ROW, TERMINATED, TRUNCATED
from fastrl.replay.sum_tree import SumTree

__all__ = ["FINAL", "ROW", "TERMINATED", "TRUNCATED", "Ring"]

_COLUMNS = ("first", "reward", "mark", "drawable", "action")  # [N, T]
_CURSORS = ("count", "pending", "ended", "opens")  # [N]
_UNKNOWN = 2  # of `opens`: the newest row is a final observation, but nobody gave its frame


class _Definition(NamedTuple):
    """What is true of each row, all ``[N, T]``."""

    row: NDArray[np.int64]  # its number; negative: never written
    held: NDArray[np.bool_]
    first: NDArray[np.bool_]
    mark: NDArray[np.uint8]
    known: NDArray[np.bool_]  # its window is closed
    drawable: NDArray[np.bool_]


class Ring:
    """Everything about rows but their frames.

    Row ``r`` of environment ``e`` (row numbers only ever grow) lives in *slot* ``e T + r mod T``; its
    *index*, ``r N + e``, names the row itself and is never given twice.

    Parameters
    ----------
    num_envs, rows : int
        N rings of T rows each.
    stack, n_step : int
        Frames in an observation; rewards in a return.
    action_shape, action_dtype
        Shape and dtype of one action.
    """

    def __init__(
        self,
        num_envs: int,
        rows: int,
        stack: int,
        n_step: int,
        action_shape: tuple[int, ...],
        action_dtype: np.dtype[Any],
    ) -> None:
        self.num_envs, self.rows, self.stack, self.n_step = num_envs, rows, stack, n_step
        size = num_envs * rows
        self.first = np.zeros(size, np.uint8)  # stacks do not look back past this row
        self.reward = np.zeros(size, np.float32)
        self.mark = np.zeros(size, np.uint8)  # ROW, TRUNCATED, TERMINATED or FINAL
        self.drawable = np.zeros(size, np.uint8)
        self.action = np.zeros((size, *action_shape), action_dtype)
        self.count = np.zeros(num_envs, np.int64)  # rows ever written
        self.pending = np.zeros(num_envs, np.int64)  # oldest row whose window is still open
        self.ended = np.zeros(num_envs, np.uint8)  # the newest row was a done
        self.opens = np.zeros(num_envs, np.uint8)  # the newest row was a final observation
        self._set_kernel()

    def _set_kernel(self) -> None:
        """Let the kernels work on these arrays, for this n_step."""
        self._changed = np.empty(self.num_envs * (self.stack + self.n_step), np.int64)
        self._rings = _ring.Rings(
            self.rows, self.stack, self.n_step, self.count, self.pending, self.ended, self.opens, self.first,
            self.reward, self.mark, self.drawable,
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_rings"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_kernel()

    def appender(
        self, frames: NDArray[np.uint8], tree: SumTree, obs: NDArray[Any], *, final_inside: bool
    ) -> _ring.Appender:
        """Return what adds whole vector steps in one call, for this n_step.

        Parameters
        ----------
        frames : [slots, bytes] uint8
            Where frames go.
        tree : SumTree
            Weighs the slots.
        obs : [0, *obs_shape] obs_dtype
            What frames look like.
        final_inside : bool
            The row after a done holds the final observation.
        """
        nodes, offsets = tree.memory
        return _ring.Appender(
            self._rings, frames, as_bytes(self.action, len(self.action)), nodes, offsets, obs, self.action[:0],
            final_inside, np.arange(self.num_envs), self._changed, np.zeros(self.num_envs, np.uint8),
        )  # fmt: skip

    def drawer(self, tree: SumTree, gamma: float, *, zero: bool) -> _draw.Drawer:
        """Return what draws rows, for this n_step.

        Parameters
        ----------
        tree : SumTree
            Weighs the slots.
        gamma : float
            Discount per step.
        zero : bool
            Stacks begin with frames of zeros (-1) where a game has too few.
        """
        nodes, offsets = tree.memory
        powers = np.array([gamma**k for k in range(self.n_step + 1)])
        return _draw.Drawer(
            self.rows, zero, powers, nodes, offsets, self.count, self.first, self.reward, self.mark,
            as_bytes(self.action, len(self.action)),
        )  # fmt: skip

    def __len__(self) -> int:
        return int(np.minimum(self.count, self.rows).sum())

    @property
    def held(self) -> int:
        """Slots of each ring that any row was written to: the others hold nothing worth saving."""
        return int(min(self.count.max(), self.rows))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the columns take."""
        return sum(getattr(self, name).nbytes for name in _COLUMNS + _CURSORS)

    def push(
        self,
        env: NDArray[np.int64],
        action: NDArray[Any] | None,
        reward: NDArray[np.float32],
        mark: NDArray[np.uint8],
        first: NDArray[np.int8],
    ) -> NDArray[np.int64]:
        """Append one row to each ring in ``env [n]``, which names none twice; their frames are in their slots already.

        Returns the slots ``[m]`` whose ``drawable`` this changed (a view, good until the next call).
        """
        slots = np.empty(len(env), np.int64)
        found = self._rings.push(env, reward, mark, first, slots, self._changed)
        if action is not None:
            self.action[slots] = action
        return self._changed[:found]

    def slots_ahead(self, env: NDArray[np.int64], rows: int = 0) -> NDArray[np.int64]:
        """Return where the next row of each ring in ``env [n]`` will go, or the one so many rows after it."""
        return env * self.rows + (self.count[env] + rows) % self.rows

    def next_slots(self, rows: int) -> NDArray[np.int64]:
        """Return where the next so many rows of each ring will go, ``[rows, N]``."""
        ahead = self.count + np.arange(rows)[:, None]
        return np.arange(self.num_envs) * self.rows + ahead % self.rows

    def check_first(self, env: NDArray[np.int64], first: NDArray[np.int8]) -> None:
        """Raise ValueError if a row would go on with a game whose last frame was not given."""
        if ((first == 0) & (self.opens[env] == _UNKNOWN)).any():
            raise ValueError(
                "first is False after a done whose final_obs was None, so that a frame is missing from the stacks "
                "that go on; give final_obs there, or first=True here"
            )

    def forbid_going_on(self, env: NDArray[np.int64]) -> None:
        """Note that the newest rows of ``env``, final observations, hold no frame that was seen."""
        self.opens[env] = _UNKNOWN

    def set_n_step(self, n_step: int) -> NDArray[np.int64]:
        """Sum so many rewards from now on; return the slots ``[m]`` whose ``drawable`` this changed.

        Reads every row. Rows of an abandoned episode may be drawn as far as the new windows reach.
        """
        # The running episode of each ring began with the newest row that opens a game or follows a final one.
        begin = np.maximum(self.count - n_step, 0)
        env = np.arange(self.num_envs)
        for row in (self.count - k for k in range(n_step, 0, -1)):  # oldest first
            slot = env * self.rows + row % self.rows
            begin = np.where((row >= 0) & (self.first[slot] != 0), row, begin)
            begin = np.where((row >= 0) & (self.mark[slot] == FINAL), row + 1, begin)
        before, self.n_step = self.n_step, n_step
        try:  # of a large replay this takes a good deal of memory
            expected = self._definition().drawable.reshape(-1)
            changed = np.flatnonzero((self.drawable != 0) != expected)
            self._set_kernel()
        except BaseException:
            self.n_step = before
            raise
        self.pending[:] = begin
        self.drawable[:] = expected
        return changed

    def slots(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return where the rows named ``index [B]`` live, and which of them may be drawn now.

        Raises
        ------
        ValueError
            If an index names no row that was ever written.
        """
        slots, alive = np.empty(len(index), np.int64), np.empty(len(index), np.bool_)
        unknown = self._rings.locate(index, slots, alive.view(np.uint8))
        if unknown >= 0:
            raise ValueError(f"index holds {index[unknown]}, which names no row; pass a batch's own index")
        return slots, alive

    def age(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many rows came after each row named ``index [B]`` in its ring; errors as `slots`."""
        self.slots(index)
        row, env = np.divmod(index, self.num_envs)
        return self.count[env] - 1 - row

    def _definition(self) -> _Definition:
        """Work out from rows and marks alone which rows may be drawn."""
        by_env = (self.num_envs, self.rows)
        newest = self.count[:, None] - 1
        row = newest - (newest - np.arange(self.rows)) % self.rows  # [N, T]; negative: never written
        held = row >= 0
        first, mark = self.first.reshape(by_env) != 0, self.mark.reshape(by_env)
        env = np.arange(self.num_envs)[:, None]
        oldest = np.maximum(self.count[:, None] - self.rows, 0)

        stack_held, inside = held.copy(), ~first
        for k in range(1, self.stack):
            stack_held &= ~inside | (row - k >= oldest)
            inside = inside & ~first[env, (row - k) % self.rows]

        open_window, known = np.ones(by_env, bool), held.copy()
        for k in range(self.n_step):
            open_window &= ~((k > 0) & np.isin(mark[env, (row + k - 1) % self.rows], (TRUNCATED, TERMINATED)))
            follows = (row + k + 1 <= newest) & ~first[env, (row + k + 1) % self.rows]
            known &= ~open_window | follows
        return _Definition(row, held, first, mark, known, held & (mark != FINAL) & stack_held & known)

    def check(self) -> None:
        """Raise AssertionError unless ``drawable`` is what its definition says of every row."""
        require((self.count >= 0).all(), "a cursor is negative")
        require((self.mark <= FINAL).all(), "a mark is none")
        row, held, first, mark, known, expected = self._definition()
        require(
            np.array_equal(self.drawable.reshape(expected.shape) != 0, expected), "drawable differs from its definition"
        )

        env, newest = np.arange(self.num_envs)[:, None], self.count[:, None] - 1
        any_row = self.count > 0
        last = mark[env[:, 0], newest[:, 0] % self.rows]
        ended = any_row & ((last == TRUNCATED) | (last == TERMINATED))
        require(np.array_equal(self.ended != 0, ended), "an episode's end is lost")
        require(np.array_equal(self.opens != 0, any_row & (last == FINAL)), "an episode's beginning is lost")
        # Windows are open from `pending` on: a row before it is closed or was abandoned.
        waiting = held & (row >= self.pending[:, None])
        require(not (waiting & expected).any(), "a window is open twice")
        require(((self.pending >= self.count - self.n_step) & (self.pending <= self.count)).all(), "a window is lost")
        abandoned = held & ~known & (mark != FINAL) & ~waiting
        follows_first = np.zeros(held.shape, bool)
        for k in range(1, self.n_step + 1):
            follows_first |= (row + k <= newest) & first[env, (row + k) % self.rows]
        require(not (abandoned & ~follows_first).any(), "an open window is not waited for")

    def state(self) -> dict[str, NDArray[Any]]:
        """Return cursors ``[N]`` and columns ``[N, rows written at most, …]`` (views)."""
        columns = {
            name: getattr(self, name).reshape(self.num_envs, self.rows, *getattr(self, name).shape[1:])[:, : self.held]
            for name in _COLUMNS
        }
        return {name: getattr(self, name) for name in _CURSORS} | columns

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over what `state` of an equal ring returned.

        Raises
        ------
        ValueError
            If an array has another shape or dtype than this ring's.
        """
        held = state["first"].shape[1]
        for name in _CURSORS + _COLUMNS:
            mine, other = getattr(self, name), state[name]
            tail = mine.shape if name in _CURSORS else (self.num_envs, held, *mine.shape[1:])
            if other.shape != tail or other.dtype != mine.dtype or held > self.rows:
                raise ValueError(f"{name} is {other.dtype} {other.shape}; expected {mine.dtype} {tail}")
        for name in _CURSORS:
            getattr(self, name)[:] = state[name]
        for name in _COLUMNS:
            mine = getattr(self, name)
            mine.reshape(self.num_envs, self.rows, *mine.shape[1:])[:, :held] = state[name]
