"""Stable-Baselines3's DQN with prioritized replay on Breakout: 7 kB of memory per step instead of 56 kB.

pip install -c constraints.txt -e '.[train,sb3]' && python examples/sb3_breakout.py
"""

from __future__ import annotations

import ale_py
import gymnasium
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from fastrl.integrations.sb3 import PrioritizedDQN


def main(
    total_timesteps: int = 10_000_000,
    n_envs: int = 8,
    buffer_size: int = 1_000_000,
    learning_starts: int = 100_000,
    device: str = "auto",
) -> PrioritizedDQN:
    gymnasium.register_envs(ale_py)
    envs = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", n_envs=n_envs, seed=0), n_stack=4)
    model = PrioritizedDQN(
        "CnnPolicy", envs, double=True, n_steps=3, buffer_size=buffer_size, learning_starts=learning_starts,
        learning_rate=6.25e-5, train_freq=1, gradient_steps=max(1, n_envs // 4), target_update_interval=10_000,
        exploration_final_eps=0.01, seed=0, verbose=1, device=device,
    )  # fmt: skip
    print(f"the full replay takes {model.replay_buffer.replay.nbytes / 1e9:.1f} GB")
    return model.learn(total_timesteps)


if __name__ == "__main__":
    main()
