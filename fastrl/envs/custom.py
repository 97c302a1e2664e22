"""Custom environments as one record per step; the only module that knows what Gymnasium's vectors do.

A user's callable makes them. Settings name it ``module:callable``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import check_state
from fastrl.base.errors import ConfigError, RunError
from fastrl.base.extras import extra
from fastrl.envs.foreign import EnvError, calling, same_folder
from fastrl.envs.frames import Frame, per_array
from fastrl.envs.masks import GIVE_LAST, Masks
from fastrl.envs.names import MakeEnv, load
from fastrl.envs.observations import observations_of
from fastrl.envs.step import Array, Autoreset, Step, check_actions, place
from fastrl.film.picture import to_picture

with extra("train"):
    import gymnasium
    from gymnasium import spaces, vector

LARGEST_REWARD = float(np.finfo(np.float32).max)
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
    max_episode_steps : int
        Agent steps after which an episode is truncated, if the environment did not end it before. A vector of the
        user's own can be cut off if it resets some of its environments at ``reset(options={"reset_mask": ...})``:
        those of Gymnasium, and all whose autoreset is disabled. Others warn when an episode takes longer.

    Attributes
    ----------
    is_vector : bool
        Whether the callable makes a vector.
    images : bool
        Whether frames are images, or some of their arrays are; else vectors.
    stacked : str
        How it is known that the environment stacks its frames itself, for a message; empty if it does not seem to.
    masked : bool
        Whether the environments give action masks (`fastrl.envs.masks`); False before the first reset.

    `fastrl.envs.observations.Observations` says what frames are made of observations, `SeveralObservations` what they
    are of observations of several arrays.

    Raises ConfigError if `load` does, if the callable fails or returns something else, one object twice or environments
    of different spaces, if actions are not Discrete, or if observations are neither vectors nor images. `reset` and
    `recv` raise RunError if an observation does not fit the observation space, if it or a reward is not finite, or for
    an action mask as `Masks.read` does.
    Methods raise EnvError for what environments raise. If closing fails, a warning says so.
    """

    def __init__(
        self, game: str, num_envs: int, *, seed: int, reward_clip: bool = False, max_episode_steps: int = 27_000
    ) -> None:
        self._game = game
        self._envs, self.is_vector = _vector(game, num_envs)
        try:
            self.num_actions, self._first_action = _actions(game, self._envs.single_action_space)
            self._observations = observations_of(game, self._envs.single_observation_space, _classes(self._envs))
            self.autoreset = _autoreset(game, self._envs.metadata)
        except ConfigError:
            self._envs.close()
            raise
        self.frame_shape, self.frame_dtype = self._observations.frame_shape, self._observations.frame_dtype
        self.images, self.stacked = self._observations.images, self._observations.stacked
        self.num_envs: int = self._envs.num_envs
        self.action_names = [str(action) for action in range(self.num_actions)]
        self.frame_skip = 1
        self.has_pictures = getattr(self._envs, "render_mode", None) == "rgb_array"
        self.shows_frames = False
        self.takes_actions = True
        self._reward_clip, self._max_steps = reward_clip, max_episode_steps
        self._can_cut = _can_cut(self._envs, self.autoreset)
        self._masks = Masks(game, self.num_envs, self.num_actions)
        self._mask: Array | None = None  # [N, A] bool, of the newest observations
        self._seed: int | None = seed % (SEEDS - self.num_envs + 1)
        self._looked: set[str] = set()  # calls whose first observations were looked at
        self._sent: Array | None = None
        self._asked: Array | None = None  # environments whose rows `recv` returns; None: all
        # By environment: whether its last row ended an episode, whether by the limit; the episode's score and steps.
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._cut = np.zeros(self.num_envs, np.bool_)
        self._score = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, np.int64)

    @property
    def masked(self) -> bool:
        return self._masks.given

    @_guarded("reset()", "a pair (observation, info), and takes the arguments seed and options")
    def reset(self) -> Step:
        """Start new episodes in all environments and return one `reset` row for each."""
        check_state(self._sent is None, "reset() while a step is in progress; call recv() first")
        with self._observations.explained(self._one_by_one(), lambda: np.zeros_like(self._length)):
            obs, info = self._envs.reset(seed=self._seed)
        self._look("reset()")
        self._mask = self._masks.begin(info)
        self._seed = None  # a second reset shall not repeat the first
        self._ended[:], self._cut[:], self._score[:], self._length[:] = False, False, 0, 0
        no = np.zeros(self.num_envs, np.bool_)
        return self._step(self._frames(obs, ~no), np.zeros(self.num_envs), no, no, ~no, ~no)

    @_guarded("step()", "nothing yet")
    def send(self, actions: npt.ArrayLike, env_id: npt.ArrayLike | None = None) -> None:
        """Start one step and return at once if the vector can; `recv` waits for it. Errors as of `AtariEnvs.send`.

        `actions` is [n] integers below `num_actions`. `env_id` is [n] integers, each at most once: the environments
        whose rows `recv` returns (default: all, in order). Vectors step as a whole: the others take the first action
        that they allow.
        """
        check_state(self._sent is None, "send() while a step is in progress; call recv() first")
        chosen, self._asked = check_actions(actions, env_id, self)
        acts = np.zeros(self.num_envs, np.int64) if self._mask is None else self._mask.argmax(axis=1)
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
        with self._observations.explained(self._one_by_one(), self._steps):
            result = envs.step_wait() if isinstance(envs, vector.AsyncVectorEnv) else envs.step(sent)
        self._look("step()")
        obs, reward, terminated, truncated, info = result
        inside = self.autoreset == "next_step"  # the row after an end resets, and its action is ignored
        reset = self._ended if inside else np.zeros(self.num_envs, np.bool_)
        terminated = np.asarray(terminated, np.bool_) & ~reset
        truncated = np.asarray(truncated, np.bool_) & ~reset & ~terminated
        by_itself = terminated | truncated
        opened = by_itself if self.autoreset == "same_step" else reset
        frame, final, final_mask = self._frames(obs, opened), None, None
        # No action is chosen where the game is over, and what the vector played on to is thrown away.
        unread = (terminated & ~opened) | (self._cut & inside)
        self._mask = self._masks.read(info, np.where(opened, 0, self._length + 1), unread)
        if inside and self._cut.any():  # the vector, which knows nothing of the limit, played on
            frame = self._reopened(self._cut)
        reward = self._rewards(reward, reset)
        self._cut = self._too_long() & ~by_itself & ~reset
        truncated |= self._cut
        self._ended = terminated | truncated
        if self._ended.any() and not inside:
            final = self._final(frame, info, by_itself)
            final_mask = self._final_mask(info, by_itself, terminated)
            again = self._ended if self.autoreset == "disabled" else self._cut
            frame = self._reopened(again) if again.any() else frame
        step = self._step(
            frame, reward, terminated, truncated, reset if inside else self._ended, reset, final, final_mask
        )
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
        envs = self._envs
        parts: list[Any] = [envs] if self.is_vector else list(cast(vector.SyncVectorEnv, envs).envs)
        calls = [part.close for part in parts]  # each by itself: one that raises does not keep the others open
        if isinstance(envs, vector.AsyncVectorEnv) and self._sent is None and envs._state.value != "default":
            # What it waits for was read, and could not be put together: it would wait for ever.
            calls = [partial(_kill_processes, envs), partial(envs.close, terminate=True)]
        if self._sent is not None and isinstance(envs, vector.AsyncVectorEnv):
            calls.insert(0, envs.step_wait)
        for call in calls:
            try:
                with calling(self._game, "close()", "nothing that was learned is lost"):
                    call()
            except EnvError as error:
                if not isinstance(error.__cause__, EOFError | ConnectionError):  # told when the process was missed
                    warnings.warn(str(error), stacklevel=2)
                _kill_processes(envs)  # of an AsyncVectorEnv that lost one
        envs.closed = True

    # --- inside ---------------------------------------------------------------------------------------

    def _one_by_one(self) -> list[Any] | None:
        """Return the list in which a `SyncVectorEnv` keeps the newest observation of each environment, if it is one."""
        return getattr(self._envs.unwrapped, "_env_obs", None)

    def _steps(self) -> Array:
        """Return the steps of each one's episode at the observations that a step of the vector just gave, [N]."""
        opened = self._ended if self.autoreset == "next_step" else np.zeros_like(self._ended)
        if self.autoreset == "same_step":
            vector = self._envs.unwrapped
            opened = getattr(vector, "_terminations", opened) | getattr(vector, "_truncations", opened)
        return np.where(opened, 0, self._length + 1)

    def _look(self, call: str) -> None:
        """Warn of observations that are cast, after the first call of each kind."""
        if call not in self._looked:
            self._looked.add(call)
            self._observations.warn_of_casts(self._one_by_one())

    def _frames(self, obs: Any, reset: Array) -> Frame:
        """Return observations of all environments as frames [N, *frame_shape]; `reset` [N] bool: which are first."""
        return self._observations.frames(obs, range(self.num_envs), np.where(reset, 0, self._length + 1))

    def _rewards(self, reward: Any, reset: Array) -> Array:
        """Return the rewards of a step, [N] float64 and 0 in reset rows; RunError if they are no such numbers."""
        try:
            given = np.asarray(reward, np.float64)
        except (TypeError, ValueError):
            given = np.asarray(None)
        if given.shape != (self.num_envs,):
            raise RunError(
                f"environment {self._game!r} returned the rewards {reward!r}; return one number for each of its "
                f"{self.num_envs} environments"
            )
        rewards = np.where(reset, 0.0, given)
        learned = np.isfinite(rewards) & (self._reward_clip | (np.abs(rewards) <= LARGEST_REWARD))
        if not learned.all():
            i = int(np.flatnonzero(~learned)[0])
            remedy = "correct it there" + " (None counts as nan)" * bool(np.isnan(rewards[i]))
            if np.isfinite(rewards[i]):
                remedy = "give --reward-clip, or scale rewards down to what float32 holds"
            where = place(i, int(self._length[i]) + 1)
            raise RunError(f"environment {self._game!r} returned the reward {rewards[i]:g}, {where}; {remedy}")
        return rewards

    def _too_long(self) -> Array:
        """Return which episodes are as long as the limit allows, [N] bool, after the step in progress."""
        long = self._length + 1 >= self._max_steps
        if self._can_cut:
            return long
        asked = slice(None) if self._asked is None else self._asked
        if (self._length[asked] >= self._max_steps).any():
            self._max_steps = np.iinfo(np.int64).max  # say it once
            warnings.warn(
                f"environment {self._game!r} has an episode of more than --max-episode-steps, and its vector cannot "
                "reset a single environment; let the vector truncate episodes itself",
                stacklevel=2,
            )
        return np.zeros_like(long)

    def _final(self, frame: Frame, info: dict[str, Any], by_itself: Array) -> Frame:
        """Return the last frames of the episodes that ended: what was returned itself, unless that is a new one's."""
        if self.autoreset == "disabled" or not by_itself.any():
            return per_array(np.copy, frame)
        check_state("final_obs" in info, "a vector environment with autoreset SAME_STEP gave no info['final_obs']")
        final = per_array(np.copy, frame)

        def put(i: int, array: Array, last: Array) -> None:
            array[i] = last

        for i in np.flatnonzero(by_itself).tolist():
            last = self._observations.frame(info["final_obs"][i], i, int(self._length[i]) + 1)
            per_array(partial(put, i), final, last)
        return final

    def _final_mask(self, info: dict[str, Any], by_itself: Array, terminated: Array) -> Array | None:
        """Return the masks of the last frames that `_final` returns; all True after a termination."""
        if self._mask is None:
            return None
        final = self._mask.copy()
        if self.autoreset == "same_step" and by_itself.any():  # whose own masks are those of a new episode
            last = self._masks.read(info.get("final_info"), self._length + 1, ~by_itself | terminated, GIVE_LAST)
            assert last is not None
            final[by_itself] = last[by_itself]
        return final

    def _reopened(self, ended: Array) -> Frame:
        """Start new episodes where `ended` [N] bool says so; return the frames of all, and note their masks."""
        with self._observations.explained(self._one_by_one(), lambda: np.where(ended, 0, self._length + 1)):
            obs, info = self._envs.reset(options={"reset_mask": ended.copy()})
        opened = self._masks.read(info, np.zeros_like(self._length), ~ended)
        if self._mask is not None and opened is not None:
            self._mask = np.where(ended[:, None], opened, self._mask)
        return self._frames(obs, ended)

    def _step(
        self,
        frame: Frame,
        reward: Array,
        terminated: Array,
        truncated: Array,
        first: Array,
        reset: Array,
        final: Frame | None = None,
        final_mask: Array | None = None,
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
            score=_as_reported(self._score),
            length=self._length.copy(),
            env_id=np.arange(self.num_envs, dtype=np.int32),
            final=final,
            mask=None if self._mask is None else self._mask.copy(),
            final_mask=final_mask,
        )
        self._score[over], self._length[over] = 0, 0
        return step


