"""Rings of rows, one per environment: columns, cursors, row numbers, and which rows may be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.base.checks import assert_that
from fastrl.replay import _append, _draw, _ring
from fastrl.replay.arrays import as_bytes
from fastrl.replay.marks import FINAL, TERMINATED, TRUNCATED, UNKNOWN
from fastrl.replay.sum_tree import SumTree

_COLUMNS = ("first", "reward", "mark", "drawable", "action")  # [N, T]
_CURSORS = ("count", "pending", "ended", "opens", "lost")  # [N]


_CHANGES = 4096  # slots that change before their weights are written, where many vector steps come at once


class AppendedArray(NamedTuple):
    """One array of a row, as the kernel that adds vector steps writes it."""

    memory: NDArray[np.uint8]  # [slots, bytes]: where it goes
    like: NDArray[Any]  # [0, *shape]: of its shape and dtype
    has_final: bool  # it has a value of its own after a done
    is_frame: bool  # stacks hold it


class _Definition(NamedTuple):
    """Properties of each row, worked out from rows and marks; all ``[N, T]``."""

    row: NDArray[np.int64]  # its number; negative if no row was written there
    held: NDArray[np.bool_]
    first: NDArray[np.bool_]
    mark: NDArray[np.uint8]
    whole: NDArray[np.bool_]  # all frames of its stack are held
    known: NDArray[np.bool_]  # its window is closed
    drawable: NDArray[np.bool_]


class Ring:
    """Everything about rows except their frames.

    Row ``r`` of environment ``e`` (row numbers only ever grow) lives in *slot* ``e T + r mod T``. Its *index*,
    ``r N + e``, names the row itself and is never used for another.

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
        self.mark = np.zeros(size, np.uint8)  # ROW, TRUNCATED, TERMINATED or FINAL: see marks.py
        self.drawable = np.zeros(size, np.uint8)
        self.action = np.zeros((size, *action_shape), action_dtype)
        self.count = np.zeros(num_envs, np.int64)  # rows ever written
        self.pending = np.zeros(num_envs, np.int64)  # oldest row whose window is still open
        self.ended = np.zeros(num_envs, np.uint8)  # the newest row was a done
        self.opens = np.zeros(num_envs, np.uint8)  # the newest row was a final observation: 0, 1 or UNKNOWN
        self.lost = np.zeros(num_envs, np.int64)  # rows before this one were gone when a smaller ring became this one
        self._set_kernel()

    def _set_kernel(self) -> None:
        """Make the kernel that works on these arrays, for this n_step."""
        self._changed = np.empty(self.num_envs * (self.stack + self.n_step), np.int64)
        self._rings = _ring.Rings(
            self.rows,
            self.stack,
            self.n_step,
            self.count,
            self.pending,
            self.ended,
            self.opens,
            self.first,
            self.reward,
            self.mark,
            self.drawable,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_rings"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_kernel()

    def appender(
        self, columns: Sequence[AppendedArray], tree: SumTree, *, several: bool, final_inside: bool
    ) -> _append.Appender:
        """Return the kernel that adds whole vector steps in one call, for this n_step.

        Parameters
        ----------
        columns : sequence of AppendedArray
            Where the arrays of a row go, at least one.
        tree : SumTree
            Weights of the slots.
        several : bool
            Whether they come as tuples; if not, there is one.
        final_inside : bool
            Whether the row after a done holds the final observation.
        """
        nodes, offsets = tree.memory
        column = None
        for each in reversed(columns):
            column = _append.Column(each.memory, each.like, each.has_final, each.is_frame, column)
        assert column is not None
        return _append.Appender(
            self._rings,
            column,
            several,
            as_bytes(self.action, len(self.action)),
            nodes,
            offsets,
            self.action[:0],
            final_inside,
            np.arange(self.num_envs),
            np.empty(max(2 * len(self._changed), _CHANGES), np.int64),
            np.zeros(self.num_envs, np.uint8),
        )

    def drawer(self, tree: SumTree, gamma: float, *, zero: bool) -> _draw.Drawer:
        """Return the kernel that draws rows, for this n_step.

        Parameters
        ----------
        tree : SumTree
            Weights of the slots.
        gamma : float
            Discount per step.
        zero : bool
            What stands in a stack before the first frame of a game: zeros (frame -1), or that frame again.
        """
        nodes, offsets = tree.memory
        powers = np.array([gamma**k for k in range(self.n_step + 1)])
        return _draw.Drawer(
            self.rows,
            zero,
            powers,
            nodes,
            offsets,
            self.count,
            self.first,
            self.reward,
            self.mark,
            as_bytes(self.action, len(self.action)),
        )

    def __len__(self) -> int:
        """Rows held."""
        return int((self.count - self.oldest).sum())

    @property
    def oldest(self) -> NDArray[np.int64]:
        """Number of the oldest row that each ring holds, ``[N]``; if it holds none, of the next one."""
        return np.maximum(self.count - self.rows, self.lost)

    @property
    def held(self) -> int:
        """Slots of a ring, from its first on, that may hold rows in any ring: the others hold nothing to save."""
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

        Returns the slots ``[m]`` whose ``drawable`` this changed (a view, valid until the next call).
        """
        slots = np.empty(len(env), np.int64)
        found = self._rings.push(env, reward, mark, first, slots, self._changed)
        if action is not None:
            self.action[slots] = action
        return self._changed[:found]

    def slots_ahead(self, env: NDArray[np.int64], rows: int | NDArray[np.int64] = 0) -> NDArray[np.int64]:
        """Return the slot of the next row of each ring in ``env [n]``, or of the row ``rows`` (or ``[n]``) after it."""
        return env * self.rows + (self.count[env] + rows) % self.rows

    def next_slots(self, rows: int) -> NDArray[np.int64]:
        """Return the slots of the next ``rows`` rows of each ring, ``[rows, N]``."""
        ahead = self.count + np.arange(rows)[:, None]
        return np.arange(self.num_envs) * self.rows + ahead % self.rows

    def check_first(
        self, env: NDArray[np.int64], first: NDArray[np.int8], gap: NDArray[np.bool_] | None = None
    ) -> None:
        """Raise ValueError if a row would continue a game whose last frame was not given: where there is a ``gap``.

        Default: where the newest rows of the rings have one.
        """
        if ((first == 0) & (self.opens[env] == UNKNOWN if gap is None else gap)).any():
            raise ValueError(
                "first is False after a done whose final_obs was None, or after rows lost in a crash, so that a frame "
                "is missing from the stacks that continue; give final_obs there, or first=True here"
            )

    def cut(self, gone: NDArray[np.int64], env: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give up rows before ``gone [m]`` of the rings ``env [m]``, and let their next rows open new games.

        For rings that lost rows after their newest ones. One more row stands for those: a final observation of zeros
        that was not given, and that no window reaches. Returns the slots ``[m]`` whose ``drawable`` this changed.
        """
        self.lost[env] = np.clip(gone, self.lost[env], self.count[env])
        slots = self.slots_ahead(env)
        self.first[slots], self.mark[slots], self.reward[slots] = 1, FINAL, 0.0
        self.count[env] += 1
        self.pending[env], self.ended[env], self.opens[env] = self.count[env], 0, UNKNOWN
        expected = self._definition().drawable.reshape(-1)
        changed = np.flatnonzero((self.drawable != 0) != expected)
        self.drawable[:] = expected
        return changed

    def forbid_continuing(self, env: NDArray[np.int64]) -> None:
        """Note that the frames of the newest rows of ``env [m]``, final observations, were not given."""
        self.opens[env] = UNKNOWN

    def set_n_step(self, n_step: int) -> NDArray[np.int64]:
        """Sum ``n_step`` rewards from now on; return the slots ``[m]`` whose ``drawable`` this changed.

        Reads every row. Rows of an abandoned episode may be drawn if their new windows end within it.
        """
        # The current episode of each ring began with the newest row that opens a game or follows a final observation.
        # Of a ring that has grown, it may reach back to rows that are lost, or that need those in their stacks.
        begin = np.maximum(self.count - n_step, self._oldest_whole())
        env = np.arange(self.num_envs)
        for row in (self.count - k for k in range(n_step, 0, -1)):  # oldest first
            slot = env * self.rows + row % self.rows
            begin = np.where((row >= begin) & (self.first[slot] != 0), row, begin)
            begin = np.where((row >= begin) & (self.mark[slot] == FINAL), row + 1, begin)
        before, self.n_step = self.n_step, n_step
        try:  # for a large replay this takes much memory
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
        """Return how many rows came after each row named ``index [B]`` in its ring; errors as for `slots`."""
        self.slots(index)
        row, env = np.divmod(index, self.num_envs)
        return self.count[env] - 1 - row

    def _oldest_whole(self) -> NDArray[np.int64]:
        """Return the number of the oldest row of each ring whose stack is held whole, ``[N]``."""
        env, oldest = np.arange(self.num_envs), self.oldest
        found, opened = oldest, np.zeros(self.num_envs, np.bool_)
        for row in (oldest + k for k in range(self.stack - 1)):
            opened |= self.first[env * self.rows + row % self.rows] != 0
            found = np.where(opened, found, row + 1)
        return np.minimum(found, self.count)

    def _definition(self) -> _Definition:
        """Work out which rows may be drawn, from rows and marks alone."""
        by_env = (self.num_envs, self.rows)
        newest = self.count[:, None] - 1
        row = newest - (newest - np.arange(self.rows)) % self.rows  # [N, T]; negative if never written
        oldest = self.oldest[:, None]
        held = row >= oldest
        first, mark = self.first.reshape(by_env) != 0, self.mark.reshape(by_env)
        env = np.arange(self.num_envs)[:, None]

        whole, inside = held.copy(), ~first
        for k in range(1, self.stack):
            whole &= ~inside | (row - k >= oldest)
            inside = inside & ~first[env, (row - k) % self.rows]

        open_window, known = np.ones(by_env, bool), held.copy()
        for k in range(self.n_step):
            open_window &= ~((k > 0) & np.isin(mark[env, (row + k - 1) % self.rows], (TRUNCATED, TERMINATED)))
            follows = (row + k + 1 <= newest) & ~first[env, (row + k + 1) % self.rows]
            known &= ~open_window | follows
        return _Definition(row, held, first, mark, whole, known, held & (mark != FINAL) & whole & known)

    def check(self) -> None:
        """Raise AssertionError unless columns and cursors agree with the definition of what may be drawn."""
        assert_that((self.count >= 0).all(), "a cursor is negative")
        assert_that(((0 <= self.lost) & (self.lost <= self.count)).all(), "a cursor of lost rows is invalid")
        assert_that((self.mark <= FINAL).all(), "a mark is invalid")
        row, held, first, mark, whole, known, expected = self._definition()
        assert_that(
            np.array_equal(self.drawable.reshape(expected.shape) != 0, expected), "drawable differs from its definition"
        )

        env, newest = np.arange(self.num_envs)[:, None], self.count[:, None] - 1
        any_row = self.count > 0
        last = mark[env[:, 0], newest[:, 0] % self.rows]
        ended = any_row & ((last == TRUNCATED) | (last == TERMINATED))
        assert_that(np.array_equal(self.ended != 0, ended), "an episode's end is lost")
        assert_that(np.array_equal(self.opens != 0, any_row & (last == FINAL)), "an episode's beginning is lost")
        # Windows are open from `pending` on: the window of a row before it is closed or was abandoned.
        waiting = held & (row >= self.pending[:, None])
        assert_that(not (waiting & expected).any(), "a window is open twice")
        assert_that(not (waiting & ~whole).any(), "a window is open before a stack that is cut")
        assert_that(
            ((self.pending >= self.count - self.n_step) & (self.pending <= self.count)).all(), "a window is lost"
        )
        abandoned = held & whole & ~known & (mark != FINAL) & ~waiting
        follows_first = np.zeros(held.shape, bool)
        for k in range(1, self.n_step + 1):
            follows_first |= (row + k <= newest) & first[env, (row + k) % self.rows]
        assert_that(not (abandoned & ~follows_first).any(), "an open window is not waited for")

    def held_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the environment ``[m]`` and number ``[m]`` of each row held."""
        nth, env = np.nonzero(np.arange(self.held)[:, None] < self.count - self.oldest)
        return env, self.oldest[env] + nth

    def state(self) -> dict[str, NDArray[Any]]:
        """Return cursors ``[N]`` and columns ``[N, held, …]``, views; ``lost`` only where rows are missing."""
        columns = {
            name: getattr(self, name).reshape(self.num_envs, self.rows, *getattr(self, name).shape[1:])[:, : self.held]
            for name in _COLUMNS
        }
        cursors = {name: getattr(self, name) for name in _CURSORS}
        if not (self.lost > np.maximum(self.count - self.rows, 0)).any():
            del cursors["lost"]
        return cursors | columns

    def load_state(self, state: dict[str, NDArray[Any]], rows: int) -> None:
        """Restore what `state` of a ring of ``rows`` slots returned that was otherwise like this one.

        Rows keep their numbers. A smaller ring than that holds the newest of them; in a larger one, slots stay empty.

        Raises
        ------
        ValueError
            If an array has another shape or dtype than that ring's.
        AssertionError
            If that ring was of another size than this one, and is not whole (see `check`).
        """
        if rows == self.rows:
            self._read(state)
            return
        action_shape, action_dtype = self.action.shape[1:], self.action.dtype
        saved = Ring(self.num_envs, rows, self.stack, self.n_step, action_shape, action_dtype)
        saved._read(state)
        saved.check()
        for name in _CURSORS:
            getattr(self, name)[:] = getattr(saved, name)
        self.lost[:] = np.where(saved.oldest > self.count - self.rows, saved.oldest, 0)
        env, row = self.held_rows()
        here, there = env * self.rows + row % self.rows, env * rows + row % rows
        for name in _COLUMNS:
            getattr(self, name)[here] = getattr(saved, name)[there]
        self.drawable[:] = self._definition().drawable.reshape(-1)  # not those whose stacks reach a row left behind

    def _read(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over the arrays of a ring of this size; errors as for `load_state`."""
        state = {"lost": np.zeros_like(self.lost)} | state
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
