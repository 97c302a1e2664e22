"""Batches as tensors: what the buffer draws, on a CPU, through memory between, and on a GPU that a CPU plays."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import fields

import numpy as np
import pytest
import torch
from stand_in_cuda import stand_in_cuda

from fastrl.integrations.torch import TensorReplay
from fastrl.replay import Hindsight, PrioritizedReplayBuffer, ReplayBuffer

WAYS = {"cpu": False, "staged": True, "cuda": None}
NO = np.zeros(2, bool)


@pytest.fixture(params=WAYS)
def way(request):
    """How tensors are made: as they are, through memory between, and as on a GPU."""
    with stand_in_cuda() if request.param == "cuda" else nullcontext():
        yield {"device": request.param if request.param == "cuda" else "cpu", "staged": WAYS[request.param]}


def add(buffer, t):
    obs = {
        "image": np.full((2, 2, 2), t % 250, np.uint8),
        "achieved_goal": np.full((2, 1), t, np.float32),
        "desired_goal": np.full((2, 1), -t, np.float32),
    }
    extra = {"mask": np.array([[t % 2, 1]] * 2, bool)}
    buffer.add(obs, np.array([t, -t]), np.array([t, 10.0 * t]), NO, NO, extra=extra)


def filled(kind=PrioritizedReplayBuffer, steps=20):
    buffer = kind(
        capacity=60, num_envs=2, obs_shape={"image": (2, 2), "achieved_goal": (1,), "desired_goal": (1,)}, n_step=2,
        obs_dtype={"image": np.uint8, "achieved_goal": np.float32, "desired_goal": np.float32}, seed=0,
        stack={"image": 3, "achieved_goal": 1, "desired_goal": 1}, extra={"mask": ((2,), bool)}, next_extra=("mask",),
    )  # fmt: skip
    for t in range(steps):
        add(buffer, t)
    return buffer


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{path}[{key!r}]")
    else:
        yield path, value


def assert_same(tensors, batch):
    """Check that a batch of tensors has the values of a batch of arrays."""
    assert type(tensors) is type(batch)
    assert isinstance(tensors.index, np.ndarray)
    for each in fields(batch):
        pairs = zip(leaves(getattr(tensors, each.name)), leaves(getattr(batch, each.name)), strict=True)
        for (path, tensor), (_, array) in pairs:
            assert isinstance(tensor, torch.Tensor) or each.name in ("index", "burn_in", "period"), each.name
            assert np.array_equal(np.asarray(tensor), array), each.name + path
            assert np.asarray(tensor).dtype == np.asarray(array).dtype


def reward(achieved, desired):
    return -np.abs(achieved - desired)[:, 0]


DRAWS = {
    "sample": lambda replay: replay.sample(8, beta=0.7),
    "sequences": lambda replay: replay.sample_sequences(5, 4, 2, beta=0.7),
    "frames": lambda replay: replay.sample_sequences(5, 4, 2, stacked=False),
    "hindsight": lambda replay: replay.sample_hindsight(8, Hindsight(reward), beta=0.7),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_tensors_have_the_values_of_the_arrays_that_the_buffer_draws(way, draw):
    replay, twin = TensorReplay(filled(), **way), filled()
    held = [(draw(replay), draw(twin)) for _ in range(6)]
    for tensors, batch in held:  # none was overwritten
        assert_same(tensors, batch)
    if hasattr(batch, "begin"):
        assert np.array_equal(tensors.begin, batch.begin)


def test_what_is_prefetched_is_what_would_have_been_drawn(way):
    replay, twin, held = TensorReplay(filled(), **way), filled(), []
    for t in range(20, 40):
        replay.prefetch(6, beta=t / 100)
        expected = twin.sample(6, beta=t / 100)
        for buffer in (replay.buffer, twin):  # what happens meanwhile does not reach the batch
            add(buffer, t)
            buffer.update_priorities(expected.index, np.arange(6.0))
        held.append((replay.sample(6, beta=t / 100), expected))
        held += [(replay.sample(6 + k // 2), twin.sample(6 + k // 2)) for k in range(t % 4)]
    for tensors, batch in held:
        assert_same(tensors, batch)


def test_uniform_buffers_and_single_arrays_do_as_well(way):
    def make():
        buffer = ReplayBuffer(capacity=20, num_envs=2, obs_shape=(3,), seed=0)
        for t in range(9):
            buffer.add(np.full((2, 3), t, np.uint8), np.array([t, -t]), np.array([t, 10 * t]), NO, NO)
        return buffer

    replay, twin = TensorReplay(make(), **way), make()
    replay.prefetch(4)
    assert_same(replay.sample(4), twin.sample(4))
    with pytest.raises(ValueError, match="buffer is a ReplayBuffer, without priorities; leave the update out"):
        replay.update_priorities([0], [1.0])


def test_a_device_copies_frames_from_where_the_buffer_put_them(monkeypatch):
    asked, pinned, empty = [], [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **how: pinned.append(how.get("pin_memory")) or empty(*a, **how))
    with stand_in_cuda() as cuda:
        replay = TensorReplay(filled(), "cuda")
        replay.buffer.sample, sample = lambda *a, **how: asked.append(how) or sample(*a, **how), replay.buffer.sample
        one, two, three = (replay.sample(4) for _ in range(3))
        assert len({how["out"].obs["image"].ctypes.data for how in asked}) == 2  # two take turns
        assert cuda.log["waits"] == 3  # before each piece of memory is written, for what was copied from it
        replay.prefetch(4)
        replay.sample(4)
        assert "out" not in asked[-1]  # the thread has put the frames there
        assert cuda.log["waits"] == 4
    assert pinned
    assert all(pinned)
    assert one.obs["image"].data_ptr() != three.obs["image"].data_ptr() != two.obs["image"].data_ptr()


def test_another_batch_than_the_one_prefetched_is_refused_and_that_one_kept(way):
    replay, twin = TensorReplay(filled(), **way), filled()
    replay.prefetch(4, beta=0.5)
    with pytest.raises(ValueError, match=r"sample got batch_size=5, beta=0.5, but batch_size=4"):
        replay.sample(5, beta=0.5)
    with pytest.raises(ValueError, match=r"call sample\(batch_size=4, beta=0.5\) before you prefetch again"):
        replay.prefetch(4)
    assert_same(replay.sample(4, beta=0.5), twin.sample(4, beta=0.5))
    assert_same(replay.sample(4), twin.sample(4))


def test_a_batch_that_was_prefetched_here_may_be_taken_from_the_buffer_and_stays_whole(way):
    replay, twin = TensorReplay(filled(), **way), filled()
    for _ in range(2):
        replay.prefetch(4)
        taken, expected = replay.buffer.sample(4), twin.sample(4)
        for draw in (lambda each: each.sample(4), lambda each: each.sample(4), lambda each: each.sample(4)):
            assert_same(draw(replay), draw(twin))
        assert np.array_equal(taken.obs["image"], expected.obs["image"])
        replay.prefetch(4)  # once more, without a sample between
        taken, expected = replay.buffer.sample(4), twin.sample(4)
        for _ in range(3):
            replay.prefetch(4)
            assert_same(replay.sample(4), twin.sample(4))
        assert np.array_equal(taken.obs["image"], expected.obs["image"])


def test_priorities_may_be_tensors(way):
    replay, twin = TensorReplay(filled(), **way), filled()
    batch, plain = replay.sample(6), twin.sample(6)
    replay.update_priorities(batch.index, (batch.reward * 1.0).requires_grad_())
    twin.update_priorities(plain.index, plain.reward)
    replay.update_priorities(batch.index, torch.full((6,), 0.5, dtype=torch.bfloat16))
    twin.update_priorities(plain.index, np.full(6, 0.5))
    stretches, plain = replay.sample_sequences(4, 3, 1), twin.sample_sequences(4, 3, 1)
    replay.update_sequence_priorities(stretches, stretches.reward[:, 1:].abs(), eta=0.5)
    twin.update_sequence_priorities(plain, np.abs(plain.reward[:, 1:]), eta=0.5)
    assert_same(replay.sample(9), twin.sample(9))


def test_what_is_no_buffer_or_no_device_here_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="buffer is of type int; give a ReplayBuffer"):
        TensorReplay(3, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda', but PyTorch finds no usable GPU; give 'cpu'"):
        TensorReplay(filled(), "cuda")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("meta", r"device is 'meta', from which no uint8 comes back \(Cannot copy out of meta tensor.*\); give 'cpu'"),
        (torch.device("meta"), "device is 'meta', from which"),
        ("vulkan", r"device is 'vulkan', from which no uint8 comes back \(.*\); give 'cpu'"),
        ("red\x1b[31m", r"device is 'red\\x1b\[31m', which PyTorch does not know here; give 'cpu'"),
        ("cpu:x", "device is 'cpu:x', which PyTorch does not know here; give 'cpu'"),
        ("cpu:3", "device is 'cpu:3', and PyTorch knows one CPU alone; give 'cpu'"),
        (torch.device("cpu", 1), "device is 'cpu:1', and PyTorch knows one CPU"),
        (None, "device is None, which PyTorch does not know here; give 'cpu'"),
        (1.5, r"device is 1\.5, which PyTorch does not know here; give 'cpu'"),
    ],
)
def test_a_device_that_holds_no_tensors_here_is_refused(device, words):
    with pytest.raises(ValueError, match=words):
        TensorReplay(filled(), device)


def test_a_dtype_that_a_device_lacks_is_refused_with_the_device(monkeypatch):
    """Played by a CPU: Apple's GPUs have no float64."""
    to = torch.Tensor.to

    def without_float64(tensor, *arguments, **how):
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype\nas the MPS framework has none")
        return to(tensor, *arguments, **how)

    monkeypatch.setattr(torch.Tensor, "to", without_float64)
    buffer = ReplayBuffer(capacity=20, num_envs=1, obs_shape=(3,), obs_dtype=np.float64)
    words = r"device is 'cpu', from which no float64 comes back \(Cannot convert a MPS Tensor to float64 dtype\); give"
    with pytest.raises(ValueError, match=words):
        TensorReplay(buffer, "cpu")
    TensorReplay(ReplayBuffer(capacity=20, num_envs=1, obs_shape=(3,), obs_dtype=np.float32), "cpu")


