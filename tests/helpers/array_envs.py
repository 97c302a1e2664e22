"""Environments whose observations are several arrays."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from replay_autoreset import Walk

IMAGE = spaces.Box(0, 255, (10, 12, 3), np.uint8)
WHERE = spaces.Box(0, np.inf, (3,), np.float32)
FLAGS = spaces.Box(0, 1, (2,), bool)


def image_of(where: np.ndarray) -> np.ndarray:
    """Return the image [10, 12, 3] uint8 that belongs to a place [3]."""
    ramp = np.arange(120).reshape(10, 12, 1)
    return ((ramp + 50 * where[0] + 7 * where[1] + 31 * where[2] + np.arange(3)) % 256).astype(np.uint8)


def flags_of(where: np.ndarray) -> np.ndarray:
    return np.array([where[1] % 2, where[2] % 2], bool)


def frames_of(where: np.ndarray) -> dict[str, np.ndarray]:
    """Return the frames that an observation of `Nested` becomes, given its place [3]."""
    image = np.moveaxis(image_of(where), -1, 0)
    return {"at.flags": flags_of(where).astype(np.uint8) * 255, "at.where": where, "image": image}


class Nested(Walk):
    """A `Walk` that shows the same place three times, in a Dict inside a Dict."""

    observation_space = spaces.Dict({"image": IMAGE, "at": spaces.Dict({"where": WHERE, "flags": FLAGS})})

    def where(self) -> Any:
        where = super().where()
        return {"image": image_of(where), "at": {"where": where, "flags": flags_of(where)}}


class Pairs(Walk):
    """A `Walk` that shows the same place twice, in a Tuple."""

    observation_space = spaces.Tuple((IMAGE, WHERE))

    def where(self) -> Any:
        where = super().where()
        return image_of(where), where


class Xor(gym.Env):
    """The right action is 1 where image and vector disagree: either alone says nothing of it. Eight steps a game."""

    IMAGE = spaces.Box(0, 255, (10, 10), np.uint8)
    VECTOR = spaces.Box(-1, 1, (2,), np.float32)
    observation_space = spaces.Dict({"image": IMAGE, "vector": VECTOR})
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, *, blank: str = "") -> None:
        self.blank = blank

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.see(), {}

    def step(self, action: Any) -> Any:
        right = int(action) == int(self.bits[0] != self.bits[1])
        self.steps += 1
        return self.see(), float(right), self.steps == 8, False, {}

    def see(self) -> Any:
        self.bits = self.np_random.integers(2, size=2)
        image, vector = np.zeros((10, 10), np.uint8), np.array([1.0, -1.0], np.float32)
        image[:, 5 * self.bits[0] :][:, :5] = 255
        seen = {"image": image, "vector": vector if self.bits[1] else -vector}
        return seen | ({self.blank: 0 * seen[self.blank]} if self.blank else {})

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), 20 * self.steps, np.uint8)


class XorPairs(Xor):
    """The same in a Tuple."""

    observation_space = spaces.Tuple((Xor.IMAGE, Xor.VECTOR))

    def see(self) -> Any:
        return tuple(super().see().values())


def vector_of(kind: type[Walk], mode: AutoresetMode, *, apart: bool = False) -> gym.vector.VectorEnv:
    walks = [partial(kind, k) for k in range(3)]
    return AsyncVectorEnv(walks, autoreset_mode=mode) if apart else SyncVectorEnv(walks, autoreset_mode=mode)


def make_nested() -> gym.Env:
    return Nested(0)


def make_next() -> gym.vector.VectorEnv:
    return vector_of(Nested, AutoresetMode.NEXT_STEP)


def make_same() -> gym.vector.VectorEnv:
    return vector_of(Nested, AutoresetMode.SAME_STEP)


def make_disabled() -> gym.vector.VectorEnv:
    return vector_of(Nested, AutoresetMode.DISABLED)


def make_async() -> gym.vector.VectorEnv:
    return vector_of(Nested, AutoresetMode.SAME_STEP, apart=True)


MAKERS = [make_nested, make_next, make_same, make_disabled, make_async]


def make_pairs() -> gym.vector.VectorEnv:
    return vector_of(Pairs, AutoresetMode.SAME_STEP)


def make_xor() -> gym.Env:
    return Xor()


def make_xor_pairs() -> gym.Env:
    return XorPairs()


def make_xor_without_image() -> gym.Env:
    return Xor(blank="image")


def make_xor_without_vector() -> gym.Env:
    return Xor(blank="vector")
