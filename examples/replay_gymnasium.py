"""DQN on one Gymnasium environment: every call to the replay, in the order in which a loop makes them.

python examples/replay_gymnasium.py          # CartPole-v1, a minute or less; all of it is in `train`
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastrl.replay import PrioritizedReplayBuffer

LEARN_START_STEPS, BATCH_SIZE, TARGET_EVERY_STEPS = 500, 64, 200


def network() -> nn.Module:
    """Return Q [B, 2] of observations [B, 1, 4]: the replay keeps the axis of stacked frames, here of one."""
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def train(total_steps: int = 10_000, seed: int = 0) -> list[float]:
    """Return the return of each episode."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    env = gym.make("CartPole-v1")
    online, target = network(), network()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    # One environment is a vector of one. We reset it ourselves: autoreset="disabled".
    buffer = PrioritizedReplayBuffer(
        capacity=total_steps, num_envs=1, obs_shape=(4,), obs_dtype=np.float32, n_step=3, gamma=0.99,
        autoreset="disabled", seed=seed,
    )  # fmt: skip
    returns = [0.0]
    obs, first = env.reset(seed=seed)[0], True
    for step in range(total_steps):
        epsilon = max(0.05, 1 - step / (0.2 * total_steps))
        if rng.random() < epsilon:
            action = int(rng.integers(2))
        else:
            with torch.no_grad():
                action = int(online(torch.from_numpy(obs)[None, None]).argmax())
        next_obs, reward, terminated, truncated, _ = env.step(action)
        returns[-1] += float(reward)
        # Each argument gets the environments' axis in front. `first` says that obs came from a reset: needed where a
        # reset cuts an episode short, right everywhere. `final_obs` is read only where the episode ended.
        buffer.add(
            obs[None], [action], [reward], [terminated], [truncated], first=[first], final_obs=next_obs[None]
        )  # fmt: skip
        obs, first = next_obs, False
        if terminated or truncated:
            obs, first = env.reset()[0], True
            returns.append(0.0)
        if step < LEARN_START_STEPS:
            continue

        batch = buffer.sample(BATCH_SIZE, beta=0.4 + 0.6 * step / total_steps)
        now, after = torch.from_numpy(batch.obs), torch.from_numpy(batch.next_obs)
        with torch.no_grad():
            best = online(after).argmax(dim=1, keepdim=True)
            # The reward is the sum over the steps taken. The discount is gamma to their number, and 0 after a
            # termination: a truncated episode continues from its final observation, a terminated one does not.
            future = torch.from_numpy(batch.discount) * target(after).gather(1, best).squeeze(1)
            goal = torch.from_numpy(batch.reward) + future
        q = online(now).gather(1, torch.from_numpy(batch.action)[:, None]).squeeze(1)
        losses = F.smooth_l1_loss(q, goal, reduction="none")
        optimizer.zero_grad()
        (torch.from_numpy(batch.weight) * losses).mean().backward()  # the weights undo what the priorities bias
        optimizer.step()
        buffer.update_priorities(batch.index, (goal - q).detach().abs().numpy())
        if step % TARGET_EVERY_STEPS == 0:
            target.load_state_dict(online.state_dict())
    env.close()
    return returns[:-1]


def main(total_steps: int = 10_000) -> tuple[float, float]:
    """Return the mean return of the first and of the last 20 episodes."""
    returns = train(total_steps)
    first, last = float(np.mean(returns[:20])), float(np.mean(returns[-20:]))
    print(f"mean return of the first 20 of {len(returns)} episodes: {first:.0f}, of the last 20: {last:.0f}")
    return first, last


if __name__ == "__main__":
    main()
