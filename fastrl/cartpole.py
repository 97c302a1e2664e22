"""CartPole as Gymnasium plays it: many at once to learn on, one at a time to film.

The only file that knows Gymnasium's vectorised environment. v1 with v0's time limit is v0.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastrl.config import ConfigError
from fastrl.extras import need

ACTIONS: Final = 2
FEATURES: Final = 4
SCALE: Final[npt.NDArray[np.float64]] = np.array([10.0, 6.0, math.radians(12.0), 2.0])
"""What observations are divided by: position in m, speed in m/s, angle in rad, its speed in rad/s."""
TIME_LIMIT: Final = {"v0": 200, "v1": 500}
"""Steps after which an episode is cut off, by version."""
SOLVED_RETURN: Final = {"v0": 195.0, "v1": 475.0}
"""Average return over 100 consecutive episodes that counts as solved, by version."""


class CartPoles:
    """L CartPoles side by side: reward 0, and -1 for the step that fails.

    Each resets in the step *after* its episode's end (Gymnasium's NEXT_STEP mode). Such a row ignores the
    action and holds no transition.

    Parameters
    ----------
    number : int
        L.
    version : str
        ``"v0"`` or ``"v1"``.
    seed : int

    Raises
    ------
    ImportError
        If Gymnasium is missing; the message names the extra.
    """

    def __init__(self, number: int, version: str, seed: int) -> None:
        self._env = need("gymnasium", "train").make_vec(
            "CartPole-v1",
            num_envs=number,
            vectorization_mode="vector_entry_point",
            max_episode_steps=TIME_LIMIT[version],
            sutton_barto_reward=True,
        )
        self.observation: npt.NDArray[np.float32] = self._env.reset(seed=seed)[0].T
        """float32 [F, L]: the newest."""

    def step(
        self, action: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Take ``action``, ``[L] int64``; return reward, terminated and truncated, each ``[L]``."""
        observation, reward, terminated, truncated, _ = self._env.step(action)
        self.observation = observation.T
        return reward.astype(np.float64), terminated, truncated

    @property
    def features(self) -> npt.NDArray[np.float64]:
        """The newest observation, scaled to about 1 in size: ``[F, L] float64``."""
        return np.divide(self.observation, SCALE[:, None])

    def state(self) -> dict[str, Any]:
        """Return everything as copied arrays, and the generator as JSON."""
        env = self._env.unwrapped
        return {
            "observation": self.observation.copy(),
            "state": env.state.copy(),
            "steps": env.steps.copy(),
            "prev_done": env.prev_done.copy(),
            "rng": json.dumps(env.np_random.bit_generator.state),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken.

        Raises
        ------
        ConfigError
            If the state holds another number of CartPoles.
        """
        env = self._env.unwrapped
        saved, number = np.shape(state["observation"])[-1], env.num_envs
        if saved != number:
            raise ConfigError(f"--learners is {number}, but the saved state has {saved}; give --learners {saved}")
        self.observation = np.array(state["observation"])
        for name in ("state", "steps", "prev_done"):
            setattr(env, name, np.array(state[name]))
        env.np_random.bit_generator.state = json.loads(state["rng"])


def film(act: Callable[[npt.NDArray[np.float32]], int], version: str, seed: int) -> list[npt.NDArray[np.uint8]]:
    """Play one episode and return its pictures, ``[400, 600, 3] uint8`` each, 50 per second of play.

    Parameters
    ----------
    act : callable
        From a raw observation, ``[F] float32``, to an action.
    version : str
        ``"v0"`` or ``"v1"``.
    seed : int

    Raises
    ------
    ImportError
        If Gymnasium or pygame is missing; the message names the extra.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window, no display needed
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    need("pygame", "train")
    env = need("gymnasium", "train").make("CartPole-v1", render_mode="rgb_array", max_episode_steps=TIME_LIMIT[version])
    try:
        observation, _ = env.reset(seed=seed)
        frames, over = [env.render()], False
        while not over:
            observation, _, terminated, truncated, _ = env.step(act(observation))
            frames.append(env.render())
            over = terminated or truncated
        return frames
    finally:
        env.close()
