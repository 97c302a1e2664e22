"""Leaving in good order: the first SIGINT, SIGTERM or SIGHUP asks, the second one ends."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from fastrl.base.console import say
from fastrl.base.errors import Stopped

TWICE_SECONDS = 0.5
"""Signals closer together are one: `timeout`, for example, signals a process and its group."""


class Stop:
    """Within ``with Stop() as stop:``, ``stop.signal`` is the signal that asked to stop, or None.

    The work looks at it between two steps, where its state is whole. A second signal raises KeyboardInterrupt, with
    its number, wherever the program is. A SIGHUP that is ignored, as under `nohup`, stays so. Outside the main thread
    no signal arrives, and none is caught.

    Parameters
    ----------
    quiet : bool
        Print nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.signal: int | None = None
        self._quiet = quiet
        self._asked = 0.0
        self._end = ""  # of the work that a stop has to wait for
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked for."""
        if self:
            raise Stopped

    @contextlib.contextmanager
    def after(self, end: str) -> Iterator[None]:
        """Within, the work takes long before it looks: the first signal is answered at once, by what it waits for.

        Parameters
        ----------
        end : str
            What the stop comes after, as in "torch.compile"; the innermost of several is named.
        """
        before, self._end = self._end, end
        try:
            yield
        finally:
            self._end = before

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self and time.monotonic() - self._asked > TWICE_SECONDS:
            raise KeyboardInterrupt(number)
        if not self:
            self.signal, self._asked = number, time.monotonic()
            if self._end and not self._quiet:
                with contextlib.suppress(RuntimeError):  # the signal came in the middle of another message
                    say(f"stop heard; it comes after {self._end} (a second signal leaves at once, without saving)")
