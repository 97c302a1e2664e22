"""From settings to games and replay, after asking how much memory there is."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastrl.atari import AtariEnvs
from fastrl.config import ConfigError, DQNConfig
from fastrl.dqn.device import gpu_free_bytes
from fastrl.dqn.frames import DeviceStore
from fastrl.dqn.groups import Group
from fastrl.machine import GIB, available_bytes
from fastrl.replay import MakeStore, PrioritizedReplayBuffer, RamStore

DEFAULT_CAPACITY = 1_000_000
# Of the memory that is free, what a replay that nobody asked for may take, and one that somebody did.
DEFAULT_SHARE, LARGEST_SHARE = 0.6, 0.9
BYTES_BESIDE_FRAME = 32  # columns and tree of one row: 24 to 26


def build_groups(config: DQNConfig, seed: int) -> list[Group]:
    """Start the games that the settings ask for.

    Raises
    ------
    ConfigError
        If a setting does not fit the game.
    """
    seeds = np.random.SeedSequence(seed).generate_state(config.env_groups)
    return [Group(_build_envs(config, int(s)), number, config.stack) for number, s in enumerate(seeds)]


def _build_envs(config: DQNConfig, seed: int) -> AtariEnvs:
    envs = AtariEnvs(
        config.game, config.group_size, seed=seed, threads=config.env_threads, frame_skip=config.frame_skip,
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


def build_replay(
    config: DQNConfig, envs: AtariEnvs, seed: int, device: torch.device
) -> tuple[PrioritizedReplayBuffer, str]:
    """Build an empty replay, its frames where `--frame-store` says; return it with words on its size and place.

    Raises
    ------
    ConfigError
        If the capacity asked for does not fit into memory or cannot hold the warm-up, or if too little memory
        is free for a useful replay.
    """
    least = _least_capacity(config)
    # Reset rows come on top of the agent steps: some percent, in Catch every tenth.
    wanted = config.capacity or min(DEFAULT_CAPACITY, max(config.total_steps * 5 // 4, least))
    place = _place(config, envs, device, wanted)
    if config.capacity is None:
        memory = place.scarcest
        capacity = min(wanted, memory.rows(DEFAULT_SHARE))
        if capacity < least:
            raise ConfigError(
                f"{_gib(memory.free)} of memory are free{memory.where}, too little for a replay of {least:,} rows "
                f"({_gib(least * memory.row_bytes)}), which these settings need; free some, or lower "
                f"--learn-start-steps or --num-envs{memory.remedy}"
            )
    else:
        capacity = config.capacity
        _require_memory(place, capacity, "--capacity")
        if capacity < least:
            raise ConfigError(
                f"--capacity is {capacity:,}; give {least:,} or more, so that it holds the warm-up, "
                "or shorten that with --learn-start-steps"
            )
    buffer = PrioritizedReplayBuffer(capacity=capacity, **_settings(config, envs), seed=seed, store=place.store)
    reason = " (what memory allows)" if capacity < wanted else ""
    return buffer, _words(buffer, place) + reason


def load_replay(
    path: Path, config: DQNConfig, envs: AtariEnvs, device: torch.device
) -> tuple[PrioritizedReplayBuffer, str]:
    """Load a saved replay if these settings would have built the same; return it with words on its size and place.

    Where its frames lay when it was saved does not matter.

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
        del own["n_step"]  # the run sets it as it goes
        for name, value in own.items():
            if saved[name] != value:
                raise ConfigError(
                    f"{path} was made with {name} {saved[name]}, this run has {value}; give the run's "
                    "own settings, or delete that file to go on with an empty replay"
                )
        place = _place(config, envs, device, saved["capacity"])
        _require_memory(place, saved["capacity"], f"the capacity of {path}")
        buffer = PrioritizedReplayBuffer.load(path, store=place.store)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{error}; delete {path} to go on with an empty replay") from error
    return buffer, _words(buffer, place)


class _Memory(NamedTuple):
    """A memory that a replay takes of."""

    where: str  # " on the GPU", or nothing
    free: int | None  # bytes; None: nobody says
    row_bytes: int  # of it that a row takes

    def rows(self, share: float) -> int:
        """Return how many rows a share of what is free holds."""
        return sys.maxsize if self.free is None else int(self.free * share) // self.row_bytes

    @property
    def remedy(self) -> str:
        """How to do without it, as the end of a sentence."""
        return ", or keep the frames in memory with --frame-store ram" if self.where else ""


class _Place(NamedTuple):
    """Where frames lie."""

    store: MakeStore
    words: str
    memories: tuple[_Memory, ...]

    @property
    def scarcest(self) -> _Memory:
        """The memory that holds the fewest rows."""
        return min(self.memories, key=lambda memory: memory.rows(1.0))


def _place(config: DQNConfig, envs: AtariEnvs, device: torch.device, rows: int) -> _Place:
    """Decide where the frames of so many rows lie; their columns and the tree always lie in the host's memory."""
    frame = int(np.prod(envs.frame_shape)) * envs.frame_dtype.itemsize
    host, on_device = available_bytes(), partial(DeviceStore, device=device)
    in_memory = (_Memory("", host, frame + BYTES_BESIDE_FRAME),)
    if device.type == "cpu":
        return _Place(on_device if config.frame_store == "device" else RamStore, "", in_memory)
    if config.frame_store == "ram":
        return _Place(RamStore, " of memory", in_memory)
    gpu = _Memory(" on the GPU", gpu_free_bytes(device), frame)
    if config.frame_store == "device" or rows <= gpu.rows(DEFAULT_SHARE):
        return _Place(on_device, gpu.where, (gpu, _Memory("", host, BYTES_BESIDE_FRAME)))
    return _Place(RamStore, f" of memory, the GPU having {_gib(gpu.free)} free", in_memory)


def _settings(config: DQNConfig, envs: AtariEnvs) -> dict[str, Any]:
    return {
        "num_envs": config.num_envs,
        "obs_shape": envs.frame_shape,
        "obs_dtype": envs.frame_dtype,
        "stack": config.stack,
        "n_step": config.n_step,
        "gamma": config.gamma,
        "alpha": config.alpha if config.prioritized else 0.0,
        "eps": config.priority_eps,
    }


def _least_capacity(config: DQNConfig) -> int:
    """Return rows enough for the warm-up: reset rows, open windows and cut stacks cannot be drawn."""
    return math.ceil(config.warm_up_steps * 1.25) + 2 * config.num_envs * (config.stack + config.largest_n_step + 1)


def _require_memory(place: _Place, capacity: int, what: str) -> None:
    memory = place.scarcest
    if capacity > memory.rows(LARGEST_SHARE):
        raise ConfigError(
            f"{what} is {capacity:,}, which takes {_gib(capacity * memory.row_bytes)} of the {_gib(memory.free)} "
            f"free{memory.where}; give {memory.rows(LARGEST_SHARE):,} or less{memory.remedy}"
        )


def _words(buffer: PrioritizedReplayBuffer, place: _Place) -> str:
    return f"replay of {buffer.settings['capacity']:,} frames in {_gib(buffer.nbytes)}{place.words}"


def _gib(count: int | None) -> str:
    return f"{(count or 0) / GIB:.1f} GiB"
