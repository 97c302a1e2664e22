"""Copies that several threads share."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from make import filled
from test_stores import same

from fastrl.replay import RamStore, reference
from fastrl.replay.stores import copy_threads
from fastrl.replay.stores.copy_threads import Team

SECONDS = 120  # far more than anything here takes


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch):
    monkeypatch.setattr(copy_threads, "PAYS_BYTES", 1)


def copiers():
    """Return the threads of all teams."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastrl-copy")]


def copied(team, frames, ids):
    """Return what a team gathers, and what the plain twin does."""
    outs = np.full((2, len(ids), ids[0].size, frames.shape[1]), 99, np.uint8)
    team.gather(frames, ids, *outs[0])
    for k, out in enumerate(outs[1]):
        reference.gather(frames, ids[k], out, 0, ids.shape[1])
    return outs


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("stacks", [1, 2])
@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 20])
def test_a_team_copies_what_one_thread_does(monkeypatch, threads, stacks, piece_bytes):
    monkeypatch.setattr(copy_threads, "PIECE_BYTES", piece_bytes)
    rng, team = np.random.default_rng(threads), Team(threads)
    frames = rng.integers(256, size=(50, 9), dtype=np.uint8)
    for batch in [1, 2, 7, 100] * 25:
        mine, plain = copied(team, frames, rng.integers(-1, 50, size=(stacks, batch, 4)))
        assert np.array_equal(mine, plain)


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="needs the time that another thread took")
def test_all_threads_of_a_team_work():
    team, frames, ids = Team(3), np.ones((64, 7056), np.uint8), np.arange(2 * 256 * 4).reshape(2, 256, 4) % 64
    outs, before = np.empty((2, 1024, 7056), np.uint8), set(copiers())
    team.gather(frames, ids, *outs)
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in set(copiers()) - before]
    ends = time.monotonic() + SECONDS
    while any(time.clock_gettime(clock) < 0.005 for clock in clocks):
        assert time.monotonic() < ends, "a thread does not help"
        team.gather(frames, ids, *outs)
    assert len(clocks) == 2


@pytest.mark.parametrize("looks", [0, 1, 1_000_000])
def test_a_caller_that_is_done_first_waits_for_the_others(monkeypatch, looks):
    monkeypatch.setattr(copy_threads, "LOOKS", looks)
    team, frames, ids = Team(2), np.ones((1, 1 << 20), np.uint8), np.zeros((1, 32, 1), np.int64)
    out, whole = np.empty((32, 1 << 20), np.uint8), []

    def call():
        for _ in range(100):
            out[:, -1] = 0
            team.gather(frames, ids, out)
            whole.append(out[:, -1].all())

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(SECONDS)
    assert whole == [True] * 100


def test_few_bytes_stay_with_the_caller(monkeypatch):
    frames, ids = np.ones((5, 10), np.uint8), np.zeros((1, 3, 2), np.int64)
    before, team = set(copiers()), Team(2)
    monkeypatch.setattr(copy_threads, "PAYS_BYTES", 61)
    assert np.array_equal(*copied(team, frames, ids))
    assert not set(copiers()) - before  # those of other tests may end meanwhile
    monkeypatch.setattr(copy_threads, "PAYS_BYTES", 60)
    assert np.array_equal(*copied(team, frames, ids))
    assert len(set(copiers()) - before) == 1


def test_threads_end_once_nothing_refers_to_their_team():
    before, team = set(copiers()), Team(4)
    copied(team, np.ones((5, 10), np.uint8), np.zeros((2, 9, 2), np.int64))
    mine = set(copiers()) - before
    assert len(mine) == 3
    del team
    gc.collect()
    for thread in mine:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in mine)


def test_a_team_that_has_copied_holds_none_of_the_arrays():
    team, frames = Team(2), np.ones((5, 10), np.uint8)
    ids, outs = np.zeros((2, 9, 2), np.int64), [np.empty((18, 10), np.uint8) for _ in range(2)]
    held = [sys.getrefcount(array) for array in (frames, ids, *outs)]
    team.gather(frames, ids, *outs)
    assert [sys.getrefcount(array) for array in (frames, ids, *outs)] == held


def test_callers_in_several_threads_do_not_mix_their_copies():
    team, failed, rng = Team(2), [], np.random.default_rng(0)
    frames = rng.integers(256, size=(50, 700), dtype=np.uint8)

    def call(ids):
        for _ in range(100):
            mine, plain = copied(team, frames, ids)
            if not np.array_equal(mine, plain):
                failed.append(ids)

    callers = [threading.Thread(target=call, args=(rng.integers(-1, 50, size=(2, 64, 4)),)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failed


def test_an_interpreter_ends_while_its_threads_sleep():
    code = (
        "import numpy as np; from fastrl.replay.stores.copy_threads import Team; team = Team(3); "
        "team.gather(np.ones((4, 1 << 18), np.uint8), np.zeros((1, 8, 4), int), np.empty((32, 1 << 18), np.uint8))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=SECONDS, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("threads", [0, -1, True, 1.5])
def test_a_bad_number_of_threads_is_refused(threads):
    with pytest.raises(ValueError, match=f"threads is {threads!r}; give an integer from 1 up"):
        filled(store=partial(RamStore, threads=threads))


def test_batches_do_not_depend_on_threads(kernels):
    several, one = filled(60, n_step=3, store=partial(RamStore, threads=3)), filled(60, n_step=3)
    for size in (1, 2, 5, 64):
        same(several.sample(size), one.sample(size))
        several.prefetch(size)
        same(several.sample(size), one.sample(size))
    again = pickle.loads(pickle.dumps(several))
    same(again.sample(8), one.sample(8))
