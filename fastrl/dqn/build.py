"""From settings to games and replay, after asking how much memory there is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.atari import AtariEnvs
from fastrl.config import ConfigError, DQNConfig
from fastrl.machine import GIB, available_bytes
from fastrl.replay import PrioritizedReplayBuffer

DEFAULT_CAPACITY = 1_000_000
# Of the memory that is free, what a replay that nobody asked for may take, and one that somebody did.
DEFAULT_SHARE, LARGEST_SHARE = 0.6, 0.9
BYTES_BESIDE_FRAME = 32  # columns and tree of one row: 24 to 26


def build_envs(config: DQNConfig, seed: int) -> AtariEnvs:
    """Start the games that the settings ask for.

    Raises
    ------
    ConfigError
        If a setting does not fit the game.
    """
    envs = AtariEnvs(
        config.game, config.num_envs, seed=seed, threads=config.env_threads, frame_skip=config.frame_skip,
        episodic_life=config.episodic_life, reward_clip=config.reward_clip, noop_max=config.noop_max,
        repeat_action_probability=config.repeat_action_probability,
        max_episode_steps=config.max_episode_steps, dephase_steps=config.dephase_steps,
    )  # fmt: skip
    if envs.frame_skip != config.frame_skip:  # or frames would be counted wrong
        envs.close()
        raise ConfigError(
            f"--frame-skip is {config.frame_skip}, which {config.game} does not do; give {envs.frame_skip}"
        )
    return envs


def build_replay(config: DQNConfig, envs: AtariEnvs, seed: int) -> tuple[PrioritizedReplayBuffer, str]:
    """Build an empty replay; return it with words on its size.

    Raises
    ------
    ConfigError
        If the capacity asked for does not fit into memory or cannot hold the warm-up, or if too little memory
        is free for a useful replay.
    """
    settings = _settings(config, envs)
    free, row_bytes, least = available_bytes(), _row_bytes(envs), _least_capacity(config, envs)
    if config.capacity is None:
        # Reset rows come on top of the agent steps: some percent, in Catch every tenth.
        wanted = min(DEFAULT_CAPACITY, max(config.total_steps * 5 // 4, least))
        capacity = wanted if free is None else min(wanted, int(free * DEFAULT_SHARE) // row_bytes)
        if capacity < least:
            raise ConfigError(
                f"{(free or 0) / GIB:.1f} GiB of memory are free, too little for a replay of {least:,} rows "
                f"({least * row_bytes / GIB:.1f} GiB), which these settings need; free some, or lower "
                "--learn-start-steps or --num-envs"
            )
        reason = " (what memory allows)" if capacity < wanted else ""
    else:
        capacity, reason = config.capacity, ""
        _require_memory(capacity, row_bytes, "--capacity")
        if capacity < least:
            raise ConfigError(
                f"--capacity is {capacity:,}; give {least:,} or more, so that it holds the warm-up, "
                "or shorten that with --learn-start-steps"
            )
    buffer = PrioritizedReplayBuffer(capacity=capacity, **settings, seed=seed)
    return buffer, f"replay of {capacity:,} frames in {buffer.nbytes / GIB:.1f} GiB{reason}"


def load_replay(path: Path, config: DQNConfig, envs: AtariEnvs) -> tuple[PrioritizedReplayBuffer, str]:
    """Load a saved replay if these settings would have built the same; return it with words on its size.

    Raises
    ------
    ConfigError
        If a setting differs, the replay does not fit into memory, or the file is damaged.
    """
    try:
        saved = PrioritizedReplayBuffer.saved_settings(path)
        own: dict[str, Any] = _settings(config, envs)
        own |= {"obs_dtype": envs.frame_dtype.str, "obs_shape": list(envs.frame_shape)}
        own |= {} if config.capacity is None else {"capacity": config.capacity}
        for name, value in own.items():
            if saved[name] != value:
                raise ConfigError(
                    f"{path} was made with {name} {saved[name]}, this run has {value}; give the run's "
                    "own settings, or delete that file to go on with an empty replay"
                )
        _require_memory(saved["capacity"], _row_bytes(envs), f"the capacity of {path}")
        buffer = PrioritizedReplayBuffer.load(path)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{error}; delete {path} to go on with an empty replay") from error
    return buffer, f"replay of {saved['capacity']:,} frames in {buffer.nbytes / GIB:.1f} GiB"


def _settings(config: DQNConfig, envs: AtariEnvs) -> dict[str, Any]:
    return {
        "num_envs": envs.num_envs,
        "obs_shape": envs.frame_shape,
        "obs_dtype": envs.frame_dtype,
        "stack": config.stack,
        "n_step": config.n_step,
        "gamma": config.gamma,
        "alpha": config.alpha if config.prioritized else 0.0,
        "eps": config.priority_eps,
    }


def _row_bytes(envs: AtariEnvs) -> int:
    return int(np.prod(envs.frame_shape)) * envs.frame_dtype.itemsize + BYTES_BESIDE_FRAME


def _least_capacity(config: DQNConfig, envs: AtariEnvs) -> int:
    """Return rows enough for the warm-up: reset rows, open windows and cut stacks cannot be drawn."""
    return math.ceil(config.warm_up_steps * 1.25) + 2 * envs.num_envs * (config.stack + config.n_step + 1)


def _require_memory(capacity: int, row_bytes: int, what: str) -> None:
    free = available_bytes()
    if free is not None and capacity * row_bytes > free * LARGEST_SHARE:
        raise ConfigError(
            f"{what} is {capacity:,}, which takes {capacity * row_bytes / GIB:.1f} GiB of the "
            f"{free / GIB:.1f} GiB free; give {int(free * LARGEST_SHARE) // row_bytes:,} or less"
        )
