"""Act functions, which turn observations into actions, and epsilon."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.console import counted
from fastrl.base.errors import ConfigError
from fastrl.envs.frames import count
from fastrl.envs.masks import nth_allowed, only_allowed

Act = Callable[[Any], npt.ArrayLike]
"""Stacks [n, stack, *frame] to actions [n] integers, or to Q-values [n, A] floats, of which the highest is taken (of
the actions that the game allows, where it gives masks; one of -inf never is); n is the number of games in progress.
Stacks of several arrays are a dict, by name."""

TOLD_SECONDS = 30.0
"""Between two lines of `telling`."""


def telling(act: Act, say: Callable[[str], None]) -> Act:
    """Return an act function that does the same, and says every `TOLD_SECONDS` how far the games are."""
    steps, told = 0, time.monotonic()

    def tell_and_act(stacks: Any) -> npt.ArrayLike:
        nonlocal steps, told
        playing = count(stacks)
        steps += playing
        if time.monotonic() - told >= TOLD_SECONDS:
            told = time.monotonic()
            say(f"{steps:,} steps played, {counted(playing, 'game')} in progress")
        return act(stacks)

    return tell_and_act


class Epsilon:
    """Replaces a share of the actions with random ones, drawn for each of `games` games by itself.

    Where only some of these are played, their numbers count up from `first`.
    """

    def __init__(self, epsilon: float, num_actions: int, games: int, seed: int, first: int = 0) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._epsilon, self._num_actions, self._games, self._first = epsilon, num_actions, games, first

    def __call__(
        self, actions: npt.ArrayLike, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the actions [n] int64 of the games `ids` [n]; the draws do not depend on which games are over.

        Parameters
        ----------
        actions : array_like
            What an act function returned.
        ids : [n] int64
            The games that it was asked for.
        mask : [n, A] bool, optional
            The actions that these allow: of values the highest of those is taken, and random actions are of those.

        Raises
        ------
        ValueError
            If the act function returned other than one action of the game, or the values of all, per row, an action
            that is not allowed, or values without a highest one: NaN, inf, or -inf alone. ConfigError, which is one,
            for the values of another number of actions.
        """
        greedy = np.asarray(actions)
        if greedy.shape == (len(ids), self._num_actions) and greedy.dtype.kind == "f":
            greedy = _highest(greedy, mask, ids + self._first)
        elif greedy.ndim == 2 and greedy.dtype.kind == "f" and len(greedy) == len(ids):
            raise ConfigError(
                f"act returned the values of {greedy.shape[1]} actions, and the environment has {self._num_actions}; "
                "give the environment that the network was trained on"
            )
        if greedy.shape != ids.shape or greedy.dtype.kind not in "iu":
            raise ValueError(
                f"act returned {greedy.dtype} {greedy.shape}; return actions, integers of shape {ids.shape}, or "
                f"Q-values, floats of shape {(len(ids), self._num_actions)}"
            )
        if greedy.min() < 0 or greedy.max() >= self._num_actions:
            raise ValueError(f"act returned {greedy.tolist()}; the game's actions are 0 to {self._num_actions - 1}")
        if mask is not None and not (taken := mask[np.arange(len(ids)), greedy]).all():
            i = int(np.flatnonzero(~taken)[0])
            raise ValueError(
                f"act returned action {greedy[i]}, and the environment allows {np.flatnonzero(mask[i]).tolist()}; "
                "return Q-values [n, A], of which the highest allowed one is taken"
            )
        explore = self._rng.random(self._games) < self._epsilon
        games = ids + self._first
        if mask is not None:
            share = self._rng.random(self._games)[games]
            return np.where(explore[games], nth_allowed(mask, share * mask.sum(axis=1)), greedy.astype(np.int64))
        random = self._rng.integers(self._num_actions, size=self._games)
        return np.where(explore[games], random[games], greedy.astype(np.int64))


def _highest(
    values: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None, games: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the actions [n] int64 of the highest allowed values [n, A]; ValueError if these are not finite."""
    allowed = values if mask is None else only_allowed(values, mask)
    best: npt.NDArray[Any] = allowed.max(axis=1)  # NaN if one is
    if not np.isfinite(best).all():
        i = int(np.flatnonzero(~np.isfinite(best))[0])
        which = "some" if mask is None else f"some, not all, of the allowed {np.flatnonzero(mask[i]).tolist()}"
        raise ValueError(
            f"act returned the Q-values {values[i].tolist()} in game {games[i]}; return finite numbers, or -inf for "
            f"{which} actions, which are never taken then"
        )
    actions: npt.NDArray[np.int64] = allowed.argmax(axis=1)
    return actions
