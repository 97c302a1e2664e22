"""Custom environments as one record per step; the only module that knows what Gymnasium's vectors do.

A user's callable makes them. Settings name it ``module:callable``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import check_state
from fastrl.base.errors import ConfigError
from fastrl.base.extras import extra
from fastrl.envs.foreign import EnvError, calling, same_folder
from fastrl.envs.names import MakeEnv, load
from fastrl.envs.step import Array, Autoreset, Step, check_actions

with extra("train"):
    import gymnasium
    from gymnasium import spaces, vector

CHANNELS = (1, 3, 4)
SEEDS = 2**31
"""Seeds of environments are below it: libraries keep them in 32 bits with a sign."""
_Method = TypeVar("_Method", bound=Callable[..., Any])
_made: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id, all that callables returned


def _guarded(what: str, wanted: str) -> Callable[[_Method], _Method]:
    """Return a decorator of methods that call environments' own: EnvError says what they raised, or else `wanted`."""

    def decorate(method: _Method) -> _Method:
        @functools.wraps(method)
        def guarded(self: CustomEnvs, *args: Any, **kwargs: Any) -> Any:
            apart = isinstance(self._envs, vector.AsyncVectorEnv)
            remedy = "the traceback of its process stands above" if apart else f"{what} returns {wanted}"
            with calling(self._game, what, remedy):
                return method(self, *args, **kwargs)

        return cast(_Method, guarded)

    return decorate


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
        At least 0; seeds the first reset. A vector seeds its environments by counting up from it, so one from
        ``SEEDS - num_envs + 1`` on wraps around to 0.
    reward_clip : bool
        `Step.reward` is the sign of the reward; `Step.score` is never clipped.

    Attributes
    ----------
    is_vector : bool
        Whether the callable makes a vector.

    Frames are uint8 where observations are, else float32. Channels of images come first: `frame_shape` is [C, H, W], or
    [H, W] where there is one channel.

    Raises ConfigError if `load` does, if the callable fails or returns something else, one object twice or environments
    of different spaces, if actions are not Discrete, or if observations are neither vectors nor images. Methods raise
    EnvError for what environments raise. If closing fails, a warning says so.
    """

    def __init__(self, game: str, num_envs: int, *, seed: int, reward_clip: bool = False) -> None:
        self._game = game
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
        self._seed: int | None = seed % (SEEDS - self.num_envs + 1)
        self._sent: Array | None = None
        self._asked: Array | None = None  # environments whose rows `recv` returns; None: all
        # By environment: whether its last row ended an episode; the running episode's score and steps.
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._score = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, np.int64)

    @_guarded("reset()", "a pair (observation, info)")
    def reset(self) -> Step:
        """Start new episodes in all environments and return one `reset` row for each."""
        check_state(self._sent is None, "reset() while a step is in progress; call recv() first")
        obs, _ = self._envs.reset(seed=self._seed)
        self._seed = None  # a second reset shall not repeat the first
        self._ended[:], self._score[:], self._length[:] = False, 0, 0
        no = np.zeros(self.num_envs, np.bool_)
        return self._step(self._as_frames(obs), np.zeros(self.num_envs), no, no, ~no, ~no)

    @_guarded("step()", "nothing yet")
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

    @_guarded("step()", "(observation, reward, terminated, truncated, info), and reset() a pair (observation, info)")
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
        """Return a picture [H, W, 3] uint8 of one environment; RuntimeError unless `has_pictures`."""
        check_state(self.has_pictures, "render() of environments whose render_mode is not 'rgb_array'")
        singles = getattr(self._envs, "envs", None)
        picture: Any = singles[env_id].render() if singles else self._envs.render()
        return np.array(picture if singles else picture[env_id], np.uint8)

    def close(self) -> None:
        """Close the environments, after waiting for a step in progress; call nothing else afterwards."""
        envs = self._envs
        parts: list[Any] = [envs] if self.is_vector else list(cast(vector.SyncVectorEnv, envs).envs)
        calls = [part.close for part in parts]  # each by itself: one that raises does not keep the others open
        if self._sent is not None and isinstance(envs, vector.AsyncVectorEnv):
            calls.insert(0, envs.step_wait)
        for call in calls:
            try:
                with calling(self._game, "close()", "nothing that was learned is lost"):
                    call()
            except EnvError as error:
                if not isinstance(error.__cause__, EOFError | ConnectionError):  # told when the process was missed
                    warnings.warn(str(error), stacklevel=2)
                for process in getattr(envs, "processes", ()):  # of an AsyncVectorEnv that lost one
                    process.terminate()
        envs.closed = True

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
    made = [_make(game, make_env)]
    if isinstance(made[0], vector.VectorEnv):
        return made[0], True
    try:
        for number in range(num_envs):
            if number:
                made.append(_make(game, make_env))
            if not isinstance(made[number], gymnasium.Env):
                raise ConfigError(
                    f"environment {game!r} returned a vector at one call and not at another; make one kind"
                )
            for name in ("observation_space", "action_space"):
                _check_space(game, name, made[0], made[number])
        with calling(game, "SyncVectorEnv", "see gymnasium.utils.env_checker.check_env", kind=ConfigError):
            return vector.SyncVectorEnv([lambda env=env: env for env in made]), False  # type: ignore[misc]
    except ConfigError:
        for env in made:
            with contextlib.suppress(Exception):  # it has failed, and that error is told
                env.close()
        raise


def _make(game: str, make_env: MakeEnv) -> Any:
    """Return what a callable makes, an environment or a vector that it did not return before."""
    if missing := _missing_arguments(make_env):
        raise ConfigError(
            f"environment {game!r} cannot be called without arguments ({missing}); give a function without any that "
            "calls it with them"
        )
    with same_folder(game, "make_env()"), calling(game, "make_env()", "", kind=ConfigError):
        made = make_env()
    if not isinstance(made, gymnasium.Env | vector.VectorEnv):
        raise ConfigError(
            f"environment {game!r} returned {_kind(made)}; return a gymnasium.Env or a gymnasium.vector.VectorEnv"
        )
    inner = made.unwrapped
    if _made.get(id(inner)) is inner:
        raise ConfigError(
            f"environment {game!r} returned the same {type(inner).__name__} twice; make a new one at each call: "
            "evaluations and the others beside it would play in it too"
        )
    _made[id(inner)] = inner
    return made


def _missing_arguments(make_env: MakeEnv) -> str:
    """Return what a callable needs to be called with; empty if that is nothing, or not known."""
    try:
        signature = inspect.signature(make_env)
    except (TypeError, ValueError):  # some that are not written in Python
        return ""
    try:
        signature.bind()
    except TypeError as error:
        return str(error)
    return ""


def _kind(made: object) -> str:
    """Return what a callable returned that is no environment, and if it is a common slip what to do instead."""
    if made is None:
        return "None (is its `return` missing?)"
    if isinstance(made, type):
        return f"the class {made.__name__} (call it)"
    if inspect.isgenerator(made):
        return "a generator (say return instead of yield)"
    return f"{type(made).__name__} (call it)" if callable(made) else type(made).__name__


def _check_space(game: str, name: str, first: Any, other: Any) -> None:
    """Raise ConfigError unless two environments have the same space of this name."""
    one, another = (getattr(env, name, None) for env in (first, other))
    if not isinstance(another, gymnasium.Space):
        raise ConfigError(
            f"environment {game!r} has {another!r} as its {name}; set it to one of gymnasium.spaces in its __init__"
        )
    if one != another:
        raise ConfigError(
            f"environment {game!r} has the {name} {one} at one call and {another} at another; let all have the same"
        )


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
