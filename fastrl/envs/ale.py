"""One Atari game on ale-py through Gymnasium's own preprocessing: a second opinion. The rules are those on EnvPool, but
that no-ops come at the start of a game alone, where EnvPool with episodic life plays them after each lost life too.

The only module that knows ale-py's emulator and Gymnasium's ``AtariPreprocessing``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import at_least, check_state, indices, share
from fastrl.base.errors import ConfigError
from fastrl.base.extras import extra
from fastrl.envs.names import action_names, game_name, task_id
from fastrl.envs.step import Array, Autoreset, EachFrame, Step, check_actions

with extra("train"):
    import ale_py
    import gymnasium
    from gymnasium.wrappers import AtariPreprocessing

SCREEN_HEIGHT = 210
"""Lines of the screen that agents see, the upper ones: EnvPool's rule. A dozen games draw up to 250."""


class AleEnvs:
    """One environment that plays whole games one after another, as `fastrl.envs.step.GameEnvs`.

    In games with a FIRE among the agent's actions, and if the rules say so, FIRE is pressed for the player after each
    reset and after each lost life, for one emulator frame as EnvPool does. After a lost life that takes a row of its
    own, marked ``reset``: it ignores its action, and only its score counts. Lost lives end no episode here, so these
    environments are for evaluations, not for training.

    Parameters
    ----------
    game : str
        Any spelling that `task_id` takes, apart from ``catch``.
    seed : int
        At least 0. Each game gets a seed of its own, derived from it.
    frame_skip, fire_reset, full_action_set, reward_clip, repeat_action_probability, noop_max, max_episode_steps
        As of `fastrl.envs.atari.AtariEnvs`.
    episodic_life : bool
        Press FIRE after lost lives too.
    render : bool
        Allow `render()`.
    each_frame : callable, optional
        Called after each emulator frame, resets included: many games draw some things in every other frame only. Needs
        `render`.

    Raises
    ------
    ConfigError
        For a setting out of its range, an unknown game, or ``catch``.
    """

    num_envs = 1
    frame_shape: tuple[int, ...] = (84, 84)
    frame_dtype: np.dtype[Any] = np.dtype(np.uint8)
    autoreset: Autoreset = "next_step"

    def __init__(
        self,
        game: str,
        *,
        seed: int,
        frame_skip: int = 4,
        episodic_life: bool = True,
        fire_reset: bool = True,
        full_action_set: bool = False,
        reward_clip: bool = True,
        repeat_action_probability: float = 0.0,
        noop_max: int = 30,
        max_episode_steps: int = 27_000,
        render: bool = False,
        each_frame: EachFrame | None = None,
    ) -> None:
        at_least(1, frame_skip=frame_skip, noop_max=noop_max, max_episode_steps=max_episode_steps)
        at_least(0, seed=seed)
        share(repeat_action_probability=repeat_action_probability)
        if game_name(game) == "catch":
            raise ConfigError("backend is 'gymnasium', which has no catch; give 'envpool'")
        emulator = _emulator(game, repeat_action_probability, "rgb_array" if render else None)
        shown = emulator if each_frame is None else _EachFrame(emulator, each_frame)
        self._env = _Preprocessing(shown, noop_max=noop_max, frame_skip=frame_skip)
        self.has_pictures, self.shows_frames = render, each_frame is not None
        self.frame_skip = frame_skip
        self.action_names = list(action_names(game_name(game), full_action_set))
        self.num_actions = len(self.action_names)
        meanings: list[str] = emulator.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        self._numbers = [meanings.index(name) for name in self.action_names]  # the emulator's, of the agent's actions
        presses = fire_reset and "FIRE" in self.action_names
        self._fire = meanings.index("FIRE") if presses else None
        self._fire_after_lives = presses and episodic_life
        self._reward_clip, self._max_episode_steps = reward_clip, max_episode_steps
        self._seeds, self._games = np.random.SeedSequence(seed), 0
        self._over = False  # the last row ended a game
        self._presses = False  # the next step presses FIRE
        self._lives, self._score, self._length = 0, 0.0, 0
        self._sent: int | None = None

    @property
    def takes_actions(self) -> bool:
        """Whether the next step takes actions; if not, it presses FIRE for the player, whatever the action."""
        return not self._presses

    def reset(self) -> Step:
        """Start the next game, press FIRE, and return its `reset` row; `game_over` if that FIRE ended the game."""
        check_state(self._sent is None, "reset() while a step is in progress; call recv() first")
        frame, info = self._env.reset(seed=int(self._seeds.generate_state(self._games + 1)[-1]))
        self._games += 1
        self._lives, self._score, self._length, self._over = info["lives"], 0.0, 0, False
        self._presses = self._fire is not None
        while self._presses and not self._over:
            frame = self._press()
        return self._record(frame, 0.0, first=True, reset=True)

    def send(self, actions: npt.ArrayLike, env_id: npt.ArrayLike | None = None) -> None:
        """Take one action, [1] integers, which `recv` plays. Errors as of `AtariEnvs.send`."""
        check_state(self._games > 0, "send() before reset(); call reset() first")
        check_state(self._sent is None, "send() while a step is in progress; call recv() first")
        self._sent = int(check_actions(actions, env_id, self)[0][0])

    def recv(self) -> Step:
        """Play the step that `send` took and return its row; RuntimeError without one."""
        check_state(self._sent is not None, "recv() without a step in progress; call send() first")
        sent, self._sent = self._sent, None
        if self._over:
            return self.reset()
        if self._presses:
            frame = self._press()
            return self._record(frame, 0.0, first=False, reset=True)
        assert sent is not None
        self._length += 1
        frame, reward = self._take(self._env.step(self._numbers[sent]))
        return self._record(frame, reward, first=False, reset=False)

    def render(self, env_id: int = 0) -> npt.NDArray[np.uint8]:
        """Return the screen [H, W, 3] uint8; RuntimeError if built without ``render=True``."""
        check_state(self.has_pictures, "render() of an environment without a screen; build it with render=True")
        indices("env_id", [env_id], self.num_envs)
        return np.asarray(self._env.render(), np.uint8)

    def close(self) -> None:
        """Free the emulator; call nothing else afterwards."""
        self._env.close()

    def _press(self) -> Array:
        """Press FIRE for one emulator frame instead of an agent step, and return the frame."""
        assert self._fire is not None
        return self._take(self._env.step_one_frame(self._fire))[0]

    def _take(self, result: tuple[Array, Any, bool, bool, dict[str, Any]]) -> tuple[Array, float]:
        """Bring the books up to date with what a step returned; return its frame and its reward."""
        frame, reward, self._over, _, info = result
        self._score += float(reward)
        self._presses = self._fire_after_lives and info["lives"] < self._lives
        self._lives = info["lives"]
        return frame, float(reward)

    def _record(self, frame: Array, reward: float, *, first: bool, reset: bool) -> Step:
        terminated, cut = self._over, not self._over and self._length >= self._max_episode_steps
        self._over = terminated or cut
        self._presses = self._presses and not self._over
        return Step(
            frame=frame[None],
            reward=np.array([np.sign(reward) if self._reward_clip else reward], np.float32),
            terminated=np.array([terminated]),
            truncated=np.array([cut]),
            first=np.array([first]),
            reset=np.array([reset]),
            game_over=np.array([self._over]),
            score=np.array([self._score]),
            length=np.array([self._length], np.int64),
            env_id=np.zeros(1, np.int32),
        )


