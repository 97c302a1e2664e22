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

from fastrl.base.errors import ConfigError
from fastrl.base.extras import extra

ACTIONS: Final = 2
FEATURES: Final = 4
SCALE: Final[npt.NDArray[np.float64]] = np.array([10.0, 6.0, math.radians(12.0), 2.0])
"""What observations are divided by: position in m, speed in m/s, angle in rad, its speed in rad/s."""
SCALES: Final = {"scaled": SCALE, "raw": np.ones(FEATURES)}
"""What learners divide observations by, by the setting ``features``."""
TIME_LIMIT: Final = {"v0": 200, "v1": 500}
"""Steps after which an episode is cut off, by version."""
SOLVED_RETURN: Final = {"v0": 195.0, "v1": 475.0}
"""Average return over 100 consecutive episodes that counts as solved, by version."""


class CartPoles:
    """L CartPoles side by side.

    Each resets in the step *after* its episode's end (Gymnasium's NEXT_STEP mode). Such a row ignores the
    action, holds no transition and has reward 0.

    Parameters
    ----------
    number : int
        L.
    version : str
        ``"v0"`` or ``"v1"``.
    seed : int
    reward : str
        ``"failure"``: 0, and -1 for the step that fails; ``"survival"``: +1 for every step, that one too.
    features : str
        ``"scaled"``: observations divided by `SCALE`; ``"raw"``: as they come.
    dynamics : str
        ``"gymnasium"`` or ``"own"`` (`OwnCartPoles`); the numbers are the same.

    Raises
    ------
    ImportError
        If Gymnasium is asked for and missing; the message names the extra.
    """

    def __init__(
        self,
        number: int,
        version: str,
        seed: int,
        *,
        reward: str = "failure",
        features: str = "scaled",
        dynamics: str = "gymnasium",
    ) -> None:
        make = OwnCartPoles if dynamics == "own" else _gymnasium
        self._env: Any = make(number, TIME_LIMIT[version], reward == "failure")
        self._scale = SCALES[features][:, None]
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
        """The newest observation as the learner sees it: ``[F, L] float64``."""
        return np.divide(self.observation, self._scale)

    def state(self) -> dict[str, Any]:
        """Return everything as copied arrays, and the generator as JSON."""
        env = self._env
        return {
            "observation": self.observation.copy(),
            "state": env.state.copy(),
            "steps": env.steps.copy(),
            "prev_done": env.prev_done.copy(),
            "rng": json.dumps(env.np_random.bit_generator.state),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state` was taken.

        Raises
        ------
        ConfigError
            If the state holds another number of CartPoles.
        """
        env = self._env
        saved, number = np.shape(state["observation"])[-1], env.num_envs
        if saved != number:
            raise ConfigError(f"--learners is {number}, but the saved state has {saved}; give --learners {saved}")
        self.observation = np.array(state["observation"])
        for name in ("state", "steps", "prev_done"):
            setattr(env, name, np.array(state[name]))
        env.np_random.bit_generator.state = json.loads(state["rng"])


def _gymnasium(number: int, time_limit: int, failure_reward: bool) -> Any:
    with extra("train"):
        import gymnasium
    return gymnasium.make_vec(
        "CartPole-v1",
        num_envs=number,
        vectorization_mode="vector_entry_point",
        max_episode_steps=time_limit,
        sutton_barto_reward=failure_reward,
    ).unwrapped


class OwnCartPoles:
    """Gymnasium's ``CartPoleVectorEnv``, as much of it as `CartPoles` needs, in fewer and leaner NumPy calls.

    Parameters
    ----------
    num_envs : int
        L.
    time_limit : int
        Steps after which an episode is cut off.
    failure_reward : bool
        0 and -1 for the step that fails, instead of +1 for every step.

    Notes
    -----
    The equations are Florian's (2005, "Correct equations for the dynamics of the cart-pole system", without
    friction), integrated by Euler steps of 0.02 s. Every operation on a number is Gymnasium's, in its order, so
    that all results are equal to the bit; that is why nothing is factored out of the divisions.
    """

    def __init__(self, num_envs: int, time_limit: int, failure_reward: bool) -> None:
        self.num_envs, self._time_limit, self._failure_reward = num_envs, time_limit, failure_reward
        self.reset(seed=0)

    def reset(self, *, seed: int) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode in every CartPole; return the observations ``[L, F]`` and nothing."""
        self.np_random = np.random.default_rng(seed)
        self.state: npt.NDArray[np.float64] = self._starts(self.num_envs)
        self.steps = np.zeros(self.num_envs, np.int32)
        self.prev_done = np.zeros(self.num_envs, np.bool_)
        return self.state.T.astype(np.float32), {}

    def step(
        self, action: npt.NDArray[np.int64]
    ) -> tuple[
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        dict[str, Any],
    ]:
        """Push each cart left (0) or right (1), or reset it; return what Gymnasium's ``step`` returns."""
        self._move(action)
        x, _, theta, _ = self.state
        terminated = (np.abs(x) > _X_LIMIT) | (np.abs(theta) > _ANGLE_LIMIT)
        self.steps += 1
        truncated = self.steps >= self._time_limit
        reward = -terminated.astype(np.float32) if self._failure_reward else np.ones(self.num_envs, np.float32)
        if self.prev_done.any():
            self._restart(reward, terminated, truncated)
        self.prev_done = terminated | truncated
        return self.state.T.astype(np.float32), reward, terminated, truncated, {}

    def _move(self, action: npt.NDArray[np.int64]) -> None:
        x, x_dot, theta, theta_dot = self.state  # views
        cos, sin = np.cos(theta), np.sin(theta)
        push = (2.0 * _FORCE * action - _FORCE + _POLE_MOMENT * np.square(theta_dot) * sin) / _MASS
        angular = (_GRAVITY * sin - cos * push) / (_HALF_POLE * (4.0 / 3.0 - _POLE_MASS * np.square(cos) / _MASS))
        linear = push - _POLE_MOMENT * angular * cos / _MASS
        x += _SECONDS * x_dot
        x_dot += _SECONDS * linear
        theta += _SECONDS * theta_dot
        theta_dot += _SECONDS * angular

    def _restart(
        self,
        reward: npt.NDArray[np.float32],
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
    ) -> None:
        """Reset where the last step ended an episode; such a row holds no transition."""
        over = np.flatnonzero(self.prev_done)
        self.state[:, over] = self._starts(len(over))
        self.steps[over] = 0
        reward[over], terminated[over], truncated[over] = 0.0, False, False

    def _starts(self, number: int) -> npt.NDArray[np.float64]:
        return self.np_random.uniform(-0.05, 0.05, size=(FEATURES, number))


_GRAVITY, _FORCE, _SECONDS = 9.8, 10.0, 0.02
_POLE_MASS, _MASS, _HALF_POLE = 0.1, 0.1 + 1.0, 0.5
_POLE_MOMENT = _POLE_MASS * _HALF_POLE
_X_LIMIT, _ANGLE_LIMIT = 2.4, 12 * 2 * math.pi / 360


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
    with extra("train"):
        import gymnasium
        import pygame  # noqa: F401 - with which it draws
    env: Any = gymnasium.make("CartPole-v1", render_mode="rgb_array", max_episode_steps=TIME_LIMIT[version])
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
