"""Frames compressed by lz4: the same frames, less memory. The other tests here run on them too (`stores`)."""

from __future__ import annotations

import copy
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from make import NO, filled, small
from test_stores import same

from fastrl.replay import Lz4Store, PrioritizedReplayBuffer, RamStore
from fastrl.replay.stores import compressed

SHAPE = (84, 84)
SIZE = 84 * 84


@pytest.fixture
def lz4():
    return pytest.importorskip("lz4.block")


@pytest.fixture
def store(lz4):
    return Lz4Store(50, SHAPE, np.dtype(np.uint8))


def noise(n, seed=0):
    return np.random.default_rng(seed).integers(256, size=(n, *SHAPE), dtype=np.uint8)


def gathered(store, ids):
    """Return the frames ``ids[m, b, k]`` of a store, one array for each m."""
    outs = [store.empty((*ids.shape[1:], *SHAPE)) for _ in ids]
    for out in outs:
        out.fill(99)
    store.gather(ids, *outs)
    return outs


@pytest.mark.parametrize("frames", [noise(50), noise(50) // 64, np.zeros((50, *SHAPE), np.uint8)], ids=range(3))
def test_frames_come_back_whether_they_shrink_or_not(store, frames):
    usual, rng = RamStore(50, SHAPE, np.dtype(np.uint8)), np.random.default_rng(1)
    for _ in range(30):
        ids = rng.permutation(50)[: rng.integers(0, 9)]
        for each in (store, usual):
            each.write(ids, frames[ids[::-1]])
        asked = rng.integers(-1, 50, (rng.integers(1, 3), 5, 4))  # some never written, some twice, some none
        for mine, expected in zip(gathered(store, asked), gathered(usual, asked), strict=True):
            assert np.array_equal(mine, expected)


@pytest.mark.parametrize(("shape", "dtype"), [((), np.float64), ((3,), np.bool_), ((2, 1, 5), np.complex64)])
def test_frames_of_any_shape_and_dtype_come_back_to_the_bit(lz4, shape, dtype):
    store = Lz4Store(4, shape, np.dtype(dtype))
    frames = np.full((4, *shape), -0.0).astype(dtype)
    frames[1] = np.nan
    store.write(np.arange(4), frames)
    out = store.empty((4, 1, *shape))
    store.gather(np.arange(4)[None, :, None], out)
    assert out.dtype == dtype
    assert out.tobytes() == frames.tobytes()


def test_a_frame_is_decompressed_once_wherever_it_goes(lz4, store, monkeypatch):
    store.write(np.arange(50), noise(50))
    done = []

    def decompress(block, **how):
        done.append(store._blocks.index(block))
        return lz4.decompress(block, **how)

    monkeypatch.setattr(compressed, "_lz4", lambda: SimpleNamespace(decompress=decompress))
    gathered(store, np.array([[[7, 8, 9], [9, -1, 7]], [[8, 9, 10], [7, 10, 7]]]))
    assert done == [7, 8, 9, 10]


def test_bytes_are_those_held_now(store):
    empty = store.nbytes
    assert empty < 50 * 8 + 200
    store.write(np.arange(50), noise(50))
    assert 50 * SIZE < store.nbytes - empty < 50 * (SIZE * 1.005 + 60)  # noise grows, a little
    store.write(np.arange(50), np.zeros((50, *SHAPE), np.uint8))
    assert 50 * 33 < store.nbytes - empty < 50 * SIZE / 50


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_a_copy_goes_on_by_itself(lz4, copied):
    buffer, twin = filled(store="lz4"), filled()
    other = copied(buffer)
    for t in range(12, 40):
        other.add(np.full((2, 3), t, np.uint8), np.array([t, t]), np.ones(2), NO, NO)
        other.check()
    same(buffer.sample(8), twin.sample(8))  # has not moved
    for t in range(12, 40):
        twin.add(np.full((2, 3), t, np.uint8), np.array([t, t]), np.ones(2), NO, NO)
    twin._rng.bit_generator.state = other._rng.bit_generator.state
    same(other.sample(8), twin.sample(8))


def test_the_name_makes_the_store(lz4, tmp_path):
    buffer = filled(store="lz4")
    assert isinstance(buffer._store, Lz4Store)
    buffer.save(tmp_path / "replay")
    for name, kind in (("lz4", Lz4Store), ("ram", RamStore)):
        again = PrioritizedReplayBuffer.load(tmp_path / "replay", store=name)
        assert isinstance(again._store, kind)
        same(again.sample(6), filled().sample(6))


def test_without_lz4_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    named = r"fastrl\.replay\.stores\.compressed needs the extra 'lz4': pip install .*\[lz4\]"
    with pytest.raises(ImportError, match=named):
        small(store="lz4")
