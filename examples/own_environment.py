"""Deep Q-learning on a custom Gymnasium environment, here CartPole-v1, with a custom callback.

python examples/own_environment.py                           # under a minute; then: tensorboard --logdir runs
cd examples && python -m fastrl.train own_environment:make_env     # the same with flags instead of Python
python -m fastrl.evaluate runs/NAME                          # in that folder, so that own_environment is found
"""

from __future__ import annotations

import gymnasium as gym
from watch_q_values import WatchQValues

from fastrl import Run, train


def make_env() -> gym.Env:
    return gym.make("CartPole-v1", render_mode="rgb_array")  # pictures are drawn for films alone


def main(total_frames: int = 40_000, runs_dir: str = "runs") -> Run:
    settings = {"total_frames": total_frames, "runs_dir": runs_dir, "compile": False, "device": "cpu"}
    return train(make_env, [WatchQValues()], **settings)


if __name__ == "__main__":
    main()
