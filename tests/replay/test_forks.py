"""A forked child gets a whole buffer that works, whatever threads and locks the parent had."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import threading
import weakref
from functools import partial

import numpy as np
import pytest
from make import filled, go_on_alike, step

from fastrl.base import forks
from fastrl.replay import Batch, RamStore, ReplayBuffer, SumTree
from fastrl.replay import buffer as buffers
from fastrl.replay.stores import copy_threads

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # CPython from 3.12 on, if there are threads
]
TWO_THREADS = partial(RamStore, threads=2)
ASAN = "libasan" in os.environ.get("LD_PRELOAD", "")
SECONDS = 30  # that a child which does not hang may take, instrumented and on a busy machine too


@pytest.fixture(autouse=True)
def threads_pay(monkeypatch):
    monkeypatch.setattr(copy_threads, "PAYS_BYTES", 1)


def forked(work, *arguments):
    """Return what ``work(*arguments)`` returns in a forked child; fail if it raises there, or hangs."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)

    def child():
        try:
            answer = work(*arguments), None
        except BaseException as error:
            answer = None, repr(error)
        theirs.send(answer)

    process = context.Process(target=child)
    process.start()
    try:
        answered = mine.poll(SECONDS)
        if not answered and ASAN:
            pytest.skip("another thread held AddressSanitizer's allocator, which gcc 12 does not guard at forks")
        assert answered, "the child hangs"
        result, error = mine.recv()
        process.join(SECONDS)
    finally:
        process.kill()
    assert error is None, error
    return result


def arrays(batch):
    return {name: getattr(batch, name).copy() for name in Batch.__slots__}


def assert_same(one, other):
    for name, array in one.items():
        assert np.array_equal(array, other[name]), name


