"""From settings to the replay, after asking how much memory and disk there is."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastrl.base.errors import ConfigError, DamageError, RunError
from fastrl.base.extras import need
from fastrl.base.files import nearest
from fastrl.base.machine import available_bytes, bytes_in_words, free_disk_bytes, has_hard_links
from fastrl.config import DQNConfig
from fastrl.dqn.collector import build_envs
from fastrl.dqn.device.device import gpu_free_bytes
from fastrl.dqn.device.store import DeviceStore
from fastrl.dqn.network import build_network
from fastrl.dqn.peers import ALONE, Peers
from fastrl.dqn.run.replay_plan import (
    DEFAULT_CAPACITY,
    GPU_CAPACITY,
    ReplayPlan,
    ReplayToLoad,
    describe,
    describe_disk,
    disk_refusal,
    plan_disk,
    plan_replay,
    refusal,
)
from fastrl.envs.frames import listed, per_array, stacked_shape
from fastrl.envs.masks import ACTION_MASK, have_masks
from fastrl.envs.step import Envs, frame_bytes
from fastrl.replay import Lz4Store, MakeStore, PrioritizedReplayBuffer
from fastrl.replay.saves import segments
from fastrl.replay.stores.mapped import MmapStore
from fastrl.runs.checkpoints import REPLAY

MOMENTS = 2
"""Arrays of the size of the weights that each optimizer keeps."""
SMALL_FILES = 64 * 1024
"""Bytes of a checkpoint's other files, and of what is left empty in the blocks of all."""


class FoundReplay(NamedTuple):
    """The replay to start with."""

    buffer: PrioritizedReplayBuffer
    words: str
    """On its size and place."""
    earlier: Path | None
    """The save that it was loaded from; None: it is empty."""


def find_replay(
    found: Path | None,
    config: DQNConfig,
    envs: Envs,
    seed: int,
    device: torch.device,
    notes: list[str],
    warm_up_steps: int,
    grow: bool,
    run_folder: Path,
    peers: Peers = ALONE,
) -> FoundReplay:
    """Load the replay of a checkpoint, or build an empty one where it is missing or damaged, for any of the learners.

    Damage is added to ``notes``, in words. With ``grow`` the replay gets the rows that a new run of this length would
    have, if those are more. Errors as of `load_replay` and `build_replay`.
    """
    earlier, loaded = None if found is None else found / REPLAY, None
    if earlier is not None and earlier.exists() and not _is_left_out(earlier, config, notes):
        try:
            loaded = load_replay(
                earlier, config, envs, device, warm_up_steps, grow=grow, run_folder=run_folder, peers=peers
            )
        except DamageError as error:
            notes.append(f"{str(error).partition(';')[0]}; resuming with an empty replay")
    if peers.every(loaded is not None) and loaded is not None:
        return FoundReplay(*loaded, earlier)
    if loaded is not None:
        notes.append("the replay of another learner cannot be loaded; resuming with empty ones")
    loaded = None  # before memory is asked for another
    return FoundReplay(
        *build_replay(config, envs, seed, device, warm_up_steps, run_folder=run_folder, peers=peers), None
    )


def build_replay(
    config: DQNConfig,
    envs: Envs,
    seed: int,
    device: torch.device,
    warm_up_steps: int | None = None,
    *,
    run_folder: Path | None = None,
    peers: Peers = ALONE,
) -> tuple[PrioritizedReplayBuffer, str]:
    """Build an empty replay by a plan for this machine; return it with words on its size and place.

    Frames in a file lie on the disk of the run's folder (default: of ``config.runs_dir``). The file has no name, and is
    gone when the process ends.

    Raises
    ------
    ConfigError
        If the capacity asked for does not fit into memory or cannot hold the warm-up, or if too little memory
        is free for a useful replay.
    ImportError
        If the settings ask for compressed frames, but lz4 is not installed.
    RunError
        If the settings ask for frames in a file, and none can be made.
    """
    disk = nearest(run_folder or Path(config.runs_dir))
    plan = _plan(config, envs, device, warm_up_steps, disk, peers=peers)
    settings = _settings(config, envs)
    buffer = PrioritizedReplayBuffer(capacity=plan.capacity, **settings, seed=seed, store=_store(plan, device, disk))
    return buffer, describe(plan, buffer.nbytes)


