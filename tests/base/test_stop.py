"""The first signal asks, the second one ends: what counts as one signal, and a stop whose words nobody reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fastrl.base import console
from fastrl.base.console import say
from fastrl.base.stop import Stop

SENDS = "import os, time; os.kill({0}, {1}); time.sleep(0.005); os.kill({0}, {1})"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_at_nearly_one_time_are_one_though_the_work_keeps_the_second_waiting(number):
    """As `timeout` sends them, to a process and then to its group."""
    with Stop(quiet=True) as stop:
        sender = subprocess.Popen([sys.executable, "-c", SENDS.format(os.getpid(), int(number))])
        while not stop:
            pass
        sum(range(80_000_000))  # longer than TWICE_SECONDS, without a look at signals
        assert sender.wait() == 0
    assert stop.signal == number


def test_words_for_a_pipe_without_a_reader_are_dropped_after_a_stop_alone(capfd, monkeypatch):
    def into_nothing(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("builtins.print", into_nothing)
    gone = []
    monkeypatch.setattr(console, "print_nowhere", lambda: gone.append(True))
    with Stop(quiet=True):
        with pytest.raises(BrokenPipeError):
            say("before")
        os.kill(os.getpid(), signal.SIGINT)
        say("after")
    say("the command that resumes")
    assert len(gone) == 2
    with Stop(quiet=True), pytest.raises(BrokenPipeError):
        say("in the next run")
