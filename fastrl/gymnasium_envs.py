"""A user's own Gymnasium environments as one record per step; the only module that knows what Gymnasium's vectors do.

In settings, such an environment goes by the name ``module:callable`` of what makes it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fastrl.checks import numbers, require
from fastrl.config import ConfigError
from fastrl.extras import need
from fastrl.steps import Array, Autoreset, Step

MakeEnv = Callable[[], Any]
"""Makes a ``gymnasium.Env``, or a ``gymnasium.vector.VectorEnv`` of them."""
CHANNELS = (1, 3, 4)
REMEDY = (
    "name a callable that can be imported, as in my_module:make_env: train takes it in place of a game, evaluate and "
    "watch after --make-env"
)
_given: dict[str, MakeEnv] = {}  # what this process was handed as an object, by name


def is_own(game: str) -> bool:
    """Whether the name of a game is that of a user's own environment."""
    return ":" in game


def same_game(one: str, other: str) -> bool:
    """Whether two names may stand for one game: a user's own environment may have moved to another module."""
    return one == other or (is_own(one) and is_own(other))


def name_of(make_env: MakeEnv) -> str:
    """Return the ``module:callable`` that settings keep of a callable; in this process, `load` gives it back."""
    module = getattr(make_env, "__module__", None) or "__main__"
    if module == "__main__":  # whose name for others is that of its file
        main = sys.modules["__main__"]
        module = main.__spec__.name if main.__spec__ else Path(getattr(main, "__file__", None) or module).stem
    name = f"{module}:{getattr(make_env, '__qualname__', type(make_env).__qualname__)}"
    _given[name] = make_env
    return name


def load(game: str) -> MakeEnv:
    """Return the callable of a name; ConfigError if neither this process was given it nor an import finds it."""
    if game in _given:
        return _given[game]
    module, _, name = game.partition(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"environment {game!r} cannot be imported ({error}); {REMEDY}") from error
    if not callable(found):
        raise ConfigError(f"environment {game!r} is of type {type(found).__name__}, which cannot be called; {REMEDY}")
    return cast(MakeEnv, found)


class GymnasiumEnvs:
    """Copies of a user's environment side by side, as `fastrl.steps.Envs`.

    Parameters
    ----------
    game : str
        ``module:callable``. A callable that makes single environments is called `num_envs` times, and Gymnasium's
        ``SyncVectorEnv`` steps them; one that makes a vector decides their number, and who steps them: those of an
        ``AsyncVectorEnv`` run while the learner learns.
    num_envs : int
        Single environments to make.
    seed : int
        At least 0; seeds the first reset.
    reward_clip : bool
        `Step.reward` is the sign of the reward; `Step.score` is never clipped.

    Frames are uint8 where observations are, else float32. Channels of images come first, `frame_shape` is [C, H, W], or
    [H, W] where there is one channel.

    Raises ConfigError if `load` does, if what the callable returns is no such environment, or if its actions are not
    Discrete or its observations neither vectors nor images.
    """

    def __init__(self, game: str, num_envs: int, *, seed: int, reward_clip: bool = False) -> None:
        self._envs, self.is_vector = _vector(game, num_envs)
        try:
            self.num_actions, self._first_action = _actions(game, self._envs.single_action_space)
            self.frame_shape, self._channels_last = _frames(game, self._envs.single_observation_space)
            self.autoreset = _autoreset(game, self._envs.metadata)
        except ConfigError:
            self._envs.close()
            raise
        kept = self._envs.single_observation_space.dtype == np.uint8
        self.frame_dtype: np.dtype[Any] = np.dtype(np.uint8 if kept else np.float32)
        self.num_envs: int = self._envs.num_envs
        self.action_names = [str(action) for action in range(self.num_actions)]
        self.frame_skip = 1
        self.has_pictures = getattr(self._envs, "render_mode", None) == "rgb_array"
        self._sends = isinstance(self._envs, need("gymnasium.vector", "train").AsyncVectorEnv)
        self._reward_clip = reward_clip
        self._seed: int | None = seed
        self._sent: Array | None = None
        # By environment: was its last row an episode's end; the running episode's score and steps.
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._score = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, np.int64)

    def reset(self) -> Step:
        """Start new episodes in all environments and return one `reset` row for each."""
        require(self._sent is None, "reset() while actions are under way; call recv() first")
        obs, _ = self._envs.reset(seed=self._seed)
        self._seed = None  # a second reset shall not repeat the first
        self._ended[:], self._score[:], self._length[:] = False, 0, 0
        none = np.zeros(self.num_envs, np.bool_)
        return self._step(self._as_frames(obs), np.zeros(self.num_envs), none, none, ~none, ~none)

    def send(self, actions: npt.ArrayLike) -> None:
        """Start one step; `actions` is [N] integers below `num_actions`. Errors as of `AtariEnvs.send`."""
        require(self._sent is None, "send() while actions are under way; call recv() first")
        chosen = numbers("actions", actions, self.num_actions)
        if len(chosen) != self.num_envs:
            raise ValueError(f"actions has {len(chosen)} entries for {self.num_envs} environments; give one for each")
        self._sent = chosen.astype(np.int64) + self._first_action
        if self._sends:
            self._envs.step_async(self._sent)

    def recv(self) -> Step:
        """Wait for the step that `send` started; RuntimeError if there is none."""
        require(self._sent is not None, "recv() without a step under way; call send() first")
        sent, self._sent = self._sent, None  # under way no more, also if an environment raises
        obs, reward, terminated, truncated, info = self._envs.step_wait() if self._sends else self._envs.step(sent)
        inside = self.autoreset == "next_step"  # the row after an end resets, and its action is ignored
        reset = self._ended if inside else np.zeros(self.num_envs, np.bool_)
        terminated = np.asarray(terminated, np.bool_) & ~reset
        truncated = np.asarray(truncated, np.bool_) & ~reset & ~terminated
        self._ended = terminated | truncated
        frame, final = self._as_frames(obs), None
        if self._ended.any() and not inside:
            final, frame = self._final(frame, info), self._reopened(frame)
        reward = np.where(reset, 0.0, reward)
        return self._step(frame, reward, terminated, truncated, reset if inside else self._ended, reset, final)

    def step(self, actions: npt.ArrayLike) -> Step:
        """`send`, then `recv`."""
        self.send(actions)
        return self.recv()

    def render(self) -> npt.NDArray[np.uint8]:
        """Return a picture [H, W, 3] uint8 of the first environment; RuntimeError unless `has_pictures`."""
        require(self.has_pictures, "render() of environments whose render_mode is not 'rgb_array'")
        singles = getattr(self._envs, "envs", None)
        return np.array(singles[0].render() if singles else self._envs.render()[0], np.uint8)

    def close(self) -> None:
        """Close the environments, once a step under way has ended; nothing else may be called afterwards."""
        if self._sent is not None and self._sends:
            self._envs.step_wait()
        self._envs.close()

    # --- inside ---------------------------------------------------------------------------------------

    def _as_frames(self, obs: Any) -> Array:
        """Return observations of any number of environments as fresh frames [n, *frame_shape]."""
        frames = np.asarray(obs)
        if self._channels_last:
            frames = np.moveaxis(frames, -1, 1)
        return np.array(frames, self.frame_dtype, order="C").reshape(-1, *self.frame_shape)

    def _final(self, frame: Array, info: dict[str, Any]) -> Array:
        """Return the last frames of the episodes that ended: what was returned itself, unless that is a new one's."""
        if self.autoreset == "disabled":
            return frame
        require("final_obs" in info, "a vector environment with autoreset SAME_STEP gave no info['final_obs']")
        final = frame.copy()
        for i in np.flatnonzero(self._ended):
            final[i] = self._as_frames(info["final_obs"][i][None])[0]
        return final

    def _reopened(self, frame: Array) -> Array:
        """Return frames of running episodes, new ones where they ended."""
        if self.autoreset == "same_step":
            return frame
        return self._as_frames(self._envs.reset(options={"reset_mask": self._ended.copy()})[0])

    def _step(
        self, frame: Array, reward: Array, terminated: Array, truncated: Array, first: Array, reset: Array,
        final: Array | None = None,
    ) -> Step:  # fmt: skip
        """Bring the books up to date and return the record."""
        over = terminated | truncated
        self._score += reward
        self._length += ~reset
        step = Step(
            frame=frame,
            reward=(np.sign(reward) if self._reward_clip else reward).astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            first=first.copy(),
            reset=reset.copy(),
            game_over=over,
            score=self._score.astype(np.float32),
            length=self._length.copy(),
            env_id=np.arange(self.num_envs, dtype=np.int32),
            final=final,
        )
        self._score[over], self._length[over] = 0, 0
        return step


