"""Whole games with any act function: scores, lengths and a film.

A game counts as the literature counts it: all lives, unclipped rewards, a cap on its steps. Episodes are
played to the end one for one, so that short games do not crowd out long ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastrl.atari import AtariEnvs, FrameStack, action_names, game_name, task_id
from fastrl.config import ConfigError
from fastrl.extras import need
from fastrl.video import frame_to_rgb

Act = Callable[[npt.NDArray[Any]], npt.ArrayLike]
"""Stacks [n, stack, *frame] to actions [n] integers; n is the number of games still running."""
Show = Callable[[npt.NDArray[np.uint8]], object]
"""Takes a picture [H, W, 3] uint8. What it raises ends the games and reaches the caller."""
Backend = Literal["envpool", "gymnasium"]
AT_ONCE = 256
"""Most games to hold in memory side by side, about 1 MB each."""
SCREEN_HEIGHT = 210
"""Lines of the screen that agents see, the upper ones: EnvPool's rule. A dozen games draw up to 250."""


@dataclass(frozen=True)
class Protocol:
    """The rules of an evaluation: scores compare only under the same ones."""

    epsilon: float = 0.01
    """Share of random actions, each game tossing its own coin."""
    noop_max: int = 30
    """Up to so many no-op frames open a game."""
    repeat_action_probability: float = 0.0
    """Sticky actions: chance per frame that the last action is repeated."""
    max_steps: int = 27_000
    """A game is cut off after so many agent steps, over all its lives."""
    frame_skip: int = 4
    """Emulator frames per agent step."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "repeat_action_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give a number between 0 and 1")
        for name in ("noop_max", "max_steps", "frame_skip"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give at least 1")

    def describe(self) -> str:
        """Return the rules in one line."""
        return (
            f"whole games, unclipped scores, epsilon {self.epsilon:g}, up to {self.noop_max} no-op frames, "
            f"sticky actions {self.repeat_action_probability:g}, at most {self.max_steps:,} steps "
            f"({self.max_steps * self.frame_skip:,} frames)"
        )


@dataclass
class Games:
    """Scores and lengths of whole games, and how they came about."""

    game: str
    """Plain name of the game."""
    scores: npt.NDArray[np.float64]
    """[episodes] float64: unclipped reward of each game."""
    lengths: npt.NDArray[np.int64]
    """[episodes] int64: agent steps of each game."""
    protocol: Protocol
    backend: Backend
    film: list[npt.NDArray[np.uint8]] = field(default_factory=list, repr=False)
    """Pictures of the first game, [H, W, 3] uint8 each; empty without a film."""

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(self.scores.mean())

    @property
    def median(self) -> float:
        """Median score."""
        return float(np.median(self.scores))

    @property
    def std(self) -> float:
        """Standard deviation of the scores (of these games: divided by their number)."""
        return float(self.scores.std())

    @property
    def min(self) -> float:
        """Lowest score."""
        return float(self.scores.min())

    @property
    def max(self) -> float:
        """Highest score."""
        return float(self.scores.max())

    def figures(self) -> dict[str, float]:
        """Return the five figures by name."""
        return {name: getattr(self, name) for name in ("mean", "median", "std", "min", "max")}

    def summary(self) -> str:
        """Return the figures in one line."""
        return (
            f"{self.game}: mean {self.mean:,.1f}, median {self.median:,.1f}, std {self.std:,.1f}, "
            f"min {self.min:,.1f}, max {self.max:,.1f} over {len(self.scores)} games "
            f"of {self.lengths.mean():,.0f} steps on average ({self.backend})"
        )


def play_games(
    game: str,
    act: Act,
    episodes: int,
    *,
    seed: int,
    protocol: Protocol | None = None,
    backend: Backend = "envpool",
    stack: int = 4,
    film: bool = False,
    film_every: int = 1,
    film_steps: int = 2_000,
    show: Show | None = None,
    threads: int = 0,
) -> Games:
    """Play `episodes` whole games with `act` and return their scores.

    Parameters
    ----------
    game : str
        Any spelling that `fastrl.atari.task_id` takes.
    act : callable
        Stacks [n, stack, *frame] to actions [n] integers. The stacks are valid during the call only. With
        EnvPool n falls from `episodes` to 1 as games end; with Gymnasium it is 1.
    episodes : int
        Number of games. EnvPool plays them side by side, about 1 MB each; Gymnasium one after another.
    seed : int
        At least 0; seeds games and epsilon. Same seed and same act function, same scores.
    protocol : Protocol, optional
        The rules (default: ``Protocol()``).
    backend : {"envpool", "gymnasium"}
        Who makes the games. Gymnasium with ale_py is slower: an independent second opinion.
    stack : int
        Frames in one observation.
    film : bool
        Keep pictures of the first game: its first frame, then one every `film_every` agent steps up to step
        `film_steps`.
    show : callable, optional
        Called with pictures as they come: on Gymnasium with each emulator frame of every game, 60 to a second
        of play; with EnvPool, which shows what agents see alone, once per agent step of the first game.
    threads : int
        EnvPool's threads; 0: one per CPU core that this process may use.

    Raises
    ------
    ConfigError
        For a setting out of its range, an unknown game or backend, or ``catch`` on Gymnasium.
    ValueError
        If `act` returns other than one action of the game per row.
    """
    for name, value in (("episodes", episodes), ("stack", stack), ("film_every", film_every)):
        if value < 1:
            raise ConfigError(f"{name} is {value!r}; give at least 1")
    if seed < 0 or film_steps < 0:
        raise ConfigError(f"seed is {seed!r} and film_steps {film_steps!r}; give at least 0")
    if backend not in _BACKENDS:
        raise ConfigError(f"backend is {backend!r}; give 'envpool' or 'gymnasium'")
    protocol = protocol or Protocol()
    camera = _Camera(film_every, film_steps if film else -1)
    plan = _Plan(game_name(game), act, episodes, seed, protocol, stack, camera, show, threads)
    results = []
    for done in range(0, episodes, AT_ONCE):
        part = replace(plan, episodes=min(AT_ONCE, episodes - done), seed=seed + done)
        results.append(_BACKENDS[backend](part if done == 0 else replace(part, camera=_Camera(1, -1))))
    scores, lengths = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return Games(plan.game, scores, lengths, protocol, backend, camera.film)


Results = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


class _Camera:
    """Films one game: a picture every `every` agent steps, up to step `last` (-1: none at all)."""

    def __init__(self, every: int, last: int) -> None:
        self.film: list[npt.NDArray[np.uint8]] = []
        self.on = last >= 0
        self._every, self._last = every, last

    def shoot(self, step: int, picture: Callable[[], npt.NDArray[np.uint8]]) -> None:
        if step <= self._last and step % self._every == 0:
            self.film.append(picture())


@dataclass(frozen=True)
class _Plan:
    """Games to play, `episodes` of them; fields as the arguments of `play_games`, `game` by its plain name."""

    game: str
    act: Act
    episodes: int
    seed: int
    protocol: Protocol
    stack: int
    camera: _Camera
    show: Show | None
    threads: int


class _Epsilon:
    """Replaces a share of the actions with random ones, each game by its own coin."""

    def __init__(self, epsilon: float, num_actions: int, games: int, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._epsilon, self._num_actions, self._games = epsilon, num_actions, games

    def __call__(self, actions: npt.ArrayLike, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the actions [n] int64 of the games `ids` [n]; the draws do not depend on which still run."""
        greedy = np.asarray(actions)
        if greedy.shape != ids.shape or greedy.dtype.kind not in "iu":
            raise ValueError(f"act returned {greedy.dtype} {greedy.shape}; return integers of shape {ids.shape}")
        if greedy.min() < 0 or greedy.max() >= self._num_actions:
            raise ValueError(f"act returned {greedy.tolist()}; the game's actions are 0 to {self._num_actions - 1}")
        explore = self._rng.random(self._games) < self._epsilon
        random = self._rng.integers(self._num_actions, size=self._games)
        return np.where(explore[ids], random[ids], greedy.astype(np.int64))


