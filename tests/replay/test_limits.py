"""No memory left, no thread to be had, numbers beyond 32 bits: a buffer stays whole and draws right."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from make import filled, go_on_alike, refused, small, step
from strange import Thief

from fastrl.replay import Batch, PrioritizedReplayBuffer, RamStore, SumTree
from fastrl.replay.ring import Ring
from fastrl.replay.stores import compressed, copy_threads
from fastrl.replay.stores.copy_threads import Team


class Scarce(RamStore):
    """Raises ``error`` from the method that ``scarce`` names."""

    scarce = ""
    error: type[BaseException] = MemoryError

    def lack(self, what):
        if self.scarce == what:
            raise self.error("none left")

    def empty(self, shape):
        self.lack("empty")
        return super().empty(shape)

    def write(self, ids, frames):
        self.lack("write")
        super().write(ids, frames)

    def gather(self, ids, *outs):
        self.lack("gather")
        super().gather(ids, *outs)


# --- memory -------------------------------------------------------------------------------------------


def no_store(*_):
    raise MemoryError("none left")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": no_store}, r"capacity is 40, too much for memory \(none left\); give less"),
        ({"capacity": 2**55}, r"capacity is 36028797018963968, .* \(Unable to allocate .*\); give less"),
    ],
)
def test_a_capacity_that_memory_does_not_hold_is_named(changes, message):
    with pytest.raises(MemoryError, match=message):
        small(**changes)


@pytest.mark.parametrize("capacity", [2**55, 2**61, 2**63 - 1])
def test_a_tree_that_memory_does_not_hold_is_named(capacity):
    with pytest.raises(MemoryError, match=f"capacity is {capacity}, too much for memory .*; give less"):
        SumTree(capacity)


@pytest.mark.parametrize("ends", [[False, False], [True, False], [True, True]])
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_a_step_that_the_store_cannot_write_was_never_added(kernels, autoreset, ends):
    buffer, untouched = (filled(60, autoreset=autoreset, stack=1, store=Scarce) for _ in range(2))
    buffer._store.scarce = "write"
    final = {} if autoreset == "next_step" else {"final_obs": np.full((2, 3), 77, np.uint8)}
    for _ in range(2):
        with refused(buffer, "none left", MemoryError):
            buffer.add(**step(truncated=np.array(ends), **final))
    buffer._store.scarce = ""
    for each in (buffer, untouched):
        each.add(**step(truncated=np.array(ends), **final))
    go_on_alike(buffer, untouched)


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_a_step_that_cannot_be_compressed_was_never_added(monkeypatch, autoreset):
    lz4 = pytest.importorskip("lz4.block")
    buffer, untouched = (filled(60, autoreset=autoreset, stack=1, store="lz4") for _ in range(2))
    final = {} if autoreset == "next_step" else {"final_obs": np.full((2, 3), 77, np.uint8)}
    ends = step(truncated=np.array([True, False]), **final)
    left = []

    def compress(row, **how):
        return lz4.compress(row, **how) if left.pop() else no_store()

    with monkeypatch.context() as patch:
        patch.setattr(compressed, "_lz4", lambda: SimpleNamespace(compress=compress, decompress=lz4.decompress))
        for good in range(2):  # compressed before there is no memory left
            left[:] = [False] + good * [True]
            with refused(buffer, "none left", MemoryError):
                buffer.add(**ends)
    for each in (buffer, untouched):
        each.add(**ends)
    go_on_alike(buffer, untouched)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("scarce", ["empty", "gather"])
def test_a_draw_that_fails_was_none(scarce, error):
    buffer, untouched = filled(store=Scarce), filled(store=Scarce)
    buffer._store.scarce, buffer._store.error = scarce, error
    for _ in range(2):
        with refused(buffer, "none left", error):
            buffer.sample(4)
    buffer._store.scarce = ""
    go_on_alike(buffer, untouched)


@pytest.mark.parametrize("scarce", ["empty", "gather"])
def test_a_batch_lost_on_its_way_was_never_drawn(scarce):
    buffer, untouched = filled(store=Scarce), filled(store=Scarce)
    buffer._store.scarce = scarce
    for _ in range(2):
        with refused(buffer, "none left", MemoryError):
            buffer.prefetch(4)
            buffer.sample(4)
    buffer._store.scarce = ""
    buffer.prefetch(4)
    assert np.array_equal(buffer.sample(4).obs, untouched.sample(4).obs)
    go_on_alike(buffer, untouched)


@pytest.mark.parametrize("size", [2**50, 2**62])
def test_a_batch_that_memory_does_not_hold_is_named_and_none_is_drawn(size):
    buffer, untouched = filled(), filled()
    for draw in (buffer.sample, buffer.prefetch):
        with refused(buffer, f"batch_size is {size}, too much for memory .*; draw fewer rows at a time", MemoryError):
            draw(size)
    go_on_alike(buffer, untouched)


def test_a_change_of_n_without_memory_changes_nothing(monkeypatch):
    buffer, untouched = filled(), filled()
    with refused(buffer, "none left", MemoryError), monkeypatch.context() as patch:
        patch.setattr(Ring, "_definition", no_store)
        buffer.set_n_step(4)
    go_on_alike(buffer, untouched)
    for each in (buffer, untouched):
        each.set_n_step(4)
    go_on_alike(buffer, untouched)


def test_an_object_that_adds_while_it_is_read_leaves_the_buffer_whole():
    buffer = filled()
    for t in range(50):
        buffer.add(**step(t, obs=Thief(lambda t=t: buffer.add(**step(100 + t)), np.full((2, 3), t, np.uint8))))
        buffer.check()
    batch = buffer.sample(64)
    assert (batch.obs[:, -1, 0] == np.abs(batch.action)).all()


# --- threads ------------------------------------------------------------------------------------------


def thread_limit(monkeypatch, most, refusing=lambda: None):
    """Let so many threads start, and no more; call ``refusing`` before one is refused."""
    start, started = threading.Thread.start, []

    def limited(self):
        if len(started) == most:
            refusing()
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)


def test_a_prefetch_without_a_thread_was_none():
    buffer, untouched = filled(), filled()
    with pytest.MonkeyPatch.context() as patch:
        thread_limit(patch, 0)
        for _ in range(2):
            with refused(buffer, "can't start new thread", RuntimeError):
                buffer.prefetch(4)
    buffer.prefetch(4)
    assert np.array_equal(buffer.sample(4).obs, untouched.sample(4).obs)
    go_on_alike(buffer, untouched)


def test_a_draw_without_its_threads_was_none(monkeypatch):
    monkeypatch.setattr(copy_threads, "PAYS_BYTES", 1)
    buffer, untouched = filled(store=partial(RamStore, threads=3)), filled()
    with pytest.MonkeyPatch.context() as patch:
        thread_limit(patch, 0)
        with refused(buffer, "can't start new thread", RuntimeError):
            buffer.sample(16)
    go_on_alike(buffer, untouched)


def test_a_team_that_lacks_a_thread_copies_nothing_and_lets_the_others_go(monkeypatch):
    monkeypatch.setattr(copy_threads, "PAYS_BYTES", 1)
    team, before = Team(3), set(threading.enumerate())
    frames, ids, out = np.ones((4, 9), np.uint8), np.zeros((1, 8, 2), np.int64), np.zeros((16, 9), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        thread_limit(patch, 1)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            team.gather(frames, ids, out)
    assert not out.any()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert set(threading.enumerate()) <= before
    team.gather(frames, ids, out)
    assert out.all()


# --- 64 bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("laps", [2**30, 2**57])
def test_rows_may_be_numbered_beyond_32_bits(kernels, tmp_path, laps):
    """Rings whose cursors went round so often are the same rings, but for the names of their rows."""
    usual, late = (filled(30, n_step=3) for _ in range(2))
    ahead = laps * late._ring.rows
    late._ring.count += ahead
    late._ring.pending += ahead
    late.check()
    for t in range(40):
        changes = {"terminated": np.array([t % 7 == 0, t % 11 == 0]), "truncated": np.array([t % 5 == 0, False])}
        if t == 20:
            usual.set_n_step(2)
            late.set_n_step(2)
            late.save(tmp_path / "replay")
            late = PrioritizedReplayBuffer.load(tmp_path / "replay")
        for buffer in (usual, late):
            buffer.add(**step(t, **changes), env_id=None if t % 2 else [0, 1])
            buffer.check()
        first, second = usual.sample(8), late.sample(8)
        for name in set(Batch.__slots__) - {"index"}:
            assert np.array_equal(getattr(first, name), getattr(second, name)), name
        assert (second.index == first.index + 2 * ahead).all()
        assert np.array_equal(usual.age(first.index), late.age(second.index))
        for buffer, index in ((usual, first.index), (late, second.index)):
            buffer.update_priorities(index, np.arange(8.0))
        assert np.array_equal(usual.weights(first.index), late.weights(second.index))
        with refused(late, "which names no row"):
            late.age(second.index + 2**32)


def test_frames_lie_beyond_two_gigabytes(kernels):
    size, last = 2**23, 299
    store = RamStore(last + 1, (size,), np.dtype(np.uint8))  # untouched pages take no memory
    store.write(np.array([last, 0]), np.array([[7], [3]], np.uint8).repeat(size, axis=1))
    out = store.empty((1, 2, size))
    store.gather(np.array([[[0, last]]]), out)
    assert (out == np.array([3, 7])[:, None]).all()
    wide = np.zeros((last + 1, size), np.uint8)
    kernels.gather(store.bytes, np.full((last + 1, 1), last), wide, last, last + 1)
    assert (wide[last] == 7).all()


def test_slots_lie_beyond_31_bits(kernels):
    try:
        ring, tree = Ring(2, 2**30 + 8, 2, 2, (), np.dtype(np.int8)), SumTree(2**31 + 16)
    except MemoryError:
        pytest.skip("not as much memory may be promised here")
    env, base = np.array([1]), ring.rows
    ring.count[1] = ring.pending[1] = ring.rows - 3  # the last slots of the second ring, then its first
    changed = []
    for t in range(6):
        first = np.array([1 if t == 0 else -1], np.int8)
        assert ring.slots_ahead(env) == base + (base - 3 + t) % base
        changed += ring.push(env, np.array([t]), np.array([t], np.float32), np.zeros(1, np.uint8), first).tolist()
    assert changed == [2**31 + 13, 2**31 + 14, 2**31 + 15, base]
    slots = np.array(changed)
    assert ring.action[slots].tolist() == [0, 1, 2, 3]
    tree.set(np.sort(slots), np.ones(4))
    index, numbers, columns = np.empty(4, np.int64), np.empty((2, 4, 2), np.int64), np.empty((2, 4), np.float32)
    ring.drawer(tree, 0.5, zero=False).draw(np.full(4, 0.5), np.empty((4, 1), np.uint8), *columns, index, numbers)
    order = np.argsort(np.argsort(slots))  # rows are drawn by slot
    index, numbers, columns = index[order], numbers[:, order], columns[:, order]
    assert numbers[0, :, 0].tolist() == [2**31 + 13, 2**31 + 13, 2**31 + 14, 2**31 + 15]
    assert numbers[1, :, 1].tolist() == [2**31 + 15, base, base + 1, base + 2]
    assert columns[0].tolist() == [0.5, 2.0, 3.5, 5.0]
    assert index.tolist() == [2 * (base - 3 + t) + 1 for t in range(4)]
    assert [part.tolist() for part in ring.slots(index)] == [changed, [True] * 4]


@pytest.mark.parametrize("bits", [28, 31])
def test_leaves_lie_beyond_31_bits(kernels, bits):
    """2**28 leaves are beyond 2**31 bytes."""
    try:
        tree = SumTree(2**bits + 9)
    except MemoryError:
        pytest.skip("not as much memory may be promised here")
    heavy = np.array([2, 2**bits - 1, 2**bits + 8])
    tree.set(heavy, [1.0, 2.0, 3.0])
    assert tree.find([0.5, 1.0, 2.9, 3.0, 6.0]).tolist() == heavy[[0, 1, 1, 2, 2]].tolist()
    assert tree.get(heavy).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=f"index holds {2**bits + 9}"):
        tree.set([2**bits + 9], [1.0])
