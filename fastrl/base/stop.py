"""Leaving in good order: the first SIGINT, SIGTERM or SIGHUP asks, the second one ends."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

from fastrl.base.errors import Stopped

TWICE_SECONDS = 0.5
"""Signals closer together are one: `timeout`, for example, signals a process and its group."""


class Stop:
    """Within ``with Stop() as stop:``, ``stop.signal`` is the signal that asked to stop, or None.

    The work looks at it between two steps, where its state is whole. A second signal raises KeyboardInterrupt, with
    its number, wherever the program is. A SIGHUP that is ignored, as under `nohup`, stays so. Outside the main thread
    no signal arrives, and none is caught.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = 0.0
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked for."""
        if self:
            raise Stopped

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
