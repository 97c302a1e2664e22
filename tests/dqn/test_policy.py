"""Epsilon-greedy: one coin for each environment, random actions before the first update."""

from __future__ import annotations

import numpy as np
import pytest

from fastrl.dqn.policy import Policy

OBS = np.zeros((6, 2), np.float32)


class Network:
    """Always chooses action 2."""

    def __init__(self, updates: int = 1) -> None:
        self.updates, self.asked = updates, 0

    def act(self, obs):
        self.asked += 1
        return np.full(len(obs), 2)


def policy(network: Network, epsilon: float, seed: int = 0) -> Policy:
    made = Policy(network, 4, np.random.default_rng(seed))
    made.epsilon = epsilon
    return made


def test_before_the_first_update_all_actions_are_random_and_the_network_is_not_asked():
    network = Network(updates=0)
    actions = np.concatenate([policy(network, 0.0, seed).act(OBS) for seed in range(50)])
    assert set(actions) == {0, 1, 2, 3}
    assert not network.asked


@pytest.mark.parametrize(("epsilon", "others"), [(0.0, 0.0), (1.0, 0.75), (0.4, 0.3)])
def test_a_share_of_the_actions_is_random(epsilon, others):
    chooses = policy(Network(), epsilon)
    actions = np.concatenate([chooses.act(OBS) for _ in range(2_000)])
    assert (actions != 2).mean() == pytest.approx(others, abs=0.015)  # a quarter of random actions is the greedy one


def test_each_environment_tosses_its_own_coin():
    chooses = policy(Network(), 0.5)
    random = np.stack([chooses.act(OBS) != 2 for _ in range(2_000)])
    assert np.abs(np.corrcoef(random.T) - np.eye(len(OBS))).max() < 0.1


def test_its_version_is_that_of_the_weights_that_act():
    network = Network(updates=3)
    assert policy(network, 0.0).version == 3
