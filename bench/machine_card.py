"""A card of the machine: a figure means nothing without it."""

from __future__ import annotations

import os
import platform

from fastrl.base.machine import cpu_count
from fastrl.runs.folder import versions


def machine_card() -> dict[str, str]:
    """Return what a figure means nothing without: processor, cores, memory, GPU, versions."""
    card = {"cores": str(cpu_count()), "processor": platform.processor() or platform.machine()}
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    card |= {"processor": names[0]} if names else {}
    card["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    try:
        import torch

        card["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    except ImportError:
        card["gpu"] = "unknown: no torch"
    return card | versions()
