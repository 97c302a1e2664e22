"""Groups of games that take turns: while one is stepped, the others are looked at and learned from."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastrl.steps import Envs, FrameStack, Step

Array = NDArray[Any]


@runtime_checkable
class Saveable(Protocol):
    """Games with these methods go on in the middle at a resume; EnvPool's have none and begin anew."""

    def state(self) -> dict[str, Any]:
        """Return all that they go on from, a step under way included: nested dicts of arrays and of what JSON has."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken, in place of `reset`."""


class Group:
    """Games that step together.

    Attributes
    ----------
    envs
        The games, n of them.
    number : int
        Of the group.
    env_id : [n] int64
        Their numbers among the games of all groups.
    """

    def __init__(self, envs: Envs, number: int, stack: int) -> None:
        self.envs, self.number = envs, number
        self.env_id = np.arange(envs.num_envs) + number * envs.num_envs
        self._stack = FrameStack(envs.num_envs, stack, envs.frame_shape, envs.frame_dtype)
        self._actions: NDArray[np.int64] | None = None  # of the newest step

    def reset(self) -> None:
        """Open the games."""
        self._now = self.envs.reset()
        self._now.first[:] = True  # whatever was under way before a resume is abandoned

    def observe(self) -> Array:
        """Return the stacked frames [n, stack, *frame_shape] in which actions are due; call it once per step."""
        return self._stack.push(self._now.frame, self._now.first)

    def send(self, actions: NDArray[np.int64]) -> None:
        """Start a step."""
        self._actions = actions
        self.envs.send(actions)

    def recv(self) -> tuple[Step, NDArray[np.int64], Step]:
        """Wait for the step; return the one before it, the actions, and the one that they led to."""
        assert self._actions is not None
        before, self._now = self._now, self.envs.recv()
        return before, self._actions, self._now

    def state(self) -> dict[str, Any] | None:
        """Return all that these games go on from, None if they cannot be saved or were not opened; see `Saveable`."""
        if not isinstance(self.envs, Saveable) or not hasattr(self, "_now"):
            return None
        now = {field.name: getattr(self._now, field.name) for field in dataclasses.fields(Step)}
        return {"envs": self.envs.state(), "stack": self._stack.state(), "now": now, "actions": self._actions}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        assert isinstance(self.envs, Saveable)
        self.envs.load_state(state["envs"])
        self._stack.load_state(state["stack"])
        self._now, self._actions = Step(**state["now"]), state["actions"]


def states_of(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return the state of groups that take turns, and whose turn it is; None if they cannot be saved."""
    states = {str(group.number): group.state() for group in groups}
    return None if None in states.values() else {"turn": groups[0].number, "groups": states}


def load_states(groups: deque[Group], state: dict[str, Any]) -> None:
    """Go on from where `states_of` was called."""
    for group in groups:
        group.load_state(state["groups"][str(group.number)])
    groups.rotate(-state["turn"])