def _play_envpool(plan: _Plan) -> Results:
    """Give each episode an environment of its own, and stop stepping it when its game is over."""
    protocol, camera, catch = plan.protocol, plan.camera, plan.game == "catch"
    envs = AtariEnvs(
        plan.game,
        plan.episodes,
        seed=plan.seed,
        threads=plan.threads,
        frame_skip=protocol.frame_skip,
        episodic_life=True,  # for the FIRE after a lost life; scores are of whole games all the same
        reward_clip=False,
        repeat_action_probability=protocol.repeat_action_probability,
        noop_max=protocol.noop_max,
        max_episode_steps=protocol.max_steps,
        render=(camera.on or plan.show is not None) and not catch,
    )
    frames = FrameStack(plan.episodes, plan.stack, envs.frame_shape, envs.frame_dtype)
    explore = _Epsilon(protocol.epsilon, envs.num_actions, plan.episodes, plan.seed)
    scores, lengths = np.zeros(plan.episodes), np.zeros(plan.episodes, np.int64)

    def screen() -> npt.NDArray[np.uint8]:
        return frame_to_rgb(step.frame[0]) if catch else envs.render(0)

    with contextlib.closing(envs):
        step = envs.reset()
        playing = np.arange(plan.episodes)
        while True:
            stacks = frames.push(step.frame, step.first, step.env_id)
            if playing[0] == 0 and (step.length[0] == 0 or not step.reset[0]):
                camera.shoot(int(step.length[0]), screen)
                if plan.show:
                    plan.show(screen())
            over = step.game_over
            scores[step.env_id[over]], lengths[step.env_id[over]] = step.score[over], step.length[over]
            playing, stacks = playing[~over], stacks[~over]
            if not len(playing):
                return scores, lengths
            step = envs.step(explore(plan.act(stacks), playing), playing)


