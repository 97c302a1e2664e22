"""Stretches of consecutive steps of one game, for networks with a memory: what they hold, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrl.base.checks import integer, number
from fastrl.replay import _sequences
from fastrl.replay.arrays import as_bytes
from fastrl.replay.batch import FREE, held, naming_size, owns
from fastrl.replay.checks import numbers as real_numbers
from fastrl.replay.ring import Ring
from fastrl.replay.stores.layout import Field, Layout
from fastrl.replay.stores.store import FrameStore
from fastrl.replay.sum_tree import SumTree

_KEPT = 4  # sets of arrays to lend again


@dataclass(frozen=True, slots=True, eq=False)
class SequenceBatch:
    """B stretches, each of up to T steps of one game, after up to ``burn_in`` steps that came before them.

    L = burn_in + T places hold one step each; the stretch begins at place ``burn_in``. A step of a stretch is where
    ``mask`` is True: ``obs[b, t]``, ``action[b, t]``, ``reward[b, t]``, ``discount[b, t]`` and the next observation,
    ``obs[b, t + 1]``. Places before the first and after the last such step are empty: a game that had not begun, or has
    ended. Where ``mask`` is False, action, reward and discount are 0.
    """

    obs: Any
    """``[B, L + 1, stack, *obs_shape]``, oldest frame first. Stacks share their frames in memory if ``stack`` is above
    1; then the array is read-only. With ``stacked=False`` each frame once, ``[B, stack - 1 + L + 1, *obs_shape]``:
    those from t to t + stack - 1 are the observation at t. Observations mean something from the first step to the
    place after the last. Of several arrays, nested as they were added, each with a stack of its own."""
    action: NDArray[Any]
    """``[B, L, *action_shape]``: action taken at ``obs[:, t]``."""
    reward: NDArray[np.float32]
    """``[B, L]``: reward of that action alone."""
    discount: NDArray[np.float32]
    """``[B, L]``: gamma, or 0 if the action terminated the episode."""
    mask: NDArray[np.bool_]
    """``[B, L]``: whether there is a step."""
    weight: NDArray[np.float32]
    """``[B]``: importance weights, the largest 1."""
    index: NDArray[np.int64]
    """``[B]``: names of the rows at which the stretches begin."""
    burn_in: int
    period: int
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    """``[B, L, *shape]`` each: fields of one's own at ``obs[:, t]``, by name; they mean something where ``mask`` is
    True. A recurrent state that was stored as one is that of the first step at ``begin``."""

    @property
    def begin(self) -> NDArray[np.int64]:
        """``[B]``: place of the first step, at which a recurrent state begins; at most ``burn_in``."""
        place: NDArray[np.int64] = (1 * self.mask).argmax(axis=1)  # PyTorch has no argmax of bools
        return place


@dataclass(frozen=True, slots=True)
class Asked:
    """What stretches a batch is to hold; checked.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    batch_size: int
    length: int
    burn_in: int
    period: int
    stacked: bool

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("length", 1), ("burn_in", 0), ("period", 1)):
            object.__setattr__(self, name, integer(name, getattr(self, name), least))
        if self.period > self.length:
            raise ValueError(
                f"period is {self.period} and length {self.length}, so that steps between two stretches would never be "
                f"drawn; give a period from 1 to {self.length}"
            )
        if not isinstance(self.stacked, bool | np.bool_):
            raise ValueError(f"stacked is {self.stacked!r}; give True or False")

    @property
    def steps(self) -> int:
        """L, places of a stretch and its burn-in."""
        return self.burn_in + self.length


