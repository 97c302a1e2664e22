"""Environments, buffers and agents for the tests of Stable-Baselines3's agents on the replay."""

import copy

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import buffers
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from fastrl.integrations.sb3 import PrioritizedDQN, ReplayBuffer

ACTIONS = spaces.Discrete(100_000)  # an action names its step and environment


class Noise(gym.Env):
    """Images (or vectors) without meaning; episodes of 1 to 9 steps, half of them truncated. Deterministic."""

    def __init__(self, seed=0, shape=(12, 10, 1), dtype=np.uint8, actions=ACTIONS):
        high = 255 if dtype == np.uint8 else 1
        self.observation_space = spaces.Box(0, high, shape, dtype)
        self.action_space, self.rng = actions, np.random.default_rng(seed)

    def _see(self):
        space = self.observation_space
        return (self.rng.random(space.shape) * np.nextafter(space.high + 1, 0)).astype(space.dtype)

    def reset(self, *, seed=None, options=None):
        self.left = int(self.rng.integers(1, 10))
        return self._see(), {}

    def step(self, action):
        self.left -= 1
        over = self.left == 0
        cut = over and bool(self.rng.integers(2))
        return self._see(), float(self.rng.normal()), over and not cut, cut, {}


def noise(n_envs=1, **settings):
    return DummyVecEnv([lambda seed=seed: Noise(seed, **settings) for seed in range(n_envs)])


def drive(envs, targets, steps, reset_every=None):
    """Add one stream to several buffers, as `OffPolicyAlgorithm._store_transition` does."""
    obs = envs.reset()
    for t in range(steps):
        if reset_every and t and t % reset_every == 0:
            obs = envs.reset()
        action = t * envs.num_envs + np.arange(envs.num_envs)
        new, reward, done, infos = envs.step(action)
        next_obs = copy.deepcopy(new)
        for i in np.flatnonzero(done):
            next_obs[i] = infos[i]["terminal_observation"]
        for buffer in targets:
            buffer.add(obs, next_obs, action, reward, done, infos)
        obs = new


def pair(envs, size=300, theirs=buffers.ReplayBuffer, their_settings=None, **settings):
    """One of our buffers and one of Stable-Baselines3's, which never overwrites here."""
    spaces_ = (envs.observation_space, envs.action_space, "cpu", envs.num_envs)
    return ReplayBuffer(size, *spaces_, seed=0, **settings), theirs(100_000, *spaces_, **(their_settings or {}))


def every(buffer):
    """All that can be drawn, once each; also the steps and the environments that they come from."""
    batch = buffer.sample(buffer.replay.drawable)
    steps, env = np.divmod(batch.actions[:, 0].numpy(), buffer.n_envs)
    assert len(np.unique(batch.indices)) == len(batch.indices)
    return batch, steps, env


def assert_equal_to(theirs, batch, steps, env):
    assert np.array_equal(batch.observations.numpy(), theirs.observations[steps, env])
    assert np.array_equal(batch.next_observations.numpy(), theirs.next_observations[steps, env])
    assert batch.observations.dtype == torch.as_tensor(theirs.observations[:1]).dtype
    assert np.array_equal(batch.rewards.numpy()[:, 0], theirs.rewards[steps, env])
    dones = theirs.dones[steps, env] * (1 - theirs.timeouts[steps, env])
    assert np.array_equal(batch.dones.numpy()[:, 0], dones)
    assert batch.rewards.dtype == batch.dones.dtype == torch.float32
    assert 0 < dones.sum() < theirs.dones[steps, env].sum()  # both kinds of end were among them


STACKED = {
    "grey, channels last": ({}, "last", False),
    "grey, channels first": ({"shape": (1, 12, 10)}, "first", False),
    "grey, moved to the front": ({}, "last", True),
    "colour, channels last": ({"shape": (14, 15, 3)}, "last", False),
    "colour, moved to the front": ({"shape": (14, 15, 3)}, "last", True),
    "vectors": ({"shape": (5,), "dtype": np.float32}, "last", False),
    "vectors of a double": ({"shape": (5,), "dtype": np.float64}, "last", False),
}


def stacked(case, stack=4, n_envs=3):
    settings, order, moved = STACKED[case]
    envs = VecFrameStack(noise(n_envs, **settings), stack, channels_order=order)
    return VecTransposeImage(envs) if moved else envs


def images(n_envs=2, actions=spaces.Discrete(3)):  # noqa: B008
    return VecFrameStack(noise(n_envs, actions=actions), 4)


def agent(envs, **settings):
    settings = {"learning_starts": 20, "buffer_size": 500, "seed": 0, "device": "cpu"} | settings
    return PrioritizedDQN("MlpPolicy", envs, policy_kwargs={"net_arch": [8]}, **settings)