def _play_gymnasium(plan: _Plan) -> Results:
    """Play one game after another through Gymnasium's own preprocessing; `threads` has no meaning here."""
    env = _gymnasium_env(plan)
    numbers = {name: env.unwrapped.get_action_meanings().index(name) for name in action_names(plan.game)}
    explore = _Epsilon(plan.protocol.epsilon, len(numbers), 1, plan.seed)
    game_seeds = np.random.SeedSequence(plan.seed).generate_state(plan.episodes).tolist()
    results = []
    with contextlib.closing(env):
        for episode, game_seed in enumerate(game_seeds):
            shoot = plan.camera.shoot if episode == 0 else None
            results.append(_one_gymnasium_game(env, numbers, plan, explore, game_seed, shoot))
    scores, lengths = zip(*results, strict=True)
    return np.array(scores, np.float64), np.array(lengths, np.int64)


def _gymnasium_env(plan: _Plan) -> Any:
    """Return ``ALE/<Game>-v5`` with all actions, and the protocol's rules in place of its own; [84, 84] uint8."""
    if plan.game == "catch":
        raise ConfigError("backend is 'gymnasium', which has no catch; give 'envpool'")
    gymnasium, ale_py = need("gymnasium", "train"), need("ale_py", "train")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    wanted = f"ale/{task_id(plan.game)}".lower()  # the two spell one game differently: TicTacToe3d, TicTacToe3D
    env = gymnasium.make(
        next(known for known in gymnasium.registry if known.lower() == wanted),
        frameskip=1,
        full_action_space=True,  # for its NOOP, which Backgammon's own actions lack
        repeat_action_probability=plan.protocol.repeat_action_probability,
        max_num_frames_per_episode=0,  # the protocol's cap is counted in agent steps, below
        render_mode="rgb_array" if plan.camera.on or plan.show else None,
    )
    if plan.show:
        _show_every_frame(env, plan.show)
    env = need("gymnasium.wrappers", "train").AtariPreprocessing(
        env,
        noop_max=plan.protocol.noop_max,
        frame_skip=plan.protocol.frame_skip,
        screen_size=84,
        terminal_on_life_loss=False,
        grayscale_obs=True,
    )
    _shrink_upper_lines_alone(env)
    return env


def _shrink_upper_lines_alone(env: Any) -> None:
    """Have an `AtariPreprocessing` make its frames of the lines that EnvPool takes."""
    shrink, screens = env._get_obs, env.obs_buffer

    def shrink_upper_lines() -> Any:
        env.obs_buffer = [screen[:SCREEN_HEIGHT] for screen in screens]
        try:
            return shrink()
        finally:
            env.obs_buffer = screens

    env._get_obs = shrink_upper_lines


def _show_every_frame(env: Any, show: Show) -> None:
    """Have an emulator show what each of its steps drew: many games draw some things in every other frame only."""
    step = env.step

    def step_and_show(action: int) -> Any:
        result = step(action)
        show(env.render())
        return result

    env.step = step_and_show


def _one_gymnasium_game(
    env: Any,
    numbers: dict[str, int],
    plan: _Plan,
    explore: _Epsilon,
    seed: int,
    shoot: Callable[[int, Callable[[], npt.NDArray[np.uint8]]], None] | None,
) -> tuple[float, int]:
    """Play one whole game and return its score and its length in agent steps.

    `numbers` has the emulator's numbers of the agent's actions, by name. Where there is a FIRE, it is pressed for the
    player after the reset and after each lost life, for one emulator frame as EnvPool does; that is no step of the
    agent's, but what it earns counts.
    """
    fire, number = numbers.get("FIRE"), list(numbers.values())
    frames = FrameStack(1, plan.stack, (84, 84), np.uint8)
    game_0 = np.array([0])
    frame, info = env.reset(seed=seed)
    first, score, length, over, press = True, 0.0, 0, False, fire is not None
    while not over:
        if press:
            if not first:
                frames.push(frame[None], np.array([False]))  # the one that lost the life
            frame, reward, over, _, after = _one_frame(env, fire)
        else:
            stacks = frames.push(frame[None], np.array([first]))
            if first and shoot:
                shoot(0, env.render)
            action = int(explore(plan.act(stacks), game_0)[0])
            frame, reward, over, _, after = env.step(number[action])
            first, length = False, length + 1
            if shoot:
                shoot(length, env.render)
        score += float(reward)
        press = fire is not None and after["lives"] < info["lives"]
        info, over = after, over or length >= plan.protocol.max_steps
    return score, length


def _one_frame(env: Any, action: int | None) -> Any:
    """Step an `AtariPreprocessing` by one emulator frame instead of an agent step."""
    env.obs_buffer[1][:] = 0  # or the frame before would shine through
    frame_skip, env.frame_skip = env.frame_skip, 1
    try:
        return env.step(action)
    finally:
        env.frame_skip = frame_skip


_BACKENDS: dict[str, Callable[[_Plan], Results]] = {"envpool": _play_envpool, "gymnasium": _play_gymnasium}
