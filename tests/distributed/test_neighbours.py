"""The end of processes on the same machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastrl.distributed.neighbours import Neighbours, Place

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the system has no descriptors of processes")
PRINTS = """
import sys
from fastrl.distributed.neighbours import Place
print(*Place.mine(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child():
    """Another process, which says its place and then waits."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PRINTS], stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


def test_a_neighbour_is_seen_to_end_before_anyone_waits_for_it(child):
    boot, namespace, number = child.stdout.readline().split()
    place = Place(f"{boot} {namespace}", int(number))
    assert place == (Place.mine().processes, child.pid)
    neighbours = Neighbours(0)
    neighbours.watch([Place.mine(), place])
    assert neighbours.ended() == []
    child.stdin.close()
    assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT).si_pid == child.pid
    assert neighbours.ended() == [1]  # which is a zombie still
    neighbours.close()
    assert neighbours.ended() == []


def test_numbers_of_another_machine_or_container_and_of_no_process_say_nothing(child):
    here = Place.mine()
    neighbours = Neighbours(1)
    child.kill()
    child.wait()
    open_before = os.listdir("/proc/self/fd")
    neighbours.watch([Place("another", 1), here, Place(here.processes, child.pid)])
    assert os.listdir("/proc/self/fd") == open_before
    assert neighbours.ended() == []


def test_where_processes_are_not_known_none_is_watched():
    neighbours = Neighbours(0)
    neighbours.watch([Place("", os.getpid()), Place("", 1)])
    assert neighbours.ended() == []
