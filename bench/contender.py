"""What a replay must do to be measured beside others, the steps that it is given, and a proof that it uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

STACK = 4
FRAME = (84, 84)
FRAME_BYTES = 84 * 84
STACK_BYTES = STACK * FRAME_BYTES
GAMMA, ALPHA, BETA = 0.99, 0.6, 0.4
NUM_ACTIONS = 4
CHECK_ENVS, CHECK_ROWS, CHECK_STEPS = 32, 100, 127
"""Of the ring that is checked: environments, rows of each, and vector steps until they repeat."""
CHECK_BATCHES = 8


class Step(NamedTuple):
    """One vector step of N environments, in all the forms that buffers want; nothing is left to make."""

    stack: np.ndarray  # [N, 4, 84, 84] uint8: the observation
    next_stack: np.ndarray  # [N, 4, 84, 84] uint8: the one after it
    frame: np.ndarray  # [N, 84, 84] uint8: the newest frame of `stack`
    action: np.ndarray  # [N] int64
    reward: np.ndarray  # [N] float32
    done: np.ndarray  # [N] bool: terminated; nothing is truncated
    no: np.ndarray  # [N] bool: all False


class Drawn(NamedTuple):
    """What a draw returned: the rows' names for `Buffer.update`, and all else in the buffer's own form."""

    index: Any
    batch: Any


class Tree(NamedTuple):
    """A bare sum tree: draw B leaves; give leaves that were drawn the weights ``[B] float64``."""

    sample: Callable[[int], Any]
    update: Callable[[Any, np.ndarray], Any]


class Buffer(Protocol):
    """A contender, constructed with ``(rows, num_envs, n_step)``. When a call returns, its work is done."""

    about: str
    """In a few words how it is used."""
    prioritized: bool
    rows: int
    """Rows held when full, one a transition."""

    @staticmethod
    def bytes_a_row(n_step: int) -> int:
        """Return about how many bytes a row takes."""

    def add(self, step: Step) -> None:
        """Add one vector step."""

    def sample(self, batch_size: int) -> Drawn:
        """Draw B transitions."""

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        """Give the rows drawn the priorities ``[B] float64``."""

    def set_n_step(self, n_step: int) -> bool:
        """Return whether draws are over ``n_step`` steps from now on; if not, another buffer must be filled."""

    def transitions(self, drawn: Drawn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return observations and next observations ``[B, 4, 84, 84]``, and n-step rewards ``[B]``."""

    @staticmethod
    def tree(leaves: int) -> Tree | None:
        """Return its sum tree, of N leaves; None where it has no public one."""


def vector_steps(num_envs: int, count: int, done: float = 0.005) -> list[Step]:
    """Return ``count`` steps of random frames that may be repeated for ever, as one stream.

    Each frame begins with its time and its environment, as two int32; the reward is the time.
    """
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(count, num_envs, *FRAME), dtype=np.uint8)
    stamps = frames.reshape(count, num_envs, -1)[..., :8].view(np.int32)
    stamps[..., 0], stamps[..., 1] = np.arange(count)[:, None], np.arange(num_envs)
    stacks = np.stack([np.roll(frames, STACK - 1 - k, axis=0) for k in range(STACK)], axis=2)
    no = np.zeros(num_envs, bool)
    return [
        Step(
            stacks[t], stacks[(t + 1) % count], frames[t], rng.integers(NUM_ACTIONS, size=num_envs),
            np.full(num_envs, t, np.float32), rng.random(num_envs) < done, no,
        )
        for t in range(count)
    ]  # fmt: skip


def stamps(stacks: np.ndarray) -> np.ndarray:
    """Return time and environment ``[B, 4, 2]`` of the frames of ``stacks [B, 4, 84, 84] uint8``."""
    heads = np.ascontiguousarray(stacks.reshape(*stacks.shape[:2], -1)[..., :8])
    return heads.view(np.int32)


def check(make: Callable[[int, int, int], Buffer], n_step: int) -> float:
    """Return the share of drawn rows whose stacks and n-step return are right, in a small ring that has wrapped.

    Raises
    ------
    AssertionError
        If shapes or dtypes are off, or if priorities do not decide what is drawn.
    """
    buffer, steps = make(CHECK_ENVS * CHECK_ROWS, CHECK_ENVS, n_step), vector_steps(CHECK_ENVS, CHECK_STEPS, done=0.0)
    for t in range(2 * CHECK_ROWS + CHECK_ROWS // 2):
        buffer.add(steps[t % CHECK_STEPS])
    right = []
    for _ in range(CHECK_BATCHES):
        obs, next_obs, reward = buffer.transitions(buffer.sample(256))
        assert obs.shape == next_obs.shape == (256, STACK, *FRAME), f"stacks are {obs.shape} and {next_obs.shape}"
        assert obs.dtype == next_obs.dtype == np.uint8, f"stacks are {obs.dtype} and {next_obs.dtype}"
        (t, env), (next_t, next_env) = np.moveaxis(stamps(obs), 2, 0), np.moveaxis(stamps(next_obs), 2, 0)
        follow = (t[:, -1:] + np.arange(1 - STACK, 1)) % CHECK_STEPS
        window = (t[:, -1:] + np.arange(n_step)) % CHECK_STEPS
        good = (t == follow).all(1) & (next_t == (follow + n_step) % CHECK_STEPS).all(1)
        good &= (env == env[:, :1]).all(1) & (next_env == env[:, :1]).all(1)
        right.append(good & np.isclose(reward, window @ GAMMA ** np.arange(n_step), rtol=1e-4))
    if buffer.prioritized:
        drawn = buffer.sample(256)
        newest = stamps(buffer.transitions(drawn)[0])[:, -1]
        favourite = newest[0]
        buffer.update(drawn, np.where((newest == favourite).all(1), 1e8, 1e-3))
        newest = stamps(buffer.transitions(buffer.sample(256))[0])[:, -1]
        share = (newest == favourite).all(1).mean()
        assert share > 0.9, f"a row that weighs nearly everything was drawn in {share:.0%} of all draws"
    return float(np.mean(right))
