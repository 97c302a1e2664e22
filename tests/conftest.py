"""Fixtures that several files of tests share."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(autouse=True)
def a_closed_terminal_is_heard():
    """Let SIGHUP be as it is in a terminal, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
