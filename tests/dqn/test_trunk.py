"""The fast trunk of a CPU beside autograd: every instruction set that this processor has, forced.

In float64 a convolution's sums are exact to 1e-15. The kernels add the same products in float32, in another order: they
may differ by 1e-6 of the largest value. In bfloat16 the twin rounds where the kernels round, weights, activations and
gradients; then sums that fall between two bfloat16 may be rounded either way, by 2^-8 of a value.
"""

from __future__ import annotations

import copy
import itertools
import types
import typing

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastrl.config import PRESETS, DQNConfig, with_agent
from fastrl.dqn import _trunk, trunk
from fastrl.dqn.flat import FlatParameters
from fastrl.dqn.learner import Learner
from fastrl.dqn.network import QNetwork, Residual
from fastrl.dqn.trunk import Dense, FastTrunk, openmp_parallel, pick_kernels

CPU = torch.device("cpu")
B = 6
SETS = _trunk.supported()
# [stack, height, width] or [stack, channels, height, width]; odd planes; sizes that strides do not divide.
SHAPES = {
    "Atari": (4, 84, 84),
    "one frame": (1, 40, 44),
    "three": (3, 36, 36),
    "colour": (2, 3, 45, 38),
    "smallest": (4, 36, 36),
}


def networks(shape, trunk="small", width=1):
    torch.manual_seed(1)
    made = [QNetwork(shape, 4, trunk, hidden=32, width=width).to(memory_format=torch.channels_last) for _ in range(2)]
    made[1].requires_grad_(False)
    return made


def fast(pair, kernels, batch=B, most=9):
    return FastTrunk(*pair, [FlatParameters(network.parameters()) for network in pair], batch, most, kernels)


def observations(shape, rows=B, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, rows, *shape), dtype=np.uint8)


class Rounded(torch.autograd.Function):
    """Round to bfloat16 in both directions, in float64."""

    @staticmethod
    def forward(ctx, x):
        return x.to(torch.bfloat16).double()

    @staticmethod
    def backward(ctx, grad):
        return grad.to(torch.bfloat16).double()


def twin(network, obs, grad, bfloat16):
    """Return features, and gradients of the trunk's weights, by autograd in float64."""
    network = copy.deepcopy(network).double()
    rounded, straight = (f.apply if bfloat16 else lambda x: x for f in (Rounded, Straight))

    def convolved(m, x):
        weight = m.weight / 255 if m is network.trunk[0] else m.weight
        return F.conv2d(x, straight(weight), m.bias, m.stride, m.padding)

    x = torch.from_numpy(obs).double().flatten(1, -3)
    for m, then in itertools.pairwise([*network.trunk, None]):
        if isinstance(m, torch.nn.Conv2d):
            x = convolved(m, x)
            x = rounded(F.relu(x) if isinstance(then, torch.nn.ReLU) else x)
        elif isinstance(m, Residual):
            y = rounded(F.relu(convolved(m.first, F.relu(x))))
            x = rounded(x + convolved(m.second, y))
        else:
            x = rounded(m(x))
    features = x.permute(0, 2, 3, 1).flatten(1)
    weights = [p for m in network.trunk.modules() if isinstance(m, torch.nn.Conv2d) for p in (m.weight, m.bias)]
    return features.detach(), torch.autograd.grad(features, weights, grad.double())


