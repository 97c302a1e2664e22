"""A card of the machine goes with every table."""

from __future__ import annotations

import contextlib

from machine_card import machine_card


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
