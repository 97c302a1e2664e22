"""All rows of a buffer in order, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.marks import FINAL, TERMINATED, TRUNCATED
from fastrl.replay.ring import Ring
from fastrl.replay.stores.layout import Layout
from fastrl.replay.stores.store import FrameStore


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """M rows as they were added: the newest frames of observations, single steps.

    The final observation of an episode is a row too, whose action, reward and ends mean nothing.
    """

    env: NDArray[np.int64]
    """``[M]``: environments."""
    index: NDArray[np.int64]
    """``[M]``: names of the rows, as in a `Batch`."""
    obs: Any
    """``[M, *obs_shape]``: frames; of several arrays, nested as they were added."""
    action: NDArray[Any]
    """``[M, *action_shape]``."""
    reward: NDArray[np.float32]
    """``[M]``: rewards of these actions."""
    terminated: NDArray[np.bool_]
    """``[M]``."""
    truncated: NDArray[np.bool_]
    """``[M]``."""
    first: NDArray[np.bool_]
    """``[M]``: whether the row opens a game: stacks do not look back past it."""
    final: NDArray[np.bool_]
    """``[M]``: whether it is a final observation."""
    drawable: NDArray[np.bool_]
    """``[M]``: whether it may be drawn now."""
    extra: dict[str, NDArray[Any]]
    """``[M, *shape]`` each: fields of one's own, by name."""


@dataclass(frozen=True, slots=True, eq=False)
class RowReader:
    """Reads the rows of a buffer.

    Parameters
    ----------
    ring : Ring
        Columns of the rows.
    layout : Layout
        The arrays of a row.
    stores : sequence of FrameStore
        One for each of them.
    lock : callable
        Returns the lock to hold while rows are read, or one that raises if they may not be read any more.
    wait : callable
        Waits until no other thread reads the stores.
    """

    ring: Ring
    layout: Layout
    stores: Sequence[FrameStore]
    lock: Callable[[], AbstractContextManager[Any]]
    wait: Callable[[], None]

    def chunks(self, size: int) -> Iterator[Rows]:
        """Do as `ReplayBuffer.rows`."""
        with self.lock():
            begin, end = self.ring.oldest, self.ring.count.copy()
        return self._chunks(begin, end, size)

    def _chunks(self, next_row: NDArray[np.int64], end: NDArray[np.int64], size: int) -> Iterator[Rows]:
        while True:
            with self.lock():
                next_row = np.maximum(next_row, self.ring.oldest)  # those before were overwritten
                env, row = _first_rows(next_row, end, size)
                if not len(env):
                    return
                slots = env * self.ring.rows + row % self.ring.rows
                # A final observation that opens a game stands for rows that a crash lost (`Ring.cut`).
                there = (self.ring.mark[slots] != FINAL) | (self.ring.first[slots] == 0)
                found = self._read(env[there], row[there]) if there.any() else None
            np.maximum.at(next_row, env, row + 1)
            if found is not None:
                yield found

    def _read(self, env: NDArray[np.int64], row: NDArray[np.int64]) -> Rows:
        """Return these rows, which are held; the lock is held."""
        ring, arrays = self.ring, []
        slots = env * ring.rows + row % ring.rows
        self.wait()  # a store need not support two threads at once
        for store, field in zip(self.stores, self.layout.fields, strict=True):
            arrays.append(np.empty((len(slots), 1, *field.shape), field.dtype))
            store.gather(slots[None, :, None], arrays[-1])
        obs, extra = self.layout.nest([array[:, 0] for array in arrays])
        mark = ring.mark[slots]
        return Rows(
            env=env,
            index=row * ring.num_envs + env,
            obs=obs,
            action=ring.action[slots],
            reward=ring.reward[slots],
            terminated=mark == TERMINATED,
            truncated=mark == TRUNCATED,
            first=ring.first[slots] != 0,
            final=mark == FINAL,
            drawable=ring.drawable[slots] != 0,
            extra=extra,
        )


def _first_rows(
    begin: NDArray[np.int64], end: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return environment and number of the first ``most`` rows from ``begin [N]`` to ``end [N]``, ``[m]`` each."""
    envs, rows = [], []
    for e in np.flatnonzero(begin < end).tolist():
        row = np.arange(begin[e], min(end[e], begin[e] + most))
        envs.append(np.full(len(row), e))
        rows.append(row)
        most -= len(row)
        if not most:
            break
    nothing = np.zeros(0, np.int64)
    return np.concatenate([nothing, *envs]), np.concatenate([nothing, *rows])
