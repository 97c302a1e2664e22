"""The Q-network: shapes, scaling, the dueling equation, and clear errors."""

import json
import typing

import pytest
import torch

from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.dqn.network import QNetwork, Trunk, build_network

IMAGE = (4, 84, 84)
HEADS = [{}, *({"head": head, "atoms": 7} for head in ("c51", "quantile", "iqn")), {"noisy": True}]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("trunk", "obs_shape", "features"),
    [
        ("nature", IMAGE, 64 * 7 * 7), ("small", IMAGE, 32 * 9 * 9), ("impala", IMAGE, 32 * 11 * 11),
        ("pooled", IMAGE, 32 * 4 * 4), ("residual", IMAGE, 32 * 4 * 4), ("impala-pooled", IMAGE, 32 * 6 * 6),
        ("impala-strided", IMAGE, 32 * 5 * 5), ("impala-strided", (4, 8, 9), 32),
        ("vector", (1, 10, 5), 8), ("minatar", (4, 10, 10), 16 * 8 * 8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("atoms", HEADS, ids=str)
def test_every_trunk_gives_one_float32_value_per_action(trunk, obs_shape, features, dueling, atoms):
    network = QNetwork(obs_shape, 5, trunk, hidden=8, dueling=dueling, **atoms)
    q = network(torch.zeros(3, *obs_shape, dtype=torch.uint8))
    assert q.shape == (3, 5)
    assert q.dtype == torch.float32
    assert network.hidden.weight.shape == (16 if dueling else 8, features)


def test_bytes_are_scaled_to_one_and_floats_pass_as_they_are():
    network = QNetwork(IMAGE, 4, "small", hidden=8)
    obs = torch.randint(0, 256, (2, *IMAGE), dtype=torch.uint8)
    torch.testing.assert_close(network(obs), network(obs.double() / 255))
    assert not torch.allclose(network(obs), network(obs.float()))


def test_dueling_is_value_plus_advantage_less_its_mean():
    network = QNetwork((2,), 3, "vector", hidden=4)
    obs = torch.randn(6, 2)
    x_value, x_advantage = torch.relu(network.hidden(network.trunk(obs))).split(4, dim=1)
    value, advantage = network.value(x_value), network.advantage(x_advantage)
    q = network(obs)
    torch.testing.assert_close(q, value + advantage - advantage.mean(1, keepdim=True))
    torch.testing.assert_close(q.mean(1, keepdim=True), value)


def test_the_streams_share_no_weight_above_the_trunk():
    network = QNetwork((2,), 3, "vector", hidden=16)
    network(torch.randn(64, 2)).mean().backward()  # the mean over actions is the value alone
    grad = network.hidden.weight.grad
    assert grad[:16].abs().sum() > 0
    assert grad[16:].abs().max() < 1e-7


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("atoms", HEADS, ids=str)
def test_in_bfloat16_the_last_layers_stay_float32(dueling, atoms):
    network, dtypes = QNetwork(IMAGE, 4, "small", hidden=8, dueling=dueling, **atoms), {}
    for name, layer in network.named_modules():
        layer.register_forward_hook(lambda _, given, out, name=name: dtypes.update({name: (given[0].dtype, out.dtype)}))
    noise = torch.randn(network.noise_size) if network.noise_size else None
    with torch.autocast("cpu", torch.bfloat16):
        features = network.features(torch.randint(0, 256, (2, *IMAGE), dtype=torch.uint8))
        outputs = network.behind(features, noise=noise)
    assert outputs.dtype == torch.float32
    assert dtypes["hidden"] == (torch.bfloat16, torch.bfloat16)
    for name in ("value", "advantage") if dueling else ("action_value",):
        assert dtypes[name] == (torch.float32, torch.float32)
    outputs.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_autocast_still_returns_float32():
    network = QNetwork((2,), 3, "vector", hidden=4)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(6, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    "trunk", ["nature", "small", "pooled", "residual", "minatar", "impala", "impala-pooled", "impala-strided"]
)
def test_the_width_multiplies_the_filters_of_a_trunk(trunk):
    narrow, wide = (QNetwork(IMAGE, 5, trunk, hidden=8, width=width) for width in (1, 2))
    assert [2 * len(p) for p in narrow.trunk.parameters()] == [len(p) for p in wide.trunk.parameters()]
    assert wide(torch.zeros(2, *IMAGE)).shape == (2, 5)


def test_the_residual_trunk_has_the_published_layers():
    network = QNetwork((4, 84, 84), 5, "impala", hidden=8)
    convolutions = [m for m in network.trunk.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16] * 5 + [32] * 10
    block, x = network.trunk[2], torch.randn(1, 16, 42, 42)
    expected = x + block.second(torch.relu(block.first(torch.relu(x))))
    torch.testing.assert_close(block(x), expected)
    assert QNetwork((1, 21, 30), 5, "impala", hidden=8)(torch.zeros(2, 1, 21, 30)).shape == (2, 5)


def test_the_strided_impala_trunk_is_two_published_sections_of_which_a_stride_opens_the_first():
    strided, pooled = (QNetwork(IMAGE, 5, trunk, hidden=8) for trunk in ("impala-strided", "impala-pooled"))
    first = strided.trunk[0]
    assert (first.kernel_size, first.stride, first.out_channels) == ((8, 8), (4, 4), 16)
    x = first(torch.rand(2, *IMAGE))
    for mine, published in zip(strided.trunk[1:7], pooled.trunk[2:8], strict=True):
        mine.load_state_dict(published.state_dict())
    assert torch.equal(strided.trunk[1:7](x), pooled.trunk[2:8](x))
    assert [type(layer).__name__ for layer in strided.trunk[7:]] == ["ReLU", "MaxPool2d"]


def test_the_pool_of_the_impala_trunk_is_the_published_adaptive_one():
    network = QNetwork(IMAGE, 5, "impala", hidden=8)
    pooled = QNetwork(IMAGE, 5, "impala-pooled", hidden=8)
    pooled.trunk.load_state_dict(network.trunk.state_dict())  # the same layers below
    obs = torch.randint(0, 256, (2, *IMAGE), dtype=torch.uint8)
    x = network.features(obs).unflatten(1, (11, 11, 32)).permute(0, 3, 1, 2)
    adaptive = torch.nn.functional.adaptive_max_pool2d(x, 6)  # BTR's
    assert torch.equal(pooled.features(obs), adaptive.permute(0, 2, 3, 1).flatten(1))


def test_the_pooled_trunk_is_the_small_one_and_the_largest_of_each_2x2_positions():
    small, pooled = (QNetwork(IMAGE, 5, trunk, hidden=8) for trunk in ("small", "pooled"))
    pooled.trunk.load_state_dict(small.trunk.state_dict())
    obs = torch.randint(0, 256, (2, *IMAGE), dtype=torch.uint8)
    whole = small.features(obs).unflatten(1, (9, 9, 32))
    blocks = whole[:, :8, :8].unflatten(2, (4, 2)).unflatten(1, (4, 2))  # the ninth row and column are left out
    assert torch.equal(pooled.features(obs).unflatten(1, (4, 4, 32)), blocks.amax((2, 4)))


def test_the_residual_trunk_has_its_block_on_all_positions_of_the_small_one_and_the_pool_behind_it():
    network = QNetwork(IMAGE, 5, "residual", hidden=8)
    small = QNetwork(IMAGE, 5, "small", hidden=8)
    small.trunk.load_state_dict(network.trunk.state_dict())
    obs = torch.randint(0, 256, (2, *IMAGE), dtype=torch.uint8)
    features = network.features(obs)
    assert torch.equal(features, small.features(obs))
    block, x = network.block[0], features.unflatten(1, (9, 9, 32)).permute(0, 3, 1, 2)
    assert (block.first.kernel_size, block.first.out_channels) == ((3, 3), 32)
    x = x + block.second(torch.relu(block.first(torch.relu(x))))
    x = torch.nn.functional.max_pool2d(torch.relu(x), 2).permute(0, 2, 3, 1).flatten(1)
    alike = QNetwork(IMAGE, 5, "pooled", hidden=8)
    alike.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("block")})
    torch.testing.assert_close(network(obs), alike.values(alike.behind(x)))


