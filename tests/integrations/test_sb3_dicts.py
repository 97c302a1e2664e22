"""Dictionaries of observations: what is drawn is what Stable-Baselines3's own buffer holds, to the bit."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import gymnasium as gym
from gymnasium import spaces
from sb3_envs import ACTIONS, Noise, every
from stable_baselines3.common import buffers
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from fastrl.integrations.sb3 import PrioritizedDQN, ReplayBuffer
from fastrl.integrations.sb3.agent import stacking


class Two(gym.Env):
    """An image and a vector of noise, ended together."""

    def __init__(self, seed=0, shape=(36, 40, 1), actions=ACTIONS):
        self.image = Noise(seed, shape, actions=actions)
        self.vector = np.random.default_rng(seed)
        box = spaces.Box(0, 1, (5,), np.float32)
        self.observation_space = spaces.Dict({"image": self.image.observation_space, "vector": box})
        self.action_space = actions

    def _see(self, image):
        return {"image": image, "vector": self.vector.random(5, np.float32)}

    def reset(self, *, seed=None, options=None):
        return self._see(self.image.reset()[0]), {}

    def step(self, action):
        image, *rest = self.image.step(action)
        return self._see(image), *rest


def vector(n_envs=3, **settings):
    return DummyVecEnv([lambda seed=seed: Two(seed, **settings) for seed in range(n_envs)])


KINDS = {
    "whole": lambda: vector(),
    "stacked": lambda: VecFrameStack(vector(), 4),
    "stacked, images moved to the front": lambda: VecTransposeImage(VecFrameStack(vector(), 4)),
    "stacked in front": lambda: VecFrameStack(vector(shape=(1, 36, 40)), 4, {"image": "first", "vector": "last"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_hold_what_the_agent_saw(kind):
    envs = KINDS[kind]()
    arguments = (envs.observation_space, envs.action_space, "cpu", envs.num_envs)
    mine = ReplayBuffer(240, *arguments, seed=0, **stacking(envs))
    theirs = buffers.DictReplayBuffer(3000, *arguments)
    obs = envs.reset()
    for t in range(150):
        action = t * envs.num_envs + np.arange(envs.num_envs)
        new, reward, done, infos = envs.step(action)
        next_obs = copy.deepcopy(new)
        for i in np.flatnonzero(done):
            for key in next_obs:
                next_obs[key][i] = infos[i]["terminal_observation"][key]
        for buffer in (mine, theirs):
            buffer.add(obs, next_obs, action, reward, done, infos)
        obs = new
    batch, steps, env = every(mine)
    assert len(steps) > 100
    for key in ("image", "vector"):
        assert np.array_equal(batch.observations[key].numpy(), theirs.observations[key][steps, env])
        assert np.array_equal(batch.next_observations[key].numpy(), theirs.next_observations[key][steps, env])
    again = pickle.loads(pickle.dumps(mine))
    drawn, wanted = again.sample(9), mine.sample(9)
    assert np.array_equal(drawn.indices, wanted.indices)
    assert np.array_equal(drawn.observations["image"], wanted.observations["image"])


def test_an_agent_learns_from_dictionaries():
    envs = VecFrameStack(vector(actions=spaces.Discrete(3)), 2)
    model = PrioritizedDQN(
        "MultiInputPolicy", envs, policy_kwargs={"net_arch": [8]}, learning_starts=20, buffer_size=500, seed=0,
        n_steps=2, device="cpu",
    )  # fmt: skip
    model.learn(60)
    assert model._n_updates > 0
    assert model.replay_buffer.replay.settings["stack"] == {"image": 2, "vector": 2}
    assert model.replay_buffer.stacks["image"].frame_shape == (1, 36, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": np.zeros((2, 5))}, "obs is ndarray; give a dictionary with the keys .*image"),
        ({"obs": {"image": 0}}, r"obs is \['image'\]; give a dictionary"),
        ({"vector": np.zeros((3, 5))}, r"obs\['vector'\] has shape \(3, 5\); expected \(2, 5\)"),
    ],
)
def test_observations_of_other_keys_are_named(changes, message):
    space = Two().observation_space
    buffer = ReplayBuffer(100, space, spaces.Discrete(3), n_envs=2)
    good = {"image": np.zeros((2, 36, 40, 1), np.uint8), "vector": np.zeros((2, 5), np.float32)}
    obs = changes.get("obs", good | changes)
    with pytest.raises(ValueError, match=message):
        buffer.add(obs, good, np.zeros(2), np.zeros(2), np.zeros(2, bool), [{}, {}])
    assert len(buffer.replay) == 0
