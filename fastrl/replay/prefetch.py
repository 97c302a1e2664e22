"""A batch whose frames a thread copies, between the call that draws it and the one that takes it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.batch import Batch

Gather = Callable[[NDArray[np.int64], Batch], None]


@dataclass(slots=True, eq=False)
class _Flight:
    """A batch that was drawn and not yet taken."""

    asked: dict[str, float]  # arguments of the draw
    batch: Batch
    numbers: NDArray[np.int64]  # of the frames that the thread reads
    gather: Gather
    done: Future[None] | None = None  # None: no thread copies the frames; they are copied when the batch is taken


class Prefetcher:
    """One thread that copies frames, and which of them it reads; a `Reader`.

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
    def in_flight(self) -> bool:
        """Whether a batch waits to be taken."""
        return self._flight is not None

    def start(self, asked: dict[str, float], batch: Batch, numbers: NDArray[np.int64], gather: Gather) -> None:
        """Let the thread fill in the batch's frames.

        Parameters
        ----------
        asked : dict
            Arguments of the draw; `land` must be called with the same.
        batch : Batch
            Complete except for its frames.
        numbers : [2, B, stack] int64
            Frames of ``obs`` and of ``next_obs``; -1 is a frame of zeros.
        gather : callable
            ``gather(numbers, batch)`` fills in the frames.

        Raises
        ------
        RuntimeError
            If no thread can be started. No batch is in flight then.
        """
        if self._thread is None:
            self._reading = np.zeros(self._slots + 1, np.bool_)  # the last one for -1
            self._thread = ThreadPoolExecutor(1, "fastrl-prefetch")
        self._reading[numbers] = True
        try:
            done = self._thread.submit(gather, numbers, batch)
            self._flight = _Flight(asked, batch, numbers, gather, done)
        except RuntimeError:  # no thread can be started; what was submitted must not run later
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
            raise

    def land(self, asked: dict[str, float]) -> Batch:
        """Wait for the batch and return it.

        Raises
        ------
        ValueError
            If the batch was drawn with other arguments; it can still be taken then.
        """
        flight = self._flight
        assert flight is not None
        if asked != flight.asked:
            given, prefetched = _written(asked), _written(flight.asked)
            raise ValueError(f"sample got {given}, but {prefetched} was prefetched; take that batch first")
        self._flight = None
        try:
            _copied(flight).result()
        finally:
            self._reading[flight.numbers] = False
        return flight.batch

    def require_none(self, what: str) -> None:
        """Raise ValueError if a batch waits to be taken."""
        if self._flight is not None:
            call = f"sample({_written(self._flight.asked)})"
            raise ValueError(f"a batch that was prefetched has not been taken; call {call} before you {what}")

    def wait_for(self, slots: NDArray[np.int64]) -> bool:
        """Wait until no frame in these slots is read any more; see `Reader`. Never releases the buffer's lock."""
        if self._flight is not None and self._reading[slots].any():
            self.wait()
        return False

    def wait(self) -> None:
        """Wait until no frame is read any more."""
        if self._flight is not None:
            _copied(self._flight).exception()  # returns once the copy is over, whether or not it failed

    def has_copied(self) -> bool:
        """Return whether a batch waits to be taken whose frames are all copied."""
        return self._flight is not None and self._flight.done is not None and self._flight.done.done()

    def forget_thread(self, *, copied: bool) -> None:
        """Go on in a forked child: the thread did not come along, but a batch in flight can still be taken.

        Parameters
        ----------
        copied : bool
            What `has_copied` returned right before the fork, when no row could be added. If False, the frames are still
            where they were.
        """
        self._thread = None
        if self._flight is not None and not copied:
            self._flight.done = None


def _written(asked: dict[str, float]) -> str:
    """Return the arguments of a draw as in a call."""
    return ", ".join(f"{name}={value}" for name, value in asked.items())


def _copied(flight: _Flight) -> Future[None]:
    """Return the copying of a batch's frames; do it now if no thread does."""
    if flight.done is None:
        done: Future[None] = Future()
        try:
            flight.gather(flight.numbers, flight.batch)
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)
        flight.done = done
    return flight.done
