"""Prioritized replay: the rows of `ReplayBuffer`, drawn by priority."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrl.base.checks import assert_that, integer, number
from fastrl.replay.batch import Batch
from fastrl.replay.buffer import ReplayBuffer
from fastrl.replay.checks import Settings, check_index, numbers
from fastrl.replay.hindsight import Hindsight, HindsightBatch
from fastrl.replay.sequences import Asked, SequenceBatch, sequence_priority
from fastrl.replay.sum_tree import first_bad

_LARGEST = float(np.finfo(np.float64).max)


class PrioritizedReplayBuffer(ReplayBuffer):
    """A `ReplayBuffer` drawn in proportion to (priority + eps)^alpha (Schaul et al. 2016, eq. 1).

    Rows that become drawable get the highest priority seen so far, 1 at first.

    Parameters
    ----------
    alpha : float
        Exponent of the priorities, from 0 (uniform) up.
    eps : float
        Added to each priority; above 0, so that every row keeps a chance to be drawn.
    **settings
        As for `ReplayBuffer`.
    """

    _kind = "prioritized"

    def __init__(self, *, alpha: float = 0.6, eps: float = 1e-6, **settings: Unpack[Settings]) -> None:
        self._alpha, self._eps = number("alpha", alpha), number("eps", eps)
        if self._eps == 0:
            raise ValueError(f"eps is {eps!r}; give a number above 0")
        super().__init__(**settings)

    def _begin(self) -> None:
        self.settings |= {"alpha": self._alpha, "eps": self._eps}
        self._set_max_priority(1.0)
        if not self._new_weight <= self._tree.max_weight:
            raise ValueError(
                f"alpha is {self._alpha!r} and eps {self._eps!r}, so that (1 + eps)**alpha, the weight of new rows, "
                "overflows; give less"
            )

    @property
    def max_priority(self) -> float:
        """Highest priority seen, which new rows get."""
        return self._max_priority

    def weights(self, index: ArrayLike) -> NDArray[np.float64]:
        """Return (priority + eps)^alpha of the rows named ``index [B]``; 0 where they may not be drawn."""
        with self._lock:
            slots, alive = self._ring.slots(check_index(index))
            return np.where(alive, self._tree.get(slots), 0.0)

    def least_probability(self, index: ArrayLike) -> float:
        """Return the least P(i) of the rows named ``index [B]``, all of which may be drawn (eq. 1).

        Of several buffers that give a batch its parts, the importance weights of one are to be multiplied by
        (q / least q)^-beta, where q is what this returns for its part, and least q the least over all parts.
        """
        return float(self.weights(index).min() / self._tree.total)

    def sample(  # type: ignore[override]
        self, batch_size: int, beta: float = 0.4, out: Batch | None = None
    ) -> Batch:
        """Draw transitions in proportion to their weights; otherwise as `ReplayBuffer.sample`.

        ``weight`` is (N P(i))^-beta over the batch's largest (Schaul et al. 2016, section 3.4).

        Parameters
        ----------
        batch_size : int
            B, at least 1.
        beta : float
            Exponent of the importance weights, from 0 (no correction) to 1 (full).
        out : Batch, optional
            Arrays to write into.

        Raises
        ------
        ValueError
            As `ReplayBuffer.sample`, and if ``beta`` does not lie between 0 and 1.
        """
        return self._sample(_asked(batch_size, beta), out)

    def prefetch(  # type: ignore[override]
        self, batch_size: int, beta: float = 0.4, out: Batch | None = None
    ) -> None:
        """Draw the batch that the next `sample` returns; as `ReplayBuffer.prefetch`.

        Parameters
        ----------
        batch_size, beta
            As for `sample`, which must then be called with the same values.
        out : Batch, optional
            Arrays to write into, which `sample` then returns.
        """
        self._prefetch(_asked(batch_size, beta), out)

    def update_priorities(self, index: ArrayLike, priority: ArrayLike) -> None:
        """Give rows new priorities, usually their absolute TD errors; of repeated indices the last wins.

        Rows that were overwritten since they were drawn, or that may not be drawn now, are ignored. Costs
        O(B log capacity).

        Parameters
        ----------
        index : [B] int
            From a batch's ``index``.
        priority : [B] float
            From 0 up, so large at most that the power of alpha is finite.

        Raises
        ------
        ValueError
            If an index names no row, or a priority is negative, is not finite, or overflows to the power of
            alpha. Nothing has changed then.
        """
        names, priorities = check_index(index), numbers("priority", priority, "give one finite number per index")
        if priorities.shape != names.shape:
            raise ValueError(f"priority has shape {priorities.shape}; give one per index, shape {names.shape}")
        weights = self._weight(priorities)
        bad = first_bad(priorities, _LARGEST)
        if bad >= 0:
            raise ValueError(f"priority holds {priorities[bad]}; give finite numbers from 0 up")
        bad = first_bad(weights, self._tree.max_weight)
        if bad >= 0:
            raise ValueError(
                f"priority holds {priorities[bad]}, whose weight (priority + eps)**alpha overflows with "
                f"alpha={self._alpha}; give at most {self._power_of_ten():g}, or build the buffer with a smaller alpha"
            )
        with self._lock:
            slots, accepted = self._ring.slots(names)
            if not accepted.all():
                slots, weights, priorities = slots[accepted], weights[accepted], priorities[accepted]
            if len(slots):
                self._tree.write(slots, weights)
                highest = float(priorities.max())
                if highest > self._max_priority:
                    self._set_max_priority(highest)

    def sample_sequences(
        self,
        batch_size: int,
        length: int,
        burn_in: int = 0,
        beta: float = 0.4,
        *,
        period: int = 1,
        stacked: bool = True,
    ) -> SequenceBatch:
        """Draw stretches of games by the priorities of their rows; otherwise as `ReplayBuffer.sample_sequences`.

        The probability P(i) of a stretch is the share of the weights of the rows from its start to the next one of that
        game: of its first row alone if ``period`` is 1. ``weight`` is (N P(i))^-beta over the batch's largest.

        Parameters
        ----------
        batch_size, length, burn_in, period, stacked
            As there.
        beta : float
            Exponent of the importance weights, from 0 (no correction) to 1 (full).

        Raises
        ------
        ValueError
            As there, and if ``beta`` does not lie between 0 and 1.
        """
        return self._sample_sequences(
            Asked(batch_size, length, burn_in, period, stacked), beta=number("beta", beta, 1.0)
        )

    def sample_hindsight(self, batch_size: int, hindsight: Hindsight, beta: float = 0.4) -> HindsightBatch:
        """Draw transitions by their priorities, a share of them with new goals; as `ReplayBuffer.sample_hindsight`.

        ``weight`` is as of `sample`: a priority belongs to a row, whatever goal it is drawn with.

        Parameters
        ----------
        batch_size, hindsight
            As there.
        beta : float
            Exponent of the importance weights, from 0 (no correction) to 1 (full).

        Raises
        ------
        ValueError, RuntimeError
            As there, and if ``beta`` does not lie between 0 and 1.
        """
        return self._sample_hindsight(_asked(batch_size, beta), hindsight)

    def update_sequence_priorities(self, batch: SequenceBatch, error: ArrayLike, eta: float = 0.9) -> None:
        """Give stretches the priorities eta max_t e_t + (1 - eta) mean_t e_t (Kapturowski et al. 2019, section 2.3).

        All rows from the start of a stretch to the next start of that game get its priority, so that `sample` draws
        them by it too. With ``period=1`` this is ``update_priorities(batch.index, priority)``. A stretch whose first
        row was overwritten since it was drawn is ignored. Costs O(B period log capacity).

        Parameters
        ----------
        batch : SequenceBatch
            From `sample_sequences`.
        error : [B, T] float
            Absolute TD errors of the steps behind the burn-in. Where ``batch.mask[:, burn_in:]`` is False, they are not
            looked at.
        eta : float
            From 0 (the mean) to 1 (the maximum).

        Raises
        ------
        ValueError
            If an argument does not fit; see `update_priorities`. Nothing has changed then.
        """
        if not isinstance(batch, SequenceBatch):
            raise ValueError(f"batch is of type {type(batch).__name__}; give a batch of sample_sequences")
        priority = sequence_priority(error, batch.mask[:, batch.burn_in :], eta)
        with self._lock:
            names, which = self._sequences.cells(check_index(batch.index), batch.period)
            self.update_priorities(names, priority[which])

    def _put_importance(self, ratios: NDArray[np.float64], out: NDArray[np.float32], beta: float = 0.0) -> None:
        """Fill in importance weights, given the ratio of each row's weight in the tree to the least of them."""
        np.power(ratios, -beta, out=out, casting="same_kind")  # in float64

    def _weight(self, priority: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (priority + eps)^alpha, kept above 0 where it underflows; inf or NaN for priorities out of range."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.maximum((priority + self._eps) ** self._alpha, np.finfo(np.float64).tiny)

    def _power_of_ten(self) -> float:
        """Return a power of ten whose weight does not overflow, the largest or the one below; alpha is above 0."""
        with np.errstate(over="ignore"):
            most = np.float64(self._tree.max_weight) ** (1 / self._alpha) - self._eps
        return float(10 ** (np.floor(np.log10(min(most, _LARGEST - self._eps))) - 1))

    def _set_max_priority(self, priority: float) -> None:
        """Note the highest priority seen, and with it the weight of new rows."""
        self._max_priority = priority
        self._new_weight = float(self._weight(np.float64(priority)))  # type: ignore[arg-type]

    def _state(self) -> dict[str, Any]:
        weights = self._tree.weights.reshape(self._ring.num_envs, -1)[:, : self._ring.held]
        return super()._state() | {"weights": weights, "max_priority": self._max_priority}

    def _load_state(self, state: dict[str, Any], rows: int) -> None:
        super()._load_state(state, rows)
        ring, weights, drawable = self._ring, state["weights"], state["ring.drawable"]
        assert_that(weights.shape == drawable.shape, "its weights are not those of its rows")
        if rows == ring.rows:
            slots = np.arange(self._tree.capacity).reshape(ring.num_envs, -1)[:, : weights.shape[1]]
            self._tree.set(slots.reshape(-1), weights.reshape(-1))
        else:
            env, row = ring.held_rows()
            slots, there = env * ring.rows + row % ring.rows, (env, row % rows)
            left_behind = (drawable[there] != 0) & (ring.drawable[slots] == 0)
            self._tree.set(slots, np.where(left_behind, 0.0, weights[there]))
        highest = float(state["max_priority"])
        assert_that(0 <= highest < np.inf, "its highest priority is invalid")
        self._set_max_priority(highest)
        assert_that(self._new_weight <= self._tree.max_weight, "its highest priority overflows to the power of alpha")


def _asked(batch_size: int, beta: float) -> dict[str, Any]:
    return {"batch_size": integer("batch_size", batch_size), "beta": number("beta", beta, 1.0)}
