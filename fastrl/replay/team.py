"""Threads that share one piece of work which does not hold the GIL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from fastrl.replay.checks import integer

PAYS_BYTES = 1 << 20
"""Where waking a thread costs less than what it copies meanwhile."""


class Team:
    """The calling thread and ``threads - 1`` others, which are started when first needed.

    Raises
    ------
    ValueError
        If ``threads`` is not at least 1.
    RuntimeError
        From `share`, if no thread can be started. The work may be half done then.
    """

    def __init__(self, threads: int) -> None:
        self.threads = integer("threads", threads)
        self._others: ThreadPoolExecutor | None = None

    def share(self, work: Callable[[int, int], None], count: int, nbytes: int) -> None:
        """Call ``work(begin, end)`` for parts that make up ``range(count)``, at once where the bytes are many.

        Returns when all of it is done; what a part raised comes out then.
        """
        members = min(self.threads, count) if nbytes >= PAYS_BYTES else 1
        if members == 1:
            work(0, count)
            return
        if self._others is None:
            self._others = ThreadPoolExecutor(self.threads - 1, "fastrl-copy")
        bounds = [member * count // members for member in range(members + 1)]
        mine, *others = pairwise(bounds)
        try:
            under_way = [self._others.submit(work, *part) for part in others]
        except RuntimeError:  # no thread can be started: what was submitted must not run later either
            self._others.shutdown(cancel_futures=True)
            self._others = None
            raise
        try:
            work(*mine)
        finally:
            for part in under_way:
                part.result()

    def __getstate__(self) -> dict[str, Any]:
        return {"threads": self.threads, "_others": None}  # threads are in no copy
