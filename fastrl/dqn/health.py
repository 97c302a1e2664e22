"""Numbers that are none: found before they are saved, and kept with what they came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrl.config import DQNConfig
from fastrl.folder import go_on, write_atomically
from fastrl.replay import Batch
from fastrl.saved import pack
from fastrl.stop import RunError


class NotFiniteError(RunError):
    """A loss or a weight is NaN or infinite: what was learnt since the last checkpoint is spoilt."""


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
    what: str, folder: Path, updates: int, batches: Iterable[Batch], found: Mapping[str, Any], config: DQNConfig
) -> NotFiniteError:
    """Keep the newest batches in a run's folder and return the error that names them.

    `fastrl.saved.read` reads the file: what was found, and a dict of arrays for each batch, ``0`` the oldest.

    Parameters
    ----------
    what : str
        What is not finite.
    folder : Path
        The run's.
    updates : int
        Updates done.
    batches, found
        What is kept.
    config : DQNConfig
        The run's settings: the schedule of its step size.
    """
    ends = {"--learning-rate": config.learning_rate, "--learning-rate-end": config.learning_rate_end}
    smaller = [f"{flag} {rate / 4:g}" for flag, rate in ends.items() if rate is not None]
    path = folder / "faults" / f"update-{updates:09d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    columns = [{name: _array(getattr(batch, name)) for name in Batch.__slots__} for batch in batches]
    write_atomically(path, pack({str(i): batch for i, batch in enumerate(columns)} | dict(found)))
    return NotFiniteError(
        f"{what} is not finite after {updates:,} updates; the batch is kept in {path}, and no checkpoint holds such "
        f"weights; go on from the last one with steps of a quarter: {go_on(folder)} {' '.join(smaller)}; and with "
        f"--reward-clip if that is off"
    )


def _array(column: Any) -> np.ndarray[Any, Any]:
    return column.cpu().numpy() if isinstance(column, Tensor) else column
