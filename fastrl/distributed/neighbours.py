"""The other processes of one job on the same machine: their end is seen, whatever their connections say."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self


class Place(NamedTuple):
    """Where a process runs."""

    processes: str
    """Equal in all processes that know each other by their numbers, containers included; empty if that is not known."""
    number: int
    """That of the process."""

    @classmethod
    def mine(cls) -> Self:
        """Return that of this process."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
            return cls(f"{boot} {os.readlink('/proc/self/ns/pid')}", os.getpid())
        except OSError:  # not Linux, or a sandbox
            return cls("", os.getpid())


class Neighbours:
    """A job's other processes on this machine, by descriptors: those name a process and never another one after it.

    Where the system has none (before Linux 5.3, in some sandboxes), there are no neighbours to see.

    Parameters
    ----------
    rank : int
        Of this process.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._ranks: dict[int, int] = {}  # by descriptor

    def watch(self, places: Sequence[Place]) -> None:
        """Hold a descriptor of each process that runs where this one does.

        Parameters
        ----------
        places : sequence of Place
            By rank, all processes of the job.
        """
        mine = places[self._rank]
        for rank, place in enumerate(places):
            if rank != self._rank and place.processes and place.processes == mine.processes:
                with contextlib.suppress(OSError):
                    self._ranks[os.pidfd_open(place.number)] = rank

    def ended(self) -> list[int]:
        """Return the ranks of those that have ended, in order."""
        ends = select.poll()
        for descriptor in self._ranks:
            ends.register(descriptor, select.POLLIN)
        return sorted(self._ranks[descriptor] for descriptor, _ in ends.poll(0))

    def close(self) -> None:
        """Let go of the descriptors."""
        for descriptor in self._ranks:
            os.close(descriptor)
        self._ranks = {}
