"""Fixtures that several files of tests share."""

from __future__ import annotations

import gc
import os
import signal

import pytest

os.environ["FASTRL_TUNE"] = "off"  # also in processes that tests start: nothing is measured, nothing kept in ~/.cache
# A forked child collects nothing that tests before have left behind: an EnvPool crashes where its threads are not.
os.register_at_fork(after_in_child=gc.freeze)


@pytest.fixture(autouse=True)
def a_closed_terminal_is_heard():
    """Let SIGHUP be as it is in a terminal, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