def test_the_block_reads_the_features_where_they_lie_and_gives_its_own_without_a_copy():
    network = QNetwork(IMAGE, 5, "residual", hidden=8).to(memory_format=torch.channels_last)
    features, seen = network.features(torch.zeros(2, *IMAGE)), {}
    network.block.register_forward_hook(lambda _, given, out: seen.update(given=given[0], out=out))
    network.hidden.register_forward_hook(lambda _, given, out: seen.update(hidden=given[0]))
    network.behind(features)
    assert seen["given"].data_ptr() == features.data_ptr()
    assert seen["given"].is_contiguous(memory_format=torch.channels_last)
    assert seen["hidden"].data_ptr() == seen["out"].data_ptr()


def test_with_atoms_a_value_is_the_mean_of_the_dueling_streams_distribution():
    network = QNetwork((2,), 3, "vector", hidden=4, head="c51", atoms=5, v_max=2.0)
    obs = torch.randn(6, 2)
    x_value, x_advantage = torch.relu(network.hidden(network.trunk(obs))).split(4, dim=1)
    value, advantage = network.value(x_value)[:, None], network.advantage(x_advantage).view(6, 3, 5)
    logits = value + advantage - advantage.mean(1, keepdim=True)
    torch.testing.assert_close(network.outputs(obs), logits)
    torch.testing.assert_close(network(obs), (logits.softmax(2) * torch.tensor([-2.0, -1, 0, 1, 2])).sum(2))


def test_the_networks_own_settings_build_it_again():
    network = QNetwork(IMAGE, 3, "impala", hidden=4, dueling=False, width=2, head="c51", atoms=5, v_max=2.0)
    again = QNetwork(**json.loads(json.dumps(network.settings)))
    again.load_state_dict(network.state_dict())
    obs = torch.randn(2, *IMAGE)
    assert torch.equal(again(obs), network(obs))


