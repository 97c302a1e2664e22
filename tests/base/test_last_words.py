"""What another process says where this one cannot."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from fastrl.base import last_words

WITHIN = """
import os, signal, subprocess, sys
from fastrl.base.last_words import last_words
with last_words("it ended; resume with: a 'b' $HOME"):
    child = subprocess.Popen(["sleep", "30"])  # which does not keep the pipe open
    {ends}
"""


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, True),
        ("os._exit(1)", 1, True),
        ("os.killpg(0, signal.SIGTERM)", -signal.SIGTERM, True),
        ("sys.exit(3)", 3, False),
        ("pass", 0, False),
    ],
)
def test_words_are_printed_where_a_process_ends_without_leaving(ends, status, said):
    with subprocess.Popen(
        [sys.executable, "-c", WITHIN.format(ends=ends)], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:  # fmt: skip
        first = process.stderr.readline() if said else ""  # while the child lives
        assert process.wait(60) == status
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert first + process.stderr.read() == "it ended; resume with: a 'b' $HOME\n" * said


def test_without_a_shell_the_work_goes_on(monkeypatch):
    def popen(*args, **options):
        raise FileNotFoundError("/bin/sh")

    monkeypatch.setattr(last_words.subprocess, "Popen", popen)
    with last_words.last_words("words"):
        done = True
    assert done