class Straight(torch.autograd.Function):
    """Round to bfloat16 on the way forward alone."""

    @staticmethod
    def forward(ctx, x):
        return x.to(torch.bfloat16).double()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize(("shape", "trunk", "width"), [
    *((shape, "small", 1) for shape in SHAPES.values()),
    (SHAPES["Atari"], "nature", 1), ((4, 52, 48), "nature", 2), ((4, 60, 44), "small", 3),
    *((shape, "pooled", 1) for shape in SHAPES.values()), ((4, 60, 44), "pooled", 3), (SHAPES["Atari"], "residual", 1),
    *((shape, "impala-strided", 1) for shape in SHAPES.values()), ((4, 52, 40), "impala-strided", 3),
    ((4, 8, 13), "impala-strided", 2), ((4, 20, 17), "impala-pooled", 1), ((1, 3, 2), "impala-pooled", 1),
    ((2, 3, 17, 24), "impala", 1), ((4, 16, 16), "impala", 2),
])  # fmt: skip
def test_features_and_gradients_are_those_of_autograd(kernels, shape, trunk, width):
    bfloat16 = SETS[kernels] == 2
    pair = networks(shape, trunk, width)
    mine = fast(pair, kernels)
    obs, after = observations(shape)
    online, online_after, target_after = mine.features(obs, after)
    grad = torch.randn(online.shape).to(online.dtype)
    wanted, gradients = twin(pair[0], obs, grad, bfloat16)
    tolerance = 2**-7 if bfloat16 else 1e-6
    for found, expected in (
        (online, wanted),
        (online_after, twin(pair[0], after, grad, bfloat16)[0]),
        (target_after, twin(pair[1].requires_grad_(True), after, grad, bfloat16)[0]),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * expected.max().item())
    for found, expected in zip(torch.autograd.grad(online, mine.weights, grad), gradients, strict=True):
        assert found.dtype == torch.float32
        error = (found.double() - expected).norm() / expected.norm()
        assert error < (0.02 if bfloat16 else 2e-6)


@pytest.mark.parametrize("kernels", SETS)
def test_features_of_the_next_observations_by_the_online_network_are_left_out_where_not_needed(kernels):
    mine = fast(networks(SHAPES["smallest"]), kernels)
    obs, after = observations(SHAPES["smallest"])
    wanted = [t.detach().clone() for t in mine.features(obs, after)]
    mine._trunk.features[0][:] = 0
    mine._trunk.features[1][:] = 0
    now, then, target = mine.features(obs, after, online_next=False)
    assert torch.equal(now.detach(), wanted[0])
    assert torch.equal(target, wanted[2])
    assert then is target
    assert not mine._trunk.features[0][B:].any()


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("layers", ["small", "pooled", "impala-strided"])
def test_acting_gives_the_features_of_learning_for_any_number_of_observations(kernels, layers):
    mine = fast(networks(SHAPES["Atari"], layers), kernels)
    obs, after = observations(SHAPES["Atari"])
    learned = mine.features(obs, after)[0].detach().clone()
    for rows in (1, 5, 6):
        assert torch.equal(mine.act(obs[:rows]), learned[:rows])
    assert mine.act(observations(SHAPES["Atari"], rows=9)[0]).shape == (9, learned.shape[1])
    with pytest.raises(ValueError, match="obs has 10 rows; give 1 to 9"):
        mine.act(observations(SHAPES["Atari"], rows=10)[0])


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("layers", ["small", "impala-strided"])
def test_weights_that_change_are_taken_over_whatever_changes_them(kernels, layers):
    pair = networks(SHAPES["smallest"], layers)
    mine = fast(pair, kernels)
    obs, after = observations(SHAPES["smallest"])
    before = [t.detach().clone() for t in mine.features(obs, after)]
    with torch.no_grad():
        pair[0].trunk[0].weight.mul_(2)
        pair[1].load_state_dict({k: v * 0.5 for k, v in pair[1].state_dict().items()})
    now = [t.detach().clone() for t in mine.features(obs, after)]
    fresh = fast(copy.deepcopy(pair), kernels)
    assert all(not torch.equal(a, b) for a, b in zip(before, now, strict=True))
    assert all(torch.equal(a, b.detach()) for a, b in zip(now, fresh.features(obs, after), strict=True))


@pytest.mark.parametrize("layers", ["small", "impala-strided"])
def test_a_layer_in_the_middle_that_changes_alone_is_taken_over(layers):
    pair = networks(SHAPES["smallest"], layers)
    mine = fast(pair, "portable")
    obs, after = observations(SHAPES["smallest"])
    for m in [m for m in pair[0].trunk.modules() if isinstance(m, torch.nn.Conv2d)][1:]:
        for parameter in (m.weight, m.bias):
            before = mine.features(obs, after)[0].detach().clone()
            with torch.no_grad():
                parameter.mul_(1.1)
            assert not torch.equal(mine.features(obs, after)[0], before)


