"""A plan of the replay: which store holds its frames, how many rows it has, and which memory limits them.

`plan_replay` makes the plan from the settings and the bytes that the caller found free, and asks the machine nothing.
Exhausting memory gets the process killed hours later, so the plan is checked before any array is made: `describe`
puts a plan into words, and `refusal` says why a plan cannot be carried out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

from fastrl.base.commands import install_command
from fastrl.base.errors import ConfigError
from fastrl.base.machine import bytes_in_words
from fastrl.config import DQNConfig
from fastrl.replay.saves import segments

DEFAULT_CAPACITY, GPU_CAPACITY = 1_000_000, 2_000_000  # rows; the second where a GPU has room for them
# Shares of the free memory: for a capacity that the plan chooses, and for one that a setting or a save gives. The
# network, its batches and everything else that the process still allocates come out of the rest.
DEFAULT_SHARE, LARGEST_SHARE = 0.6, 0.9
FEW_ROWS = 200  # of a game's ring, below which a warning is due
BYTES_BESIDE_FRAME = 32  # columns and tree of one row: 24 to 26


class Memory(NamedTuple):
    """A memory that the replay takes a part of.

    Attributes
    ----------
    kind : {"host", "gpu", "disk"}
        Whose memory it is.
    free : int or None
        Bytes free; None where the system does not say, which counts as enough.
    row_bytes : int
        Bytes of it that one row takes.
    """

    kind: Literal["host", "gpu", "disk"]
    free: int | None
    row_bytes: int

    def rows(self, share: float) -> int:
        """Return how many rows fit into a share of the free bytes."""
        return sys.maxsize if self.free is None else int(self.free * share) // self.row_bytes


class ReplayToLoad(NamedTuple):
    """A replay to be loaded.

    Attributes
    ----------
    path : Path
        Its file or folder.
    capacity : int
        Its capacity in rows.
    grow : bool
        Whether the run has another length than the one that it was made for: then it gets the rows that a new run of
        this length would have, if those are more.
    """

    path: Path
    capacity: int
    grow: bool = False


@dataclass(frozen=True, kw_only=True)
class ReplayPlan:
    """How to build the replay, and the facts behind that choice.

    Attributes
    ----------
    store : {"ram", "lz4", "mmap", "device"}
        What holds the frames: host memory, plain or compressed, a file, or the memory of the device that learns.
    memory : Memory
        Of the memories that the replay takes a part of, the one with room for the fewest rows.
    wanted : int
        Rows that a flag or a save asks for; without either, rows that the run can fill, at most `DEFAULT_CAPACITY`.
    least : int
        Rows that hold the warm-up, so that learning can start; 0 for a saved replay, which is loaded whatever its size.
    asked_by : str or None
        What asks for the wanted rows, as errors name it; None without a flag or a save: then there may be fewer.
    frame_store : {"auto", "ram", "lz4", "mmap", "device"}
        The setting.
    frame_bytes : int
        Bytes of a plain frame.
    gpu_free : int or None
        Bytes free on the GPU that learns; None where the CPU learns.
    lz4_rows : int or None
        Rows that ``frame_store="lz4"`` would fit, if that is a remedy: the plain frames do not fit, more compressed
        ones do, and enough of them.
    lz4_missing : bool
        Whether the plain frames do not fit and lz4 is not installed.
    """

    store: Literal["ram", "lz4", "mmap", "device"]
    memory: Memory
    wanted: int
    least: int
    asked_by: str | None
    frame_store: Literal["auto", "ram", "lz4", "mmap", "device"]
    frame_bytes: int
    gpu_free: int | None
    lz4_rows: int | None = None
    lz4_missing: bool = False

    @property
    def most(self) -> int:
        """Rows that the memory allows."""
        return self.memory.rows(DEFAULT_SHARE if self.asked_by is None else LARGEST_SHARE)

    @property
    def capacity(self) -> int:
        """Rows of the replay."""
        return min(self.wanted, self.most) if self.asked_by is None else self.wanted

    @property
    def limited_by(self) -> Memory | None:
        """The memory that has no room for the wanted rows; None where they fit."""
        return self.memory if self.wanted > self.most else None


def plan_replay(
    config: DQNConfig,
    frame_bytes: int,
    memory_free: int | None,
    gpu_free: int | None,
    *,
    lz4_installed: bool,
    compressed_bytes: Callable[[], int],
    saved: ReplayToLoad | None = None,
    warm_up_steps: int | None = None,
    most: int = DEFAULT_CAPACITY,
    most_on_gpu: int = GPU_CAPACITY,
    disk_free: int | None = None,
) -> ReplayPlan:
    """Decide which store holds the frames and how many rows there are.

    The capacity is that of the setting or the save; without either, as many rows as the run can fill, at most
    ``most`` and at most what fits into `DEFAULT_SHARE` of the free memory. Where frames may lie on a GPU, they are as
    many more, up to ``most_on_gpu``, as this share of its memory holds. The setting ``frame_store`` names the store;
    with ``"auto"``, frames lie

    - with a GPU: on the GPU if they fit into `DEFAULT_SHARE` of its free memory, else plain in host memory;
    - on a CPU: plain in host memory, compressed only if plain frames do not fit and compressed ones do.

    Frames lie in a file only where the setting is ``"mmap"``: learning would wait for a slow disk.

    Columns and tree always lie in host memory.

    Parameters
    ----------
    config : DQNConfig
        Settings of the run.
    frame_bytes : int
        Bytes of a plain frame.
    memory_free : int or None
        Bytes of host memory free; None where the system does not say.
    gpu_free : int or None
        Bytes free on the GPU that learns; None where the CPU learns.
    lz4_installed : bool
        Whether frames can be compressed.
    compressed_bytes : callable
        Returns the bytes to expect of a compressed frame. It may take seconds, so it is called at most once, and only
        if the setting is ``"lz4"``, or if plain frames do not fit into host memory and lz4 is installed.
    saved : ReplayToLoad, optional
        The save to load; its capacity stays, unless the setting names another or the replay grows with the run.
    warm_up_steps : int, optional
        Agent steps before learning starts (default: those of the settings).
    most, most_on_gpu : int
        Rows at most, without a setting or a save that says more.
    disk_free : int, optional
        Bytes free on the disk that holds the frames if the setting is ``"mmap"``; None where the system does not say.

    Returns
    -------
    ReplayPlan
        It may be one that cannot be carried out: `refusal` tells.

    Raises
    ------
    ImportError
        By ``compressed_bytes``, if the setting is ``"lz4"`` and lz4 is missing.
    """
    least, measured = least_capacity(config, warm_up_steps), cache(compressed_bytes)
    keeps = saved is not None and config.capacity in (None, saved.capacity)
    if saved is not None and saved.grow and config.capacity is None:
        grown = plan_replay(
            config,
            frame_bytes,
            memory_free,
            gpu_free,
            lz4_installed=lz4_installed,
            compressed_bytes=measured,
            warm_up_steps=warm_up_steps,
            most=most,
            most_on_gpu=most_on_gpu,
            disk_free=disk_free,
        )
        if grown.capacity > saved.capacity and refusal(grown) is None:
            return grown
    if saved is not None and keeps:
        wanted, asked_by = saved.capacity, f"the capacity of {saved.path}"
    elif config.capacity is not None:
        wanted, asked_by = config.capacity, "--capacity"
    else:
        if gpu_free is not None and config.frame_store in ("auto", "device"):
            most = max(most, min(most_on_gpu, Memory("gpu", gpu_free, frame_bytes).rows(DEFAULT_SHARE)))
        wanted, asked_by = min(most, max(most_rows(config.total_steps), least)), None

    plan = partial(
        ReplayPlan,
        wanted=wanted,
        least=0 if keeps else least,
        asked_by=asked_by,
        frame_store=config.frame_store,
        frame_bytes=frame_bytes,
        gpu_free=gpu_free,
    )
    plain = Memory("host", memory_free, frame_bytes + BYTES_BESIDE_FRAME)
    beside = Memory("host", memory_free, BYTES_BESIDE_FRAME)
    if config.frame_store == "mmap":
        disk = Memory("disk", disk_free, frame_bytes)
        return plan(store="mmap", memory=min(disk, beside, key=lambda memory: memory.rows(1.0)))
    if gpu_free is None and config.frame_store == "device":  # the device is the CPU
        return plan(store="device", memory=plain)
    if gpu_free is not None and config.frame_store in ("auto", "device"):
        gpu = Memory("gpu", gpu_free, frame_bytes)
        if config.frame_store == "device" or wanted <= gpu.rows(DEFAULT_SHARE):
            return plan(store="device", memory=min(gpu, beside, key=lambda memory: memory.rows(1.0)))

    share = DEFAULT_SHARE if config.capacity is None else LARGEST_SHARE
    if config.frame_store != "lz4":
        if wanted <= plain.rows(share):
            return plan(store="ram", memory=plain)
        if not lz4_installed:
            return plan(store="ram", memory=plain, lz4_missing=True)
    compressed = Memory("host", memory_free, measured() + BYTES_BESIDE_FRAME)
    if config.frame_store == "lz4":
        return plan(store="lz4", memory=compressed)
    fit = min(wanted, compressed.rows(share))
    if config.frame_store == "auto" and gpu_free is None and fit == wanted:  # a GPU would wait for decompressed frames
        return plan(store="lz4", memory=compressed)
    worth_it = fit > plain.rows(share) and fit >= least
    return plan(store="ram", memory=plain, lz4_rows=fit if worth_it else None)


def describe(plan: ReplayPlan, replay_bytes: int) -> str:
    """Return the words on the replay that a run prints.

    Parameters
    ----------
    plan : ReplayPlan
        A plan without a `refusal`.
    replay_bytes : int
        Bytes that the replay built by it takes. For compressed frames, which have yet to come, the plan's estimate
        is given instead.
    """
    size = _size(replay_bytes)
    if plan.store == "lz4":
        size = f"up to {_size(plan.capacity * plan.memory.row_bytes)}"
    words = f"replay of {plan.capacity:,} rows in {size}"
    if plan.store == "mmap":
        words += f" of memory and {_size(plan.capacity * plan.frame_bytes)} of disk"
    elif plan.gpu_free is not None:
        words += " on the GPU" if plan.store == "device" else " of memory"
        if plan.store == "ram" and plan.frame_store == "auto":
            words += f", the GPU having {_size(plan.gpu_free)} free"
    if plan.store == "lz4":
        words += ", compressed by lz4"
        if plan.frame_store == "auto":
            plain_bytes = plan.capacity * (plan.frame_bytes + BYTES_BESIDE_FRAME)
            words += f" (plain frames would take {_size(plain_bytes)}, and {_size(plan.memory.free)} are free)"
    if plan.capacity < plan.wanted:
        words += f" (what {'the disk' if plan.memory.kind == 'disk' else 'memory'} allows{_advice(plan)})"
    return words


def refusal(plan: ReplayPlan) -> ConfigError | None:
    """Return the error to raise for a plan that cannot be carried out; None for one that can."""
    memory = plan.memory
    kind, where, remedy = "memory", "", ""
    if memory.kind == "gpu":
        where, remedy = " on the GPU", ", or keep the frames in memory with --frame-store ram"
    elif memory.kind == "disk":
        kind, where, remedy = "disk", " on the run's disk", ", or keep the frames in memory with --frame-store auto"
    if plan.asked_by is not None and plan.limited_by is not None and plan.most >= max(1, plan.least):
        return ConfigError(
            f"{plan.asked_by} is {plan.capacity:,}, which takes {_size(plan.capacity * memory.row_bytes)} of the "
            f"{_size(memory.free)} free{where}; give {plan.most:,} or less{remedy}{_advice(plan)}"
        )
    fits = plan.asked_by is None or plan.limited_by is None
    if fits and plan.capacity >= plan.least:
        return None
    if fits and plan.asked_by is not None:
        return ConfigError(
            f"{plan.asked_by} is {plan.capacity:,}; give {plan.least:,} or more, so that it holds the warm-up, "
            "or shorten the warm-up with --learn-start-steps"
        )
    least = plan.least or plan.capacity  # a saved replay is loaded whole
    return ConfigError(
        f"{_size(memory.free)} of {kind} are free{where}, too little for a replay of {least:,} rows "
        f"({_size(least * memory.row_bytes)}), which these settings need; free some, or lower "
        f"--learn-start-steps or --num-envs{remedy}{_advice(plan)}"
    )


class DiskPlan(NamedTuple):
    """Disk for the checkpoints.

    Attributes
    ----------
    needed : int
        Bytes that they take at most.
    free : int
        Bytes that they may take.
    networks : int
        Bytes of `needed` that are not the replay's.
    """

    needed: int
    free: int
    networks: int = 0


def plan_disk(
    config: DQNConfig,
    frame_bytes: int,
    capacity: int,
    disk_free: int,
    *,
    held: int,
    steps: int,
    share_files: bool,
    beside: int = 0,
) -> DiskPlan:
    """Work out how much disk the checkpoints take at most; one of them has the replay, if the run keeps it.

    While a checkpoint is written, the one before is still there.

    Parameters
    ----------
    config : DQNConfig
        Settings of the run.
    frame_bytes : int
        Bytes of a plain frame; on disk all frames are plain.
    capacity, held : int
        Rows that the replay can hold, and those that it holds.
    disk_free : int
        Bytes free, with those of an older save that the new ones replace.
    steps : int
        Agent steps played so far.
    share_files : bool
        Whether a save shares files of frames with the one before; otherwise each is written whole.
    beside : int
        Bytes of a checkpoint without the replay.
    """
    to_come = max(0, config.total_steps - steps)
    rows = min(capacity, held + most_rows(to_come))
    written, overwritten = rows, 0
    if share_files:
        piece = segments.PIECE // frame_bytes
        largest, small = max(piece, int(rows * segments.LARGEST)), max(piece, int(rows * segments.SMALL))
        # A save writes small files of the one before again. A file of another size goes when all of its rows are
        # overwritten, so files hold more than the rows of the ring.
        written = min(rows, small + most_rows(config.checkpoint_every_frames // config.frame_skip))
        overwritten = largest if largest < rows else 0
    on_disk = (rows + overwritten + written) * frame_bytes + 2 * rows * BYTES_BESIDE_FRAME
    if not config.checkpoint_replay:
        on_disk = 0
    # Besides those to keep there are the best one, one by the clock and the one that is being written.
    checkpoints = 3 + min(config.keep_checkpoints, to_come * config.frame_skip // config.checkpoint_every_frames)
    return DiskPlan(on_disk + checkpoints * beside, disk_free, checkpoints * beside)


def describe_disk(plan: DiskPlan) -> str:
    """Return the words on the disk that a run prints, to follow those on the replay."""
    return f"; up to {_size(plan.needed)} of disk for checkpoints with it"


def disk_refusal(plan: DiskPlan, run_folder: Path) -> ConfigError | None:
    """Return the error to raise where the disk of a run's folder has too little room; None where it has enough."""
    if plan.free >= plan.needed:
        return None
    remedies = [] if run_folder.exists() else ["another --runs-dir"]  # a resumed run stays where it is
    if plan.free > plan.networks:
        remedies.append("a smaller --capacity")
    give = f"give {' or '.join(remedies)}, " if remedies else ""
    with_replay = " with the replay" if plan.needed > plan.networks else ""
    needs = f"{run_folder} needs up to {_size(plan.needed)} of disk for checkpoints{with_replay}"
    if plan.free >= plan.networks:
        return ConfigError(
            f"{needs}, {_size(plan.free)} are free; free some, {give}or leave the replay out with "
            "--no-checkpoint-replay"
        )
    without = f" and {_size(plan.networks)} without it" if with_replay else ""
    return ConfigError(
        f"{needs}{without}, {_size(plan.free)} are free; free some, {give}or start a run with a smaller network "
        "(--trunk, --width, --hidden) or a lower --keep-checkpoints"
    )


