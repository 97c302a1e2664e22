"""The moving average of a network's weights, by which it is judged while it goes on learning."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from fastrl.dqn.flat import FlatParameters
from fastrl.dqn.network import QNetwork

EVERY_UPDATES = 10
"""Updates between two that are added: neighbours hardly differ, and each is a pass over the memory."""
EARLY = 0.1
"""Share of the updates made so far that the average reaches back at first, when old weights are of little use."""


class AveragedWeights:
    """The exponential moving average of a network's weights over the updates (Polyak & Juditsky 1992).

    The weights of a learner jump about the good ones, by a step size that is still large; their mean is closer
    (Izmailov et al. 2018). With h = min(`updates`, `EARLY` u) after u updates, those of k updates ago count
    exp(-k / h) of the last: as long as that is `EARLY` u, it is the average of a power function (Karras et al. 2024).

    Parameters
    ----------
    network : QNetwork
        The network that learns; its weights now are the first.
    flat : FlatParameters
        Its parameters.
    updates : int
        Updates h that the average reaches back, at least 1.

    Attributes
    ----------
    network : QNetwork
        A network of the averaged weights.
    """

    def __init__(self, network: QNetwork, flat: FlatParameters, updates: int) -> None:
        self._flat, self._updates = flat, updates
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._average = FlatParameters(self.network.parameters())
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """Begin anew, with the weights of now."""
        self._average.values.copy_(self._flat.values)

    @torch.no_grad()
    def add(self, update: int) -> None:
        """Add the weights after update number `update`, one of every `EVERY_UPDATES`."""
        if update % EVERY_UPDATES == 0:
            reach = max(1.0, min(self._updates, EARLY * update))
            self._average.values.lerp_(self._flat.values, 1 - (1 - 1 / reach) ** EVERY_UPDATES)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights by name: views of them."""
        return self.network.state_dict()

    def load_state(self, weights: Mapping[str, Tensor]) -> None:
        """Copy what `state` returned in."""
        self.network.load_state_dict(weights)
