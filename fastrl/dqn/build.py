"""From settings to games and replay, after asking how much memory and disk there is."""

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
from fastrl.extras import need
from fastrl.gymnasium_envs import GymnasiumEnvs, is_own
from fastrl.machine import GIB, available_bytes, free_disk_bytes, has_hard_links
from fastrl.replay import Lz4Store, MakeStore, PrioritizedReplayBuffer, RamStore, segments
from fastrl.saved import DamageError
from fastrl.steps import Envs

DEFAULT_CAPACITY = 1_000_000
# Of the memory that is free, what a replay that nobody asked for may take, and one that somebody did.
DEFAULT_SHARE, LARGEST_SHARE = 0.6, 0.9
BYTES_BESIDE_FRAME = 32  # columns and tree of one row: 24 to 26
INSTALL_LZ4 = "pip install -c constraints.txt -e '.[lz4]'"


def build_groups(config: DQNConfig, seed: int) -> list[Group]:
    """Start the games that the settings ask for.

    Raises
    ------
    ConfigError
        If a setting does not fit the game.
    """
    seeds = np.random.SeedSequence(seed).generate_state(config.env_groups)
    groups = [Group(_build_envs(config, int(s)), number, config.stack) for number, s in enumerate(seeds)]
    made = groups[0].envs.num_envs
    if made != config.group_size:  # an own vector decides it
        for group in groups:
            group.envs.close()
        raise ConfigError(
            f"--num-envs is {config.num_envs} in {config.env_groups} groups, and {config.game} makes {made} at a time; "
            f"give {made * config.env_groups}"
        )
    return groups


def _build_envs(config: DQNConfig, seed: int) -> Envs:
    envs = _build_own(config, seed) if is_own(config.game) else _build_atari(config, seed)
    if envs.frame_skip != config.frame_skip:  # or frames would be counted wrong
        envs.close()
        raise ConfigError(
            f"--frame-skip is {config.frame_skip}, which {config.game} does not do; give {envs.frame_skip}"
        )
    return envs


def _build_own(config: DQNConfig, seed: int) -> Envs:
    return GymnasiumEnvs(config.game, config.group_size, seed=seed, reward_clip=config.reward_clip)


def _build_atari(config: DQNConfig, seed: int) -> Envs:
    return AtariEnvs(
        config.game, config.group_size, seed=seed, threads=config.env_threads, frame_skip=config.frame_skip,
        episodic_life=config.episodic_life, fire_reset=config.fire_reset, full_action_set=config.full_action_set,
        noop_max=config.noop_max, repeat_action_probability=config.repeat_action_probability,
        reward_clip=config.reward_clip,
        max_episode_steps=config.max_episode_steps, dephase_steps=config.dephase_steps,
    )  # fmt: skip


