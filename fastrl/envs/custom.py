"""Custom environments as one record per step; the only module that knows what Gymnasium's vectors do.

A user's callable makes them. Settings name it ``module:callable``.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import check_state
from fastrl.base.errors import ConfigError
from fastrl.base.extras import extra
from fastrl.envs.names import load
from fastrl.envs.step import Array, Autoreset, Step, check_actions
from fastrl.film.picture import to_picture

with extra("train"):
    import gymnasium
    from gymnasium import spaces, vector

CHANNELS = (1, 3, 4)


class CustomEnvs:
    """Copies of a custom environment side by side, as `fastrl.envs.step.GameEnvs`.

    Parameters
    ----------
    game : str
        ``module:callable``. A callable that makes single environments is called `num_envs` times, and Gymnasium's
        ``SyncVectorEnv`` steps them. One that makes a vector decides how many environments there are and how they are
        stepped: those of an ``AsyncVectorEnv`` run while the learner learns.
    num_envs : int
        Single environments to make.
    seed : int
        At least 0; seeds the first reset.
    reward_clip : bool
        `Step.reward` is the sign of the reward; `Step.score` is never clipped.

    Attributes
    ----------
    is_vector : bool
        Whether the callable makes a vector.

    Frames are uint8 where observations are, else float32. Channels of images come first: `frame_shape` is [C, H, W], or
    [H, W] where there is one channel.

    Raises ConfigError if `load` does, if the callable returns something else, if actions are not Discrete, or if
    observations are neither vectors nor images.
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
        self.shows_frames = False
        self.takes_actions = True
        self._reward_clip = reward_clip
        self._seed: int | None = seed
        self._sent: Array | None = None
        self._asked: Array | None = None  # environments whose rows `recv` returns; None: all
        # By environment: whether its last row ended an episode; the running episode's score and steps.
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._score = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, np.int64)

    def reset(self) -> Step:
        """Start new episodes in all environments and return one `reset` row for each."""
        check_state(self._sent is None, "reset() while a step is in progress; call recv() first")
        obs, _ = self._envs.reset(seed=self._seed)
        self._seed = None  # a second reset shall not repeat the first
        self._ended[:], self._score[:], self._length[:] = False, 0, 0
        no = np.zeros(self.num_envs, np.bool_)
        return self._step(self._as_frames(obs), np.zeros(self.num_envs), no, no, ~no, ~no)

    def send(self, actions: npt.ArrayLike, env_id: npt.ArrayLike | None = None) -> None:
        """Start one step and return at once if the vector can; `recv` waits for it. Errors as of `AtariEnvs.send`.

        `actions` is [n] integers below `num_actions`. `env_id` is [n] integers, each at most once: the environments
        whose rows `recv` returns (default: all, in order). Vectors step as a whole: the others take their first action.
        """
        check_state(self._sent is None, "send() while a step is in progress; call recv() first")
        chosen, self._asked = check_actions(actions, env_id, self)
        acts = np.zeros(self.num_envs, np.int64)
        acts[slice(None) if self._asked is None else self._asked] = chosen
        self._sent = acts + self._first_action
        if isinstance(self._envs, vector.AsyncVectorEnv):
            self._envs.step_async(self._sent)

    def recv(self) -> Step:
        """Wait for the step that `send` started; its rows come in the order sent. RuntimeError without one."""
        check_state(self._sent is not None, "recv() without a step in progress; call send() first")
        sent, self._sent = self._sent, None  # no longer in progress, also if an environment raises
        envs = self._envs
        result = envs.step_wait() if isinstance(envs, vector.AsyncVectorEnv) else envs.step(sent)
        obs, reward, terminated, truncated, info = result
        inside = self.autoreset == "next_step"  # the row after an end resets, and its action is ignored
        reset = self._ended if inside else np.zeros(self.num_envs, np.bool_)
        terminated = np.asarray(terminated, np.bool_) & ~reset
        truncated = np.asarray(truncated, np.bool_) & ~reset & ~terminated
        self._ended = terminated | truncated
        frame, final = self._as_frames(obs), None
        if self._ended.any() and not inside:
            final, frame = self._final(frame, info), self._reopened(frame)
        reward = np.where(reset, 0.0, reward)
        step = self._step(frame, reward, terminated, truncated, reset if inside else self._ended, reset, final)
        return step if self._asked is None else step.select(self._asked)

    def step(self, actions: npt.ArrayLike, env_id: npt.ArrayLike | None = None) -> Step:
        """`send`, then `recv`."""
        self.send(actions, env_id)
        return self.recv()

    def render(self, env_id: int = 0) -> npt.NDArray[np.uint8]:
        """Return a picture [H, W, 3] uint8 of one environment, or of all where a vector draws them as one.

        Raises RuntimeError unless `has_pictures`, PictureError if what is drawn is no picture
        (`fastrl.film.picture.to_picture`), and what the environment raises.
        """
        check_state(self.has_pictures, "render() of environments whose render_mode is not 'rgb_array'")
        singles = getattr(self._envs, "envs", None)
        if singles:
            return to_picture(singles[env_id].render())
        drawn: Any = self._envs.render()
        one_each = isinstance(drawn, list | tuple) or np.ndim(drawn) == 4
        return to_picture(drawn[env_id] if one_each and len(drawn) == self.num_envs else drawn)

    def close(self) -> None:
        """Close the environments, after waiting for a step in progress; call nothing else afterwards."""
        if self._sent is not None and isinstance(self._envs, vector.AsyncVectorEnv):
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
        check_state("final_obs" in info, "a vector environment with autoreset SAME_STEP gave no info['final_obs']")
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
        self,
        frame: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        first: Array,
        reset: Array,
        final: Array | None = None,
    ) -> Step:
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


def _vector(game: str, num_envs: int) -> tuple[vector.VectorEnv[Any, Any, Any], bool]:
    """Return a vector of environments, and whether the callable made it itself."""
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


def _actions(game: str, space: gymnasium.Space[Any]) -> tuple[int, int]:
    """Return the number of actions, and the first of them."""
    if not isinstance(space, spaces.Discrete):
        raise ConfigError(
            f"environment {game!r} has the actions {space}; Q-learning compares the values of all actions: give an "
            "environment whose action space is Discrete"
        )
    return int(space.n), int(space.start)


def _frames(game: str, space: gymnasium.Space[Any]) -> tuple[tuple[int, ...], bool]:
    """Return the shape of a frame, and whether its channels have to be moved to the front."""
    if isinstance(space, spaces.Box):
        shape = space.shape
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
    mode = metadata.get("autoreset_mode")
    try:
        return cast(Autoreset, vector.AutoresetMode(mode).name.lower())
    except ValueError:
        raise ConfigError(
            f"environment {game!r} is a vector whose metadata['autoreset_mode'] is {mode!r}; set it to the "
            "gymnasium.vector.AutoresetMode that it follows"
        ) from None
