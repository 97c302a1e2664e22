"""Environments that say which actions they allow, and fail where another one is taken."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from replay_autoreset import Walk

ACTIONS = 4


def mask_of(where: Any) -> np.ndarray:
    """Return the mask [4] bool of an observation of `MaskedWalk`: one or two actions, 0 mostly not among them."""
    number, episode, steps = (int(x) for x in where)
    mask = np.zeros(ACTIONS, np.bool_)
    mask[[1 + (number + episode) % 3, (1 + number + episode + 2 * steps) % ACTIONS]] = True
    return mask


class MaskedWalk(Walk):
    """A `Walk` with masks; where a game has terminated there is none, or (`empty`) one that allows nothing."""

    def __init__(self, number: int, dtype: str = "int8", empty: bool = False) -> None:
        super().__init__(number)
        self.dtype, self.empty, self.illegal = dtype, empty, 0

    def reset(self, **kwargs: Any) -> Any:
        obs, _ = super().reset(**kwargs)
        return obs, {"action_mask": mask_of(obs).astype(self.dtype)}

    def step(self, action: Any) -> Any:
        if not mask_of(self.where())[int(action)]:
            raise AssertionError(f"action {action} is not allowed at {self.where()}")
        obs, reward, terminated, truncated, _ = super().step(action)
        if not terminated:
            return obs, reward, terminated, truncated, {"action_mask": mask_of(obs).astype(self.dtype)}
        info = {"action_mask": np.zeros(ACTIONS, self.dtype)} if self.empty else {}
        return obs, reward, terminated, truncated, info


def make_single() -> gym.Env:
    return MaskedWalk(0, dtype="bool")


def make_next() -> gym.vector.VectorEnv:
    return SyncVectorEnv([lambda k=k: MaskedWalk(k) for k in range(3)])


def make_same() -> gym.vector.VectorEnv:
    return SyncVectorEnv([lambda k=k: MaskedWalk(k) for k in range(3)], autoreset_mode=AutoresetMode.SAME_STEP)


def make_disabled() -> gym.vector.VectorEnv:
    walks = [lambda k=k: MaskedWalk(k, empty=True) for k in range(3)]
    return SyncVectorEnv(walks, autoreset_mode=AutoresetMode.DISABLED)


def make_async() -> gym.vector.VectorEnv:
    walks = [lambda k=k: MaskedWalk(k, empty=True) for k in range(2)]
    return AsyncVectorEnv(walks, autoreset_mode=AutoresetMode.SAME_STEP)


MAKERS = [make_single, make_next, make_same, make_disabled, make_async]


class Doors(gym.Env):
    """A corridor of rooms with six doors each, of which three are open: one leads on, two back to the first room.

    The rooms and the open doors are seen; a door that is shut ends the game with -1 where `masked` is False, and fails
    where it is True. The last room gives 1.
    """

    ROOMS, DOORS = 4, 6
    observation_space = spaces.Box(0, 1, (ROOMS,), np.float32)
    action_space = spaces.Discrete(DOORS)

    def __init__(self, masked: bool = True) -> None:
        self.masked, self.illegal = masked, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.room = self.steps = 0
        return self.seen()

    def step(self, action: Any) -> Any:
        self.steps += 1
        if not self.open()[int(action)]:
            assert not self.masked, f"door {action} of room {self.room} is shut"
            self.illegal += 1
            return *self.seen()[:1], -1.0, True, False, self.seen()[1]
        self.room = self.room + 1 if int(action) == 2 * self.room % self.DOORS else 0
        there = self.room == self.ROOMS
        self.room %= self.ROOMS
        obs, info = self.seen()
        return obs, float(there), there, self.steps == 40 and not there, info

    def open(self) -> np.ndarray:
        mask = np.zeros(self.DOORS, np.bool_)
        mask[[2 * self.room % self.DOORS, (2 * self.room + 3) % self.DOORS, (2 * self.room + 1) % self.DOORS]] = True
        return mask

    def seen(self) -> Any:
        obs = np.zeros(self.ROOMS, np.float32)
        obs[self.room] = 1
        return obs, {"action_mask": self.open()} if self.masked else {}


def make_doors() -> gym.Env:
    return Doors()


def make_unmasked_doors() -> gym.Env:
    return Doors(masked=False)


def make_vectors_of_doors() -> gym.vector.VectorEnv:
    return SyncVectorEnv([Doors] * 3, autoreset_mode=AutoresetMode.SAME_STEP)


either = {"masked": True}


def make_either() -> gym.Env:
    return Doors(either["masked"])
