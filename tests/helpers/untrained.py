"""Run folders as a run leaves them, their networks without any training."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch

from fastrl.config import PRESETS, DQNConfig, RunConfig
from fastrl.dqn.network import QNetwork, build_network
from fastrl.dqn.run.saver import Draft, RunSnapshot
from fastrl.runs import checkpoints
from fastrl.runs.folder import RunFolder

CONFIGS = {
    "catch": PRESETS["catch"].config,
    "breakout": DQNConfig(game="breakout", trunk="small", hidden=16),
    "own": PRESETS["vector"].config.replace(game="moved:make_env"),
}
SHAPES = {"catch": ((1, 10, 5), 3), "breakout": ((4, 84, 84), 4), "own": ((1, 4), 2)}
COMMAND = "python -u -m fastrl.train catch --runs-dir /somewhere --name=mine --seed 5\n"


def write_settings(path: Path, config: RunConfig) -> None:
    """Make the folder of a run that has settings and nothing else."""
    with contextlib.closing(RunFolder(path)) as folder:
        folder.open(config, new=True)


def make_run(path: Path, game: str = "catch", **settings: object) -> QNetwork:
    """Make the folder of a run of 400 frames with two checkpoints, of 200 and 400; return the newer network."""
    config = CONFIGS[game].replace(seed=5, **settings)
    obs_shape, num_actions = SHAPES[game]
    write_settings(path, config)
    (path / "commands.txt").write_text(COMMAND + "python -m fastrl.train --resume /somewhere/mine\n")
    for seed, frames in enumerate((200, 400)):
        torch.manual_seed(seed)
        network = build_network(config, obs_shape, 18 if config.full_action_set else num_actions)
        state = {"game": config.game, "network": network.settings, "frames": frames, "seconds": frames / 4}
        Draft(RunFolder(path), f"{frames:012d}", RunSnapshot(state=state, weights=network.state_dict())).finish()
    return network


def small_checkpoint(folder: Path) -> Path:
    """Write the first checkpoint of a run that is no agent's in particular, and return its folder."""
    return checkpoints.write_checkpoint(folder, "000000000001", {"frames": 1}, {"a": np.arange(3)})
