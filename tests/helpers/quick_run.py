"""A whole run, small: on Catch in eager float32, on one thread."""

from __future__ import annotations

from fastrl.config import PRESETS
from fastrl.dqn.run import train

QUICK = PRESETS["catch"].config.replace(
    compile=False, precision="float32", total_frames=4_000, learn_start_steps=400, log_every_frames=500,
    evaluate_every_frames=2_000, checkpoint_every_frames=1_000, evaluate_episodes=3, final_episodes=4,
)  # fmt: skip


def start(config, tmp_path, *hooks, name="run", **kwargs):
    return train(config.replace(runs_dir=str(tmp_path), name=name), hooks, quiet=True, **kwargs)