@pytest.mark.parametrize("layers", ["small", "pooled", "impala-strided"])
def test_threads_share_the_work_and_the_result_does_not_depend_on_which_takes_what(monkeypatch, layers):
    obs, after = observations(SHAPES["Atari"], rows=16)

    def outcome():
        mine = fast(networks(SHAPES["Atari"], layers), "portable", batch=16)
        features = mine.features(obs, after)[0]
        return features.detach().clone(), torch.autograd.grad(features.sum(), mine.weights)

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runs = [outcome() for _ in range(3)]
        assert openmp_parallel()
        monkeypatch.setattr(trunk, "openmp_parallel", lambda: 0)
        runs.append(outcome())  # one thread does the work of three
    finally:
        torch.set_num_threads(threads)
    for features, gradients in runs[1:]:
        assert torch.equal(features, runs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, runs[0][1], strict=True))


LEARNER = with_agent(PRESETS["cpu"].config, "dueling").replace(
    batch_size=8, compile=False, hidden=32, device="cpu", num_envs=4, target_period_updates=3, learning_rate=1e-4
)


def batch(seed, shape=SHAPES["Atari"]):
    rng = np.random.default_rng(seed)
    obs, after = observations(shape, rows=8, seed=seed)
    return types.SimpleNamespace(
        obs=obs, next_obs=after, action=rng.integers(0, 4, 8), reward=rng.random(8).astype(np.float32),
        discount=np.full(8, 0.9, np.float32), weight=rng.random(8).astype(np.float32), index=np.arange(8),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", ["small", "pooled", "residual", "impala-strided", "impala-pooled"])
def test_a_learner_with_the_fast_trunk_learns_what_the_eager_one_learns(monkeypatch, precision, layers):
    if pick_kernels(precision == "bfloat16") is None:
        pytest.skip("no kernels for bfloat16")
    config = LEARNER.replace(trunk=layers, precision=precision)
    shape = SHAPES["Atari" if layers != "impala-pooled" else "smallest"]
    mine = Learner(config, shape, np.uint8, 4, CPU, 0)
    assert mine._trunk is not None
    monkeypatch.setattr(Learner, "_fast_trunk", lambda *_: None)
    eager = Learner(config, shape, np.uint8, 4, CPU, 0)
    for seed in range(8):
        now = batch(seed, shape)
        tolerance = 1e-5 if precision == "float32" else 0.05
        np.testing.assert_allclose(mine.learn(now)[1], eager.learn(now)[1], atol=tolerance)
    assert mine.metrics()["train/grad_norm"] == pytest.approx(
        eager.metrics()["train/grad_norm"], rel=1e-4 if precision == "float32" else 0.1
    )
    if precision == "float32":
        for name, value in mine.online.state_dict().items():
            torch.testing.assert_close(value, eager.online.state_dict()[name], rtol=1e-4, atol=1e-5)
        obs = batch(9, shape).obs[:4]
        np.testing.assert_array_equal(mine.act(obs), eager.act(obs))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [
        {"head": "c51", "munchausen": True}, {"head": "quantile", "double": False}, {"noisy": True},
        {"head": "iqn", "noisy": True, "dueling": False}, {"head": "iqn", "trunk": "residual"},
        {"head": "quantile", "double": False, "munchausen": True, "trunk": "impala-strided"},
    ],
    ids=str,
)  # fmt: skip
def test_every_head_learns_on_the_fast_trunk_what_it_learns_on_the_eager_one(monkeypatch, precision, settings):
    if pick_kernels(precision == "bfloat16") is None:
        pytest.skip("no kernels for bfloat16")
    config = LEARNER.replace(precision=precision, atoms=7, quantiles=7, **settings)
    mine = Learner(config, SHAPES["smallest"], np.uint8, 4, CPU, 0)
    assert mine._trunk is not None
    monkeypatch.setattr(Learner, "_fast_trunk", lambda *_: None)
    eager = Learner(config, SHAPES["smallest"], np.uint8, 4, CPU, 0)
    for seed in range(8):
        now = batch(seed, SHAPES["smallest"])
        tolerance = 1e-5 if precision == "float32" else 0.05
        np.testing.assert_allclose(mine.learn(now)[1], eager.learn(now)[1], atol=tolerance)
    if precision == "float32":
        for name, value in mine.online.state_dict().items():
            torch.testing.assert_close(value, eager.online.state_dict()[name], rtol=1e-4, atol=1e-5)
        obs = batch(9, SHAPES["smallest"]).obs[:4]
        np.testing.assert_array_equal(mine.act(obs), eager.act(obs))


