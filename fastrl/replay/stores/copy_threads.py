"""Threads that share one piece of work that releases the GIL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from fastrl.base import forks
from fastrl.base.checks import integer

PAYS_BYTES = 1 << 20
"""From this many bytes on, waking a thread costs less time than it saves."""


class Team:
    """The calling thread and ``threads - 1`` others, which are started when first needed, in a forked child too.

    Raises
    ------
    ValueError
        If ``threads`` is less than 1.
    """

    def __init__(self, threads: int) -> None:
        self.threads = integer("threads", threads)
        self._others: ThreadPoolExecutor | None = None

    def share(self, work: Callable[[int, int], None], count: int, nbytes: int) -> None:
        """Call ``work(begin, end)`` for parts that make up ``range(count)``, and return when all of them are done.

        The parts run at the same time if ``nbytes`` is at least `PAYS_BYTES`; otherwise the caller does all the work.

        Raises
        ------
        RuntimeError
            If no thread can be started. The work may be half done then.
        Exception
            What a part raised, once all parts have ended.
        """
        members = min(self.threads, count) if nbytes >= PAYS_BYTES else 1
        if members == 1:
            work(0, count)
            return
        if self._others is None:
            self._others = ThreadPoolExecutor(self.threads - 1, "fastrl-copy")
            forks.watch(self, in_child=Team._forget_others)
        bounds = [member * count // members for member in range(members + 1)]
        mine, *others = pairwise(bounds)
        try:
            submitted = [self._others.submit(work, *part) for part in others]
        except RuntimeError:  # no thread can be started: what was submitted must not run later
            self._others.shutdown(cancel_futures=True)
            self._others = None
            raise
        try:
            work(*mine)
        finally:
            for part in submitted:
                part.result()

    def _forget_others(self, _: object) -> None:
        self._others = None

    def __getstate__(self) -> dict[str, Any]:
        return {"threads": self.threads, "_others": None}  # a copy starts its own threads
