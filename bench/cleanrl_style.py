"""Deep Q-learning on Breakout in the manner of CleanRL's ``dqn_atari.py``, written anew as a yardstick.

The same: one ALE game in Gymnasium's wrappers inside a SyncVectorEnv, the Nature network in eager PyTorch (acting
builds a graph too, and sends floats), Stable-Baselines3's replay buffer that keeps each whole stack once, 32 samples
every 4 agent steps, mean squared error, Adam, a target network copied every 1,000 agent steps.

Different, and in its favour: Gymnasium's AtariPreprocessing reads grey screens from the emulator, where CleanRL shrinks
colour pictures and then greys them; nothing is logged; cuDNN may choose its algorithms freely. Epsilon stands at its
last value, as it does for nine tenths of a run.
"""

from __future__ import annotations

import random
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.buffers import ReplayBuffer
from torch import Tensor, nn

BATCH_SIZE = 32
TRAIN_EVERY_STEPS = 4
TARGET_EVERY_STEPS = 1_000
LEARNING_RATE = 1e-4
GAMMA = 0.99
NOOP, FIRE = 0, 1


class EpisodicLife(gym.Wrapper):
    """A lost life ends the episode; the game starts anew only when it is over."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._lives, self._game_over = 0, True

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._game_over = terminated or truncated
        lives = self.unwrapped.ale.lives()
        terminated, self._lives = terminated or lives < self._lives, lives
        return obs, reward, terminated, truncated, info

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        if not self._game_over:
            obs, _, terminated, truncated, info = self.env.step(NOOP)
            self._game_over = terminated or truncated
        if self._game_over:
            obs, info = self.env.reset(**options)
        self._lives, self._game_over = self.unwrapped.ale.lives(), False
        return obs, info


class FireReset(gym.Wrapper):
    """Launch the ball whenever an episode begins."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        self.env.reset(**options)
        obs, _, terminated, truncated, info = self.env.step(FIRE)
        return self.env.reset(**options) if terminated or truncated else (obs, info)


def make_env() -> gym.Env:
    """Return Breakout with the usual wrappers: observations [4, 84, 84] uint8."""
    gym.register_envs(ale_py)
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = gym.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4)
    env = FireReset(EpisodicLife(env))
    env = gym.wrappers.TransformReward(env, np.sign)
    return gym.wrappers.FrameStackObservation(env, 4)


class QNetwork(nn.Module):
    """The network of Mnih et al. 2015."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, num_actions),
        )  # fmt: skip

    def forward(self, obs: Tensor) -> Tensor:
        """Return Q [B, A] of obs [B, 4, 84, 84], pixels from 0 to 255."""
        return self.layers(obs / 255)


class CleanRLStyle:
    """The loop, with its replay filled and a few updates made; see `side_by_side.Loop`.

    Parameters
    ----------
    device : str
        Where the network lives.
    capacity, fill_steps, warm_steps : int
        Rows of replay; agent steps at random before learning; agent steps with learning that follow.
    epsilon : float
        Share of random actions after that.
    """

    unit = TRAIN_EVERY_STEPS

    def __init__(self, device: str, capacity: int, fill_steps: int, warm_steps: int, epsilon: float) -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the replay buffer draws from it
        torch.manual_seed(1)
        self.about: dict[str, float] = {"samples_per_step": BATCH_SIZE / TRAIN_EVERY_STEPS, "batch_size": BATCH_SIZE}
        self._device, self._epsilon, self._fill_steps = torch.device(device), epsilon, fill_steps
        self._steps = self._updates = 0
        self._envs = gym.vector.SyncVectorEnv([make_env], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
        obs_space, self._actions = self._envs.single_observation_space, self._envs.single_action_space
        self._actions.seed(1)
        self._online, self._target = (QNetwork(self._actions.n).to(device) for _ in range(2))
        self._target.load_state_dict(self._online.state_dict())
        self._optimizer = torch.optim.Adam(self._online.parameters(), lr=LEARNING_RATE)
        self._replay = ReplayBuffer(
            capacity, obs_space, self._actions, self._device, optimize_memory_usage=True,
            handle_timeout_termination=False,
        )  # fmt: skip
        self.about["bytes_per_row"] = self._replay.observations.nbytes / capacity
        self._obs, _ = self._envs.reset(seed=1)
        self.play(fill_steps + warm_steps)

    def play(self, steps: int) -> None:
        """Act, step, add, learn, N times."""
        for _ in range(steps):
            actions = self._act()
            next_obs, rewards, terminated, truncated, infos = self._envs.step(actions)
            stored = next_obs.copy()
            for i in np.flatnonzero(terminated | truncated):
                stored[i] = infos["final_obs"][i]
            self._replay.add(self._obs, stored, actions, rewards, terminated, [infos])
            self._obs = next_obs
            self._steps += 1
            if self._steps > self._fill_steps:
                if self._steps % TRAIN_EVERY_STEPS == 0:
                    self._learn()
                if self._steps % TARGET_EVERY_STEPS == 0:
                    self._target.load_state_dict(self._online.state_dict())
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _act(self) -> np.ndarray:
        if self._steps < self._fill_steps or random.random() < self._epsilon:
            return np.array([self._actions.sample()])
        return self._online(torch.Tensor(self._obs).to(self._device)).argmax(dim=1).cpu().numpy()

    def _learn(self) -> None:
        batch = self._replay.sample(BATCH_SIZE)
        with torch.no_grad():
            best = self._target(batch.next_observations).max(dim=1).values
            wanted = batch.rewards.flatten() + GAMMA * best * (1 - batch.dones.flatten())
        value = self._online(batch.observations).gather(1, batch.actions).squeeze()
        loss = F.mse_loss(wanted, value)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._updates += 1

    def counts(self) -> dict[str, int]:
        """Return agent steps and samples learned so far."""
        return {"steps": self._steps, "samples": self._updates * BATCH_SIZE}

    def close(self) -> None:
        """Free the emulator."""
        self._envs.close()