def _emulator(game: str, repeat_action_probability: float, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """Return ``ALE/<Game>-v5`` with all actions, and with none of its own rules but sticky actions."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    wanted = f"ale/{task_id(game)}".lower()  # EnvPool and ale-py spell one game differently: TicTacToe3d, TicTacToe3D
    return gymnasium.make(
        next(known for known in gymnasium.registry if known.lower() == wanted),
        frameskip=1,
        full_action_space=True,  # whichever the agent has: for its NOOP, which Backgammon's own actions lack
        repeat_action_probability=repeat_action_probability,
        max_num_frames_per_episode=0,  # the cap counts agent steps, see AleEnvs
        render_mode=render_mode,
    )


class _EachFrame(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Hands the screen over after each frame of the emulator."""

    def __init__(self, env: gymnasium.Env[Any, Any], each_frame: EachFrame) -> None:
        super().__init__(env)
        self._each_frame = each_frame

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._each_frame(self._draw)
        return result

    def _draw(self) -> npt.NDArray[np.uint8]:
        return np.asarray(self.env.render(), np.uint8)


class _Preprocessing(AtariPreprocessing):
    """Gymnasium's preprocessing to [84, 84] uint8, of the lines that EnvPool takes."""

    def __init__(self, env: gymnasium.Env[Any, Any], *, noop_max: int, frame_skip: int) -> None:
        super().__init__(env, noop_max=noop_max, frame_skip=frame_skip, screen_size=84, grayscale_obs=True)

    def step_one_frame(self, action: int) -> Any:
        """Step by one emulator frame instead of an agent step."""
        self.obs_buffer[1][:] = 0  # or the frame before would shine through
        frame_skip, self.frame_skip = self.frame_skip, 1
        try:
            return self.step(action)
        finally:
            self.frame_skip = frame_skip

    def _get_obs(self) -> Any:
        screens = self.obs_buffer
        self.obs_buffer = [screen[:SCREEN_HEIGHT] for screen in screens]
        try:
            return super()._get_obs()  # type: ignore[no-untyped-call]
        finally:
            self.obs_buffer = screens
