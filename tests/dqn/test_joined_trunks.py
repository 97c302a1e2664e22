"""A trunk for each array of an observation: which one, their features joined, and learning on dictionaries."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS, DQNConfig
from fastrl.distributed.actor import CopiedNetwork, pick_acting_kernels
from fastrl.dqn import tune
from fastrl.dqn.agent import greedy
from fastrl.dqn.checkpoint import load_network, pack_weights
from fastrl.dqn.device.device import forget_compiled
from fastrl.dqn.device.store import DeviceStore
from fastrl.dqn.learner import Learner
from fastrl.dqn.network import QNetwork, trunks_of
from fastrl.dqn.tune import Shapes, random_batch, settle
from fastrl.envs.frames import per_array
from fastrl.replay import PrioritizedReplayBuffer

CPU = torch.device("cpu")
B, ACTIONS = 8, 3
SHAPE = {"colour": (2, 3, 36, 40), "image": (2, 36, 36), "small": (2, 10, 10), "vector": (2, 5)}
DTYPE = {"colour": np.uint8, "image": np.uint8, "small": np.float32, "vector": np.float32}
TINY = DQNConfig(
    game="catch", trunk="small", hidden=8, stack=2, batch_size=B, num_envs=4, compile=False, precision="float32",
    torch_threads=1,
)  # fmt: skip


def observations(rows=B, seed=0, shape=SHAPE, dtype=DTYPE):
    rng = np.random.default_rng(seed)

    def numbers(shape, dtype):
        full = (rows, *shape)
        return rng.integers(0, 256, full, np.uint8) if dtype == np.uint8 else rng.normal(size=full).astype(np.float32)

    return per_array(numbers, shape, dtype)


def tensors(obs):
    return per_array(torch.from_numpy, obs)


def batch_of(seed=0, obs=None, next_obs=None, **shapes):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        obs=observations(seed=2 * seed, **shapes) if obs is None else obs,
        next_obs=observations(seed=2 * seed + 1, **shapes) if next_obs is None else next_obs,
        action=rng.integers(0, ACTIONS, B), reward=rng.normal(size=B).astype(np.float32),
        discount=np.full(B, 0.97, np.float32), weight=np.ones(B, np.float32), index=np.arange(B),
    )  # fmt: skip


# --- the network --------------------------------------------------------------------------------------


def test_images_get_the_trunk_asked_for_or_the_one_that_fits_and_vectors_get_vector():
    def kinds(trunk):
        return list(trunks_of(SHAPE, trunk).values())

    assert kinds("nature") == ["nature", "nature", "minatar", "vector"]
    assert kinds("residual") == ["residual", "residual", "minatar", "vector"]
    assert kinds("impala") == ["impala", "impala", "impala", "vector"]
    assert kinds("impala-strided") == ["impala-strided", "impala-strided", "impala-strided", "vector"]
    assert kinds("vector") == ["vector"] * 4
    assert trunks_of({"x": (1, 7, 7)}, "small") == {"x": "minatar"}
    assert trunks_of({"x": (1, 2, 2)}, "small") == {"x": "vector"}
    with pytest.raises(ConfigError, match="--trunk is 'other'; give nature"):
        QNetwork(SHAPE, 3, "other")


@pytest.mark.parametrize("trunk", ["small", "residual", "impala-pooled", "vector"])
def test_features_are_those_of_a_network_for_each_array_alone_one_after_another(trunk):
    joined = QNetwork(SHAPE, ACTIONS, trunk, hidden=8)
    obs, parts = tensors(observations()), []
    for one, (name, shape) in zip(joined.trunk.each, SHAPE.items(), strict=True):
        alone = QNetwork(shape, ACTIONS, joined.trunk.kinds[name], hidden=8)
        alone.trunk.load_state_dict(one.layers.state_dict())
        if one.block is not None:
            alone.block.load_state_dict(one.block.state_dict())
        parts.append(alone._through_block(alone.features(obs[name])))
    features = joined.features(obs)
    torch.testing.assert_close(features, torch.cat(parts, 1), rtol=0, atol=0)
    assert features.shape == (B, joined.trunk.features) == (B, joined.hidden.in_features)


def test_every_array_moves_the_values_and_gets_gradients():
    network, obs = QNetwork(SHAPE, ACTIONS, "small", hidden=8), tensors(observations())
    values = network(obs)
    for name in SHAPE:
        assert not torch.equal(values, network(obs | {name: obs[name].flip(0)})), name
    values.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_settings_are_plain_and_make_the_same_network_from_a_file(tmp_path):
    shape = {"a.b/c": [2, 10, 10], "values": [2, 3], "0": [2, 3]}  # names that are none of modules
    network = QNetwork({name: tuple(one) for name, one in shape.items()}, ACTIONS, "small", hidden=8).eval()
    assert network.settings["obs_shape"] == shape
    assert json.loads(json.dumps(network.settings)) == network.settings
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pack_weights(network.state_dict(), network.settings))
    again = load_network(path)
    assert list(again.trunk.kinds.items()) == [("a.b/c", "minatar"), ("values", "vector"), ("0", "vector")]
    obs = {name: torch.randn(4, *one) for name, one in shape.items()}
    assert torch.equal(again(obs), network(obs))


def test_a_network_of_one_array_keeps_its_weights_names_and_settings():
    network = QNetwork((4, 84, 84), 4, "residual")
    assert network.settings["obs_shape"] == [4, 84, 84]
    assert list(network.state_dict())[:5] == ["trunk.0.weight", "trunk.0.bias", "trunk.2.weight", "trunk.2.bias",
                                              "block.0.first.weight"]  # fmt: skip


def test_an_act_function_refuses_stacks_of_other_arrays():
    act = greedy(QNetwork({"a": (2, 3), "b": (2, 4)}, ACTIONS, hidden=8))
    obs = {"a": np.zeros((5, 2, 3), np.float32), "b": np.zeros((5, 2, 4), np.float32)}
    assert act(obs).shape == (5, ACTIONS)
    for other in (obs["a"], {"a": obs["a"]}, obs | {"b": obs["a"]}):
        with pytest.raises(ConfigError, match=r"was trained on {'a': \[2, 3\], 'b': \[2, 4\]}; give --make-env"):
            act(other)


# --- the learner --------------------------------------------------------------------------------------

WAYS = [
    {}, {"double": False, "munchausen": True}, {"head": "iqn", "quantiles": 4, "noisy": True},
    {"head": "c51", "atoms": 5}, {"trunk": "residual"}, {"trunk": "impala-strided"}, {"precision": "bfloat16"},
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("name", ["image", "colour", "vector"])
def test_a_dictionary_of_one_array_learns_as_the_array_to_the_bit(name, way):
    if name == "vector":
        way = way | {"trunk": "vector"}
    config = TINY.replace(kernels="torch", **way)
    single = Learner(config, SHAPE[name], DTYPE[name], ACTIONS, CPU, 1)
    named = Learner(config, {name: SHAPE[name]}, {name: DTYPE[name]}, ACTIONS, CPU, 1)
    for seed in range(4):
        batch = batch_of(seed, shape=SHAPE[name], dtype=DTYPE[name])
        inside = batch_of(seed, {name: batch.obs}, {name: batch.next_obs})
        np.testing.assert_array_equal(single.learn(batch)[1], named.learn(inside)[1])
    obs = observations(4, 9, SHAPE[name], DTYPE[name])
    np.testing.assert_array_equal(single.act(obs), named.act({name: obs}))
    np.testing.assert_array_equal(single.q_values(obs), named.q_values({name: obs}))
    theirs = list(named.online.state_dict().values())
    assert all(torch.equal(mine, its) for mine, its in zip(single.online.state_dict().values(), theirs, strict=True))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_learning_lowers_the_errors_and_continues_from_a_state_to_the_bit(way):
    config = TINY.replace(learning_rate=3e-3, target_period_updates=10**6, **way)
    learners = [Learner(config, SHAPE, DTYPE, ACTIONS, CPU, seed) for seed in (1, 2)]
    errors = [learners[0].learn(batch_of())[1].mean() for _ in range(40)]
    assert errors[-1] < errors[0]
    learners[1].load_state(learners[0].state())
    for seed in range(3):
        np.testing.assert_array_equal(*(learner.learn(batch_of(seed))[1] for learner in learners))
    obs = observations(4, 9)
    np.testing.assert_array_equal(*(learner.act(obs) for learner in learners))


def test_errors_are_those_of_the_networks_on_all_arrays():
    learner, batch = Learner(TINY, SHAPE, DTYPE, ACTIONS, CPU, 1), batch_of(3)
    with torch.no_grad():
        learner.online.advantage.bias.normal_(generator=torch.Generator().manual_seed(0))
        rows, after = torch.arange(B), tensors(batch.next_obs)
        taken = learner.online(tensors(batch.obs))[rows, torch.from_numpy(batch.action)]
        best = learner.target(after)[rows, learner.online(after).argmax(dim=1)]  # double, van Hasselt et al. 2016
        expected = (torch.from_numpy(batch.reward) + torch.from_numpy(batch.discount) * best - taken).abs()
    np.testing.assert_allclose(learner.learn(batch)[1], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_priorities_that_come_late_are_those_that_come_at_once():
    at_once, late = (Learner(TINY, SHAPE, DTYPE, ACTIONS, CPU, 1, delayed=delayed) for delayed in (False, True))
    batches = [batch_of(seed) for seed in range(5)]
    expected = [at_once.learn(batch)[1] for batch in batches]
    found = [late.learn(batch) for batch in batches]
    for got, errors in zip([*found[1:], late.flush()], expected, strict=True):
        np.testing.assert_array_equal(got[1], errors)
    for rows in (4, 7):
        np.testing.assert_array_equal(late.act(observations(rows)), at_once.act(observations(rows)))


def test_actions_are_those_of_the_values_for_any_number_of_rows():
    learner = Learner(TINY, SHAPE, DTYPE, ACTIONS, CPU, 1)
    for rows in (1, 4, 6):
        obs = observations(rows, rows)
        obs["vector"] *= 100  # large enough for other actions to be best
        values = learner.online(tensors(obs)).detach().numpy()
        np.testing.assert_allclose(learner.q_values(obs), values, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(learner.act(obs), values.argmax(axis=1))
    assert len(set(learner.act(obs).tolist())) > 1
    network = QNetwork(**learner.online.settings)
    copied = CopiedNetwork(network, 0, pick_acting_kernels(TINY, DTYPE))
    copied.load(learner.weights(), 1)
    np.testing.assert_array_equal(copied.act(obs), learner.act(obs))


def test_compiled_functions_learn_what_eager_ones_learn():
    shape, dtype = ({name: each[name] for name in ("small", "vector")} for each in (SHAPE, DTYPE))
    eager, compiled = (Learner(TINY.replace(compile=c), shape, dtype, ACTIONS, CPU, 1) for c in (False, True))
    try:
        for seed in range(3):
            batch = batch_of(seed, shape=shape, dtype=dtype)
            np.testing.assert_allclose(eager.learn(batch)[1], compiled.learn(batch)[1], rtol=1e-4, atol=1e-5)
        obs = observations(4, 9, shape, dtype)
        np.testing.assert_array_equal(eager.act(obs), compiled.act(obs))
    finally:
        forget_compiled()


def test_batches_that_do_not_fit_are_named_with_their_array():
    learner = Learner(TINY, SHAPE, DTYPE, ACTIONS, CPU, 1)
    obs = observations()
    for wrong, words in [
        (obs["vector"], r"batch.obs is of type ndarray; give a dictionary of 'colour', 'image', 'small', 'vector'"),
        ({"image": obs["image"]}, r"batch.obs is a dictionary of 'image'; give a dictionary of 'colour', 'image'"),
        (
            obs | {"vector": obs["vector"][:4]},
            r"batch.obs\['vector'\] is float32 \[4, 2, 5\]; give float32 \[8, ",
        ),
        (obs | {"image": obs["image"] / 2}, r"batch.obs\['image'\] is float64 .*; give uint8 \[8, 2, 36, 36\]"),
    ]:
        with pytest.raises(ValueError, match=words):
            learner.learn(batch_of(obs=wrong))
    assert learner.updates == 0
    with pytest.raises(ValueError, match=r"obs\['small'\] is float64 \[8, 2, 10, 10\]; give float32 \[N, 2, 10, 10\]"):
        learner.act(obs | {"small": obs["small"].astype(float)})


@pytest.mark.parametrize("call", ["q_values", "act", "greedy"])
def test_arrays_of_unequal_lengths_are_named_with_their_lengths(call):
    learner = Learner(TINY, SHAPE, DTYPE, ACTIONS, CPU, 1)
    ask = greedy(learner.online) if call == "greedy" else getattr(learner, call)
    obs = observations(5)
    name = "stacks" if call == "greedy" else "obs"
    words = ", ".join(rf"{3 if key == 'small' else 5} of {name}\['{key}'\]" for key in SHAPE)
    with pytest.raises(ValueError, match=rf"^{name} has {words}; give as many rows of each array$"):
        ask(obs | {"small": obs["small"][:3]})
    assert len(ask(obs)) == 5


@pytest.mark.parametrize(("value", "shown"), [(None, "None"), (3, "3"), ("x" * 99, "'xxx.*xxx'"), ([], "of type list")])
@pytest.mark.parametrize("call", ["q_values", "act", "greedy", "learn"])
def test_what_is_no_array_is_named_with_its_place(call, value, shown):
    learner = Learner(TINY, SHAPE, DTYPE, ACTIONS, CPU, 1)
    ask = greedy(learner.online) if call == "greedy" else getattr(learner, call)
    name = {"greedy": "stacks", "learn": "batch.obs"}.get(call, "obs")
    obs = observations() | {"small": value}
    with pytest.raises(ValueError, match=rf"^{name}\['small'\] is {shown}; give an array"):
        ask(batch_of(obs=obs) if call == "learn" else obs)
    assert learner.updates == 0


@pytest.mark.parametrize("obs", [None, {"k": None}])
def test_what_is_no_array_is_named_where_there_is_one(obs):
    network = QNetwork((1, 4), ACTIONS, "vector", hidden=8)
    place = r"stacks\['k'\]" if obs else "stacks"
    with pytest.raises(ValueError, match=rf"^{place} is None; give an array of stacks of frames; .* shape \[1, 4\]$"):
        greedy(network)(obs)
    stacks = np.zeros((2, 1, 4), np.float32)
    np.testing.assert_array_equal(greedy(network)(torch.from_numpy(stacks)), greedy(network)(stacks))


def test_names_that_would_steer_a_terminal_are_shown_with_escapes():
    shape, dtype = {"red\x1b[31m": (2, 5), "vector": (2, 5)}, dict.fromkeys(("red\x1b[31m", "vector"), np.float32)
    learner = Learner(TINY, shape, dtype, ACTIONS, CPU, 1)
    assert learner.online.trunk.words == r"vector of 'red\x1b[31m', vector of vector"
    with pytest.raises(ConfigError, match=r"several arrays \('red\\x1b\[31m' float32, vector float32\)"):
        Learner(TINY.replace(kernels="fastrl"), shape, dtype, ACTIONS, CPU, 1)
    with pytest.raises(
        ValueError, match=r"a dictionary of 7, 'a\\x07'; give a dictionary of 'red\\x1b\[31m', 'vector'$"
    ):
        learner.act({7: 0, "a\a": 0})


# --- around it ----------------------------------------------------------------------------------------


def test_the_fast_trunk_is_for_one_array_and_says_so_where_it_is_asked_for():
    assert Learner(TINY, SHAPE, DTYPE, ACTIONS, CPU, 1)._trunk is None
    with pytest.raises(ConfigError, match=r"--kernels is 'fastrl', .* several arrays .*; give --kernels auto"):
        Learner(TINY.replace(kernels="fastrl"), SHAPE, DTYPE, ACTIONS, CPU, 1)


@pytest.mark.parametrize("mode", ["off", "always"])
def test_what_a_cpu_computes_with_is_settled_for_several_arrays(mode, monkeypatch):
    monkeypatch.setenv(tune.SWITCH, mode)
    config = PRESETS["cpu"].config.replace(game="my:env", trunk="small", hidden=8, batch_size=B, compile=False)
    settled, words = settle(config, Shapes(SHAPE, DTYPE, ACTIONS), CPU)
    assert settled.kernels == "torch"
    assert "PyTorch's kernels" in words
    batch = random_batch(B, Shapes(SHAPE, DTYPE, ACTIONS))
    assert {name: (array.shape, array.dtype.type) for name, array in batch.obs.items()} == {
        name: ((B, *shape), DTYPE[name]) for name, shape in SHAPE.items()
    }


def test_batches_of_a_store_on_the_device_teach_what_those_of_memory_teach():
    frames = per_array(lambda shape: shape[1:], SHAPE)
    buffers = [
        PrioritizedReplayBuffer(capacity=200, num_envs=4, obs_shape=frames, obs_dtype=DTYPE, stack=2, seed=0, store=s)
        for s in ("ram", partial(DeviceStore, device=CPU))
    ]
    learners = [Learner(TINY, SHAPE, DTYPE, ACTIONS, CPU, 1) for _ in buffers]
    rng, no = np.random.default_rng(0), np.zeros(4, bool)
    for k in range(20):
        obs = observations(4, k, frames)
        action, reward, over = rng.integers(ACTIONS, size=4), rng.normal(size=4), rng.random(4) < 0.1
        for buffer in buffers:
            buffer.add(obs, action, reward, over, no)
    for _ in range(4):
        here, there = (buffer.sample(B, 0.5) for buffer in buffers)
        assert isinstance(there.obs["image"], torch.Tensor)
        np.testing.assert_array_equal(learners[0].learn(here)[1], learners[1].learn(there)[1])