def _kill_processes(envs: Any) -> None:
    """End the processes of an `AsyncVectorEnv`. A SIGTERM need not: forked inside `Stop`, they only note the first."""
    for process in getattr(envs, "processes", ()):
        process.kill()


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


def _classes(envs: vector.VectorEnv[Any, Any, Any]) -> list[str]:
    """Return the names of the classes of a vector, of its wrappers and of those of its environments."""
    names: list[str] = []
    while isinstance(envs, vector.VectorWrapper):
        names += [kind.__name__ for kind in type(envs).__mro__]
        envs = envs.env
    if isinstance(envs, vector.AsyncVectorEnv):  # in other processes
        return names + re.findall(r"<(\w+)(?=<)", str(envs.call("__str__")[0]))
    env = next(iter(getattr(envs, "envs", ())), None)
    while isinstance(env, gymnasium.Wrapper):
        names += [kind.__name__ for kind in type(env).__mro__]
        env = env.env
    return names


def _can_cut(envs: vector.VectorEnv[Any, Any, Any], autoreset: Autoreset) -> bool:
    """Whether a vector resets single environments when it is told to."""
    base = envs.unwrapped
    if isinstance(base, vector.AsyncVectorEnv):  # without shared memory it forgets that it has
        return base.shared_memory or autoreset != "next_step"
    return autoreset == "disabled" or isinstance(base, vector.SyncVectorEnv)


def _as_reported(score: Array) -> Array:
    """Return scores [N] float64: what float32 makes of them up to 2**24, as ever, and exact ones above.

    Up to there float32 holds all whole numbers, so that equal settings give the metrics that they always gave.
    """
    with np.errstate(over="ignore"):
        return np.where(np.abs(score) < 2**24, score.astype(np.float32), score)


def _autoreset(game: str, metadata: dict[str, Any]) -> Autoreset:
    mode = metadata.get("autoreset_mode")
    try:
        return cast(Autoreset, vector.AutoresetMode(mode).name.lower())
    except ValueError:
        raise ConfigError(
            f"environment {game!r} is a vector whose metadata['autoreset_mode'] is {mode!r}; set it to the "
            "gymnasium.vector.AutoresetMode that it follows"
        ) from None