@pytest.mark.parametrize("dtype", [">f4", np.longdouble])
def test_a_dtype_that_pytorch_lacks_is_refused_before_anything_is_drawn(way, dtype):
    buffer = ReplayBuffer(capacity=20, num_envs=1, obs_shape=(3,), obs_dtype=dtype)
    with pytest.raises(ValueError, match=r"dtype is .*, which PyTorch does not have; convert to another"):
        TensorReplay(buffer, **way)


def test_frames_that_lie_on_the_device_stay_there():
    from functools import partial

    from fastrl.dqn.device.store import DeviceStore

    buffer = ReplayBuffer(
        capacity=20, num_envs=2, obs_shape=(3,), seed=0, store=partial(DeviceStore, device=torch.device("cpu"))
    )
    for t in range(9):
        buffer.add(np.full((2, 3), t, np.uint8), np.array([t, -t]), np.array([t, 10 * t]), NO, NO)
    replay = TensorReplay(buffer, "cpu", staged=True)
    replay.prefetch(4)
    batch = replay.sample(4)
    assert batch.obs[:, 0, 0].tolist() == batch.action.abs().tolist()


def test_without_pytorch_the_message_names_what_brings_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("fastrl.integrations.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"fastrl\.integrations\.torch needs the extra 'train'"):
        __import__("fastrl.integrations.torch")


# --- what is lent -------------------------------------------------------------------------------------

HOLDS = {
    "torch.from_numpy": torch.from_numpy,
    "torch.from_dlpack": torch.from_dlpack,
    "np.from_dlpack": np.from_dlpack,
    "a part": lambda array: torch.from_dlpack(array[1:])[1:],
}


def lent(batch):
    """Each array of a batch that may be written to, by name: stacks that share their frames are read-only."""
    named = [(each.name + path, array) for each in fields(batch) for path, array in leaves(getattr(batch, each.name))]
    return {name: array for name, array in named if isinstance(array, np.ndarray) and array.flags.writeable}


def prefetched(buffer):
    buffer.prefetch(8, 0.7)
    return buffer.sample(8, 0.7)


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
@pytest.mark.parametrize("draw", [*DRAWS.values(), prefetched], ids=[*DRAWS, "prefetch"])
def test_what_is_lent_counts_as_held_while_a_tensor_made_from_it_lives(draw, hold):
    buffer = filled()
    for name in lent(draw(buffer)):
        array = lent(draw(buffer))[name]
        where, tensor = array.ctypes.data, hold(array)
        values = np.asarray(tensor).copy()
        del array  # only the tensor is left
        for _ in range(3):
            assert lent(draw(buffer))[name].ctypes.data != where, name
        assert np.array_equal(np.asarray(tensor), values), name


def test_stacks_that_share_their_frames_count_as_held_too():
    buffer = filled()
    draw = DRAWS["sequences"]
    tensor = torch.from_dlpack(draw(buffer).obs["image"])
    where, values = tensor.data_ptr(), tensor.clone()
    for _ in range(5):
        assert draw(buffer).obs["image"].ctypes.data != where
    assert torch.equal(tensor, values)
    del tensor
    assert draw(buffer).obs["image"].ctypes.data == where


def test_memory_is_lent_again_once_the_last_tensor_is_gone():
    buffer = filled()
    tensor = torch.from_dlpack(prefetched(buffer).obs["image"])
    where = tensor.data_ptr()
    part = tensor[2:, 0]
    del tensor
    assert prefetched(buffer).obs["image"].ctypes.data != where
    del part
    assert prefetched(buffer).obs["image"].ctypes.data == where


def test_tensors_on_a_cpu_are_the_arrays_that_the_buffer_lends():
    replay = TensorReplay(filled(), "cpu")
    batch = replay.sample(4)
    where = batch.obs["image"].data_ptr()
    image = batch.obs["image"]
    del batch
    assert replay.sample(4).obs["image"].data_ptr() != where
    del image
    assert replay.sample(4).obs["image"].data_ptr() == where
