"""Threads that share the copying of frames."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.base import forks
from fastrl.base.checks import integer
from fastrl.replay import _frames

PAYS_BYTES = 1 << 20
"""From this many bytes on, waking a thread costs less time than it saves."""
PIECE_BYTES = 1 << 19
"""What a thread copies before it takes more. With less, two cores write side by side more often; with more, the last to
end is longer behind the first."""

LOOKS = 200
"""How often a caller looks whether the last pieces are copied before it sleeps: some 60 µs."""


class Team:
    """The calling thread and ``threads - 1`` others, which are started when first needed, in a forked child too.

    The others end once nothing refers to the team.

    Raises
    ------
    ValueError
        If ``threads`` is less than 1.
    """

    def __init__(self, threads: int) -> None:
        self.threads = integer("threads", threads)
        self._crew: _frames.Crew | None = None

    def gather(self, frames: NDArray[np.uint8], ids: NDArray[np.int64], *outs: NDArray[np.uint8]) -> None:
        """Put frame ``frames[ids[m, b, k]]`` into ``outs[m][b K + k]``, one or two of them; -1 is a frame of zeros.

        The threads work at the same time if there are `PAYS_BYTES` to write; otherwise the caller does all the work.
        One call at a time has their help.

        Parameters
        ----------
        frames : [n, bytes] uint8
            Frames, as bytes.
        ids : [m, B, K] int64
            Their numbers.
        outs : [B K, bytes] uint8
            Where they go.

        Raises
        ------
        RuntimeError
            If no thread can be started. Nothing has been copied then.
        """
        batch, row_bytes = ids.shape[1], len(ids) * ids.shape[2] * frames.shape[1]
        if self.threads > 1 and batch > 1 and batch * row_bytes >= PAYS_BYTES:
            self._started().gather(frames, ids, outs[0], outs[-1], max(1, PIECE_BYTES // row_bytes))
        elif len(outs) == 1:
            _frames.gather(frames, ids[0], outs[0], 0, batch)
        else:
            _frames.gather_both(frames, ids, outs[0], outs[1], 0, batch)

    def _started(self) -> _frames.Crew:
        """Return the others at work."""
        if self._crew is None:
            crew = _frames.Crew(LOOKS)
            try:
                for number in range(1, self.threads):
                    # Daemons: they sleep in C, without the GIL, when the interpreter ends.
                    threading.Thread(target=crew.serve, name=f"fastrl-copy-{number}", daemon=True).start()
            except RuntimeError:
                crew.stop()
                raise
            self._crew, self._end = crew, weakref.finalize(self, crew.stop)
            self._end.atexit = False
            forks.watch(self, in_child=Team._forget_others)
        return self._crew

    def _forget_others(self, _: object) -> None:
        if self._crew is not None:
            self._end.detach()  # a lock may have been held when the process forked
            self._crew = None

    def __getstate__(self) -> dict[str, Any]:
        return {"threads": self.threads, "_crew": None}  # a copy starts its own threads
