"""Continuous actions: DDPG (Lillicrap et al. 2016) with two critics, as TD3 has, on eight Pendulums.

python examples/replay_continuous.py         # Pendulum-v1, a minute or less; all of it is in `train`
"""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from fastrl.replay import PrioritizedReplayBuffer

NUM_ENVS, BATCH_SIZE, LEARN_START_STEPS, STRONGEST = 8, 128, 800, 2.0


def layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, outputs))


class Actor(nn.Module):
    """Torques [B, 1] at observations [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers(3, 1)

    def forward(self, obs: Tensor) -> Tensor:
        return STRONGEST * torch.tanh(self.layers(obs))


class Critics(nn.Module):
    """What two networks think of torques [B, 1] at observations [B, 3]: [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layers(4, 1), layers(4, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        inputs = torch.cat([obs, action], dim=1)
        return torch.cat([self.one(inputs), self.two(inputs)], dim=1)


def train(total_steps: int = 16_000, seed: int = 0) -> np.ndarray:
    """Return the rewards ``[vector steps, NUM_ENVS]``; each vector step counts NUM_ENVS and brings one update."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    # They reset themselves on the step after a done, as the replay expects unless told otherwise.
    envs = gym.make_vec("Pendulum-v1", NUM_ENVS, vectorization_mode="sync")
    buffer = PrioritizedReplayBuffer(
        capacity=total_steps, num_envs=NUM_ENVS, obs_shape=(3,), obs_dtype=np.float32, action_shape=(1,),
        action_dtype=np.float32, n_step=3, gamma=0.98, seed=seed,
    )  # fmt: skip
    actor, critics = Actor(), Critics()
    slow_actor, slow_critics = copy.deepcopy(actor), copy.deepcopy(critics)
    optimizers = [torch.optim.Adam(network.parameters(), lr=2e-3) for network in (actor, critics)]
    rewards = []
    obs, _ = envs.reset(seed=seed)
    for step in range(0, total_steps, NUM_ENVS):
        if step < LEARN_START_STEPS:
            action = rng.uniform(-STRONGEST, STRONGEST, (NUM_ENVS, 1)).astype(np.float32)
        else:
            with torch.no_grad():
                action = actor(torch.from_numpy(obs)).numpy()
            noise = rng.normal(0, 0.1 * STRONGEST, action.shape)
            action = (action + noise).clip(-STRONGEST, STRONGEST).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        buffer.add(obs, action, reward, terminated, truncated)  # action [n, 1], as action_shape says
        obs = next_obs
        rewards.append(reward)
        if step < LEARN_START_STEPS:
            continue

        batch = buffer.sample(BATCH_SIZE, beta=0.4 + 0.6 * step / total_steps)
        now, after = torch.from_numpy(batch.obs[:, 0]), torch.from_numpy(batch.next_obs[:, 0])  # "stacks" of one
        with torch.no_grad():
            value = slow_critics(after, slow_actor(after)).min(dim=1).values
            # Pendulum only ever truncates, so that no discount is 0: each episode's last value is bootstrapped.
            goal = torch.from_numpy(batch.reward) + torch.from_numpy(batch.discount) * value
        errors = goal[:, None] - critics(now, torch.from_numpy(batch.action))  # [B, 2]
        critic_loss = (torch.from_numpy(batch.weight)[:, None] * errors.square()).mean()
        actor_loss = -critics(now, actor(now))[:, 0].mean()
        for loss, optimizer in zip((actor_loss, critic_loss), optimizers, strict=True):
            optimizer.zero_grad()  # of the critics: what the actor's loss left there
            loss.backward()
            optimizer.step()
        buffer.update_priorities(batch.index, errors.detach().abs().mean(dim=1).numpy())
        with torch.no_grad():
            for slow, network in ((slow_actor, actor), (slow_critics, critics)):
                for theirs, mine in zip(slow.parameters(), network.parameters(), strict=True):
                    theirs.lerp_(mine, 0.02)
    envs.close()
    return np.array(rewards)


def main(total_steps: int = 16_000) -> tuple[float, float]:
    """Return the mean return of the first episodes and of the last two of each Pendulum."""
    rewards = train(total_steps)
    first, last = 200 * float(rewards[:200].mean()), 200 * float(rewards[-402:].mean())  # an episode is 200 steps
    print(f"mean return of an episode at first: {first:.0f}, in the end: {last:.0f} (at most 0)")
    return first, last


if __name__ == "__main__":
    main()