def build_replay(config: DQNConfig, envs: Envs, seed: int, device: torch.device) -> tuple[PrioritizedReplayBuffer, str]:
    """Build an empty replay, its frames where `--frame-store` says; return it with words on its size and place.

    Raises
    ------
    ConfigError
        If the capacity asked for does not fit into memory or cannot hold the warm-up, or if too little memory
        is free for a useful replay.
    ImportError
        If the frames shall be compressed, but lz4 is not installed.
    """
    least = _least_capacity(config)
    wanted = config.capacity or min(DEFAULT_CAPACITY, max(_rows(config.total_steps), least))
    place = _place(config, envs, device, wanted)
    if config.capacity is None:
        memory = place.scarcest
        capacity = min(wanted, memory.rows(DEFAULT_SHARE))
        if capacity < least:
            raise ConfigError(
                f"{_gib(memory.free)} of memory are free{memory.where}, too little for a replay of {least:,} rows "
                f"({_gib(least * memory.row_bytes)}), which these settings need; free some, or lower "
                f"--learn-start-steps or --num-envs{memory.remedy}{place.hint}"
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
    reason = f" (what memory allows{place.hint})" if capacity < wanted else ""
    return buffer, _words(buffer, place) + reason


def load_replay(path: Path, config: DQNConfig, envs: Envs, device: torch.device) -> tuple[PrioritizedReplayBuffer, str]:
    """Load a saved replay if these settings would have built the same; return it with words on its size and place.

    Where its frames lay when it was saved does not matter.

    Raises
    ------
    ConfigError
        If a setting differs, or the replay does not fit into memory.
    DamageError
        If the file is damaged.
    ImportError
        If the frames shall be compressed, but lz4 is not installed.
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
                    "own settings, or delete it to go on with an empty replay"
                )
        place = _place(config, envs, device, saved["capacity"])
        _require_memory(place, saved["capacity"], f"the capacity of {path}")
        buffer = PrioritizedReplayBuffer.load(path, store=place.store)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(str(error)) from error
    return buffer, _words(buffer, place)


def require_disk(
    config: DQNConfig, buffer: PrioritizedReplayBuffer, steps: int, run_folder: Path, earlier: Path | None
) -> str:
    """Return words on the disk that checkpoints with the replay take at most, to go behind those on the replay.

    Parameters
    ----------
    config, buffer : DQNConfig, PrioritizedReplayBuffer
        Settings of the run, and its replay.
    steps : int
        Agent steps played so far.
    run_folder : Path
        Where the run's files go.
    earlier : Path or None
        The save that the replay was loaded from, or none.

    Raises
    ------
    ConfigError
        If there is less of it than that.
    """
    if not config.checkpoint_replay:
        return ""
    settings = buffer.settings
    rows = min(settings["capacity"], len(buffer) + _rows(config.total_steps - steps))
    added = min(rows, _rows(config.checkpoint_every_frames // config.frame_skip))
    alone = (earlier is not None and earlier.is_file()) or not has_hard_links(run_folder)
    if alone:  # nothing is shared with the save before
        added = rows
    most = int(rows * (1 + segments.LARGEST + segments.SMALL)) + added
    need = most * (segments.frame_bytes(settings) + BYTES_BESIDE_FRAME)
    gives_way = _bytes_below(earlier.parent) if earlier is not None else 0  # what else lies there may stay
    free = free_disk_bytes(run_folder) + gives_way
    if free < need:
        raise ConfigError(
            f"{run_folder} needs up to {_gib(need)} of disk for checkpoints with the replay, {_gib(free)} are free; "
            "free some, give another --runs-dir or a smaller --capacity, or leave it out with --no-checkpoint-replay"
        )
    return f"; up to {_gib(need)} of disk for checkpoints with it"


def _rows(steps: int) -> int:
    """Return how many rows so many agent steps bring at most: reset rows come on top, in Catch every tenth."""
    return max(0, steps) * 5 // 4


def _bytes_below(folder: Path) -> int:
    """Return the bytes of all files in a folder, those with several names once."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


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
    hint: str = ""  # what would make room for all rows, as the end of a sentence

    @property
    def scarcest(self) -> _Memory:
        """The memory that holds the fewest rows."""
        return min(self.memories, key=lambda memory: memory.rows(1.0))


def _place(config: DQNConfig, envs: Envs, device: torch.device, rows: int) -> _Place:
    """Decide where the frames of so many rows lie; their columns and the tree always lie in the host's memory."""
    frame = int(np.prod(envs.frame_shape)) * envs.frame_dtype.itemsize
    host, on_device = available_bytes(), partial(DeviceStore, device=device)
    plain = _Place(RamStore, "", (_Memory("", host, frame + BYTES_BESIDE_FRAME),))
    if device.type == "cpu":
        return plain._replace(store=on_device) if config.frame_store == "device" else _in_memory(config, plain, rows)
    words = " of memory"
    if config.frame_store in ("auto", "device"):
        gpu = _Memory(" on the GPU", gpu_free_bytes(device), frame)
        if config.frame_store == "device" or rows <= gpu.rows(DEFAULT_SHARE):
            return _Place(on_device, gpu.where, (gpu, _Memory("", host, BYTES_BESIDE_FRAME)))
        words += f", the GPU having {_gib(gpu.free)} free"
        config = config.replace(frame_store="ram")  # a GPU would have to wait for frames to be decompressed
    return _in_memory(config, plain._replace(words=words), rows)


def _in_memory(config: DQNConfig, plain: _Place, rows: int) -> _Place:
    """Decide whether so many frames lie in memory as they come or compressed."""
    share = DEFAULT_SHARE if config.capacity is None else LARGEST_SHARE
    _, free, row_bytes = plain.scarcest
    most = plain.scarcest.rows(share)
    if config.frame_store != "lz4" and rows <= most:
        return plain
    if config.frame_store != "lz4" and not _lz4_installed():
        return plain._replace(hint=f"; lz4 makes a quarter or less of most games' frames: {INSTALL_LZ4}")
    memory = _Memory("", free, _compressed_bytes(config) + BYTES_BESIDE_FRAME)
    compressed = _Place(Lz4Store, f"{plain.words}, compressed by lz4", (memory,))
    if config.frame_store == "lz4":
        return compressed
    fit = min(rows, memory.rows(share))
    if config.frame_store == "auto" and fit == rows:
        reason = f" (as they come {_gib(rows * row_bytes)}, with {_gib(free)} free)"
        return compressed._replace(words=compressed.words + reason)
    worth_it = fit > most and fit >= _least_capacity(config)
    return plain._replace(hint=f"; {fit:,} would fit with --frame-store lz4") if worth_it else plain


def _lz4_installed() -> bool:
    try:
        need("lz4.block", "lz4")
    except ImportError:
        return False
    return True


def _compressed_bytes(config: DQNConfig) -> int:
    """Return what to expect of a frame in an `Lz4Store`: twice the mean of random play, measured here and now.

    Twice, because better play sees other frames, those of the network that ships for Breakout up to 1.4 times as
    large, and because memory is handed out in pieces that do not quite fit.
    """
    envs = _build_envs(config.replace(num_envs=8, env_groups=1), seed=0)
    num_envs, steps = envs.num_envs, 50
    store, rng = Lz4Store(num_envs * steps, envs.frame_shape, envs.frame_dtype), np.random.default_rng(0)
    shown = envs.reset()
    for ids in np.arange(num_envs * steps).reshape(steps, num_envs):
        store.write(ids, shown.frame)
        envs.send(rng.integers(envs.num_actions, size=num_envs))
        shown = envs.recv()
    envs.close()
    return 2 * store.nbytes // (num_envs * steps)


def _settings(config: DQNConfig, envs: Envs) -> dict[str, Any]:
    return {
        "num_envs": config.num_envs,
        "obs_shape": envs.frame_shape,
        "obs_dtype": envs.frame_dtype,
        "stack": config.stack,
        "autoreset": envs.autoreset,
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
            f"free{memory.where}; give {memory.rows(LARGEST_SHARE):,} or less{memory.remedy}{place.hint}"
        )


def _words(buffer: PrioritizedReplayBuffer, place: _Place) -> str:
    capacity = buffer.settings["capacity"]
    size = _gib(buffer.nbytes) if place.store is not Lz4Store else f"up to {_gib(capacity * place.scarcest.row_bytes)}"
    return f"replay of {capacity:,} frames in {size}{place.words}"


def _gib(count: int | None) -> str:
    return f"{(count or 0) / GIB:.1f} GiB"
