"""The policy: a network that acts, apart from the learner that updates it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.frames import Frame
from fastrl.envs.masks import random_allowed


class ActingNetwork(Protocol):
    """What a policy asks of a network; a `Learner` is one."""

    updates: int
    """Updates that its weights have had."""

    def act(self, obs: Frame, mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return the greedy actions [n] int64 of obs [n, stack, *frame_shape], of those that a mask [n, A] allows."""


@runtime_checkable
class Published(ActingNetwork, Protocol):
    """A network that hands its weights out, for processes that act elsewhere."""

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return copies of its weights by name."""


class Policy:
    """Epsilon-greedy actions, one coin per environment; before the first update all are random.

    Parameters
    ----------
    network : ActingNetwork
        Chooses the greedy actions; in one process the learner itself, whose newest weights act.
    num_actions : int
        Number of actions A.
    rng : Generator
        Tosses the coins and draws the random actions.

    Attributes
    ----------
    epsilon : float or [N] float64
        Share of random actions, in [0, 1], of all environments or of each; the loop sets it.
    rng : Generator
        As given; its state belongs to the run's.
    """

    def __init__(self, network: ActingNetwork, num_actions: int, rng: np.random.Generator) -> None:
        self._network, self._num_actions = network, num_actions
        self.rng = rng
        self.epsilon: float | NDArray[np.float64] = 1.0

    @property
    def version(self) -> int:
        """Updates that the acting weights have had."""
        return self._network.updates

    def act(self, obs: Frame, env_id: NDArray[np.int64], mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return actions [n] int64.

        Parameters
        ----------
        obs : [n, stack, *frame_shape]
            What the environments show; of several arrays a dict.
        env_id : [n] int64
            Which environments.
        mask : [n, A] bool, optional
            Actions that they allow; random ones too are of these.
        """
        if not self.version:
            return self._random_actions(len(env_id), mask)
        greedy = self._network.act(obs, mask)
        epsilon = self.epsilon[env_id] if isinstance(self.epsilon, np.ndarray) else self.epsilon
        coins = self.rng.random(len(env_id)) < epsilon
        return np.where(coins, self._random_actions(len(env_id), mask), greedy)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return copies of the acting weights by name, for processes that act elsewhere."""
        assert isinstance(self._network, Published)
        return self._network.weights()

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-able: the generator's state."""
        return {"rng": self.rng.bit_generator.state}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.rng.bit_generator.state = state["rng"]

    def _random_actions(self, n: int, mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        if mask is not None:
            return random_allowed(self.rng, mask)
        return self.rng.integers(self._num_actions, size=n)
