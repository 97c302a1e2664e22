"""Noisy layers: weights with learned noise, which explores in the place of random actions (Fortunato et al. 2018)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIGMA_0 = 0.5
"""Scale of the noise at first; over the root of the number of inputs it is the standard deviation of a weight."""


class NoisyLinear(nn.Linear):
    """(w + w_sigma * noise) x + b + b_sigma * noise, with noise of rank one per stream (eq. 9 to 11, factorised).

    Parameters
    ----------
    inputs, outputs : int
        Widths.
    streams : int
        Layers that this one stands for, which read the same inputs: each has noise of its own.

    Attributes
    ----------
    noise_size : int
        Normal random numbers that one sample of the noise takes.
    """

    def __init__(self, inputs: int, outputs: int, streams: int = 1) -> None:
        super().__init__(inputs, outputs)
        self._parts = [streams * inputs, outputs]
        self._streams, self.noise_size = streams, sum(self._parts)
        sigma = SIGMA_0 / math.sqrt(inputs)
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), sigma))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), sigma))

    def sample(self, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weight [outputs, inputs] and bias [outputs] for noise [noise_size]; without noise their means."""
        if noise is None:
            return self.weight, self.bias
        noise = noise.sign() * noise.abs().sqrt()  # f of eq. 10
        of_inputs, of_outputs = torch.split(noise, self._parts)
        product = of_outputs.view(self._streams, -1, 1) * of_inputs.view(self._streams, 1, -1)
        return (
            self.weight + self.weight_sigma * product.view_as(self.weight),
            self.bias + self.bias_sigma * of_outputs,
        )

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return [B, outputs] of x [B, inputs], by one sample of the weights for all rows."""
        return F.linear(x, *self.sample(noise))