def load_replay(
    path: Path,
    config: DQNConfig,
    envs: Envs,
    device: torch.device,
    warm_up_steps: int | None = None,
    *,
    grow: bool = False,
    run_folder: Path | None = None,
    peers: Peers = ALONE,
) -> tuple[PrioritizedReplayBuffer, str]:
    """Load a saved replay if these settings would have built the same; return it with words on its size and place.

    The store that its frames came from does not matter. Its capacity may change, by the setting or to ``grow``: a
    larger replay holds all rows, a smaller one the newest. ``run_folder`` is as for `build_replay`.

    Raises
    ------
    ConfigError
        If a setting differs, or the replay does not fit into memory.
    DamageError
        If the file is damaged.
    ImportError
        If the settings ask for compressed frames, but lz4 is not installed.
    RunError
        If the settings ask for frames in a file, and none can be made.
    """
    disk = nearest(run_folder or Path(config.runs_dir))
    try:
        saved = PrioritizedReplayBuffer.saved_settings(path)
        own: dict[str, Any] = _settings(config, envs)
        own["obs_dtype"] = per_array(lambda dtype: dtype.str, envs.frame_dtype)
        own["obs_shape"] = per_array(list, envs.frame_shape)
        own["stack"] = per_array(lambda _: config.stack, envs.frame_shape)
        del own["n_step"], own["gamma"]  # the run sets them as it advances
        extra, next_extra = own.pop("extra", {}), own.pop("next_extra", ())
        if list(saved.get("extra", {})) != list(extra) or list(saved.get("next_extra", ())) != list(next_extra):
            has, gives = ("action masks" if there else "no action masks" for there in (saved.get("extra"), extra))
            raise ConfigError(
                f"{path} was made with {has}, and {config.game} gives {gives} now (info[{ACTION_MASK!r}]); let the "
                "environment be as it was, or delete the replay to resume with an empty one"
            )
        for name, value in own.items():
            if saved[name] != value:
                if name == "num_envs":
                    raise _other_games(path, saved[name], config)
                if name == "alpha" and 0 in (saved[name], value) and config.alpha:
                    was, flag = (
                        ("--no-prioritized", "--prioritized") if value else ("--prioritized", "--no-prioritized")
                    )
                    raise ConfigError(
                        f"{path} was made with {was}, and this run has {flag}; give {was}, or delete it to resume with "
                        "an empty replay"
                    )
                remedy = ", or delete it to resume with an empty replay"
                if name in ("obs_shape", "obs_dtype", "stack"):  # the network was made for them too
                    remedy = ", or start a new run of another --name"
                raise ConfigError(
                    f"{path} was made with {name} {saved[name]}, this run has {value}; give the settings that it was "
                    f"made with{remedy}"
                )
        plan = _plan(config, envs, device, warm_up_steps, disk, ReplayToLoad(path, saved["capacity"], grow), peers)
        buffer = PrioritizedReplayBuffer.load(path, store=_store(plan, device, disk), capacity=plan.capacity)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(str(error)) from error
    words = describe(plan, buffer.nbytes)
    return buffer, words if plan.capacity == saved["capacity"] else f"{words}, {saved['capacity']:,} before"


