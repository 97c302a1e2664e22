"""Detects NaN and infinity before saving, and keeps the offending batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrl.base.errors import RunError
from fastrl.base.files import write_atomically
from fastrl.config import DQNConfig
from fastrl.dqn.peers import ALONE, Peers
from fastrl.envs.frames import per_array
from fastrl.replay import Batch
from fastrl.runs.checkpoints import pack
from fastrl.runs.folder import RunFolder


class NotFiniteError(RunError):
    """A loss or a weight is NaN or infinite: what was learned since the last checkpoint is spoilt."""


def spoilt(state: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the tensors, in nested dicts, that hold numbers which are not finite."""
    names: list[str] = []
    for name, leaf in state.items():
        if isinstance(leaf, dict):
            names += spoilt(leaf, f"{prefix}{name}.")
        elif isinstance(leaf, Tensor) and not bool(torch.isfinite(leaf).all()):
            names.append(prefix + name)
    return names


def not_finite(
    what: str,
    folder: RunFolder,
    updates: int,
    batches: Iterable[Batch],
    found: Mapping[str, Any],
    config: DQNConfig,
    peers: Peers = ALONE,
) -> NotFiniteError:
    """Keep the newest batches in a run's folder and return the error that names them.

    `fastrl.runs.checkpoints.read` reads the file: what was found, and the arrays of each batch, ``0`` the oldest.

    Parameters
    ----------
    what : str
        What is not finite.
    folder : RunFolder
        The run's.
    updates : int
        Updates done.
    batches, found
        What is kept.
    config : DQNConfig
        The run's settings: the schedule of its step size.
    peers : Peers, optional
        The run's learners, each of which keeps batches of its own.
    """
    ends = {"--learning-rate": config.learning_rate, "--learning-rate-end": config.learning_rate_end}
    smaller = [f"{flag} {rate / 4:g}" for flag, rate in ends.items() if rate is not None]
    if points := config.learning_rate_schedule:
        smaller = ["--learning-rate-schedule", *(f"{step}:{rate / 4:g}" for step, rate in points)]
    if folder.numbered():
        again = f"resume the last one with steps of a quarter: {folder.resume_command} {' '.join(smaller)}"
    else:
        again = f"none is saved yet: start anew with another --name and steps of a quarter: {' '.join(smaller)}"
    path = folder / "faults" / f"update-{updates:09d}{f'-rank-{peers.rank}' if peers.several else ''}.safetensors"
    path.parent.mkdir(exist_ok=True)
    columns: list[dict[str, Any]] = []
    for batch in batches:
        fields = {name: fields for name in ("extra", "next_extra") if (fields := getattr(batch, name))}
        columns.append({name: per_array(_array, getattr(batch, name)) for name in Batch.__slots__} | fields)
    write_atomically(path, pack({str(i): batch for i, batch in enumerate(columns)} | dict(found)))
    return NotFiniteError(
        f"{what} is not finite after {updates:,} updates; the batch is kept in {path}, and no checkpoint holds such "
        f"weights; {again}{'' if config.reward_clip else '; or start a new run with --reward-clip'}"
    )


def _array(column: Any) -> np.ndarray[Any, Any]:
    return column.cpu().numpy() if isinstance(column, Tensor) else column
