"""Work that a thread does while its starter continues (standard library only)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """A thread that calls ``work`` once, and keeps what it returned or raised.

    It is a daemon, so that a process that leaves at once does not wait for it; `concurrent.futures` joins its threads
    at the exit. It is never joined: a join that a signal interrupts takes a running thread for one that is over.

    Parameters
    ----------
    work : callable
        Called without arguments.
    name : str
        Name of the thread.
    """

    def __init__(self, work: Callable[[], Result], name: str) -> None:
        self._work, self._name = work, name
        self._results: list[Result] = []  # one, once it is there
        self._error: BaseException | None = None
        self._over = threading.Event()

    def start(self) -> None:
        """Start; if no thread can be started, do the work here and now."""
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:
            self._run()

    @property
    def done(self) -> bool:
        """Whether it is over, however it ended."""
        return self._over.is_set()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it is over, or for at most this long.

        Without a limit signals are heard meanwhile, even one that came right before.
        """
        if seconds is not None:
            self._over.wait(seconds)
            return
        while not self._over.wait(0.1):
            pass

    def result(self) -> Result:
        """Wait for the work and return what it returned, or raise what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()
