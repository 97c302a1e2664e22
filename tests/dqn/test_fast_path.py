"""What makes an update fast changes nothing about it."""

import os

import numpy as np
import pytest
import torch
from test_learner import ACTIONS, CPU, IMAGE, TINY, make, make_batch, same, weights

from fastrl.base.machine import keep_freed_memory
from fastrl.base.stopwatch import Stopwatch
from fastrl.dqn import optimizer
from fastrl.dqn.device import cuda_graph
from fastrl.dqn.device.inputs import fill, make_input
from fastrl.dqn.learner import Learner
from fastrl.dqn.network import QNetwork


def test_images_are_prepared_as_the_network_itself_would_to_the_bit():
    obs = torch.arange(256, dtype=torch.uint8).repeat(2 * 4 * 21 * 21)[: 2 * 4 * 42 * 42].view(2, 4, 42, 42)
    prepared = make_input((2, 4, 42, 42), torch.uint8, CPU)
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    fill(prepared, obs)
    assert torch.equal(prepared, obs.to(torch.float32) / 255)
    network = QNetwork((4, 42, 42), 3, "small", 8)
    assert torch.equal(network(prepared), network(obs))


def test_floats_and_vectors_are_copied_as_they_are():
    for value in (torch.rand(3, 1, 10, 5), torch.arange(5), torch.tensor([0, 255], dtype=torch.uint8)):
        into = make_input(tuple(value.shape), value.dtype, CPU)
        fill(into, value)
        assert into.dtype == value.dtype
        assert torch.equal(into, value)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
@pytest.mark.parametrize("learned", [0, 2])
def test_updates_made_for_a_recording_leave_no_trace(name, learned):
    config = TINY.replace(optimizer=name)
    recorded, plain = make(config), make(config)
    for learner in (recorded, plain):
        for seed in range(learned):
            learner.learn(make_batch(seed))
    with cuda_graph.unchanged(recorded._tensors):
        for _ in range(cuda_graph.WARM_UPS):
            recorded._update()
    assert same(weights(recorded), weights(plain))
    for seed in range(4):
        np.testing.assert_array_equal(recorded.learn(make_batch(seed))[1], plain.learn(make_batch(seed))[1])
    assert recorded.metrics() == plain.metrics()


def test_tensors_are_put_back_even_if_the_recording_fails():
    t = torch.tensor([1.0, 2.0])

    def fail():
        with cuda_graph.unchanged(lambda: [t]):
            t.mul_(3)
            raise RuntimeError("recording failed")

    with pytest.raises(RuntimeError, match="recording failed"):
        fail()
    assert t.tolist() == [1.0, 2.0]


def test_loading_keeps_every_tensor_where_a_recording_would_read_it():
    learner, other = make(), make(seed=2)
    for seed in range(3):
        learner.learn(make_batch(seed))
        other.learn(make_batch(seed + 10))
    places = [t.data_ptr() for t in learner._tensors()]
    learner.load_state(other.state())
    assert [t.data_ptr() for t in learner._tensors()] == places
    batch = make_batch(5)
    np.testing.assert_array_equal(learner.learn(batch)[1], other.learn(batch)[1])
    assert same(weights(learner), weights(other))
    fresh = make(seed=3).state()  # never learned: its moments are none
    learner.load_state(fresh)
    again = make(seed=4)
    again.load_state(fresh)
    for seed in range(2):
        np.testing.assert_array_equal(learner.learn(make_batch(seed))[1], again.learn(make_batch(seed))[1])
    assert same(weights(learner), weights(again))


