"""All rows of a buffer in order, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.marks import FINAL, TERMINATED, TRUNCATED

if TYPE_CHECKING:
    from fastrl.replay.buffer import ReplayBuffer


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


def read_rows(buffer: ReplayBuffer, chunk: int) -> Iterator[Rows]:
    """Do as `ReplayBuffer.rows`."""
    with buffer._lock:
        begin, end = buffer._ring.oldest, buffer._ring.count.copy()
    return _chunks(buffer, begin, end, chunk)


def _chunks(buffer: ReplayBuffer, begin: NDArray[np.int64], end: NDArray[np.int64], chunk: int) -> Iterator[Rows]:
    next_row = begin.copy()
    while True:
        with buffer._lock:
            next_row = np.maximum(next_row, buffer._ring.oldest)  # those before were overwritten
            env, row = _first_rows(next_row, end, chunk)
            if not len(env):
                return
            found = _read(buffer, env, row)
        np.maximum.at(next_row, env, row + 1)
        yield found


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


def _read(buffer: ReplayBuffer, env: NDArray[np.int64], row: NDArray[np.int64]) -> Rows:
    """Return these rows, which are held; the buffer's lock is held."""
    ring, layout = buffer._ring, buffer._layout
    slots = env * ring.rows + row % ring.rows
    buffer._prefetcher.wait()  # a store need not support two threads at once
    arrays = []
    for store, field in zip(buffer._stores, layout.fields, strict=True):
        arrays.append(np.empty((len(slots), 1, *field.shape), field.dtype))
        store.gather(slots[None, :, None], arrays[-1])
    obs, extra = layout.nest([array[:, 0] for array in arrays])
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
