"""What the updates between two lines of metrics add up to, kept on the learner's device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

MEANS = ("train/loss", "train/td_error", "train/q_mean", "train/grad_norm")


class Tally:
    """Sums over updates, and norms of one of them by layer.

    Both stay where they are in memory, so that a recorded CUDA graph may add to `totals`; only `read` waits for the
    device.

    Parameters
    ----------
    names : iterable of str
        Names of the P parameters, such as ``"trunk.0.weight"``, in the order in which `measure` gets them.
    device : torch.device
        Where the sums are.

    Attributes
    ----------
    totals : [5] float32
        Sums of loss, errors, mean q and gradient norm, and the largest q.
    updates : int
        How many updates they are of; counted by the caller, since a recording calls `add` once for all.
    """

    def __init__(self, names: Iterable[str], device: torch.device) -> None:
        self._layers = [name.rpartition(".")[0] for name in names]  # weight and bias are one layer
        self._empty = torch.tensor((0.0, 0.0, 0.0, 0.0, -torch.inf), device=device)
        self._norms = torch.full(
            (2, len(self._layers)), -1.0, device=device
        )  # of parameters, of their change; -1: none
        self.totals = self._empty.clone()
        self._on_host = self.totals.numpy() if device.type == "cpu" else None  # the same memory
        self.updates = 0

    def add(self, stats: Tensor, grad_norm: Tensor) -> None:
        """Add one update: ``stats [4]`` are loss, mean error, mean q and largest q."""
        if self._on_host is not None:  # five numbers: PyTorch would take ten times as long
            totals, found = self._on_host, stats.numpy()
            totals[:3] += found[:3]
            totals[3] += grad_norm.numpy()
            totals[4] = np.maximum(totals[4], found[3])  # NaN stays
            return
        self.totals[:4] += torch.stack((*stats[:3], grad_norm))
        self.totals[4].clamp_(min=stats[3])

    @property
    def finite(self) -> bool:
        """Whether the norms added are finite; True where they are not on the host."""
        return self._on_host is None or math.isfinite(self._on_host[3])

    def measure(self, before: list[Tensor], after: list[Tensor]) -> None:
        """Keep the norms of the P parameters before an update and of what it changed, until measured again or read."""
        change = torch._foreach_sub(after, before)
        self._norms.copy_(torch.stack([torch.stack(torch._foreach_norm(tensors)) for tensors in (before, change)]))

    def read(self) -> dict[str, float]:
        """Return means over the updates (q_max: the maximum) and norms by name, and start anew.

        Means are missing when there was no update, and norms when none was measured.
        """
        (*sums, q_max), norms, updates = self.totals.tolist(), self._norms.tolist(), self.updates
        self._start_anew()
        metrics: dict[str, float] = {}
        if updates:
            metrics |= {name: total / updates for name, total in zip(MEANS, sums, strict=True)}
            metrics["train/q_max"] = q_max
        if norms[0][0] >= 0:
            metrics |= self._ratios(*norms)
        return metrics

    def state(self) -> dict[str, Any]:
        """Return sums and norms as they lie in memory: copy what must outlast the next update."""
        return {"summed": self.updates, "totals": self.totals, "norms": self._norms}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; states saved before layers were told apart lack norms."""
        self._start_anew()
        self.updates = state["summed"]
        self.totals.copy_(state["totals"][: len(self.totals)])
        if "norms" in state:
            self._norms.copy_(state["norms"])

    def _start_anew(self) -> None:
        self.totals.copy_(self._empty)
        self._norms.fill_(-1.0)
        self.updates = 0

    def _ratios(self, norms: list[float], changes: list[float]) -> dict[str, float]:
        """Put the norms [P] of parameters and changes together, by layer and of all."""
        squares: dict[str, list[float]] = {}
        for layer, norm, change in zip(self._layers, norms, changes, strict=True):
            for name in (layer, "all"):
                pair = squares.setdefault(name, [0.0, 0.0])
                pair[0] += norm**2
                pair[1] += change**2
        param_norm, update_norm = (square**0.5 for square in squares.pop("all"))
        ratio = update_norm / max(param_norm, 1e-12)
        metrics = {"train/param_norm": param_norm, "train/update_norm": update_norm, "train/update_ratio": ratio}
        return metrics | {f"update_ratio/{name}": (b / max(a, 1e-24)) ** 0.5 for name, (a, b) in squares.items()}
