"""Copies of whatever kind have all their memory to themselves."""

from __future__ import annotations

import copy
import pickle
import threading
from functools import partial

import numpy as np
import pytest
from make import NO, filled, go_on_alike, small, snapshot, step

from fastrl.replay import Batch, Lz4Store, RamStore, ReplayBuffer, SumTree

COPIED = {
    "copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}  # fmt: skip
each_way = pytest.mark.parametrize("copied", COPIED.values(), ids=COPIED)


@each_way
@pytest.mark.parametrize("stores", ["ram", "lz4"], indirect=True)  # in files, no copy has its own
def test_what_is_done_to_a_copy_of_a_buffer_does_not_reach_the_original(copied, stores):
    buffer, untouched = filled(30, n_step=2), filled(30, n_step=2)
    other = copied(buffer)
    before = snapshot(buffer)
    for t in range(100, 130):
        other.add(**step(t))
        other.update_priorities(other.sample(5).index, np.full(5, 7.0))
    other.set_n_step(1)
    other.set_gamma(0.25)
    for name, value in snapshot(buffer).items():
        assert np.array_equal(value, before[name]), name
    go_on_alike(buffer, untouched)


@each_way
@pytest.mark.parametrize("stores", ["ram", "lz4"], indirect=True)  # in files, no copy has its own
def test_what_is_done_to_a_buffer_does_not_reach_its_copy(copied, stores):
    buffer, untouched = filled(30), filled(30)
    other = copied(buffer)
    for t in range(100, 130):
        buffer.add(**step(t))
        buffer.update_priorities(buffer.sample(5).index, np.full(5, 7.0))
    go_on_alike(other, untouched)


@each_way
def test_a_copy_of_a_uniform_buffer_is_independent_too(copied):
    buffer = ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,), seed=0)
    for t in range(9):
        buffer.add(**step(t))
    other, before = copied(buffer), snapshot(buffer)
    other.add(**step(200))
    other.sample(4)
    assert np.array_equal(snapshot(buffer)["frames"], before["frames"])
    assert snapshot(buffer)["generator"] == before["generator"]
    assert len(other) == len(buffer) + 2
    other.check()


@each_way
def test_a_copied_tree_has_weights_of_its_own(copied):
    tree = SumTree(20)
    tree.set([3, 17], [1.0, 2.0])
    other = copied(tree)
    other.set([3, 4], [5.0, 6.0])
    assert tree.get([3, 4, 17]).tolist() == [1, 0, 2]
    assert (tree.total, other.total) == (3, 13)
    tree.check()
    other.check()


@each_way
@pytest.mark.parametrize("make", [RamStore, partial(RamStore, threads=2), Lz4Store])
def test_a_copied_store_has_frames_of_its_own(copied, make):
    if make is Lz4Store:
        pytest.importorskip("lz4.block")
    store = make(4, (3,), np.dtype(np.uint8))
    store.write(np.arange(4), np.arange(12, dtype=np.uint8).reshape(4, 3))
    other = copied(store)
    other.write(np.array([1, 2]), np.full((2, 3), 99, np.uint8))
    for each, expected in ((store, [0, 3, 6, 9]), (other, [0, 99, 99, 9])):
        out = np.empty((4, 1, 3), np.uint8)
        each.gather(np.arange(4)[None, :, None], out)
        assert out[:, 0, 0].tolist() == expected


@each_way
def test_a_copied_batch_holds_what_was_drawn(copied):
    buffer, twin = filled(30), filled(30)
    other = copied(buffer.sample(5))
    expected = twin.sample(5)
    for _ in range(9):
        buffer.sample(5)  # reuses arrays that nothing refers to
    for name in Batch.__slots__:
        assert np.array_equal(getattr(other, name), getattr(expected, name)), name


@each_way
def test_a_save_is_not_copied(copied, tmp_path):
    save = filled().begin_save(tmp_path / "save")
    with pytest.raises(TypeError, match="a save cannot be copied or pickled; begin another, of a copy of the buffer"):
        copied(save)
    save.write()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_taken_between_two_rows_of_another_thread(copied):
    """Each row's action is its frame, so that a copy from the middle of a row shows."""
    buffer, over = small(capacity=4000, obs_shape=(50,), obs_dtype=np.int64), threading.Event()

    def adder():
        t = 0
        while not over.is_set():
            buffer.add(np.full((2, 50), t), np.array([t, t]), np.zeros(2), NO, NO)
            t += 1

    thread = threading.Thread(target=adder)
    thread.start()
    try:
        for _ in range(30):
            other = copied(buffer)
            other.check()
            if other.drawable:
                batch = other.sample(16)
                assert (batch.obs[:, -1] == batch.action[:, None]).all()
    finally:
        over.set()
        thread.join()


def test_a_copy_of_a_derived_class_keeps_what_is_its_own():
    class Mine(ReplayBuffer):
        pass

    buffer = Mine(capacity=40, num_envs=2, obs_shape=(3,))
    buffer.notes = ["one"]
    other = copy.copy(buffer)
    other.notes.append("two")
    assert type(other) is Mine
    assert buffer.notes == ["one"]