def least_capacity(config: DQNConfig, warm_up_steps: int | None = None) -> int:
    """Return rows enough for the warm-up: reset rows, open windows and cut stacks cannot be drawn."""
    steps = config.warm_up_steps if warm_up_steps is None else warm_up_steps
    return math.ceil(steps * 1.25) + 2 * config.all_envs * (config.stack + config.largest_n_step + 1)


def check_rings(config: DQNConfig, capacity: int) -> list[str]:
    """Return a warning if the games of all collectors leave each ring of the replay few rows.

    Raises
    ------
    ConfigError
        If rings are so short that no row of theirs could be drawn.
    """
    rows, least = capacity // config.all_envs, config.stack + config.largest_n_step + 1
    games = f"--collectors {config.collectors} times --num-envs {config.num_envs} share a replay of {capacity:,} rows"
    if rows < least:
        raise ConfigError(
            f"{games}, {rows} for each game; give --capacity {least * config.all_envs} or more, since a stack and a "
            f"return take {least}"
        )
    if rows >= FEW_ROWS:
        return []
    return [f"{games}, only {rows} for each game: longer episodes lose their beginnings; fewer games leave more"]


def most_rows(steps: int) -> int:
    """Return how many rows a number of agent steps adds at most: reset rows come on top, in Catch every tenth."""
    return max(0, steps) * 5 // 4


def _advice(plan: ReplayPlan) -> str:
    """Return what would make room for more rows, as the end of a sentence."""
    if plan.lz4_missing:
        return f"; lz4 compresses most games' frames to a quarter or less: {install_command('lz4')}"
    return "" if plan.lz4_rows is None else f"; {plan.lz4_rows:,} would fit with --frame-store lz4"


def _size(count: int | None) -> str:
    return bytes_in_words(count or 0)
