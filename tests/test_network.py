"""The Q-network: shapes, scaling, the dueling equation, and clear errors."""

import pytest
import torch

from fastrl.config import ConfigError, DQNConfig
from fastrl.dqn.network import QNetwork, build_network

IMAGE = (4, 84, 84)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("trunk", "obs_shape", "features"),
    [("nature", IMAGE, 64 * 7 * 7), ("small", IMAGE, 32 * 9 * 9), ("vector", (1, 10, 5), 8)],
)
@pytest.mark.parametrize("dueling", [True, False])
def test_every_trunk_gives_one_float32_value_per_action(trunk, obs_shape, features, dueling):
    network = QNetwork(obs_shape, 5, trunk, hidden=8, dueling=dueling)
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


def test_autocast_still_returns_float32():
    network = QNetwork((2,), 3, "vector", hidden=4)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(6, 2)).dtype == torch.float32


def test_the_settings_build_the_network():
    network = build_network(DQNConfig(trunk="small", hidden=32, dueling=False), IMAGE, 6)
    assert network.action_value.weight.shape == (6, 32)


@pytest.mark.parametrize("obs_shape", [(1, 10, 5), (4,), (4, 84), (4, 20, 84), (4, 84, 35)])
def test_a_trunk_that_does_not_fit_names_the_flag_and_the_remedy(obs_shape):
    with pytest.raises(ConfigError, match=r"--trunk is 'nature'.*give --trunk vector"):
        QNetwork(obs_shape, 3, "nature")


def test_an_unknown_trunk_is_refused():
    with pytest.raises(ConfigError, match="--trunk is 'huge'; give nature"):
        QNetwork(IMAGE, 3, "huge")


def test_check_state_names_what_differs():
    network = QNetwork((2,), 3, "vector", hidden=4)
    network.check_state(network.state_dict())
    with pytest.raises(ConfigError, match=r"advantage.weight is \[5, 4\] in the saved state and \[3, 4\]"):
        network.check_state({**network.state_dict(), "advantage.weight": torch.zeros(5, 4)})
    with pytest.raises(ConfigError, match=r"action_value.weight is \[3, 4\] in the saved state and missing here"):
        network.check_state({"action_value.weight": torch.zeros(3, 4)})
