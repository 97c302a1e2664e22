"""Work that several threads share."""

from __future__ import annotations

import pickle
import threading
from functools import partial

import numpy as np
import pytest
from make import filled
from test_stores import same

from fastrl.replay import RamStore
from fastrl.replay.stores import copy_threads
from fastrl.replay.stores.copy_threads import Team


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch):
    monkeypatch.setattr(copy_threads, "PAYS_BYTES", 1)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_parts_make_up_the_whole_and_overlap_nowhere(threads, count):
    times = np.zeros(count, np.int64)

    def work(begin, end):
        times[begin:end] += 1

    Team(threads).share(work, count, 1)
    assert (times == 1).all()


def test_threads_work_at_once():
    meeting = threading.Barrier(3, timeout=20)
    Team(3).share(lambda begin, end: meeting.wait(), 3, 1)  # would break if one worked after the other


def test_few_bytes_stay_with_the_caller(monkeypatch):
    monkeypatch.setattr(copy_threads, "PAYS_BYTES", 100)
    seen = []
    Team(2).share(lambda *part: seen.append((part, threading.current_thread())), 10, 99)
    assert seen == [((0, 10), threading.current_thread())]


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_comes_out_once_all_have_ended(bad):
    ended = []

    def work(begin, end):
        if begin == bad:
            raise MemoryError("none left")
        ended.append(begin)

    several = Team(2)
    for _ in range(3):
        with pytest.raises(MemoryError, match="none left"):
            several.share(work, 2, 1)
    assert ended == [1 - bad] * 3


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
