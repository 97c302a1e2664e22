"""Deep Q-learning on an Atari game in one file, in CleanRL's manner, on prioritized replay that keeps each frame once.

python examples/replay_cleanrl.py --env-id ALE/Pong-v5      # --help lists the settings; tensorboard --logdir runs

It shows where the calls go. Its settings are the usual ones, not tuned, and no score of it was measured; the agent of
this package is `fastrl.train`. The replay of the default size takes 7 GB of memory as it fills. Like CleanRL it reads
its flags with tyro, which the extra `test` of this package brings.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from fastrl.replay import PrioritizedReplayBuffer

gym.register_envs(ale_py)
STACK, NOOP, FIRE = 4, 0, 1


@dataclass
class Args:
    env_id: str = "ALE/Breakout-v5"
    """the game"""
    seed: int = 1
    """of games, network, exploration and draws"""
    total_timesteps: int = 10_000_000
    """agent steps, of 4 emulator frames each"""
    num_envs: int = 8
    """games played side by side"""
    buffer_size: int = 1_000_000
    """rows of replay"""
    learning_starts: int = 80_000
    """agent steps at random before the first update"""
    learning_rate: float = 1e-4
    """of Adam"""
    batch_size: int = 64
    """transitions of each update, of which there is one for every step of all games"""
    target_frequency: int = 1_000
    """updates between two copies of the network"""
    gamma: float = 0.99
    """discount"""
    n_step: int = 3
    """rewards in a return"""
    alpha: float = 0.6
    """exponent of the priorities"""
    beta: float = 0.4
    """exponent of the importance weights at first; 1 in the end"""
    end_e: float = 0.01
    """share of random actions in the end; 1 at first"""
    exploration_fraction: float = 0.1
    """share of the run in which it falls"""


class EpisodicLife(gym.Wrapper):
    """A lost life ends the episode, but a new game begins only when the game is over. FIRE starts each life."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._lives, self._game_over = 0, True
        self._start = FIRE if env.unwrapped.get_action_meanings()[FIRE] == "FIRE" else NOOP

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        lives, self._game_over = self.unwrapped.ale.lives(), terminated or truncated
        lost, self._lives = lives < self._lives, lives
        return obs, reward, terminated or lost, truncated, info

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        if self._game_over:
            self.env.reset(**options)
        obs, _, terminated, truncated, info = self.env.step(self._start)
        if terminated or truncated:
            obs, info = self.env.reset(**options)
        self._lives, self._game_over = self.unwrapped.ale.lives(), False
        return obs, info


def make_env(env_id: str) -> gym.Env:
    """Return a game whose observations are stacks, [4, 84, 84] uint8."""
    env = gym.make(env_id, frameskip=1, repeat_action_probability=0.0)
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = gym.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4)
    env = gym.wrappers.TransformReward(EpisodicLife(env), np.sign)
    return gym.wrappers.FrameStackObservation(env, STACK)  # it begins anew in every episode, so at every life


class QNetwork(nn.Module):
    """The network of Mnih et al. 2015: Q [B, A] of obs [B, 4, 84, 84] uint8."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(STACK, 32, 8, stride=4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, num_actions),
        )  # fmt: skip

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs / 255)


def act(network: QNetwork, obs: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Return actions [N]; each game tosses its own coin."""
    device = next(network.parameters()).device
    with torch.no_grad():
        q = network(torch.as_tensor(obs, device=device)).cpu().numpy()
    return np.where(rng.random(len(obs)) < epsilon, rng.integers(q.shape[1], size=len(obs)), q.argmax(axis=1))


def main(args: Args) -> PrioritizedReplayBuffer:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    writer = SummaryWriter(f"runs/{args.env_id.split('/')[-1]}__replay_cleanrl__{args.seed}__{int(time.time())}")
    writer.add_text("args", "  \n".join(f"{name}: {value}" for name, value in asdict(args).items()))

    envs = gym.vector.SyncVectorEnv([lambda: make_env(args.env_id)] * args.num_envs)
    num_actions = int(envs.single_action_space.n)
    q_network, target_network = QNetwork(num_actions).to(device), QNetwork(num_actions).to(device)
    target_network.load_state_dict(q_network.state_dict())
    optimizer = torch.optim.Adam(q_network.parameters(), lr=args.learning_rate)
    # Not the space of stacks but of one frame: the stacks are put together when a batch is drawn.
    rb = PrioritizedReplayBuffer(
        capacity=args.buffer_size, num_envs=args.num_envs, obs_shape=(84, 84), stack=STACK, n_step=args.n_step,
        gamma=args.gamma, alpha=args.alpha, seed=args.seed,
    )  # fmt: skip

    start, updates = time.time(), 0
    obs, _ = envs.reset(seed=args.seed)
    for global_step in range(0, args.total_timesteps, args.num_envs):
        done_share = global_step / args.total_timesteps
        epsilon = max(args.end_e, 1 - (1 - args.end_e) * done_share / args.exploration_fraction)
        if global_step < args.learning_starts:
            epsilon = 1.0
        actions = act(q_network, obs, epsilon, rng)
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        for i in np.flatnonzero(infos.get("_episode", [])):
            print(f"global_step={global_step}, episodic_return={infos['episode']['r'][i]:.0f}")
            writer.add_scalar("charts/episodic_return", infos["episode"]["r"][i], global_step)

        # The newest frame alone. No next_obs: the next row has it. No final observation: Gymnasium's environments
        # return it as next_obs and reset on the step after. No `first`: stacks begin anew in every episode, see above.
        rb.add(obs[:, -1], actions, rewards, terminations, truncations)
        obs = next_obs
        if global_step < args.learning_starts:
            continue

        data = rb.sample(args.batch_size, beta=args.beta + (1 - args.beta) * done_share)
        now, after, action, reward, discount, weight = (
            torch.as_tensor(array, device=device)
            for array in (data.obs, data.next_obs, data.action, data.reward, data.discount, data.weight)
        )
        with torch.no_grad():
            best = q_network(after).argmax(dim=1, keepdim=True)
            target = reward + discount * target_network(after).gather(1, best).squeeze(1)
        value = q_network(now).gather(1, action[:, None]).squeeze(1)
        loss = (weight * F.smooth_l1_loss(value, target, reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rb.update_priorities(data.index, (target - value).detach().abs().cpu().numpy())

        updates += 1
        if updates % args.target_frequency == 0:
            target_network.load_state_dict(q_network.state_dict())
        if updates % 100 == 0:
            writer.add_scalar("losses/td_loss", loss.item(), global_step)
            writer.add_scalar("losses/q_values", value.mean().item(), global_step)
            writer.add_scalar("charts/SPS", int(global_step / (time.time() - start)), global_step)
    envs.close()
    writer.close()
    return rb


if __name__ == "__main__":
    main(tyro.cli(Args))
