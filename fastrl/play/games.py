"""Whole games with any act function: scores, lengths and a film.

A game counts as it does in the literature: all lives, unclipped rewards, a cap on its steps. Each episode is one game,
played to its end, so that short games do not crowd out long ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import at_least
from fastrl.base.console import counted
from fastrl.base.errors import ConfigError, RunError, Stopped
from fastrl.envs.make import Backend, make_envs
from fastrl.envs.names import MakeEnv, game_name, is_atari, is_custom, name_of
from fastrl.envs.rules import EvaluationRules
from fastrl.envs.step import GameEnvs
from fastrl.film.camera import Camera, Show
from fastrl.film.picture import Picture, PictureError, frame_to_rgb
from fastrl.play.acting import Act, Epsilon
from fastrl.play.loop import Draw, Results, play_whole_games

AT_ONCE = 256
"""Most games to hold in memory side by side, about 1 MB each."""
CUSTOM_AT_ONCE = 16
"""The same for custom environments, whose size is not known."""
SHARE = 8
"""Games that are handed out together where several processes play; `AT_ONCE` is a multiple of it."""
NO_PICTURES = "nothing to see: the environment draws none; make it with render_mode='rgb_array'"


@dataclass
class Games:
    """Scores and lengths of whole games, and how they were played."""

    game: str
    """Plain name of the game, or ``module:callable``."""
    scores: npt.NDArray[np.float64]
    """[episodes] float64: unclipped reward of each game."""
    lengths: npt.NDArray[np.int64]
    """[episodes] int64: agent steps of each game."""
    rules: EvaluationRules
    backend: Backend | Literal["custom"]
    """What played: a maker of Atari games, or a custom environment."""
    film: list[Picture] = field(default_factory=list, repr=False)
    """Pictures of the first game, [H, W, 3] uint8 each; empty without a film."""
    film_error: str = ""
    """Why a film that was asked for is missing or ends early, in one line; empty where nothing failed."""

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

    @property
    def cut_off(self) -> int:
        """Games that the rules' limit of steps ended."""
        return int((self.lengths >= self.rules.max_steps).sum())

    def figures(self) -> dict[str, float]:
        """Return the five figures by name."""
        return {name: getattr(self, name) for name in ("mean", "median", "std", "min", "max")}

    def summary(self) -> str:
        """Return the figures in one line."""
        cut = f", {self.cut_off} cut off at {self.rules.max_steps:,}" if self.cut_off else ""
        return (
            f"{self.game}: mean {self.mean:,.1f}, median {self.median:,.1f}, std {self.std:,.1f}, "
            f"min {self.min:,.1f}, max {self.max:,.1f} over {counted(len(self.scores), 'game')} "
            f"of {self.lengths.mean():,.0f} steps on average{cut} "
            + (f"({self.backend}, protocol {self.rules.protocol_name})" if is_atari(self.game) else f"({self.backend})")
        )


