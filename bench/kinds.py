"""What is drawn beside single frames: dictionaries, stretches of an episode, frames in files; steps, and a proof.

A contender of a kind is a `KindBuffer`. What it draws is read as B items of L consecutive observations: a transition
has two, a stretch eighty. One oracle serves all kinds: every array begins with its time and its environment.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from contender import Drawn

NUM_ENVS = 32
CHECK_STEPS = 127
"""Vector steps until they repeat; more than a stretch has."""
CHECK_BATCHES = 8
Arrays = dict[str, np.ndarray]


class Kind(NamedTuple):
    """One kind: what a row holds, and what is drawn."""

    title: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, type]
    rows: int
    batch: int
    length: int
    """L, observations of an item."""

    @property
    def row_bytes(self) -> int:
        """Return the bytes of an observation."""
        return sum(int(np.prod(self.shapes[name])) * np.dtype(self.dtypes[name]).itemsize for name in self.shapes)


KINDS = {
    "dictionary": Kind(
        "dictionary: 84x84 bytes and 7 floats; 256 transitions, n = 1",
        {"image": (84, 84), "state": (7,)}, {"image": np.uint8, "state": np.float32}, 64_000, 256, 2,
    ),
    "sequences": Kind(
        "sequences: 64 of 80 frames of 84x84 bytes", {"image": (84, 84)}, {"image": np.uint8}, 64_000, 64, 80
    ),
    "mmap": Kind("frames in a file: 1 kB each; 256 transitions, n = 1", {"vector": (1024,)}, {"vector": np.uint8},
                 256_000, 256, 2),
}  # fmt: skip


class KindStep(NamedTuple):
    """One vector step of N environments, in all the forms that buffers want."""

    obs: Arrays  # [N, *shape] each
    next_obs: Arrays  # [N, *shape] each: those of the next step
    action: np.ndarray  # [N] int64
    reward: np.ndarray  # [N] float32: the time
    no: np.ndarray  # [N] bool: all False; nothing ends


class KindBuffer(Protocol):
    """A contender, constructed with ``(kind, rows, folder)``. When a call returns, its work is done."""

    about: str
    """In a few words how it is used."""
    prioritized: bool

    def add(self, step: KindStep) -> None:
        """Add one vector step."""

    def sample(self) -> Drawn:
        """Draw B items."""

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        """Give the items drawn the priorities ``[B] float64``."""

    def items(self, drawn: Drawn) -> tuple[Arrays, np.ndarray]:
        """Return the arrays of the items, ``[B, L, *shape]`` each, and the rewards between, ``[B, L - 1]``."""


def kind_steps(kind: Kind, count: int) -> list[KindStep]:
    """Return ``count`` vector steps that may be repeated for ever, as one stream."""
    rng, arrays = np.random.default_rng(0), {}
    for name, shape in kind.shapes.items():
        array = rng.integers(256, size=(count, NUM_ENVS, *shape), dtype=np.uint8).astype(kind.dtypes[name])
        flat = array.reshape(count, NUM_ENVS, -1)
        flat[..., 0], flat[..., 1] = np.arange(count)[:, None], np.arange(NUM_ENVS)
        arrays[name] = array
    no = np.zeros(NUM_ENVS, bool)
    return [
        KindStep(
            {name: array[t] for name, array in arrays.items()},
            {name: array[(t + 1) % count] for name, array in arrays.items()},
            rng.integers(4, size=NUM_ENVS), np.full(NUM_ENVS, t, np.float32), no,
        )
        for t in range(count)
    ]  # fmt: skip


def stamps(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return time and environment ``[B, L]`` of an array ``[B, L, *shape]``."""
    flat = np.asarray(array).reshape(*array.shape[:2], -1)
    return flat[..., 0].astype(int), flat[..., 1].astype(int)


def check(make: type[KindBuffer], kind: Kind, folder: Any) -> float:
    """Return the share of drawn items that are right, in a small ring that has wrapped.

    An item is right if all its arrays show the same L consecutive steps of one environment, with their rewards.

    Raises
    ------
    AssertionError
        If shapes or dtypes are off, or if priorities do not decide what is drawn.
    """
    per_env = max(100, 4 * kind.length)
    buffer, steps = make(kind, per_env * NUM_ENVS, folder), kind_steps(kind, CHECK_STEPS)
    for t in range(per_env * 5 // 2):
        buffer.add(steps[t % CHECK_STEPS])
    right = []
    for _ in range(CHECK_BATCHES):
        arrays, reward = buffer.items(buffer.sample())
        begin, env = (stamp[:, :1] for stamp in stamps(next(iter(arrays.values()))))
        follow = (begin + np.arange(kind.length)) % CHECK_STEPS
        assert reward.shape == (kind.batch, kind.length - 1), f"rewards are {reward.shape}"
        good = (reward == follow[:, :-1]).all(axis=1)
        for name, array in arrays.items():
            shape = (kind.batch, kind.length, *kind.shapes[name])
            assert array.shape == shape, f"{name} is {array.shape} instead of {shape}"
            assert array.dtype == kind.dtypes[name], f"{name} is {array.dtype}"
            t, of = stamps(array)
            good &= (t == follow).all(axis=1) & (of == env).all(axis=1)
        right.append(good)
    if buffer.prioritized:
        drawn = buffer.sample()
        t, env = (stamp[:, 0] for stamp in stamps(next(iter(buffer.items(drawn)[0].values()))))
        favourite = t[0], env[0]
        buffer.update(drawn, np.where((t == t[0]) & (env == env[0]), 1e9, 1e-3))
        t, env = (stamp[:, 0] for stamp in stamps(next(iter(buffer.items(buffer.sample())[0].values()))))
        share = ((t == favourite[0]) & (env == favourite[1])).mean()
        assert share > 0.9, f"an item that weighs nearly everything was drawn in {share:.0%} of all draws"
    return float(np.mean(right))
