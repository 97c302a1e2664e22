"""Batches that are copied in the background, and buffers that several threads use."""

from __future__ import annotations

import contextlib
import pickle
import threading

import numpy as np
import pytest
from make import NO, filled, refused, small, step

from fastrl.replay import Batch, PrioritizedReplayBuffer, RamStore, ReplayBuffer

pytestmark = pytest.mark.usefixtures("stores")


def add(buffer, t):
    buffer.add(np.full((2, 3), t, np.uint8), np.array([t, -t]), np.array([t, 10 * t]), NO, NO)


def assert_same(one, other):
    for name in Batch.__slots__:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


class SlowStore(RamStore):
    """Gathers once it may; tells when it is about to."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gathering, self.may = threading.Event(), threading.Event()

    def gather(self, ids, *outs):
        self.gathering.set()
        assert self.may.wait(20)
        super().gather(ids, *outs)


def test_the_same_seed_gives_the_same_batches_prefetched_or_not(kernels):
    ahead, plain = filled(30, n_step=3, alpha=0.8), filled(30, n_step=3, alpha=0.8)
    for t in range(30, 60):
        beta = t / 100
        ahead.prefetch(6, beta)
        expected = plain.sample(6, beta)
        for buffer in (ahead, plain):  # what happens meanwhile does not reach the batch
            add(buffer, t)
            buffer.update_priorities(expected.index[::-1], np.arange(6.0))
        assert_same(ahead.sample(6, beta), expected)
        assert_same(ahead.sample(5, beta), plain.sample(5, beta))


def test_uniform_replay_is_prefetched_too():
    buffers = [ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,), seed=0) for _ in range(2)]
    for buffer in buffers:
        for t in range(9):
            add(buffer, t)
    buffers[0].prefetch(4)
    assert_same(buffers[0].sample(4), buffers[1].sample(4))


def test_another_batch_than_the_one_prefetched_is_refused_and_that_one_kept():
    buffer, twin = filled(), filled()
    buffer.prefetch(4, 0.5)
    for arguments, message in (
        ((5, 0.5), "sample got batch_size=5, beta=0.5, but batch_size=4, beta=0.5 was prefetched"),
        ((4, 0.6), "sample got batch_size=4, beta=0.6, but"),
        ((4, 0.5, twin.sample(4, 0.5)), "out is given"),
    ):
        with pytest.raises(ValueError, match=message):
            buffer.sample(*arguments)
    twin = filled()
    assert_same(buffer.sample(4, 0.5), twin.sample(4, 0.5))


@pytest.mark.parametrize("settings", [{}, {"extra": {"mask": ((2,), bool)}, "next_extra": ("mask",)}])
def test_a_batch_is_prefetched_into_arrays_of_ones_own(settings):
    buffer, twin = (small(**settings) for _ in range(2))
    for t in range(9):
        extra = {"extra": {"mask": np.full((2, 2), t % 2, bool)}} if settings else {}
        for each in (buffer, twin):
            each.add(**step(t), **extra)
    made = []

    def empty(shape, dtype):
        made.append(np.empty(shape, dtype))
        return made[-1]

    out = buffer.empty_batch(5, empty)
    buffer.prefetch(5, 0.5, out)
    batch, expected = buffer.sample(5, 0.5), twin.sample(5, 0.5)
    assert batch is out
    assert {id(array) for array in made} >= {id(batch.obs), id(batch.next_obs), id(batch.weight)}
    assert_same(batch, expected)
    for name in settings.get("extra", {}):
        assert np.array_equal(batch.extra[name], expected.extra[name])
        assert np.array_equal(batch.next_extra[name], expected.next_extra[name])
    assert_same(buffer.sample(5, out=buffer.empty_batch(5)), twin.sample(5))


def test_arrays_that_do_not_fit_are_refused_and_nothing_is_prefetched():
    buffer = filled()
    with refused(buffer, r"out.obs is uint8 \(4, 2, 3\); give a NumPy array, uint8 \(5, 2, 3\)"):
        buffer.prefetch(5, out=buffer.empty_batch(4))
    with refused(buffer, "batch_size is 0; give an integer from 1 up"):
        buffer.empty_batch(0)
    with pytest.raises(MemoryError, match="too much for memory"):
        buffer.empty_batch(2**60)
    with pytest.raises(MemoryError, match="too much for memory"):
        buffer.empty_batch(2**60, np.empty)


def test_one_batch_is_prefetched_at_a_time():
    buffer = filled()
    buffer.prefetch(4)
    with pytest.raises(ValueError, match=r"call sample\(batch_size=4, beta=0.4\) before you prefetch again"):
        buffer.prefetch(4)
    buffer.sample(4)
    buffer.prefetch(4)


def test_bad_arguments_leave_nothing_in_flight():
    buffer = filled()
    for arguments in ((0,), (4, -1.0), (4.5,)):
        with pytest.raises(ValueError, match=r"batch_size is|beta is"):
            buffer.prefetch(*arguments)
    empty = PrioritizedReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,))
    with pytest.raises(ValueError, match="no row can be drawn yet"):
        empty.prefetch(4)
    buffer.sample(3)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("what", ["save", "copy"])
def test_a_batch_in_flight_would_be_lost_in_a_file_or_copy(tmp_path, what):
    buffer = filled()
    buffer.prefetch(4)
    with pytest.raises(ValueError, match=rf"has not been taken; call sample\(.*\) before you {what}"):
        buffer.save(tmp_path / "replay") if what == "save" else pickle.dumps(buffer)
    buffer.sample(4)
    buffer.save(tmp_path / "replay")
    pickle.dumps(buffer)


def test_an_error_while_copying_comes_out_where_the_batch_is_taken():
    class Broken(RamStore):
        def gather(self, ids, *outs):
            raise MemoryError("none left")

    buffer = filled(store=Broken)
    buffer.prefetch(4)
    with pytest.raises(MemoryError, match="none left"):
        buffer.sample(4)
    buffer.prefetch(4)  # and is forgotten then


def test_a_row_waits_where_it_would_overwrite_a_frame_that_is_read():
    store = None

    def make(*arguments):
        nonlocal store
        store = SlowStore(*arguments)
        return store

    buffer, plain = filled(20, store=make), filled(20)  # 20 rows for each environment: the rings are full
    expected = plain.sample(40)
    buffer.prefetch(40)  # all rows that can be drawn
    assert store.gathering.wait(20)
    adder = threading.Thread(target=add, args=(buffer, 20))
    adder.start()
    adder.join(0.2)
    assert adder.is_alive()
    store.may.set()
    adder.join(20)
    assert not adder.is_alive()
    assert_same(buffer.sample(40), expected)
    buffer.check()


def test_other_rows_do_not_wait():
    store = None

    def make(*arguments):
        nonlocal store
        store = SlowStore(*arguments)
        return store

    buffer = filled(12, store=make)  # 8 slots of each ring are empty
    buffer.prefetch(24)
    assert store.gathering.wait(20)
    for t in range(12, 20):
        add(buffer, t)
    assert len(buffer) == 40
    store.may.set()
    assert buffer.sample(24).obs.max() == 10


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_several_threads_corrupt_nothing(autoreset):
    """Frames count up in each environment, so that a torn stack or a stack of two environments shows."""
    N, stack, n_step = 4, 3, 2
    buffer = PrioritizedReplayBuffer(
        capacity=N * 60, num_envs=N, obs_shape=(16, 16), obs_dtype=np.int32, stack=stack, n_step=n_step,
        autoreset=autoreset, seed=0,
    )  # fmt: skip
    errors: list[BaseException] = []
    over = threading.Event()

    def adder(env):
        rng = np.random.default_rng(env)
        for t in range(1, 1500):
            frame = np.full((1, 16, 16), env * 100_000 + t, np.int32)
            cut = rng.random(1) < 0.05
            final = {"final_obs": frame + 50_000} if autoreset == "same_step" else {}
            buffer.add(frame, np.array([t]), np.zeros(1), np.zeros(1, bool), cut, env_id=np.array([env]), **final)

    def learner(ahead):
        rng = np.random.default_rng(9)
        while not over.is_set():
            if buffer.drawable < 8:
                continue
            if ahead:
                with contextlib.suppress(ValueError):  # the other learner has prefetched
                    buffer.prefetch(16, 0.5)
            batch = buffer.sample(16, 0.5)
            flat = batch.obs.reshape(16, stack, -1)
            assert (flat == flat[:, :, :1]).all()  # each frame is whole
            newest = flat[:, -1, 0]
            assert (batch.action == newest % 50_000).all()  # and belongs to the row
            assert (flat[:, :, 0] // 100_000 == newest[:, None] // 100_000).all()
            assert (np.diff(flat[:, :, 0], axis=1) <= 1).all()
            buffer.update_priorities(batch.index, rng.random(16))

    def noting(work, *arguments):
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)

    adders = [threading.Thread(target=noting, args=(adder, env)) for env in range(N)]
    learners = [threading.Thread(target=noting, args=(learner, ahead)) for ahead in (True, False)]
    for thread in adders + learners:
        thread.start()
    for thread in adders:
        thread.join()
    over.set()
    for thread in learners:
        thread.join()
    assert not errors, errors
    if buffer._prefetcher.in_flight:
        buffer.sample(16, 0.5)
    buffer.check()
    assert len(buffer) == N * 60