def play_games(
    game: str | MakeEnv,
    act: Act,
    episodes: int,
    *,
    seed: int,
    rules: EvaluationRules | None = None,
    backend: Backend = "envpool",
    stack: int = 4,
    film: bool = False,
    film_every: int = 1,
    film_steps: int = 2_000,
    show: Show | None = None,
    bars: bool = False,
    threads: int = 0,
    share: range | None = None,
    masked: bool = False,
) -> Games:
    """Play `episodes` whole games with `act` and return their scores.

    Parameters
    ----------
    game : str or callable
        Any spelling that `fastrl.envs.names.task_id` takes; or a custom environment, as ``module:callable`` or the
        callable itself (see `fastrl.envs.custom`). Of the rules, only epsilon and max_steps affect a custom
        environment, and it can be filmed if its render_mode is "rgb_array".
    act : callable
        Stacks [n, stack, *frame] to actions [n] integers or Q-values [n, A] floats; `fastrl.greedy` makes one of a
        network. Of values the highest is taken; of an environment that gives action masks, the highest that is
        allowed; one of -inf never. The stacks are valid during the call only. With EnvPool n falls from `episodes` to 1
        as games end; with Gymnasium it is 1.
    episodes : int
        Number of games. EnvPool plays them side by side, about 1 MB each; Gymnasium one after another.
    seed : int
        At least 0; seeds games and epsilon. Same seed and same act function, same scores.
    rules : EvaluationRules, optional
        The rules (default: ``EvaluationRules()``).
    backend : {"envpool", "gymnasium"}
        What plays Atari games. Gymnasium with ale_py is slower: an independent second opinion.
    stack : int
        Frames in one observation.
    film : bool
        Keep pictures of the first game: its first frame, then one every `film_every` agent steps up to step
        `film_steps`. A picture that cannot be taken ends the film, not the games: see `Games.film_error`.
    show : callable, optional
        Called with pictures as they come: on Gymnasium with each emulator frame of every game, 60 to a second
        of play; otherwise once per agent step of the first game (EnvPool returns only what agents see).
    bars : bool
        Draw the Q-values that `act` returns beside the pictures, the action taken marked (`fastrl.film.q_bars`).
    threads : int
        EnvPool's threads; 0: one per CPU core that this process may use.
    share : range, optional
        Play only these of the `episodes` games, one of `shares`; another process may play the others. EnvPool's are
        the games, coins included, that they are among all. Other games are seeded by the share: custom environments
        continue a generator from game to game, and Gymnasium the coins.
    masked : bool
        Whether `act` was trained with action masks: an environment that gives none is refused.

    Raises
    ------
    ConfigError
        For a setting out of its range, an unknown game or backend, ``catch`` on Gymnasium, an `act` that is no
        function of arrays, or an environment without the action masks that `masked` says.
    RunError
        If there is a picture to `show`, but it cannot be taken or drawn; the message says why.
    ValueError
        If `act` returns other than one action of the game, or the values of all, per row, an action that is not
        allowed, or values without a highest one: NaN, inf, or -inf for all actions.
    """
    at_least(1, episodes=episodes, stack=stack, film_every=film_every)
    at_least(0, seed=seed, film_steps=film_steps)
    if backend not in get_args(Backend):
        raise ConfigError(f"backend is {backend!r}; give 'envpool' or 'gymnasium'")
    _check_act(act)
    game = game if isinstance(game, str) else name_of(game)
    name = game if is_custom(game) else game_name(game)
    wanted = range(episodes) if share is None else share
    if not (wanted and wanted.step == 1 and wanted.start >= 0 and wanted.stop <= episodes):
        raise ConfigError(f"share is {wanted}, of {episodes} episodes; give one of `shares({episodes})`")
    alike = backend == "envpool" and not is_custom(name)  # a game is the same, whichever others are played
    rules = rules or EvaluationRules()
    first_camera = Camera(film_every, film_steps if film else -1, show, bars)

    def play(camera: Camera) -> list[Results]:
        parts = []
        for done in range(0, episodes, AT_ONCE):
            together = range(done, min(done + AT_ONCE, episodes))
            played = range(max(wanted.start, together.start), min(wanted.stop, together.stop))
            if not played:
                continue
            games, first, seeded = len(played), played.start - done, seed + done
            if share is not None and not alike:
                first, seeded = 0, _seed_of(seed, played.start)
            envs = make_envs(
                name,
                _at_once(name, backend, games),
                rules=rules,
                seed=seeded,
                first=first,
                threads=threads,
                max_episode_steps=rules.max_steps,
                backend=backend,
                pictures=camera.on,
                each_frame=camera.show if camera.shows else None,
            )
            with contextlib.closing(envs):
                camera.names(envs.action_names)
                parts.append(
                    play_whole_games(
                        envs,
                        act,
                        games,
                        explore=Epsilon(
                            rules.epsilon,
                            envs.num_actions,
                            len(together) if alike else envs.num_envs,
                            seeded,
                            first,
                        ),
                        stack=stack,
                        max_steps=rules.max_steps,
                        camera=camera,
                        draw=_draw(name, envs),
                        masked=masked,
                    )
                )
            camera = first_camera.without_film()
        return parts

    try:
        parts = play(first_camera)
    except PictureError as error:  # of what is shown; films keep theirs
        raise RunError(f"{name} cannot be shown: {error}") from error
    except Stopped:
        raise
    except Exception:
        if first_camera.error is None:
            raise
        parts = play(first_camera.without_film())  # drawing broke the games too, as in the workers of AsyncVectorEnv
    scores, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
    film_error = "" if first_camera.error is None else f"{name} cannot be filmed: {first_camera.error}"
    library: Backend | Literal["custom"] = "custom" if is_custom(name) else backend
    return Games(name, scores, lengths, rules, library, first_camera.film, film_error)


def _check_act(act: object) -> None:
    """Raise ConfigError for what cannot be asked for actions: something else in its place, or a bare network."""
    if not callable(act):
        raise ConfigError(
            f"act is {act!r}, which cannot be called; give a function of stacks [n, stack, *frame] that returns "
            "actions [n] or Q-values [n, A], such as greedy(load_agent(RUN).network)"
        )
    if any(one.__module__.startswith("torch.nn.") for one in type(act).__mro__):  # without importing torch
        raise ConfigError(
            f"act is a network, of type {type(act).__name__}, which takes tensors; give greedy(network) for one of "
            "fastrl's, or a function that takes and returns NumPy arrays"
        )


def shares(episodes: int) -> list[range]:
    """Return the games of an evaluation in shares of `SHARE`, for several processes."""
    return [range(first, min(first + SHARE, episodes)) for first in range(0, episodes, SHARE)]


def joined(parts: Sequence[Games]) -> Games:
    """Return the games of shares, given in order, as one; the film is that of the first."""
    scores, lengths = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "lengths"))
    return dataclasses.replace(parts[0], scores=scores, lengths=lengths)


def _seed_of(seed: int, first: int) -> int:
    """Return the seed of the share that begins with the game `first`."""
    return int(np.random.SeedSequence([seed, first]).generate_state(1)[0] & 0x7FFF_FFFF)


def _at_once(game: str, backend: Backend, games: int) -> int:
    """Return the number of environments to make for a number of games, at most `AT_ONCE`."""
    if is_custom(game):
        return min(games, CUSTOM_AT_ONCE)
    return games if backend == "envpool" else 1


def _draw(game: str, envs: GameEnvs) -> Draw | None:
    """Return what draws the first environment: its screen, or in Catch, which has none, the frame that agents see."""
    if envs.has_pictures:
        return lambda step: envs.render(0)
    return (lambda step: frame_to_rgb(step.frame[0])) if game == "catch" else None