@pytest.mark.parametrize("layers", ["pooled", "residual", "impala-strided"])
@pytest.mark.parametrize("head", typing.get_args(typing.get_type_hints(DQNConfig)["head"]))
def test_acting_on_the_fast_trunk_takes_the_best_action_of_every_head(layers, head):
    config = LEARNER.replace(trunk=layers, precision="float32", head=head, atoms=7, quantiles=7)
    learner = Learner(config, SHAPES["smallest"], np.uint8, 4, CPU, 0)
    obs = batch(1, SHAPES["smallest"]).obs
    for _ in range(3):
        learner.learn(batch(0, SHAPES["smallest"]))
    np.testing.assert_array_equal(learner.act(obs[:4]), learner.q_values(obs[:4]).argmax(axis=1))  # by the eager trunk


@pytest.mark.parametrize("layers", ["pooled", "residual", "impala-strided"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_state_of_the_fast_trunk_is_taken_over_to_the_bit(layers, precision):
    if pick_kernels(precision == "bfloat16") is None:
        pytest.skip("no kernels for bfloat16")
    config = LEARNER.replace(trunk=layers, precision=precision)
    one, other = (Learner(config, SHAPES["smallest"], np.uint8, 4, CPU, seed) for seed in (0, 1))
    for seed in range(4):
        one.learn(batch(seed, SHAPES["smallest"]))
    other.load_state(one.state())
    for seed in range(4, 8):
        now = batch(seed, SHAPES["smallest"])
        np.testing.assert_array_equal(one.learn(now)[1], other.learn(now)[1])
    for name, value in one.online.state_dict().items():
        assert torch.equal(value, other.online.state_dict()[name])


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_values_and_actions_right_after_loading_are_those_of_the_state(precision, rows):
    if pick_kernels(precision == "bfloat16") is None:
        pytest.skip("no kernels for bfloat16")
    config = LEARNER.replace(trunk="impala-strided", precision=precision, learning_rate=1e-2)
    obs = batch(9, SHAPES["smallest"]).obs[:rows]  # learners act for 4 at once, and for other numbers by another way
    one, *others = (Learner(config, SHAPES["smallest"], np.uint8, 4, CPU, seed) for seed in (0, 1, 2))
    for seed in range(4):
        one.learn(batch(seed, SHAPES["smallest"]))
    wanted = one.q_values(obs)
    for other in others:
        assert not np.allclose(other.q_values(obs), wanted, rtol=0.05)
        other.load_state(one.state())
    np.testing.assert_array_equal(others[0].q_values(obs), wanted)
    np.testing.assert_array_equal(others[1].act(obs), one.act(obs))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_values_right_after_an_update_are_those_of_the_new_weights(optimizer):
    if pick_kernels(True) is None:
        pytest.skip("no kernels for bfloat16")
    config = LEARNER.replace(precision="bfloat16", optimizer=optimizer, learning_rate=1e-2)
    learner = Learner(config, SHAPES["smallest"], np.uint8, 4, CPU, 0)
    obs = batch(9, SHAPES["smallest"]).obs[:4]
    learner.learn(batch(0, SHAPES["smallest"]))
    found = learner.q_values(obs)
    learner.act(obs)  # takes over whatever changed
    np.testing.assert_array_equal(found, learner.q_values(obs))


@pytest.mark.slow
def test_the_block_behind_the_fast_trunk_compiles():
    config = LEARNER.replace(trunk="residual", precision="float32")
    eager, compiled = (
        Learner(config.replace(compile=compile_), SHAPES["smallest"], np.uint8, 4, CPU, 0) for compile_ in (False, True)
    )
    for seed in range(3):
        now = batch(seed, SHAPES["smallest"])
        np.testing.assert_allclose(compiled.learn(now)[1], eager.learn(now)[1], atol=1e-5)
        np.testing.assert_array_equal(compiled.act(now.obs[:4]), eager.act(now.obs[:4]))
    for name, value in compiled.online.state_dict().items():
        torch.testing.assert_close(value, eager.online.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_fast_trunk_takes_over_a_soft_target_after_each_update(precision):
    if pick_kernels(precision == "bfloat16") is None:
        pytest.skip("no kernels for bfloat16")
    config = with_agent(PRESETS["cpu"].config, "dueling").replace(
        batch_size=8, precision=precision, compile=False, hidden=32, device="cpu", num_envs=4, learning_rate=1e-2,
        target_tau=0.5,
    )  # fmt: skip
    learner = Learner(config, SHAPES["Atari"], np.uint8, 4, CPU, 0)
    obs, after = observations(SHAPES["Atari"], rows=8)
    rest = {name: np.ones(8, np.float32) for name in ("reward", "discount", "weight")}
    rest |= {"action": np.zeros(8, np.int64), "index": np.arange(8)}
    before = None
    for _ in range(3):
        learner.learn(types.SimpleNamespace(obs=obs, next_obs=after, **rest))
        _, _, found = learner._trunk.features(obs, after)
        with torch.no_grad():
            wanted = learner.target.features(torch.from_numpy(after))
        tolerance = 1e-4 if precision == "float32" else 0.05
        torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)
        assert before is None or not torch.allclose(before, wanted, rtol=2 * tolerance, atol=2 * tolerance)
        before = wanted
        if precision == "bfloat16":
            copied = [p.to(torch.bfloat16) for p in (learner.target.hidden.weight, learner.target.hidden.bias)]
            assert all(torch.equal(a, b) for a, b in zip(learner._trunk.hidden[1], copied, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_layer_is_a_linear_one_with_a_relu(dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((5, 24), (16, 24), (16,))
    )
    mine = Dense.apply(x, weight, bias)
    plain = F.relu(F.linear(x.double(), weight.double(), bias.double()))
    grad = torch.randn(plain.shape, generator=generator).to(dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(mine.double(), plain, rtol=tolerance, atol=4 * tolerance)
    for found, wanted in zip(
        torch.autograd.grad(mine, (x, weight, bias), grad),
        torch.autograd.grad(plain, (x, weight, bias), grad.double()),
        strict=True,
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted.double(), rtol=2 * tolerance, atol=8 * tolerance)


def test_kernels_that_are_not_there_are_refused_and_the_fastest_are_picked():
    with pytest.raises(ValueError, match="kernels is 'avx1024'; this processor has portable"):
        fast(networks(SHAPES["smallest"]), "avx1024")
    assert pick_kernels(False) == [name for name, size in SETS.items() if size == 4][-1]
    assert pick_kernels(False, "portable") == "portable"
    assert pick_kernels(True, "portable") is None


@pytest.mark.parametrize(
    ("image", "layers", "batch", "most", "parts"),
    [
        ((4, 84, 84), [(15, 8, 4)], 2, 2, 1),
        ((4, 84, 84), [(16, 4, 8)], 2, 2, 1),
        ((4, 6, 84), [(16, 8, 4)], 2, 2, 1),
        ((4, 84, 84), [], 2, 2, 1),
        ((4, 84, 84), [(16, 2, 1)] * 17, 2, 2, 1),
        ((4, 84, 84), [(16, 8, 4)], 0, 2, 1),
        ((4, 84, 84), [(16, 8, 4)], 2, 2, 0),
    ],
)
def test_what_does_not_fit_is_refused(image, layers, batch, most, parts):
    with pytest.raises(ValueError, match=r"layers is|layer \d is"):
        _trunk.Trunk("portable", image, layers, batch, most, parts, 0)


def test_arrays_that_do_not_fit_are_refused():
    made = _trunk.Trunk("portable", (4, 36, 36), [(16, 8, 4), (32, 4, 2)], 2, 3, 1, 0)
    obs = np.zeros((2, 4, 36, 36), np.uint8)
    with pytest.raises(ValueError, match=r"next_obs has shape \[2, 4, 36, 35\]"):
        made.forward(obs, np.zeros((2, 4, 36, 35), np.uint8))
    with pytest.raises(ValueError, match=r"weight has shape \[16, 8, 8, 3\]; give \[16, 8, 8, 4\]"):
        made.pack(0, 0, np.zeros((16, 8, 8, 3), np.float32), np.zeros(16, np.float32))
    with pytest.raises(ValueError, match="network 2, layer 0"):
        made.pack(2, 0, np.zeros((16, 8, 8, 4), np.float32), np.zeros(16, np.float32))
    features = made.features[0].shape[1]
    with pytest.raises(ValueError, match="grad has shape"):
        made.backward(obs, np.zeros((2, features + 1), np.float32))
    with pytest.raises(ValueError, match="grad is float64"):
        made.backward(obs, np.zeros((2, features)))