class SequenceDrawer:
    """Draws stretches from rings, tree and store, whose calls take turns.

    A stretch starts where its cell does: the rows of one game between two multiples of ``period``. The tree draws a row
    among those whose games have ended or have ``length`` more steps; its cell is the one that is drawn. So a cell is
    drawn in proportion to the sum of the weights of its rows, and nothing is kept for stretches between two draws.

    Parameters
    ----------
    ring : Ring
        Rows, without their frames.
    tree : SumTree
        Weights of their slots.
    stores : sequence of FrameStore
        Their arrays, one store for each field of the layout.
    layout : Layout
        The arrays of a row.
    zero : bool
        Whether zeros stand in a stack before the first frame of a game, or that frame again.
    """

    def __init__(self, ring: Ring, tree: SumTree, stores: Sequence[FrameStore], layout: Layout, *, zero: bool) -> None:
        self._ring, self._tree, self._layout, self._zero = ring, tree, layout, zero
        self._arrays = [_Array(f, store, ring.stack) for f, store in zip(layout.fields, stores, strict=True)]
        self._sets: list[tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = []  # shapes and arrays

    def check(self, asked: Asked) -> None:
        """Raise ValueError if a ring has too few rows for such a stretch."""
        rows, needed = self._ring.rows, asked.steps + self._ring.stack
        if needed > rows:
            raise ValueError(
                f"length is {asked.length} and burn_in {asked.burn_in}, which with stack={self._ring.stack} takes "
                f"{needed} rows of one environment, but each has {rows}; give less, or build the buffer with "
                f"capacity={needed * self._ring.num_envs} or more"
            )

    def draw(
        self,
        asked: Asked,
        rng: np.random.Generator,
        gamma: float,
        put_importance: Callable[[NDArray[np.float64], NDArray[np.float32]], None],
    ) -> SequenceBatch:
        """Draw stretches, copy their frames, and return them.

        Parameters
        ----------
        asked : Asked
            Which stretches; see `check`.
        rng : Generator
            Gives B numbers.
        gamma : float
            Discount per step.
        put_importance : callable
            Puts importance weights ``[B]`` into its second argument, given the ratios ``[B]`` of the cells' weights to
            the least of them.

        Raises
        ------
        ValueError
            If no stretch can be drawn.
        """
        ring, size = self._ring, asked.batch_size
        arrays = self._lend(asked)
        nodes, _ = self._tree.memory
        stretches = _sequences.Stretches(
            ring.rows,
            ring.stack,
            self._zero,
            gamma,
            nodes,
            ring.oldest,
            ring.count,
            ring.first,
            ring.reward,
            ring.mark,
            as_bytes(ring.action, len(ring.action)),
        )
        index, mask, action, ratios = arrays["index"], arrays["mask"], arrays["action"], np.empty(size)
        numbers = np.empty((size, ring.stack + asked.steps), np.int64)
        slots = np.empty(ring.num_envs * min(asked.length, ring.rows), np.int64)
        slots = slots[: stretches.unfinished(asked.length, slots)]
        slots = slots[nodes[slots] > 0]
        weights = nodes[slots]
        # While they weigh nothing, they are not drawn. Sums are rebuilt from leaves: nothing of this stays.
        try:
            self._tree.write(slots, np.zeros(len(slots)))
            if self._tree.total <= 0:
                raise ValueError(
                    f"no stretch of {asked.length} steps can be drawn yet: {len(ring)} rows held; add more before the "
                    "first sample, or give a smaller length"
                )
            index[:] = self._tree.sample(size, rng)
            stretches.assemble(
                asked.period,
                asked.burn_in,
                index,
                ratios,
                as_bytes(action, size * asked.steps),
                arrays["reward"],
                arrays["discount"],
                mask.view(np.uint8),
                numbers,
            )
        finally:
            self._tree.write(slots, weights)
        put_importance(ratios, arrays["weight"])
        found = [array.read(numbers, asked, arrays.pop(array.name, None)) for array in self._arrays]
        obs, extra = self._layout.nest(found)
        return SequenceBatch(obs=obs, burn_in=asked.burn_in, period=asked.period, extra=extra, **arrays)

    def cells(self, index: NDArray[np.int64], period: int) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """Return the names ``[m]`` of the rows in the cells of the rows ``index [B]``, and whose they are, ``[m]``.

        Those of a row that was overwritten are left out.

        Raises
        ------
        ValueError
            If an index names no row that was ever written.
        """
        ring = self._ring
        _, alive = ring.slots(index)
        row, env = np.divmod(index, ring.num_envs)
        rows = row[:, None] + np.arange(min(period, ring.rows))
        there = alive[:, None] & (rows < ring.count[env][:, None])
        there &= rows // period == row[:, None] // period
        opens = ring.first[env[:, None] * ring.rows + rows % ring.rows] != 0
        opens[:, 0] = False
        there &= ~np.logical_or.accumulate(opens, axis=1)
        return (rows * ring.num_envs + env[:, None])[there], np.nonzero(there)[0]

    def _lend(self, asked: Asked) -> dict[str, Any]:
        """Return arrays for such a batch that nothing refers to, as `BatchPool` does."""
        size, steps = asked.batch_size, asked.steps
        shapes: dict[str, tuple[int, ...]] = {
            "action": (size, steps, *self._ring.action.shape[1:]),
            **dict.fromkeys(("reward", "discount", "mask"), (size, steps)),
            **dict.fromkeys(("weight", "index"), (size,)),
        }
        for known, arrays in self._sets:
            if known == shapes and held(arrays) <= FREE:
                return dict(arrays)
        dtypes = {"action": self._ring.action.dtype, "mask": np.bool_, "index": np.int64}
        with naming_size(size):
            arrays = {name: np.empty(shape, dtypes.get(name, np.float32)) for name, shape in shapes.items()}
        lent = [array for array in self._arrays if array.owned]
        arrays |= {array.name: array.empty((size, array.width(steps))) for array in lent}
        self._sets = [*self._sets[1 - _KEPT :], (shapes, arrays)]
        return dict(arrays)


class _Array:
    """One array of stretches.

    Parameters
    ----------
    field : Field
        What it is.
    store : FrameStore
        Where its values are.
    deepest : int
        Frames of the deepest stack, for which values are numbered.
    """

    def __init__(self, field: Field, store: FrameStore, deepest: int) -> None:
        self.name, self._field, self._store, self._deepest = f"array {field.name}", field, store, deepest
        sample = store.empty((1, *field.shape))
        self._is_numpy = isinstance(sample, np.ndarray)
        self.owned = owns(sample)

    def width(self, steps: int) -> int:
        """Return how many values stand for so many steps: of a field of one's own, no further one after the last."""
        return self._field.stack + steps

    def empty(self, shape: tuple[int, ...]) -> Any:
        with naming_size(shape[0]):
            return self._store.empty((*shape, *self._field.shape))

    def read(self, numbers: NDArray[np.int64], asked: Asked, memory: Any) -> Any:
        """Copy values of the rows ``numbers [B, deepest + L]``, into memory if it is not None, and stack them."""
        stack = max(1, self._field.stack)
        width = self.width(asked.steps)
        numbers = np.ascontiguousarray(numbers[:, self._deepest - stack :][:, :width])
        size, places = len(numbers), width - stack + 1
        if asked.stacked and self._field.is_obs and not self._is_numpy:  # it may not show a frame in several stacks
            windows = np.lib.stride_tricks.sliding_window_view(numbers, stack, axis=1)
            obs = self.empty((size * places, stack))
            self._store.gather(np.ascontiguousarray(windows).reshape(1, -1, stack), obs)
            return obs.reshape(size, places, stack, *self._field.shape)
        if memory is None:
            memory = self.empty((size, width))
        self._store.gather(numbers[None], memory)
        if not asked.stacked or not self._field.is_obs:
            return memory
        if stack == 1:
            return memory[:, :, None]
        of_row, of_frame, *inside = memory.strides
        shape = (size, places, stack, *self._field.shape)
        obs = np.ndarray(shape, memory.dtype, memory, strides=(of_row, of_frame, of_frame, *inside))
        obs.flags.writeable = False  # what is written into one stack would show in others
        return obs


def sequence_priority(error: ArrayLike, mask: ArrayLike, eta: float = 0.9) -> NDArray[np.float64]:
    """Return the priorities ``[B]`` of stretches, eta max_t e_t + (1 - eta) mean_t e_t.

    The mix is that of R2D2 (Kapturowski et al. 2019, section 2.3).

    Parameters
    ----------
    error : [B, T] float
        Absolute TD errors of steps.
    mask : [B, T] bool
        Which of them belong to a stretch; the others are not looked at.
    eta : float
        From 0 (the mean) to 1 (the maximum).

    Raises
    ------
    ValueError
        If an argument is out of range, if shapes differ, or if a stretch has no step.
    """
    eta, mask = number("eta", eta, 1.0), np.asarray(mask, np.bool_)
    errors = real_numbers("error", error, f"give absolute TD errors, {mask.shape}")
    if errors.shape != mask.shape or errors.ndim != 2:
        raise ValueError(f"error has shape {errors.shape}; give one for each step behind the burn-in, {mask.shape}")
    if not mask.any(axis=1).all():
        raise ValueError("mask has no step in a stretch; give the mask of the batch, from its burn_in on")
    given = errors[mask]
    bad = ~((given >= 0) & (given < np.inf))
    if bad.any():
        raise ValueError(f"error holds {given[bad][0]}; give absolute TD errors, finite numbers from 0 up")
    known = np.where(mask, errors, 0.0)
    most, mean = known.max(axis=1), known.sum(axis=1) / mask.sum(axis=1)
    mixed: NDArray[np.float64] = eta * most + (1 - eta) * mean
    return mixed