def _vector(game: str, num_envs: int) -> tuple[Any, bool]:
    """Return a vector of environments, and whether the callable made it itself."""
    gymnasium, vector = need("gymnasium", "train"), need("gymnasium.vector", "train")
    make_env = load(game)
    made = make_env()
    if isinstance(made, vector.VectorEnv):
        return made, True
    if not isinstance(made, gymnasium.Env):
        raise ConfigError(
            f"environment {game!r} returned {type(made).__name__}; return a gymnasium.Env or a "
            "gymnasium.vector.VectorEnv"
        )
    return vector.SyncVectorEnv([lambda: made, *[make_env] * (num_envs - 1)]), False


def _actions(game: str, space: Any) -> tuple[int, int]:
    """Return the number of actions, and the first of them."""
    if not isinstance(space, need("gymnasium.spaces", "train").Discrete):
        raise ConfigError(
            f"environment {game!r} has the actions {space}; Q-learning compares the values of all actions: give an "
            "environment whose action space is Discrete"
        )
    return int(space.n), int(space.start)


def _frames(game: str, space: Any) -> tuple[tuple[int, ...], bool]:
    """Return the shape of a frame, and whether its channels have to be moved to the front."""
    shape = getattr(space, "shape", None)
    if isinstance(space, need("gymnasium.spaces", "train").Box) and shape is not None:
        if len(shape) in (1, 2):
            return shape, False
        if len(shape) == 3 and (shape[-1] in CHANNELS or shape[0] in CHANNELS):
            last = shape[-1] in CHANNELS
            channels, image = (shape[-1], shape[:-1]) if last else (shape[0], shape[1:])
            return image if channels == 1 else (channels, *image), last
    raise ConfigError(
        f"environment {game!r} has the observations {space}; give a Box of shape [n], [H, W], [H, W, C] or [C, H, W] "
        f"with 1, 3 or 4 channels (gymnasium.wrappers.FlattenObservation makes a vector of most others)"
    )


def _autoreset(game: str, metadata: dict[str, Any]) -> Autoreset:
    modes, mode = need("gymnasium.vector", "train").AutoresetMode, metadata.get("autoreset_mode")
    try:
        return cast(Autoreset, modes(mode).name.lower())
    except ValueError:
        raise ConfigError(
            f"environment {game!r} is a vector whose metadata['autoreset_mode'] is {mode!r}; set it to the "
            "gymnasium.vector.AutoresetMode that it follows"
        ) from None
