"""The moving average of a network's weights, by which it is judged while it goes on learning."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from fastrl.dqn.flat import FlatParameters
from fastrl.dqn.network import QNetwork

EVERY_UPDATES = 10
"""Updates between two that are added: neighbours hardly differ, and each is a pass over the memory."""
EARLY = 0.1
"""Share of the updates so far that the average reaches back at first, when old weights are of little use."""


class AveragedWeights:
    """The exponential moving average of a network's weights over the updates (Polyak & Juditsky 1992).

    The weights of a learner jump about good ones, by a step size that is still large; their mean may be better
    (Izmailov et al. 2018). With h = min(`reach`, `EARLY` u) after u updates, at least 1, the weights of k updates ago
    count (1 - 1/h)^k of the last. As long as h is `EARLY` u, that is the average of a power function of u (Karras et
    al. 2024).

    Parameters
    ----------
    network : QNetwork
        The network that learns; its weights now are the first.
    flat : FlatParameters
        Its parameters.
    reach : int
        Updates that the average reaches back, at least 1.

    Attributes
    ----------
    network : QNetwork
        A network of the averaged weights.
    """

    def __init__(self, network: QNetwork, flat: FlatParameters, reach: int) -> None:
        self._flat, self._reach, self._updates = flat, reach, 0
        self._every = min(EVERY_UPDATES, reach)
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._average = FlatParameters(self.network.parameters())

    @torch.no_grad()
    def start(self) -> None:
        """Begin anew, with the weights of now."""
        self._updates = 0
        self._average.values.copy_(self._flat.values)

    @torch.no_grad()
    def add(self) -> None:
        """Take note of an update: of the first ten, and of one in `EVERY_UPDATES`, add the weights after it."""
        self._updates += 1
        if self._updates < EVERY_UPDATES or self._updates % self._every == 0:
            h = max(1.0, min(self._reach, EARLY * self._updates))
            self._average.values.lerp_(self._flat.values, 1 - (1 - 1 / h) ** self._every)

    def state(self) -> dict[str, Any]:
        """Return what `load_state` takes: the updates since it began, and the averaged weights by name, views."""
        return {"updates": self._updates, "weights": self.network.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Copy what `state` returned in."""
        self._updates = state["updates"]
        self.network.load_state_dict(state["weights"])
