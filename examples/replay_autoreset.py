"""What to pass to `add` in each of Gymnasium's autoreset modes, and that all three give the same transitions.

python examples/replay_autoreset.py          # prints rows held and transitions of each mode, compares them; a second

    mode        the step after a done returns      final_obs                  first
    NEXT_STEP   a first observation, no reward     never: it is a row's obs   None, or: where a reset gave obs
    SAME_STEP   the new episode's second one       infos["final_obs"]         None, or: the done of the step before
    DISABLED    nothing until you reset            next_obs                   None, or: what you have just reset

`first=None` is right wherever each done is followed by a new game. Give it where that is not so: False after a lost
life, True after a reset in the middle of an episode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastrl.replay import ReplayBuffer

NUM_ENVS, EPISODES, STEPS = 3, 8, 100


class Walk(gym.Env[np.ndarray, np.int64]):
    """Nothing is random: an observation names the environment, the episode and the step. Every third is truncated."""

    observation_space = spaces.Box(0, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(4)

    def __init__(self, number: int) -> None:
        self.number, self.episode, self.steps = number, -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self.where(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        over = self.steps == 1 + (self.episode + self.number) % 5  # episodes of 1 to 5 steps
        cut = self.episode % 3 == 2
        return self.where(), float(10 * self.steps + action), over and not cut, over and cut, {}

    def where(self) -> np.ndarray:
        return np.array([self.number, self.episode, self.steps], np.float32)


def act(obs: np.ndarray) -> np.ndarray:
    """Return an action [n] that follows from obs [n, 3] alone."""
    return obs.sum(axis=1).astype(np.int64) % 4


def next_step(envs: SyncVectorEnv, buffer: ReplayBuffer) -> None:
    """NEXT_STEP, the default, and EnvPool's only mode: pass on what there is.

    The row after a done has the final observation. The environment ignores its action; the replay never draws it.
    """
    obs, _ = envs.reset()
    for _ in range(STEPS):
        action = act(obs)
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        buffer.add(obs, action, reward, terminated, truncated)
        obs = next_obs


def same_step(envs: SyncVectorEnv, buffer: ReplayBuffer) -> None:
    """SAME_STEP: after a done `next_obs` belongs to the next episode; the final observation is in the infos."""
    obs, _ = envs.reset()
    for _ in range(STEPS):
        action = act(obs)
        next_obs, reward, terminated, truncated, infos = envs.step(action)
        buffer.add(obs, action, reward, terminated, truncated, final_obs=infos.get("final_obs"))
        obs = next_obs


def disabled(envs: SyncVectorEnv, buffer: ReplayBuffer) -> None:
    """DISABLED: after a done `next_obs` is the final observation, and you reset what is done."""
    obs, _ = envs.reset()
    first = np.ones(NUM_ENVS, bool)
    for _ in range(STEPS):
        action = act(obs)
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        first_now, first = first, terminated | truncated
        # The buffer reads final_obs only where an episode ended.
        buffer.add(obs, action, reward, terminated, truncated, first=first_now, final_obs=next_obs)
        obs = envs.reset(options={"reset_mask": first})[0] if first.any() else next_obs


MODES: dict[AutoresetMode, Callable[[SyncVectorEnv, ReplayBuffer], None]] = {
    AutoresetMode.NEXT_STEP: next_step, AutoresetMode.SAME_STEP: same_step, AutoresetMode.DISABLED: disabled,
}  # fmt: skip


def play(mode: AutoresetMode) -> ReplayBuffer:
    """Return a replay of what this mode's environments gave: returns over two steps, stacks of two observations."""
    envs = SyncVectorEnv([lambda k=k: Walk(k) for k in range(NUM_ENVS)], autoreset_mode=mode)
    buffer = ReplayBuffer(
        capacity=2 * STEPS * NUM_ENVS, num_envs=NUM_ENVS, obs_shape=(3,), obs_dtype=np.float32, stack=2, n_step=2,
        gamma=0.5, autoreset=mode.name.lower(), seed=0,
    )  # fmt: skip
    MODES[mode](envs, buffer)
    envs.close()
    return buffer


def transitions(buffer: ReplayBuffer) -> list[tuple]:
    """Return all transitions of the first episodes, sorted: the modes get on at different speeds."""
    batch = buffer.sample(buffer.drawable)  # equal weights, one row from each stratum: every row once
    rows = zip(batch.obs, batch.action, batch.reward, batch.next_obs, batch.discount, strict=True)
    listed = [tuple(np.hstack([np.ravel(field) for field in row]).tolist()) for row in rows]
    return sorted(row for row, obs in zip(listed, batch.obs, strict=True) if obs[-1, 1] < EPISODES)


def main() -> dict[AutoresetMode, list[tuple]]:
    found = {}
    for mode in MODES:
        buffer = play(mode)
        found[mode] = transitions(buffer)
        print(f"{mode.name:9} {len(buffer)} rows held, {len(found[mode])} transitions of {EPISODES} episodes each")
    if any(other != found[AutoresetMode.NEXT_STEP] for other in found.values()):
        raise SystemExit("the modes differ")
    print("the same in all three modes")
    return found


if __name__ == "__main__":
    main()
