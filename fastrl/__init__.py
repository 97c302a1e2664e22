"""Fast, correct, reproducible deep Q-learning on Atari.

>>> from fastrl import DQNConfig, train
>>> run = train("breakout", total_frames=40_000)

Importing this package imports nothing heavy; each name is loaded when it is first asked for. ``fastrl.replay`` needs
only NumPy. Whatever needs more names the extra to install if a package is missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrl.base.errors import ConfigError, RunError
    from fastrl.config import DQNConfig, SarsaConfig, preset_for
    from fastrl.dqn.agent import load_agent
    from fastrl.dqn.callbacks import Callback, TrainingRun
    from fastrl.dqn.pretrained import load_pretrained
    from fastrl.dqn.run import Run
    from fastrl.envs.make import make_envs
    from fastrl.envs.rules import EvaluationRules
    from fastrl.play.games import play_games
    from fastrl.replay import PrioritizedReplayBuffer, ReplayBuffer, SumTree
    from fastrl.train import config_for

    from . import train

__all__ = [
    "Callback",
    "ConfigError",
    "DQNConfig",
    "EvaluationRules",
    "PrioritizedReplayBuffer",
    "ReplayBuffer",
    "Run",
    "RunError",
    "SarsaConfig",
    "SumTree",
    "TrainingRun",
    "__version__",
    "config_for",
    "load_agent",
    "load_pretrained",
    "make_envs",
    "play_games",
    "preset_for",
    "train",
]
__version__ = "0.1.0"

_ROOMS = {
    "Callback": "fastrl.dqn.callbacks",
    "ConfigError": "fastrl.base.errors",
    "DQNConfig": "fastrl.config",
    "EvaluationRules": "fastrl.envs.rules",
    "PrioritizedReplayBuffer": "fastrl.replay",
    "ReplayBuffer": "fastrl.replay",
    "Run": "fastrl.dqn.run",
    "RunError": "fastrl.base.errors",
    "SarsaConfig": "fastrl.config",
    "SumTree": "fastrl.replay",
    "TrainingRun": "fastrl.dqn.callbacks",
    "config_for": "fastrl.train",
    "load_agent": "fastrl.dqn.agent",
    "load_pretrained": "fastrl.dqn.pretrained",
    "make_envs": "fastrl.envs.make",
    "play_games": "fastrl.play.games",
    "preset_for": "fastrl.config",
}


def __getattr__(name: str) -> Any:
    if name == "train":  # the command's module, which can be called
        return importlib.import_module("fastrl.train")
    if name in _ROOMS:
        value = globals()[name] = getattr(importlib.import_module(_ROOMS[name]), name)
        return value
    raise AttributeError(f"module 'fastrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