class PausedStore(RamStore):
    """Gathers or writes once it may; tells when it is about to."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.reached, self.may = threading.Event(), threading.Event()
        self.may.set()

    def pause(self):
        self.reached.set()
        assert self.may.wait(SECONDS)

    def gather(self, ids, *outs):
        self.pause()
        super().gather(ids, *outs)

    def write(self, ids, frames):
        super().write(ids[:1], frames[:1])
        self.pause()
        super().write(ids, frames)


def paused(steps=30):
    """Return a filled buffer and its store, which stops before it gathers or in the middle of a write."""
    buffer = filled(steps, store=PausedStore)
    buffer._store.reached.clear()
    buffer._store.may.clear()
    return buffer, buffer._store


@pytest.fixture
def in_thread():
    """Start work in a thread, which the test must let end."""
    threads = []

    def start(work, *arguments):
        threads.append(threading.Thread(target=work, args=arguments))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


# --- threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stores", ["ram", "lz4"], indirect=True)  # in files, no copy has its own
def test_a_child_draws_what_the_parent_would_have_drawn(stores, kernels):
    buffer, twin = filled(30), filled(30)
    for each in (buffer, twin):
        each.sample(8)
    assert_same(forked(lambda: arrays(buffer.sample(8))), arrays(twin.sample(8)))


@pytest.mark.parametrize("store", ["ram", TWO_THREADS])
def test_a_child_goes_on_where_threads_have_copied_for_the_parent(store):
    buffer, twin = filled(30, store=store), filled(30)
    for each in (buffer, twin):
        each.prefetch(8)
        each.sample(8)
        each.sample(8)

    def work():
        go_on_alike(buffer, twin)
        for each in (buffer, twin):
            each.prefetch(8)
        assert_same(arrays(buffer.sample(8)), arrays(twin.sample(8)))

    forked(work)
    work()  # and so does the parent


def test_a_child_of_a_child_goes_on_too():
    buffer, twin = filled(30, store=TWO_THREADS), filled(30)
    for each in (buffer, twin):
        each.prefetch(8)

    def work():
        drawn = arrays(buffer.sample(8))
        buffer.prefetch(8)
        pid = os.fork()
        if not pid:
            os._exit(len(buffer.sample(8).index))
        return drawn, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    drawn, code = forked(work)
    assert_same(drawn, arrays(twin.sample(8)))
    assert code == 8
    buffer.sample(8)


def test_a_store_alone_gathers_in_a_child():
    store = RamStore(4, (3,), np.dtype(np.uint8), threads=2)
    store.write(np.arange(4), np.arange(12, dtype=np.uint8).reshape(4, 3))

    def work():
        out = np.empty((4, 1, 3), np.uint8)
        store.gather(np.arange(4)[None, :, None], out)
        return out[:, 0].tolist()

    assert work() == forked(work) == store.frames.tolist()


def test_a_tree_draws_in_a_child():
    tree = SumTree(20)
    tree.set([3, 17], [1.0, 3.0])

    def work():
        tree.set([4], [4.0])
        tree.check()
        return set(tree.sample(100, np.random.default_rng(0)).tolist())

    assert forked(work) == {3, 4, 17}
    assert tree.total == 4


@pytest.mark.parametrize("stores", ["ram", "lz4"], indirect=True)  # in files, no copy has its own
def test_a_child_leaves_the_parents_buffer_as_it_is(stores):
    buffer, twin = filled(30), filled(30)

    def work():
        for t in range(40):
            buffer.add(**step(t))
            buffer.update_priorities(buffer.sample(4).index, np.full(4, 9.0))

    forked(work)
    go_on_alike(buffer, twin)


# --- a batch that was prefetched ----------------------------------------------------------------------


def test_a_batch_that_is_being_copied_at_the_fork_is_drawn_in_the_child_too():
    buffer, store = paused()
    twin = filled(30)
    expected = arrays(twin.sample(8))
    buffer.prefetch(8)
    assert store.reached.wait(SECONDS)  # the thread stands before its first frame, and never goes on in the child

    def work():
        store.may.set()
        return arrays(buffer.sample(8))

    assert_same(forked(work), expected)
    store.may.set()
    assert_same(arrays(buffer.sample(8)), expected)


def test_rows_that_a_child_adds_wait_for_a_batch_in_flight():
    buffer, store = paused()
    twin = filled(30)
    expected = arrays(twin.sample(40))
    buffer.prefetch(40)
    assert store.reached.wait(SECONDS)

    def work():
        store.may.set()
        for t in range(100, 120):  # overwrite every frame
            buffer.add(**step(t))
        return arrays(buffer.sample(40))

    assert_same(forked(work), expected)
    store.may.set()
    buffer.sample(40)


@pytest.mark.parametrize("stores", ["ram", "lz4"], indirect=True)  # in files, no copy has its own
def test_a_batch_copied_before_the_fork_is_kept_though_its_frames_are_overwritten(stores):
    buffer, twin = filled(30), filled(30)
    expected = arrays(twin.sample(40))
    buffer.prefetch(40)
    buffer._prefetcher.wait()
    for t in range(100, 120):
        buffer.add(**step(t))
    assert_same(forked(lambda: arrays(buffer.sample(40))), expected)
    assert_same(arrays(buffer.sample(40)), expected)


def test_an_error_while_a_child_copies_comes_out_where_the_batch_is_taken():
    buffer, store = paused()
    buffer.prefetch(8)
    assert store.reached.wait(SECONDS)

    def work():
        store.gather = None  # cannot be called
        buffer._prefetcher._flight.gather = store.gather
        buffer._prefetcher.wait()
        with pytest.raises(TypeError):
            buffer.sample(8)
        buffer._store = RamStore(40, (3,), np.dtype(np.uint8))
        return len(buffer.sample(8).index)

    assert forked(work) == 8
    store.may.set()
    buffer.sample(8)


# --- locks --------------------------------------------------------------------------------------------


def test_a_fork_waits_until_a_row_is_added_whole(in_thread):
    buffer, store = paused()
    twin = filled(30)
    in_thread(lambda: buffer.add(**step(100)))
    assert store.reached.wait(SECONDS)  # in the middle of its frames
    threading.Timer(0.2, store.may.set).start()

    def work():
        buffer.check()
        return len(buffer), arrays(buffer.sample(8))

    rows, drawn = forked(work)
    twin.add(**step(100))
    assert rows == len(twin)
    assert_same(drawn, arrays(twin.sample(8)))


def test_a_thread_of_the_child_can_use_the_buffer_and_fork():
    buffer = filled(30)
    drawn = []

    def in_another_thread():
        drawn.append(buffer.sample(8))
        pid = os.fork()
        if not pid:
            buffer.sample(8)
            os._exit(7)
        drawn.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def work():
        thread = threading.Thread(target=in_another_thread, daemon=True)
        thread.start()
        thread.join(SECONDS)
        return drawn[1:]

    assert forked(work) == [7]


def test_a_buffer_that_a_fork_found_in_the_middle_of_a_call_refuses_every_call(in_thread, monkeypatch, tmp_path):
    monkeypatch.setattr(buffers, "FORK_PATIENCE_S", 0.05)
    filled(30).save(tmp_path / "replay")
    buffer, store = paused()
    in_thread(lambda: buffer.add(**step(100)))
    assert store.reached.wait(SECONDS)  # and it stays there

    def work():
        for call in (
            lambda: buffer.sample(8), lambda: buffer.prefetch(8), lambda: buffer.add(**step(101)), buffer.check,
            lambda: buffer.save(tmp_path / "torn"), lambda: copy.copy(buffer), lambda: copy.deepcopy(buffer),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="forked while another thread was inside a call of this buffer"):
                call()
        return len(type(buffer).load(tmp_path / "replay").sample(8).index)  # the remedy

    assert forked(work) == 8
    assert forked(forked, work) == 8  # and in the child of a child
    store.may.set()
    assert forked(lambda: len(buffer.sample(8).index)) == 8  # the other remedy


def test_a_fork_waits_for_a_save_however_long_it_takes(in_thread, monkeypatch, tmp_path):
    monkeypatch.setattr(buffers, "FORK_PATIENCE_S", 0.05)
    buffer, store = paused()
    in_thread(buffer.save, tmp_path / "replay")
    assert store.reached.wait(SECONDS)
    threading.Timer(0.5, store.may.set).start()
    assert forked(lambda: len(buffer.sample(8).index)) == 8


@pytest.mark.parametrize("during", [(True, False), (False, True), (True, True)], ids=str)
def test_a_save_that_begins_or_ends_as_patience_does_leaves_a_whole_buffer(monkeypatch, during):
    buffer = filled()
    waits = []

    class Lock:
        def acquire(self, timeout):
            waits.append(buffer._in_save)
            buffer._in_save = during[1]  # it begins or ends while this returns
            return len(waits) == 2

    monkeypatch.setattr(buffer, "_lock", Lock())
    buffer._in_save = during[0]
    assert buffer._before_fork() == (True, False)
    assert waits == list(during)


def test_a_call_that_is_no_save_is_waited_for_once(monkeypatch):
    buffer = filled()
    waits = []

    class Lock:
        def acquire(self, timeout):
            waits.append(timeout)
            return False

    monkeypatch.setattr(buffer, "_lock", Lock())
    assert buffer._before_fork() == (False, False)
    assert waits == [buffers.FORK_PATIENCE_S]


def test_buffers_wait_for_no_fork_once_they_are_gone():
    buffer = filled()
    key, known = id(buffer), weakref.ref(buffer)
    assert key in forks._watched
    del buffer
    gc.collect()
    assert known() is None
    assert key not in forks._watched


def test_a_fork_that_fails_lets_go_of_every_buffer():
    buffer = filled()
    forks._before()  # what CPython calls before a fork, and what it calls after one that failed
    taken = threading.Event()
    thread = threading.Thread(target=lambda: (buffer.sample(4), taken.set()))
    thread.start()
    assert not taken.wait(0.1)
    forks._in_parent()
    thread.join(SECONDS)
    assert taken.is_set()


def test_several_threads_may_fork_while_others_draw(in_thread):
    over = threading.Event()
    buffer = filled(30, store=TWO_THREADS)
    buffer.sample(8)

    def learner():
        while not over.is_set():
            buffer.update_priorities(buffer.sample(8).index, np.ones(8))

    results = []

    def forker():
        results.extend(forked(lambda: (buffer.check(), len(buffer.sample(8).index))[1]) for _ in range(5))

    in_thread(learner)
    forkers = [threading.Thread(target=forker) for _ in range(2)]
    for thread in forkers:
        thread.start()
    for thread in forkers:
        thread.join(SECONDS)
    over.set()
    assert results == [8] * 10


# --- saves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stores", ["ram", "lz4"], indirect=True)  # in files, no copy has its own
def test_a_save_in_progress_stays_with_the_parent(tmp_path, stores):
    buffer, twin = filled(30), filled(30)
    save = buffer.begin_save(tmp_path / "save")

    def work():
        with pytest.raises(RuntimeError, match=r"begun before this process was forked, and the parent .* writes it"):
            save.write()
        save.close()
        for t in range(100, 130):  # waits for nothing
            buffer.add(**step(t))
        buffer.begin_save(tmp_path / "the child's").write()
        return True

    assert forked(work)
    save.write()
    go_on_alike(type(buffer).load(tmp_path / "save"), twin)
    expected = filled(30)
    for t in range(100, 130):
        expected.add(**step(t))
    go_on_alike(type(buffer).load(tmp_path / "the child's"), expected)


def test_a_child_forked_while_a_thread_writes_a_save_goes_on(in_thread, tmp_path):
    buffer, store = paused()
    save = buffer.begin_save(tmp_path / "save")
    in_thread(save.write)
    assert store.reached.wait(SECONDS)
    threading.Timer(0.2, store.may.set).start()

    def work():
        for t in range(100, 130):
            buffer.add(**step(t))
        buffer.check()
        return len(buffer.sample(8).index)

    assert forked(work) == 8
    store.may.set()


def test_a_uniform_buffer_forks_too():
    buffer = ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,), seed=0, store=TWO_THREADS)
    for t in range(9):
        buffer.add(**step(t))
    buffer.prefetch(4)
    assert len(forked(lambda: buffer.sample(4).index)) == 4
    buffer.sample(4)


def test_what_a_child_does_first_leaves_buffers_that_work(tmp_path):
    """In this process, so that the instrument that counts lines sees it: it begins later in a child."""
    buffer, twin = filled(30, store=TWO_THREADS), filled(30)
    buffer.sample(8)
    twin.sample(8)
    save = buffer.begin_save(tmp_path / "save")
    forks._before()
    forks._in_child()
    with pytest.raises(RuntimeError, match="begun before this process was forked"):
        save.write()
    go_on_alike(buffer, twin)
    buffer.prefetch(8)
    forks._before()
    buffer._prefetcher.forget_thread(copied=False)
    forks._in_child()
    assert_same(arrays(buffer.sample(8)), arrays(twin.sample(8)))


def test_a_buffer_whose_lock_was_not_had_stays_refused_in_later_forks():
    buffer = filled(30)
    buffer._after_fork_in_child(None)
    for after in (forks._in_parent, forks._in_child):
        forks._before()
        after()
        with pytest.raises(RuntimeError, match="forked while another thread"):
            buffer.sample(8)