def _is_left_out(path: Path, config: DQNConfig, notes: list[str]) -> bool:
    """Whether a saved replay of another number of games is not loaded, because the run keeps none any more."""
    if config.checkpoint_replay:
        return False
    try:
        games = PrioritizedReplayBuffer.saved_settings(path)["num_envs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # loading it will say what is wrong
    if games == config.all_envs:
        return False
    notes.append(f"the replay of {games} games is left out: there are {config.all_envs} now")
    return True


def _other_games(path: Path, games: int, config: DQNConfig) -> ConfigError:
    """Return the error for a replay of another number of games."""
    if not config.collectors:
        given, remedy = f"--num-envs is {config.num_envs}", f"--num-envs {games}, or the --collectors that it had"
    else:
        given = f"--collectors is {config.collectors}, with {config.num_envs} games each"
        fits = games % config.num_envs == 0
        remedy = f"--collectors {games // config.num_envs}" if fits else f"--collectors 1 --num-envs {games}"
    return ConfigError(
        f"{given}, and {path} holds the replay of "
        f"{games} games; give {remedy}, or resume with an empty replay by --no-checkpoint-replay (and none "
        "is saved from there on, until a resume gives --checkpoint-replay)"
    )


def require_disk(
    config: DQNConfig,
    envs: Envs,
    buffer: PrioritizedReplayBuffer,
    steps: int,
    run_folder: Path,
    earlier: Path | None,
    peers: Peers = ALONE,
) -> str:
    """Return words on the disk that checkpoints with the replay take at most, to follow those on the replay; else none.

    Parameters
    ----------
    config, envs, buffer : DQNConfig, Envs, PrioritizedReplayBuffer
        Settings of the run, its games and its replay.
    steps : int
        Agent steps played so far.
    run_folder : Path
        Where the run's files go.
    earlier : Path or None
        The save that the replay was loaded from; None without one.
    peers : Peers, optional
        The run's learners, which have a disk together.

    Raises
    ------
    ConfigError
        If less disk is free than that.
    """
    settings = buffer.settings
    one_file = earlier is not None and earlier.is_file()  # which shares nothing with later saves
    if not config.checkpoint_replay:
        replaced = _bytes_below(run_folder / "checkpoints")  # the plan counts every checkpoint that a run keeps
    elif earlier is not None:
        replaced = _bytes_below(earlier.parent)  # the next checkpoint replaces it; others may stay
    else:
        replaced = 0
    plan = plan_disk(
        config,
        segments.frame_bytes(settings),
        settings["capacity"],
        free_disk_bytes(run_folder) // peers.count + replaced,
        held=len(buffer),
        steps=steps // peers.count,
        share_files=not one_file and has_hard_links(run_folder),
        beside=bytes_beside_replay(config, envs),
    )
    if error := disk_refusal(plan, run_folder):
        raise error
    return describe_disk(plan) if config.checkpoint_replay else ""


def bytes_beside_replay(config: DQNConfig, envs: Envs) -> int:
    """Return about how many bytes a checkpoint takes without the replay."""
    with torch.device("meta"):
        network = build_network(config, stacked_shape(config.stack, envs.frame_shape), envs.num_actions)
    weights = sum(4 * each.numel() for each in network.parameters())
    networks = 3 + bool(config.average_updates)  # to play with, online, target, average
    return (networks + MOMENTS) * weights + SMALL_FILES


def _bytes_below(folder: Path) -> int:
    """Return the bytes of all files in a folder, those with several names once."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def _plan(
    config: DQNConfig,
    envs: Envs,
    device: torch.device,
    warm_up_steps: int | None,
    disk: Path,
    saved: ReplayToLoad | None = None,
    peers: Peers = ALONE,
) -> ReplayPlan:
    """Plan the replay for the memory that is free now, and the disk if asked for; raise what refuses the plan."""
    free, warm_up = available_bytes(), config.warm_up_steps if warm_up_steps is None else warm_up_steps
    row_bytes = frame_bytes(envs) + (envs.num_actions if have_masks(envs) else 0)
    most, most_on_gpu = DEFAULT_CAPACITY // peers.count, GPU_CAPACITY // peers.count
    if device.type != "cpu" and config.checkpoint_replay:  # rows whose checkpoints the disk cannot hold are refused
        disk_free = free_disk_bytes(disk) // peers.count
        share = has_hard_links(disk)
        checkpoints = plan_disk(config, row_bytes, most_on_gpu, disk_free, held=0, steps=0, share_files=share)
        most_on_gpu = most_on_gpu if checkpoints.needed <= checkpoints.free else most
    plan = plan_replay(
        config,
        row_bytes,
        None if free is None else free // peers.local_count,
        None if device.type == "cpu" else gpu_free_bytes(device),
        lz4_installed=lz4_installed(),
        compressed_bytes=lambda: compressed_bytes(config),
        saved=saved,
        warm_up_steps=-(-warm_up // peers.count),
        most=most,
        most_on_gpu=most_on_gpu,
        disk_free=free_disk_bytes(disk) // peers.count if config.frame_store == "mmap" else None,
    )
    if error := refusal(plan):
        if peers.several:
            raise ConfigError(f"{error} (rows of one of {peers.count} learners; --capacity is that of all)")
        raise error
    return plan


def _store(plan: ReplayPlan, device: torch.device, disk: Path) -> str | MakeStore:
    """Return the plan's store as a buffer takes it: a name, or a maker."""
    if plan.store == "mmap":
        return partial(_file_store, disk=disk)
    return partial(DeviceStore, device=device) if plan.store == "device" else plan.store


def _file_store(count: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, disk: Path) -> MmapStore:
    """Make a store over a file without a name: checkpoints hold all that a resume needs, so nothing is to be found."""
    try:
        return MmapStore(count, shape, dtype, path=disk, named=False)
    except OSError as error:
        size = bytes_in_words(count * math.prod(shape) * dtype.itemsize)
        raise RunError(  # not taken for damage of the save that is being loaded
            f"--frame-store is mmap, and {disk} takes no file of {size} ({error.strerror or error}); free some room or "
            "make it writable, or keep the frames in memory with --frame-store auto"
        ) from error


def lz4_installed() -> bool:
    try:
        need("lz4.block", "lz4")
    except ImportError:
        return False
    return True


def compressed_bytes(config: DQNConfig) -> int:
    """Return what to expect of a frame in an `Lz4Store`: twice the mean of random play, measured here and now.

    Twice, because better play sees other frames, those of the network that ships for Breakout up to 1.4 times as
    large, and because memory is handed out in pieces that do not quite fit.
    """
    envs = build_envs(config.replace(num_envs=8, env_groups=1, collectors=0), seed=0)
    num_envs, steps = envs.num_envs, 50
    stores = listed(per_array(partial(Lz4Store, num_envs * steps), envs.frame_shape, envs.frame_dtype))
    rng, shown = np.random.default_rng(0), envs.reset()
    for ids in np.arange(num_envs * steps).reshape(steps, num_envs):
        for store, frame in zip(stores, listed(shown.frame), strict=True):
            store.write(ids, frame)
        envs.send(rng.integers(envs.num_actions, size=num_envs))
        shown = envs.recv()
    envs.close()
    nbytes: int = sum(store.nbytes for store in stores)
    return 2 * nbytes // (num_envs * steps)


def _settings(config: DQNConfig, envs: Envs) -> dict[str, Any]:
    return {
        "num_envs": config.all_envs,
        "obs_shape": envs.frame_shape,
        "obs_dtype": envs.frame_dtype,
        "stack": config.stack,
        "autoreset": envs.autoreset,
        "n_step": config.n_step,
        "gamma": config.gamma,
        "alpha": config.alpha if config.prioritized else 0.0,
        "eps": config.priority_eps,
        **(
            {"extra": {ACTION_MASK: ((envs.num_actions,), np.bool_)}, "next_extra": (ACTION_MASK,)}
            if have_masks(envs)
            else {}
        ),
    }
