"""Games in NumPy that look like EnvPool's Catch to a run, and can be saved in the middle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fastrl.envs.step import Step

SHAPE = (10, 5)


class NumberGames:
    """N games of chance: floats to see, 6 to 30 steps long; the action nearest to the first float scores.

    Like EnvPool's they reset in the step after an end. `fault` is called before each step.
    """

    num_actions, action_names = 3, ["left", "stay", "right"]
    frame_shape, frame_dtype, frame_skip, autoreset = SHAPE, np.dtype(np.float32), 1, "next_step"

    def __init__(self, num_envs: int, seed: int, fault: Any = None) -> None:
        self.num_envs, self._fault = num_envs, fault
        self._rng = np.random.default_rng(seed)
        self._length, self._score = np.zeros(num_envs, np.int64), np.zeros(num_envs)
        self._left = np.zeros(num_envs, np.int64)  # steps until the end; 0: the coming row is a reset
        self._frame = np.zeros((num_envs, *SHAPE), np.float32)
        self._actions: np.ndarray | None = None

    def reset(self) -> Step:
        self._open(np.ones(self.num_envs, bool))
        yes = np.ones(self.num_envs, bool)
        return self._step(np.zeros(self.num_envs), ~yes, yes)

    def send(self, actions: np.ndarray) -> None:
        assert self._actions is None
        self._actions = actions.copy()

    def recv(self) -> Step:
        if self._fault is not None:
            self._fault()
        actions, self._actions = self._actions, None
        reset = self._left == 0
        hit = actions == np.minimum((self._frame[:, 0, 0] * 3).astype(int), 2)
        reward = np.where(reset, 0.0, np.where(hit, 1.0, -1.0))
        self._length += ~reset
        self._score += reward
        self._left -= ~reset
        self._frame = self._rng.random((self.num_envs, *SHAPE), np.float32)
        self._open(reset)
        return self._step(reward, (self._left == 0) & ~reset, reset)

    def close(self) -> None:
        pass

    def state(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in ("_length", "_score", "_left", "_frame", "_actions")}
        return arrays | {"rng": json.dumps(self._rng.bit_generator.state)}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in ("_length", "_score", "_left", "_frame", "_actions"):
            setattr(self, name, state[name])
        self._rng.bit_generator.state = json.loads(state["rng"])

    def _open(self, where: np.ndarray) -> None:
        self._left[where] = self._rng.integers(6, 30, size=self.num_envs)[where]
        self._length[where], self._score[where] = 0, 0

    def _step(self, reward: np.ndarray, over: np.ndarray, first: np.ndarray) -> Step:
        no = np.zeros(self.num_envs, bool)
        return Step(
            frame=self._frame.copy(), reward=reward.astype(np.float32), terminated=over.copy(), truncated=no,
            first=first.copy(), reset=first.copy(), game_over=over.copy(), score=self._score.astype(np.float32),
            length=self._length.copy(), env_id=np.arange(self.num_envs, dtype=np.int32),
        )  # fmt: skip
