"""How torchrun started this process, as it says in the environment (standard library only)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

JOB = "TORCHELASTIC_RUN_ID"
"""Variable of the environment that torchrun sets, and nothing else."""


@dataclass(frozen=True)
class Launch:
    """This process among those that torchrun started together."""

    rank: int
    """Its number, from 0."""
    count: int
    """Processes on all machines."""
    local_rank: int
    """Its number on this machine."""
    local_count: int
    """Processes on this machine."""


def launched() -> Launch | None:
    """Return what torchrun says of this process; None if it did not start it."""
    if JOB not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))


def first_rank() -> bool:
    """Whether this process is the only one of its job, or the one that speaks for all."""
    found = launched()
    return found is None or found.rank == 0


def launcher(proc: Path = Path("/proc")) -> list[str]:
    """Return torchrun and its arguments, without the program that it runs, as typed; empty if it did not start this.

    The words are those of the parent process. Where they cannot be read, they are put together again from the number of
    processes.
    """
    found = launched()
    if found is None:
        return []
    try:
        words = (proc / str(os.getppid()) / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:
        words = []
    ours = sys.argv[1:]
    names = [Path(word).name for word in words]
    for called, length in (["torchrun"], 1), (["-m", "torch.distributed.run"], 2):
        for i in range(len(words) - length):
            if names[i : i + length] == called and words[len(words) - len(ours) :] == ours:
                program = ["python", *called] if length > 1 else called
                typed = words[i + length : len(words) - len(ours)]
                return [*program, *typed[: -2 if typed[-2:-1] in (["-m"], ["--module"]) else -1]]
    nodes = found.count // found.local_count
    return ["torchrun", *(["--nnodes", str(nodes)] if nodes > 1 else []), "--nproc-per-node", str(found.local_count)]
