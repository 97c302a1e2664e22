"""Whole games with any act function: scores, lengths and a film.

A game counts as the literature counts it: all lives, unclipped rewards, a cap on its steps. Episodes are
played to the end one for one, so that short games do not crowd out long ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastrl.ale import play_ale
from fastrl.atari import AtariEnvs, game_name
from fastrl.camera import Camera, Show
from fastrl.checks import at_least
from fastrl.config import ConfigError
from fastrl.gymnasium_envs import GymnasiumEnvs, is_own
from fastrl.plan import Act, Epsilon, Plan, Protocol, Results
from fastrl.steps import FrameStack
from fastrl.video import frame_to_rgb

Backend = Literal["envpool", "gymnasium", "own"]
AT_ONCE = 256
"""Most games to hold in memory side by side, about 1 MB each."""
OWN_AT_ONCE = 16
"""The same of environments of which nothing is known."""


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
            f"of {self.lengths.mean():,.0f} steps on average "
            + ("(own)" if self.backend == "own" else f"({self.backend}, protocol {self.protocol.protocol_name})")
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
    bars: bool = False,
    threads: int = 0,
) -> Games:
    """Play `episodes` whole games with `act` and return their scores.

    Parameters
    ----------
    game : str
        Any spelling that `fastrl.atari.task_id` takes, or ``module:callable`` of an own environment: see
        `fastrl.gymnasium_envs`. Of the rules such a one knows epsilon and max_steps alone, and films are of what it
        draws, if that is "rgb_array".
    act : callable
        Stacks [n, stack, *frame] to actions [n] integers or Q-values [n, A] floats. The stacks are valid during the
        call only. With EnvPool n falls from `episodes` to 1 as games end; with Gymnasium it is 1.
    episodes : int
        Number of games. EnvPool plays them side by side, about 1 MB each; Gymnasium one after another.
    seed : int
        At least 0; seeds games and epsilon. Same seed and same act function, same scores.
    protocol : Protocol, optional
        The rules (default: ``Protocol()``).
    backend : {"envpool", "gymnasium"}
        Who makes Atari games. Gymnasium with ale_py is slower: an independent second opinion.
    stack : int
        Frames in one observation.
    film : bool
        Keep pictures of the first game: its first frame, then one every `film_every` agent steps up to step
        `film_steps`.
    show : callable, optional
        Called with pictures as they come: on Gymnasium with each emulator frame of every game, 60 to a second
        of play; with EnvPool, which shows what agents see alone, once per agent step of the first game.
    bars : bool
        Draw the Q-values that `act` returns beside the pictures, the action taken marked (`fastrl.bars`).
    threads : int
        EnvPool's threads; 0: one per CPU core that this process may use.

    Raises
    ------
    ConfigError
        For a setting out of its range, an unknown game or backend, or ``catch`` on Gymnasium.
    ValueError
        If `act` returns other than one action of the game, or the values of all, per row.
    """
    at_least(1, episodes=episodes, stack=stack, film_every=film_every)
    at_least(0, seed=seed, film_steps=film_steps)
    if backend not in ("envpool", "gymnasium"):
        raise ConfigError(f"backend is {backend!r}; give 'envpool' or 'gymnasium'")
    own = is_own(game)
    backend = "own" if own else backend
    protocol = protocol or Protocol()
    camera = Camera(film_every, film_steps if film else -1, show, bars)
    plan = Plan(game if own else game_name(game), act, episodes, seed, protocol, stack, camera, threads)
    results = []
    for done in range(0, episodes, AT_ONCE):
        part = replace(plan, episodes=min(AT_ONCE, episodes - done), seed=seed + done)
        results.append(_BACKENDS[backend](part if done == 0 else replace(part, camera=camera.without_film())))
    scores, lengths = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return Games(plan.game, scores, lengths, protocol, backend, camera.film)


def _play_envpool(plan: Plan) -> Results:
    """Give each episode an environment of its own, and stop stepping it when its game is over."""
    protocol, camera, catch = plan.protocol, plan.camera, plan.game == "catch"
    envs = AtariEnvs(
        plan.game,
        plan.episodes,
        seed=plan.seed,
        threads=plan.threads,
        frame_skip=protocol.frame_skip,
        episodic_life=protocol.episodic_life,  # for the FIRE after a lost life; scores are of whole games all the same
        fire_reset=protocol.fire_reset,
        full_action_set=protocol.full_action_set,
        reward_clip=False,
        repeat_action_probability=protocol.repeat_action_probability,
        noop_max=protocol.noop_max,
        max_episode_steps=protocol.max_steps,
        render=camera.on and not catch,
    )
    frames = FrameStack(plan.episodes, plan.stack, envs.frame_shape, envs.frame_dtype)
    explore = Epsilon(protocol.epsilon, envs.num_actions, plan.episodes, plan.seed)
    scores, lengths = np.zeros(plan.episodes), np.zeros(plan.episodes, np.int64)

    def screen() -> npt.NDArray[np.uint8]:
        return frame_to_rgb(step.frame[0]) if catch else envs.render(0)

    with contextlib.closing(envs):
        camera.names(envs.action_names)
        step = envs.reset()
        playing = np.arange(plan.episodes)
        while True:
            stacks = frames.push(step.frame, step.first, step.env_id)
            filmed = playing[0] == 0 and (step.length[0] == 0 or not step.reset[0])
            over = step.game_over
            scores[step.env_id[over]], lengths[step.env_id[over]] = step.score[over], step.length[over]
            playing, stacks = playing[~over], stacks[~over]
            if len(playing):
                values = plan.act(stacks)
                actions = explore(values, playing)
            if filmed:
                camera.take(int(step.length[0]), screen, *(() if over[0] else (values, int(actions[0]))))
            if not len(playing):
                return scores, lengths
            step = envs.step(actions, playing)


def _play_own(plan: Plan) -> Results:
    """Play rounds of one game in each environment."""
    envs = GymnasiumEnvs(plan.game, min(plan.episodes, OWN_AT_ONCE), seed=plan.seed)
    explore = Epsilon(plan.protocol.epsilon, envs.num_actions, envs.num_envs, plan.seed)
    plan.camera.names(envs.action_names)
    with contextlib.closing(envs):
        rounds = [
            _own_round(envs, plan, explore, min(envs.num_envs, plan.episodes - done), filmed=done == 0)
            for done in range(0, plan.episodes, envs.num_envs)
        ]
    scores, lengths = (np.concatenate(parts) for parts in zip(*rounds, strict=True))
    return scores, lengths


def _own_round(envs: GymnasiumEnvs, plan: Plan, explore: Epsilon, games: int, *, filmed: bool) -> Results:
    """Play one game in each of the first environments; where it is over they play on unseen, and so do the others."""
    frames, camera = FrameStack(envs.num_envs, plan.stack, envs.frame_shape, envs.frame_dtype), plan.camera
    scores, lengths, playing = np.zeros(games), np.zeros(games, np.int64), np.arange(games)
    step = envs.reset()
    while True:
        stacks = frames.push(step.frame, step.first)
        over = step.game_over | (step.length >= plan.protocol.max_steps)
        gone_on = over[0] and envs.autoreset != "next_step"  # to its next game: the last picture is missed
        shown = filmed and playing[0] == 0 and envs.has_pictures and not gone_on
        ended, playing = playing[over[playing]], playing[~over[playing]]
        scores[ended], lengths[ended] = step.score[ended], step.length[ended]
        if len(playing):
            values = plan.act(stacks[playing])
            chosen = explore(values, playing)
        if shown:
            camera.take(int(step.length[0]), envs.render, *(() if over[0] else (values, int(chosen[0]))))
        if not len(playing):
            return scores, lengths
        actions = np.zeros(envs.num_envs, np.int64)
        actions[playing] = chosen
        step = envs.step(actions)


_BACKENDS: dict[str, Callable[[Plan], Results]] = {
    "envpool": _play_envpool, "gymnasium": play_ale, "own": _play_own,
}  # fmt: skip