@pytest.mark.parametrize("kernel", [True, False])
def test_the_fused_optimizers_take_the_steps_of_the_plain_one(kernel, monkeypatch):
    """Conv weights lie in channels-last order; a fused kernel that mixed up layouts would step elsewhere."""
    config = TINY.replace(trunk="small", learning_rate=1e-3, max_grad_norm=0.05)
    if not kernel:
        monkeypatch.setattr(optimizer, "_adam", None)
    fused = Learner(config, IMAGE, np.uint8, ACTIONS, CPU, 1)
    assert fused._optimizer.keeps_copies is kernel
    monkeypatch.setattr(optimizer, "_adam", None)
    plain = Learner(config, IMAGE, np.uint8, ACTIONS, CPU, 1)
    plain._optimizer._torch = torch.optim.Adam(
        [plain._flat.values], lr=1e-3, eps=optimizer.stability_term(config), foreach=False, fused=False
    )
    for seed in range(5):
        fused.learn(make_batch(seed, IMAGE, "uint8"))
        plain.learn(make_batch(seed, IMAGE, "uint8"))
    for name, weight in weights(fused).items():
        torch.testing.assert_close(weight, weights(plain)[name], rtol=1e-4, atol=1e-6)


def test_frames_may_lie_on_the_device_already():
    host, device = make(), make()
    for seed in range(3):
        batch = make_batch(seed)
        there = batch._replace(obs=torch.from_numpy(batch.obs), next_obs=torch.from_numpy(batch.next_obs))
        np.testing.assert_array_equal(host.learn(batch)[1], device.learn(there)[1])
    with pytest.raises(ValueError, match=r"batch.obs is torch.uint8 .*; give torch.float32 \[8, 1, 10, 5\]"):
        device.learn(there._replace(obs=there.obs.to(torch.uint8)))
    np.testing.assert_array_equal(host.q_values(batch.obs), device.q_values(there.obs))


def test_compiled_bfloat16_gives_the_q_values_and_errors_of_eager_float32():
    """Within 1 % of the largest Q-value: bfloat16 has eight bits, sums are float32."""
    config = TINY.replace(trunk="small", hidden=64)
    batch = make_batch(0, IMAGE, "uint8")
    plain = Learner(config, IMAGE, np.uint8, ACTIONS, CPU, 1)
    fast = Learner(config.replace(compile=True, precision="bfloat16"), IMAGE, np.uint8, ACTIONS, CPU, 1)
    exact, rough = plain.q_values(batch.obs), fast.q_values(batch.obs)  # this one is never compiled
    tolerance = 0.01 * np.abs(exact).max()
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, rtol=0, atol=tolerance)
    (_, exact_td), (_, rough_td) = plain.learn(batch), fast.learn(batch)  # this one is
    assert not np.array_equal(exact_td, rough_td)
    np.testing.assert_allclose(rough_td, exact_td, rtol=0, atol=3 * tolerance)  # of three Q-values


def test_shares_of_laps_sum_to_one_and_start_anew():
    laps = Stopwatch()
    assert laps.shares() == {}
    for stage in ("act", "learn", "act"):
        laps(stage)
    shares = laps.shares()
    assert sorted(shares) == ["act", "learn"]
    assert sum(shares.values()) == pytest.approx(1)
    assert laps.shares() == {}
    laps("act")
    assert laps.shares() == {"act": 1.0, "learn": 0.0}


def test_freed_memory_is_kept_where_glibc_is():
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError):
        libc = ""
    assert keep_freed_memory() == libc.startswith("glibc")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_gpu_replays_updates_on_images_as_it_makes_them_one_by_one(precision, optimizer):
    config = TINY.replace(trunk="small", precision=precision, optimizer=optimizer)
    plain, recorded = (
        Learner(config.replace(compile=fast), IMAGE, "uint8", ACTIONS, torch.device("cuda"), 1)
        for fast in (False, True)
    )
    for seed in range(8):
        for learner in (plain, recorded):
            learner.learn(make_batch(seed, IMAGE, "uint8"), measure=seed == 5)
    np.testing.assert_allclose(recorded.flush()[1], plain.flush()[1], rtol=0.05, atol=0.02)
    assert recorded.metrics() == pytest.approx(plain.metrics(), rel=0.1, abs=0.02)