def test_with_quantiles_a_value_is_their_mean():
    network = QNetwork((2,), 3, "vector", hidden=4, head="quantile", atoms=5)
    obs = torch.randn(6, 2)
    torch.testing.assert_close(network(obs), network.outputs(obs).mean(2))
    assert network.outputs(obs).shape == (6, 3, 5)
    torch.testing.assert_close(network.head.taus, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))


@pytest.mark.parametrize(
    ("head", "atoms", "reason"),
    [
        ("c52", 5, "--head is 'c52'; give expected, c51, quantile, iqn"),
        ("expected", 5, "give 1 for expected, else more"),
        ("c51", 1, "--head is 'c51' with 1 numbers for each action"),
    ],
)  # fmt: skip
def test_a_head_that_there_is_not_or_that_does_not_fit_is_refused(head, atoms, reason):
    with pytest.raises(ConfigError, match=reason):
        QNetwork((2,), 3, "vector", hidden=4, head=head, atoms=atoms)


def test_atoms_cost_nothing_when_off():
    plain, off = (build_network(DQNConfig(trunk="small", atoms=n, quantiles=n), IMAGE, 6) for n in (51, 7))
    assert [p.shape for p in plain.parameters()] == [p.shape for p in off.parameters()]
    assert plain.values(out := torch.rand(2, 6)) is out


def test_the_settings_build_the_network():
    network = build_network(DQNConfig(trunk="small", hidden=32, head="c51", atoms=21), IMAGE, 6)
    assert network.advantage.weight.shape == (6 * 21, 32)
    network = build_network(DQNConfig(trunk="small", hidden=32, head="quantile", quantiles=9), IMAGE, 6)
    assert network.advantage.weight.shape == (6 * 9, 32)
    network = build_network(DQNConfig(trunk="small", hidden=32, dueling=False), IMAGE, 6)
    assert network.action_value.weight.shape == (6, 32)


@pytest.mark.parametrize(
    ("obs_shape", "remedy"),
    [
        ((1, 10, 5), "minatar"), ((4,), "vector"), ((4, 84), "vector"), ((4, 20, 84), "small"), ((4, 84, 35), "small"),
        ((4, 19, 84), "minatar"), ((1, 2, 9), "vector"), ((4, 6, 10, 10), "minatar"),
    ],
)  # fmt: skip
def test_a_trunk_that_does_not_fit_names_the_flag_and_one_that_fits(obs_shape, remedy):
    assert QNetwork(obs_shape, 4, remedy, hidden=8)(torch.zeros(2, *obs_shape)).shape == (2, 4)
    with pytest.raises(ConfigError, match=rf"--trunk is 'nature'.*give --trunk {remedy}$"):
        QNetwork(obs_shape, 3, "nature")


@pytest.mark.parametrize("trunk", ["pooled", "residual"])
@pytest.mark.parametrize(("side", "remedy"), [(27, "small"), (19, "minatar"), (28, None)])
def test_a_pool_needs_two_positions_on_each_side(trunk, side, remedy):
    shape = (4, 84, side)
    if remedy is None:
        assert QNetwork(shape, 4, trunk, hidden=8)(torch.zeros(2, *shape)).shape == (2, 4)
        return
    assert QNetwork(shape, 4, remedy, hidden=8)(torch.zeros(2, *shape)).shape == (2, 4)
    with pytest.raises(ConfigError, match=rf"--trunk is '{trunk}'.*\[4, 84, {side}\]; give --trunk {remedy}$"):
        QNetwork(shape, 4, trunk)


def test_the_settings_offer_the_trunks_that_there_are():
    assert typing.get_args(typing.get_type_hints(DQNConfig)["trunk"]) == typing.get_args(Trunk)


def test_an_unknown_trunk_is_refused():
    with pytest.raises(ConfigError, match=r"--trunk is 'huge'; give nature, .*, impala-strided or vector$"):
        QNetwork(IMAGE, 3, "huge")


def test_check_state_names_what_differs():
    network = QNetwork((2,), 3, "vector", hidden=4)
    network.check_state(network.state_dict())
    with pytest.raises(ConfigError, match=r"advantage.weight is \[5, 4\] in the saved state and \[3, 4\]"):
        network.check_state({**network.state_dict(), "advantage.weight": torch.zeros(5, 4)})
    with pytest.raises(ConfigError, match=r"action_value.weight is \[3, 4\] in the saved state and missing here"):
        network.check_state({"action_value.weight": torch.zeros(3, 4)})


def test_a_stack_of_colours_reaches_the_network_channel_by_channel():
    torch.manual_seed(0)
    network = QNetwork((2, 3, 40, 40), 2, trunk="small", hidden=8)
    flat = QNetwork((6, 40, 40), 2, trunk="small", hidden=8)
    flat.load_state_dict(network.state_dict())
    obs = torch.randint(256, (5, 2, 3, 40, 40), dtype=torch.uint8)
    assert torch.equal(network(obs), flat(obs.reshape(5, 6, 40, 40)))
