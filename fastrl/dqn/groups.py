"""Groups of games that take turns: while one is stepped, the others are looked at and learned from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.steps import Envs, FrameStack, Step

Array = NDArray[Any]


class Group:
    """Games that step together.

    Attributes
    ----------
    envs
        The games, n of them.
    env_id : [n] int64
        Their numbers among the games of all groups.
    """

    def __init__(self, envs: Envs, number: int, stack: int) -> None:
        self.envs = envs
        self.env_id = np.arange(envs.num_envs) + number * envs.num_envs
        self._stack = FrameStack(envs.num_envs, stack, envs.frame_shape, envs.frame_dtype)

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
        before, self._now = self._now, self.envs.recv()
        return before, self._actions, self._now
