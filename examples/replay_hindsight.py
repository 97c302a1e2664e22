"""A DQN learns to flip bits until they are those of a goal, with hindsight; without it never sees the goal reached.

python examples/replay_hindsight.py          # all of it is in `train`

The task (Andrychowicz et al. 2017, section 3.1): BITS bits and a goal, both at random. An action flips one bit, and
each step costs 1 until bits and goal are equal. Random play meets the goal in one of hundreds of episodes. After 2,000
vector steps a network reaches all of 400 goals with hindsight, and at most one without (three seeds each).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.replay import Hindsight, ReplayBuffer

BITS, NUM_ENVS, BATCH_SIZE = 12, 8, 128
EPSILON, TARGET_EVERY_UPDATES = 0.1, 40


def reward(achieved: NDArray[np.float32], desired: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return -1 for each step ``[M]`` whose bits are not the goal."""
    return (achieved == desired).all(axis=1) - np.float32(1)


def reached(achieved: NDArray[np.float32], desired: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return for each step ``[M]`` whether it ends the episode."""
    return (achieved == desired).all(axis=1)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2 * BITS, 256), nn.ReLU(), nn.Linear(256, BITS))


def inputs(obs: dict[str, NDArray[np.float32]]) -> Tensor:
    """Return bits and goal, ``[B, 2 BITS]``, of ``[B, 1, BITS]`` each."""
    return torch.from_numpy(np.concatenate([obs["achieved_goal"], obs["desired_goal"]], axis=2)[:, 0])


class Flips:
    """Many games of bits at once. An episode ends when its goal is reached, or after BITS steps."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.bits, self.goal = np.zeros((2, NUM_ENVS, BITS), np.float32)
        self.steps = np.zeros(NUM_ENVS, np.int64)
        self.reset(np.ones(NUM_ENVS, bool))

    def reset(self, which: NDArray[np.bool_]) -> None:
        drawn = self.rng.integers(2, size=(2, which.sum(), BITS))
        self.bits[which], self.goal[which] = drawn
        self.steps[which] = 0

    def obs(self) -> dict[str, NDArray[np.float32]]:
        return {"achieved_goal": self.bits.copy(), "desired_goal": self.goal.copy()}

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        every = np.arange(NUM_ENVS)
        self.bits[every, action] = 1 - self.bits[every, action]
        self.steps += 1
        terminated = reached(self.bits, self.goal)
        return reward(self.bits, self.goal), terminated, ~terminated & (self.steps == BITS)


def train(total_steps: int, *, hindsight: bool, seed: int = 0) -> nn.Module:
    """Return a network that learned for this many vector steps."""
    torch.manual_seed(seed)
    online, target = network(), network()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), 1e-3)
    replay = ReplayBuffer(
        capacity=80_000,
        num_envs=NUM_ENVS,
        obs_shape={"achieved_goal": (BITS,), "desired_goal": (BITS,)},
        obs_dtype=np.float32,
        gamma=0.95,
        autoreset="disabled",  # this loop resets
        seed=seed,
    )
    goals = Hindsight(reward, share=0.8 if hindsight else 0.0, terminated=reached)
    games, rng = Flips(seed), np.random.default_rng(seed)
    for step in range(total_steps):
        obs = games.obs()
        action = act(online, obs)
        explore = rng.random(NUM_ENVS) < EPSILON
        action = np.where(explore, rng.integers(BITS, size=NUM_ENVS), action)
        gained, terminated, truncated = games.step(action)
        replay.add(obs, action, gained, terminated, truncated, final_obs=games.obs())  # at terminations too
        games.reset(terminated | truncated)
        if step < 50:
            continue
        batch = replay.sample_hindsight(BATCH_SIZE, goals)
        with torch.no_grad():
            value = target(inputs(batch.next_obs)).amax(dim=1)
        wanted = torch.from_numpy(batch.reward) + torch.from_numpy(batch.discount) * value
        chosen = online(inputs(batch.obs)).gather(1, torch.from_numpy(batch.action)[:, None])[:, 0]
        loss = F.smooth_l1_loss(chosen, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % TARGET_EVERY_UPDATES == 0:
            target.load_state_dict(online.state_dict())
    return online


@torch.no_grad()
def act(online: nn.Module, obs: dict[str, NDArray[np.float32]]) -> NDArray[np.int64]:
    """Return the best actions ``[NUM_ENVS]``."""
    return online(inputs({name: array[:, None] for name, array in obs.items()})).argmax(dim=1).numpy()


def success(online: nn.Module, episodes: int = 400, seed: int = 1) -> float:
    """Return the share of episodes in which the goal is reached."""
    games, ended, good = Flips(seed), 0, 0
    while ended < episodes:
        _, terminated, truncated = games.step(act(online, games.obs()))
        games.reset(terminated | truncated)
        ended, good = ended + int((terminated | truncated).sum()), good + int(terminated.sum())
    return good / ended


def main(total_steps: int = 2_000) -> tuple[float, float]:
    """Train with and without hindsight; return the shares of goals reached, without it first."""
    found = []
    for hindsight in (False, True):
        found.append(success(train(total_steps, hindsight=hindsight)))
        print(f"{'with' if hindsight else 'without'} hindsight: {found[-1]:.0%} of the goals reached")
    return found[0], found[1]


if __name__ == "__main__":
    main()
