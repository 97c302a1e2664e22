"""Leaving in good order: the first SIGINT, SIGTERM or SIGHUP asks, the second one ends.

Before there is work that could be asked, the first one ends (`Start`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from fastrl.base.console import expect_a_reader, say
from fastrl.base.errors import Stopped

TWICE_SECONDS = 0.5
"""Signals closer together are one: `timeout`, for example, signals a process and its group."""
TWIN_SECONDS = 0.1
"""So long the first one waits for its twin, which the work might else keep from being heard for `TWICE_SECONDS`."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Start:
    """Within ``with Start(told):``, until its work begins, a signal ends the process at once, with a message.

    Nothing was begun, so there is nothing to leave in order. Imports take seconds of that time, and one that is
    interrupted by an exception may swallow it or crash. `begun`, and with it `Stop`, ends the time. A signal that is
    ignored, or that has another handler than Python's own, stays so. Outside the main thread no signal arrives, and
    none is caught.

    Parameters
    ----------
    told : str
        The message, on stderr; empty: none.
    """

    _now: Start | None = None

    def __init__(self, told: str) -> None:
        self._told, self._process = told, os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler):
                continue
            try:
                self._before[number] = signal.signal(number, self._leave)
            except ValueError:  # not the main thread
                return self
        Start._now = self
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before, Start._now = {}, None

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process forked by an import: it ends as any other
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._told:
            with contextlib.suppress(OSError):  # of a terminal that was closed
                os.write(2, f"{self._told}\n".encode(errors="backslashreplace"))
        os._exit(128 + number)


def begun() -> None:
    """End the time of `Start`, if it is running: from here on a signal does what it did before it."""
    if Start._now is not None:
        Start._now.__exit__()


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Within, each of the three signals raises KeyboardInterrupt with its number, wherever the program is.

    One that is ignored stays so. Outside the main thread no signal arrives, and none is caught.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before: dict[int, Any] = {}
    for number in map(int, SIGNALS):
        if signal.getsignal(number) != signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        self._answered = False
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

    def comes_after(self, end: str) -> None:
        """Answer the signal that has asked, if one has, by what the stop waits for, as of `after`; once."""
        if self and not self._answered and not self._quiet:
            self._answered = True
            with contextlib.suppress(RuntimeError):  # the signal came in the middle of another message
                say(f"stop heard; it comes after {end} (a second signal leaves at once, without saving)")

    def __enter__(self) -> Self:
        begun()
        expect_a_reader(True)
        for number in SIGNALS:
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
            self.signal, self._asked, self._answered = number, time.monotonic(), False
            expect_a_reader(False)
            time.sleep(TWIN_SECONDS)
            if self._end:
                self.comes_after(self._end)
