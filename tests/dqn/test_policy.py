"""Epsilon-greedy: one coin for each environment, random actions before the first update."""

from __future__ import annotations

import numpy as np
import pytest

from fastrl.dqn.policy import Policy

OBS = np.zeros((6, 2), np.float32)
ENVS = np.arange(6)


class Network:
    """Always chooses action 2."""

    def __init__(self, updates: int = 1) -> None:
        self.updates, self.asked = updates, 0

    def act(self, obs, mask=None):
        self.asked += 1
        return np.full(len(obs), 2)


def policy(network: Network, epsilon: float | np.ndarray, seed: int = 0) -> Policy:
    made = Policy(network, 4, np.random.default_rng(seed))
    made.epsilon = epsilon
    return made


def test_before_the_first_update_all_actions_are_random_and_the_network_is_not_asked():
    network = Network(updates=0)
    actions = np.concatenate([policy(network, 0.0, seed).act(OBS, ENVS) for seed in range(50)])
    assert set(actions) == {0, 1, 2, 3}
    assert not network.asked


@pytest.mark.parametrize(("epsilon", "others"), [(0.0, 0.0), (1.0, 0.75), (0.4, 0.3)])
def test_a_share_of_the_actions_is_random(epsilon, others):
    chooses = policy(Network(), epsilon)
    actions = np.concatenate([chooses.act(OBS, ENVS) for _ in range(2_000)])
    assert (actions != 2).mean() == pytest.approx(others, abs=0.015)  # a quarter of random actions is the greedy one


def test_each_environment_tosses_its_own_coin():
    chooses = policy(Network(), 0.5)
    random = np.stack([chooses.act(OBS, ENVS) != 2 for _ in range(2_000)])
    assert np.abs(np.corrcoef(random.T) - np.eye(len(OBS))).max() < 0.1


def test_its_version_is_that_of_the_weights_that_act():
    network = Network(updates=3)
    assert policy(network, 0.0).version == 3


def test_with_a_ladder_each_environment_has_the_epsilon_of_its_number():
    chooses, second_group = policy(Network(), np.linspace(0, 1, 12)), np.arange(6, 12)
    random = np.stack([chooses.act(OBS, second_group) != 2 for _ in range(4_000)])
    np.testing.assert_allclose(random.mean(0), 0.75 * second_group / 11, atol=0.03)
    assert not np.stack([chooses.act(OBS[:1], ENVS[:1]) != 2 for _ in range(100)]).any()


def test_a_ladder_of_one_epsilon_draws_what_that_epsilon_draws():
    one, many = policy(Network(), 0.3), policy(Network(), np.full(6, 0.3))
    for _ in range(50):
        np.testing.assert_array_equal(one.act(OBS, ENVS), many.act(OBS, ENVS))
