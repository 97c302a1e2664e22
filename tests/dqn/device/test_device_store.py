"""Frames on a device: the batches that the store in memory gives, to the bit."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from make import NO, filled

from fastrl.dqn.device.store import DeviceStore
from fastrl.replay import Batch, PrioritizedReplayBuffer, RamStore, ReplayBuffer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
STORES = [
    pytest.param(partial(DeviceStore, device=CPU), id="cpu"),
    pytest.param(partial(DeviceStore, device=CPU, staged=True), id="staged"),
    pytest.param(partial(DeviceStore, device=GPU), id="cuda", marks=needs_gpu),
]
on_every_store = pytest.mark.parametrize("store", STORES)


def bits(array):
    """Return what an array or tensor is, to the bit: NaNs and zeros of either sign included."""
    array = array.cpu().numpy() if isinstance(array, torch.Tensor) else array
    return array.dtype, array.shape, array.tobytes()


def same(first, second):
    for name in Batch.__slots__:
        assert bits(getattr(first, name)) == bits(getattr(second, name)), name


def play(buffers, steps, seed=0):
    """Add the same vector steps of all kinds to every buffer, and compare what they draw on the way."""
    rng, settings = np.random.default_rng(seed), buffers[0].settings
    num_envs, dtype = settings["num_envs"], np.dtype(settings["obs_dtype"])

    def frames(n):
        shape = settings["obs_shape"]
        size = (n, *shape[:-1], shape[-1] * dtype.itemsize)
        return rng.integers(0, 256, size, np.uint8).view(dtype)  # any bits: NaNs, infinities

    for _ in range(steps):
        env = rng.permutation(num_envs)[: rng.integers(0, num_envs + 1)]
        n = len(env)
        row = {
            "obs": frames(n), "action": rng.integers(0, 9, n), "reward": rng.normal(size=n), "env_id": env,
            "terminated": rng.random(n) < 0.1, "truncated": rng.random(n) < 0.1,
        }  # fmt: skip
        if settings["autoreset"] != "next_step":
            row["final_obs"] = frames(n)
        for buffer in buffers:
            buffer.add(**row)
        if buffers[0].drawable:
            first, *others = [buffer.sample(7) for buffer in buffers]
            for other in others:
                same(first, other)
            priority = rng.random(7)
            for buffer in buffers:
                if isinstance(buffer, PrioritizedReplayBuffer):
                    buffer.update_priorities(first.index, priority)
    assert buffers[0].drawable > 10


@on_every_store
@pytest.mark.parametrize("autoreset", ["next_step", "same_step", "disabled"])
@pytest.mark.parametrize("padding", ["first", "zero"])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize(("shape", "dtype"), [((7, 5), np.uint8), ((8, 8), np.uint8), ((3,), np.float32)])
def test_batches_are_those_of_the_store_in_memory(store, autoreset, padding, n_step, shape, dtype):
    settings = {
        "capacity": 3 * 20, "num_envs": 3, "obs_shape": shape, "obs_dtype": dtype, "stack": 3,
        "stack_padding": padding, "n_step": n_step, "autoreset": autoreset, "seed": 1,
    }  # fmt: skip
    for kind in (ReplayBuffer, PrioritizedReplayBuffer):
        usual, on_device = kind(**settings), kind(**settings, store=store)
        play([usual, on_device], 90)  # several times round each ring
        assert len(usual) == len(on_device) == 60
        assert isinstance(on_device.sample(2).obs, torch.Tensor)


@on_every_store
def test_a_file_loads_into_either_store_whichever_saved_it(tmp_path, store):
    settings = {"capacity": 60, "num_envs": 3, "obs_shape": (7, 5), "stack": 2, "stack_padding": "zero", "seed": 1}
    usual, on_device = PrioritizedReplayBuffer(**settings), PrioritizedReplayBuffer(**settings, store=store)
    play([usual, on_device], 30)
    paths = tmp_path / "usual", tmp_path / "on_device"
    usual.save(paths[0])
    on_device.save(paths[1])
    loaded = [PrioritizedReplayBuffer.load(path, store=s) for path in paths for s in (RamStore, store)]
    assert [type(buffer.sample(2).obs) for buffer in loaded] == [np.ndarray, torch.Tensor] * 2
    usual.sample(2)  # all generators are where they were
    on_device.sample(2)
    play([usual, on_device, *loaded], 60, seed=2)


@on_every_store
@pytest.mark.parametrize("hold", [lambda batch: batch, lambda batch: (batch.obs[1:], batch.next_obs[0])])
def test_what_is_held_of_a_batch_stays_as_it_is(store, hold):
    buffer = filled(store=store)

    def contents(held):
        return [bits(x) for x in ([held.obs, held.next_obs, held.reward] if isinstance(held, Batch) else held)]

    held = [hold(buffer.sample(4)) for _ in range(10)]
    before = [contents(part) for part in held]
    assert len({str(content) for content in before}) > 1
    for _ in range(20):
        buffer.sample(4)
    assert [contents(part) for part in held] == before


@on_every_store
@pytest.mark.parametrize("dtype", "?bhilBHILefdFD")
@pytest.mark.parametrize("shape", [(), (3,), (4, 5), (84, 84)])
def test_every_dtype_and_shape_comes_back_to_the_bit(store, dtype, shape):
    dtype = np.dtype(dtype)
    frames = store(9, shape, dtype)
    rng = np.random.default_rng(0)
    given = rng.integers(0, 2 if dtype.kind == "b" else 256, (3, *shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
    frames.write(np.array([8, 0, 3]), given)
    frames.write(np.empty(0, np.int64), given[:0])
    ids, expected = np.array([[8, -1], [3, 0]]), [given[0], np.zeros_like(given[0]), given[2], given[1]]
    outs = frames.empty((2, 2, *shape)), np.ones((2, 2, *shape), dtype)
    frames.gather(np.stack([ids, ids]), *outs)
    for out in outs:
        assert bits(out) == bits(np.stack(expected).reshape(2, 2, *shape))


@on_every_store
def test_a_device_store_knows_its_size(store):
    assert store(99, (84, 84), np.dtype(np.uint8)).nbytes == 100 * 84 * 84  # and a frame of zeros
    assert filled(store=store).nbytes > 41 * 3


def test_tensors_are_refused_as_out_and_numpy_arrays_filled():
    buffer, twin = filled(store=partial(DeviceStore, device=CPU)), filled()
    with pytest.raises(ValueError, match=r"out\.obs is Tensor; give a NumPy array"):
        buffer.sample(4, out=buffer.sample(4))
    twin.sample(4)
    own = filled().sample(4)
    assert buffer.sample(4, out=own) is own
    same(own, twin.sample(4))


def test_a_dtype_that_pytorch_lacks_is_refused():
    with pytest.raises(ValueError, match="dtype is >f4, which PyTorch does not have"):
        filled(obs_dtype=">f4", store=partial(DeviceStore, device=CPU))


@needs_gpu
def test_the_host_waits_for_nothing_that_the_gpu_does():
    store, given = DeviceStore(64, (84, 84), np.dtype(np.uint8), GPU), np.ones((4, 84, 84), np.uint8)
    ids, done = np.arange(4)[None, None], torch.cuda.Event()
    for _ in range(5):  # all staging memory is there, and kernels are loaded
        store.write(ids[0, 0], given)
        store.gather(ids, store.empty((1, 4, 84, 84)))
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    done.record()
    store.write(ids[0, 0], 2 * given)
    out = store.empty((1, 4, 84, 84))
    store.gather(ids, out)
    assert not done.query()
    assert (out == 2).all()


@on_every_store
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_what_is_added_to_a_copy_does_not_reach_the_original(store, copied):
    buffer, plain = filled(store=store), filled()
    other = copied(buffer)
    for t in range(20):
        other.add(np.full((2, 3), 100 + t, np.uint8), np.zeros(2, int), np.zeros(2), NO, NO)
        other.sample(4)
    same(buffer.sample(9), plain.sample(9))
    alone = copied(buffer._store)
    alone.write(np.arange(4), np.full((4, 3), 99, np.uint8))
    same(buffer.sample(9), plain.sample(9))
