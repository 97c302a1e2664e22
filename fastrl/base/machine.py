"""What this process may use of the machine, cores, memory and disk, limits included; and how it keeps memory.

NumPy maps pages only when they are written: exhausting memory gets the process killed hours later, so check first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

from fastrl.base.files import nearest
from fastrl.base.launch import launched

GIB = 1 << 30


def cpu_count() -> int:
    """Return the number of CPU cores that this process may use: its share, where torchrun started several here."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    launch = launched()
    return cores if launch is None else max(1, cores // launch.local_count)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the processor says of itself: maker, family, model and stepping, since names alone are vague."""
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}".strip()
    found = dict(re.findall(r"^(.*?)[ \t]*:[ \t]*(.*)$", first, re.M))
    return ", ".join([platform.machine(), *(found[name] for name in _PROCESSOR if name in found)])


_PROCESSOR = (
    "vendor_id", "model name", "cpu family", "model", "stepping",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision",  # of ARM
)  # fmt: skip


def busy_seconds(proc: Path = Path("/proc")) -> float | None:
    """Return how long the cores this process may use have worked for all processes; None if unknown."""
    try:
        lines = [line.split() for line in (proc / "stat").read_text(encoding="utf-8").splitlines()]
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        # user, nice, system, irq, softirq, steal (as in a process's own time); neither idle nor waiting for a disk
        ticks = [sum(map(int, [*line[1:4], *line[6:9]])) for line in lines if line and line[0] in mine]
    except (AttributeError, OSError, ValueError):
        return None
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def has_display() -> bool:
    """Whether the environment names a display to open windows on."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def keep_freed_memory() -> bool:
    """Let the C library keep what large arrays leave behind; return whether it understood.

    glibc hands arrays above 128 KiB (later 32 MiB) back to the system when they are freed, and every page of the
    next one costs a fault: for the temporary tensors of a network on a CPU a fifth of the time of an update.
    Holds for the whole process, and does nothing on other C libraries.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    kept = mallopt(mmap_threshold, GIB) or mallopt(mmap_threshold, 32 << 20)  # older versions allow no more
    return bool(mallopt(trim_threshold, 2 * GIB - 1)) and bool(kept)


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that may still be taken, the smaller of machine and cgroup; None if unknown."""
    known = [free for free in (_machine(proc), _cgroup(proc, cgroups)) if free is not None]
    return min(known) if known else None


def free_disk_bytes(path: Path) -> int:
    """Return the bytes that may still be written where a path is, or would be made."""
    return shutil.disk_usage(nearest(path)).free


def has_hard_links(path: Path) -> bool:
    """Whether a file may have two names where a path is, or would be made; also yes where no file can be made."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=nearest(path), prefix=".fastrl-") as folder:
        one, two = Path(folder, "one"), Path(folder, "two")
        one.touch()
        try:
            os.link(one, two)
        except OSError:
            return False
    return True


def bytes_in_words(count: int) -> str:
    """Return a number of bytes in the largest binary unit of which there is about one: ``3.0 MiB``, ``7 bytes``."""
    for name, unit in (("TiB", GIB << 10), ("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= 0.95 * unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count} bytes"


def _machine(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _cgroup(proc: Path, cgroups: Path) -> int | None:
    """Return the least that any group above this process leaves, version 2 or 1."""
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        memberships = [line.split(":", 2) for line in lines]
    except OSError:
        return None
    left = []
    for _, controllers, path in memberships:
        if controllers == "":
            base, limit, usage = cgroups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, usage = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.strip("/")
        for folder in [group, *group.parents]:
            if folder != base and base not in folder.parents:
                break
            try:
                most = (folder / limit).read_text(encoding="utf-8").strip()
                taken = int((folder / usage).read_text(encoding="utf-8"))
                # Version 1 writes a number near 2^63 for no limit; file cache counts as taken but gives way.
                if most != "max" and int(most) < 1 << 60:
                    left.append(max(0, int(most) - taken + _file_cache(folder)))
            except (OSError, ValueError):
                continue
    return min(left) if left else None


def _file_cache(folder: Path) -> int:
    try:
        stats = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        return int(stats.get("inactive_file", 0))
    except (OSError, ValueError):
        return 0
