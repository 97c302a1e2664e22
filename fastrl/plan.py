"""What all makers of games share: the rules of an evaluation, the games to play, and epsilon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.camera import Camera
from fastrl.checks import at_least
from fastrl.config import ConfigError
from fastrl.rules import PROTOCOLS, Rules

Act = Callable[[npt.NDArray[Any]], npt.ArrayLike]
"""Stacks [n, stack, *frame] to actions [n] integers, or to Q-values [n, A] floats, of which the highest is taken; n is
the number of games still running."""
Results = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]
"""Scores [episodes] and lengths [episodes] in agent steps."""


@dataclass(frozen=True, kw_only=True)
class Protocol(Rules):
    """The rules of an evaluation: scores compare only under the same ones."""

    epsilon: float = 0.01
    """Share of random actions, each game tossing its own coin."""
    max_steps: int = 27_000
    """A game is cut off after so many agent steps, over all its lives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"--protocol is {self.protocol!r}; give {' or '.join(PROTOCOLS)}")
        for name in ("epsilon", "repeat_action_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give a number between 0 and 1")
        at_least(1, noop_max=self.noop_max, max_steps=self.max_steps, frame_skip=self.frame_skip)

    def describe(self, *, atari: bool = True) -> str:
        """Return the rules in one line: all, or those that games of any kind have."""
        shared = f"whole games, unclipped scores, epsilon {self.epsilon:g}, at most {self.max_steps:,} steps"
        if not atari:
            return shared
        return (
            f"protocol {self.protocol_name}: {shared} ({self.max_steps * self.frame_skip:,} frames), up to "
            f"{self.noop_max} no-op frames, sticky actions {self.repeat_action_probability:g}"
        )


@dataclass(frozen=True)
class Plan:
    """Games to play, `episodes` of them; fields as the arguments of `play_games`, `game` by its plain name."""

    game: str
    act: Act
    episodes: int
    seed: int
    protocol: Protocol
    stack: int
    camera: Camera
    threads: int


class Epsilon:
    """Replaces a share of the actions with random ones, each game by its own coin."""

    def __init__(self, epsilon: float, num_actions: int, games: int, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._epsilon, self._num_actions, self._games = epsilon, num_actions, games

    def __call__(self, actions: npt.ArrayLike, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the actions [n] int64 of the games `ids` [n]; the draws do not depend on which still run."""
        greedy = np.asarray(actions)
        if greedy.shape == (len(ids), self._num_actions) and greedy.dtype.kind == "f":
            greedy = greedy.argmax(axis=1)
        if greedy.shape != ids.shape or greedy.dtype.kind not in "iu":
            raise ValueError(f"act returned {greedy.dtype} {greedy.shape}; return integers of shape {ids.shape}")
        if greedy.min() < 0 or greedy.max() >= self._num_actions:
            raise ValueError(f"act returned {greedy.tolist()}; the game's actions are 0 to {self._num_actions - 1}")
        explore = self._rng.random(self._games) < self._epsilon
        random = self._rng.integers(self._num_actions, size=self._games)
        return np.where(explore[ids], random[ids], greedy.astype(np.int64))
