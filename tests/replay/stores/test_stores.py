"""Other stores than the usual one: what a buffer asks of them, and their names."""

from __future__ import annotations

import re

import numpy as np
import pytest
from make import NO, filled, small

from fastrl.replay import Batch, PrioritizedReplayBuffer, RamStore


class Box:
    """Memory that is no NumPy array; a view of it holds the memory, not the box."""

    def __init__(self, array):
        self.array = array


class BoxStore(RamStore):
    """Fills boxes, and NumPy arrays too, as every store does."""

    def empty(self, shape):
        return Box(super().empty(shape))

    def gather(self, ids, *outs):
        super().gather(ids, *map(plain, outs))


class ViewStore(RamStore):
    """Makes arrays that do not own their memory: a view of one holds the owner alone."""

    def empty(self, shape):
        return super().empty((2, *shape))[1]


def plain(array):
    return array.array if isinstance(array, Box) else array


def same(first, second):
    for name in Batch.__slots__:
        assert np.array_equal(plain(getattr(first, name)), plain(getattr(second, name))), name


def test_a_batch_holds_frames_of_the_stores_kind_and_the_same_values(kernels):
    boxed, usual = filled(60, n_step=3, store=BoxStore), filled(60, n_step=3)
    for _ in range(5):
        first, second = boxed.sample(6), usual.sample(6)
        assert type(first.obs) is type(first.next_obs) is Box
        same(first, second)
    assert boxed.nbytes == usual.nbytes


@pytest.mark.parametrize("store", [BoxStore, ViewStore])
@pytest.mark.parametrize("name", ["obs", "next_obs", "reward"])
def test_what_is_held_of_a_batch_is_never_overwritten_whatever_the_store(store, name):
    buffer = filled(store=store)
    held = [plain(getattr(buffer.sample(4), name))[1:] for _ in range(20)]  # a view is all that is held
    copies = [part.copy() for part in held]
    for _ in range(20):
        buffer.sample(4)
    assert all(np.array_equal(part, copy) for part, copy in zip(held, copies, strict=True))


def test_columns_that_are_not_held_are_reused_whatever_the_store():
    buffer = filled(store=BoxStore)
    assert len({buffer.sample(4).reward.ctypes.data for _ in range(10)}) == 1


def test_out_takes_numpy_arrays_whatever_the_store():
    boxed, twin = filled(store=BoxStore), filled()
    own = Batch(
        np.empty((4, 2, 3), np.uint8), np.empty(4, np.int64), np.empty(4, np.float32), np.empty((4, 2, 3), np.uint8),
        np.empty(4, np.float32), np.empty(4, np.float32), np.empty(4, np.int64),
    )  # fmt: skip
    assert boxed.sample(4, out=own) is own
    same(own, twin.sample(4))
    with pytest.raises(ValueError, match=r"out\.obs is Box; give a NumPy array, uint8 \(4, 2, 3\)"):
        boxed.sample(4, out=boxed.sample(4))


@pytest.mark.parametrize(("source", "target"), [(BoxStore, RamStore), (RamStore, BoxStore)])
def test_a_file_saved_from_one_store_loads_into_another(tmp_path, kernels, source, target):
    buffer = filled(30, store=source)
    buffer.save(tmp_path / "replay")
    assert "store" not in PrioritizedReplayBuffer.saved_settings(tmp_path / "replay")
    again = PrioritizedReplayBuffer.load(tmp_path / "replay", store=target)
    for t in range(30, 40):
        for b in (buffer, again):
            b.add(np.full((2, 3), t, np.uint8), np.array([t, t]), np.ones(2), NO, NO)
        same(buffer.sample(6), again.sample(6))


def test_a_store_is_asked_for_the_rings_frames():
    asked = []

    def store(*arguments):
        asked.append(arguments)
        return RamStore(*arguments)

    small(capacity=41, obs_dtype=np.float32, store=store)  # 20 rows for each of two environments
    assert asked == [(40, (3,), np.dtype(np.float32))]


def test_a_store_without_memory_is_no_damage_to_the_file(tmp_path):
    filled().save(tmp_path / "replay")

    def store(*_):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        PrioritizedReplayBuffer.load(tmp_path / "replay", store=store)


@pytest.mark.parametrize("name", ["zip", "", None, 3, ["ram"]])
def test_a_store_of_no_known_name_is_refused(tmp_path, name):
    filled().save(tmp_path / "replay")
    with pytest.raises(
        ValueError, match=re.escape(f"store is {name!r}; give 'ram', 'lz4', 'mmap' or a callable that makes")
    ):
        small(store=name)
    with pytest.raises(ValueError, match=r"^store is"):  # the file is not to blame
        PrioritizedReplayBuffer.load(tmp_path / "replay", store=name)
