"""Sum tree: draws an index with a probability proportional to its weight."""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrl.base.checks import assert_that, integer
from fastrl.replay import _sum_tree
from fastrl.replay.arrays import contiguous, on_cache_lines
from fastrl.replay.checks import integers, numbers

ARITY = 8
NOTHING = "all weights are 0, so no index can be drawn; set some weights first"


class SumTree:
    """Weights of ``capacity`` indices, and their sum, in float64; all weights are 0 at first.

    `set`, `find` and `sample` cost O(B log capacity); `total` and `get` read the stored array.
    Each node is rebuilt from its children, so rounding errors do not add up over time.

    Parameters
    ----------
    capacity : int
        Number of indices, at least 1.

    Raises
    ------
    ValueError
        If ``capacity`` is less than 1.
    MemoryError
        If there is too little memory for it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = integer("capacity", capacity)
        sizes = [-(-self.capacity // ARITY) * ARITY]
        while sizes[-1] > 1:
            parents = sizes[-1] // ARITY
            sizes.append(parents if parents == 1 else -(-parents // ARITY) * ARITY)
        try:
            self._nodes = on_cache_lines(sum(sizes))
        except (MemoryError, OverflowError, ValueError) as error:
            raise MemoryError(f"capacity is {capacity}, too much for memory ({error}); give less") from error
        self._offsets = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
        # Heavier leaves could overflow the sum, which rounding may carry a little past its true value.
        self.max_weight = float(np.finfo(np.float64).max) / 2 / sizes[0]

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self._nodes[-1])

    @property
    def weights(self) -> NDArray[np.float64]:
        """All weights, ``[capacity] float64``, read-only: a view, not a copy."""
        view = self._nodes[: self.capacity]
        view.flags.writeable = False
        return view

    @property
    def memory(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """All nodes, and where each level begins, for kernels that write leaves and repair the sums themselves."""
        return self._nodes, self._offsets

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the tree takes."""
        return self._nodes.nbytes

    def get(self, index: ArrayLike) -> NDArray[np.float64]:
        """Return the weights of ``index [B] int``."""
        return self._nodes[self._checked(index)]

    def set(self, index: ArrayLike, weight: ArrayLike) -> None:
        """Give ``index [B] int`` the weights ``weight [B] float``; of repeated indices the last wins.

        Raises
        ------
        ValueError
            If an index is out of range; if a weight is negative, not finite, or so large that the sum could
            overflow; or if the shapes differ. Nothing has changed then.
        """
        index = self._checked(index)
        weight = numbers("weight", weight, "give one real number per index")
        if weight.shape != index.shape:
            raise ValueError(f"weight has shape {weight.shape}; give one per index, shape {index.shape}")
        bad = first_bad(weight, self.max_weight)
        if bad >= 0:
            raise ValueError(f"weight holds {weight[bad]}; give weights from 0 to {self.max_weight}")
        self.write(index, contiguous(weight, np.float64))

    def write(self, index: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        """Do as `set`, without its checks: both ``[B]`` are C-contiguous, and their values known to be in range."""
        _sum_tree.set_leaves(self._nodes, self._offsets, index, weight)

    def find(self, target: ArrayLike) -> NDArray[np.int64]:
        """Return for each ``target [B] float`` the first index at which the running sum exceeds it.

        Targets lie in ``[0, total)``. A target that rounding carried to ``total`` finds the last index of weight above
        0. An index of weight 0 is never returned.

        Raises
        ------
        ValueError
            If all weights are 0, or a target lies outside ``[0, total]``.
        """
        target = np.array(numbers("target", target, "give real numbers of shape [B]"), ndmin=1)
        if target.ndim != 1:
            raise ValueError(f"target has shape {target.shape}; give real numbers of shape [B]")
        if self.total <= 0:
            raise ValueError(NOTHING)
        bad = first_bad(target, self.total)
        if bad >= 0:
            raise ValueError(f"target holds {target[bad]}; give targets in [0, {self.total}]")
        index = np.empty(target.shape, np.int64)
        _sum_tree.find_leaves(self._nodes, self._offsets, target, index)
        return index

    def sample(self, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``size`` indices, one from each of ``size`` equal strata of the sum (Schaul et al. 2016, B.2.1).

        The indices come in ascending order.

        Raises
        ------
        ValueError
            If all weights are 0, or ``size`` is less than 1. Nothing has been drawn from ``rng`` then.
        """
        if self.total <= 0:
            raise ValueError(NOTHING)
        index = np.empty(integer("size", size), np.int64)
        _sum_tree.draw_leaves(self._nodes, self._offsets, rng.random(size), index)
        return index

    def check(self) -> None:
        """Raise AssertionError unless every node is the sum of its children."""
        assert_that(np.all(self._nodes >= 0), "a node is negative or NaN")
        ends = [*self._offsets[1:], len(self._nodes)]
        for start, middle, end in zip(self._offsets[:-1], ends[:-1], ends[1:], strict=True):
            c = self._nodes[start:middle].reshape(-1, ARITY).T
            sums = ((c[0] + c[1]) + (c[2] + c[3])) + ((c[4] + c[5]) + (c[6] + c[7]))
            assert_that(
                np.array_equal(self._nodes[middle : middle + len(sums)], sums), "a sum differs from its children"
            )
            assert_that(not self._nodes[middle + len(sums) : end].any(), "padding holds a weight")
        assert_that(not self._nodes[self.capacity : ends[0]].any(), "padding holds a weight")

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a copy that shared memory with this tree would change it

    def _checked(self, index: ArrayLike) -> NDArray[np.int64]:
        array = integers("index", index, "give integers of shape [B]")
        bad = _sum_tree.bad_index(array, self.capacity)
        if bad >= 0:
            raise ValueError(f"index holds {array[bad]}; give 0 to {self.capacity - 1}")
        return array


def first_bad(numbers: NDArray[np.float64], most: float) -> int:
    """Return the position of the first number outside ``[0, most]``, or -1."""
    return _sum_tree.bad_number(contiguous(numbers, np.float64), most)
