"""A batch that is copied in the background, between the call that draws it and the one that takes it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.batch import Batch


class _Flight(NamedTuple):
    """A batch under way."""

    asked: dict[str, float]  # with these arguments
    batch: Batch
    numbers: NDArray[np.int64]  # of the frames that are read
    done: Future[None]


class Prefetcher:
    """One thread that copies, and what it reads.

    Parameters
    ----------
    slots : int
        Frames of the store.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._thread: ThreadPoolExecutor | None = None  # started when first needed
        self._reading = np.zeros(0, np.bool_)
        self._flight: _Flight | None = None

    @property
    def under_way(self) -> bool:
        """Whether a batch waits to be taken."""
        return self._flight is not None

    def start(
        self, asked: dict[str, float], batch: Batch, numbers: NDArray[np.int64], gather: Callable[..., None]
    ) -> None:
        """Let the thread fill in the batch's frames, ``numbers`` (-1: none), by a store's ``gather``."""
        if self._thread is None:
            self._reading = np.zeros(self._slots + 1, np.bool_)  # the last one for -1
            self._thread = ThreadPoolExecutor(1, "fastrl-prefetch")
        self._reading[numbers] = True
        try:
            done = self._thread.submit(gather, numbers, batch.obs, batch.next_obs)
            self._flight = _Flight(asked, batch, numbers, done)
        except RuntimeError:  # no thread can be started; what was submitted must not run later either
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
            raise

    def land(self, asked: dict[str, float]) -> Batch:
        """Wait for the batch and return it.

        Raises
        ------
        ValueError
            If it was asked for with other arguments; it can still be taken then.
        """
        flight = self._flight
        assert flight is not None
        if asked != flight.asked:
            given, prefetched = (", ".join(f"{k}={v}" for k, v in each.items()) for each in (asked, flight.asked))
            raise ValueError(f"sample got {given}, but {prefetched} was prefetched; take that batch first")
        self._flight = None
        try:
            flight.done.result()
        finally:
            self._reading[flight.numbers] = False
        return flight.batch

    def require_none(self, what: str) -> None:
        """Raise ValueError if a batch waits to be taken."""
        if self.under_way:
            raise ValueError(f"a batch that was prefetched has not been taken; call sample before you {what}")

    def wait_for(self, slots: NDArray[np.int64]) -> None:
        """Wait until none of the frames in these slots is read any more."""
        if self._flight is not None and self._reading[slots].any():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is read any more."""
        if self._flight is not None:
            self._flight.done.exception()  # that is: until it is over, however it ended
