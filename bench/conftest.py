"""A card of the machine goes with every table."""

from __future__ import annotations

import contextlib
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


def pytest_configure():
    """Import fastrl before PyTorch, whose threads read their settings when it is imported.

    Only under pytest: whoever asks for the card alone may start other people's loops, which must not inherit them.
    """
    with contextlib.suppress(ImportError):
        import fastrl.dqn  # noqa: F401


def pytest_report_header():
    return "machine: " + ", ".join(f"{name} {value}" for name, value in machine_card().items())


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastrl"] = machine_card()
