"""What plays whole games on a node: a trained network, and the share of an evaluation that it is handed.

Nothing here knows of Ray: `fastrl.distributed.engine` runs a `Player` in a process of its own.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fastrl.base.background import Background
from fastrl.distributed.actor import Weights, require_versions, tensors
from fastrl.dqn.agent import greedy
from fastrl.dqn.network import QNetwork
from fastrl.envs.make import Backend
from fastrl.envs.rules import EvaluationRules
from fastrl.film.video import write_film
from fastrl.play.games import Games, play_games

NEWS_SECONDS = 1.0
"""A player that is asked for its share answers after this time, whether it has played the share or not."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An evaluation: what is played, by which network, how."""

    game: str
    """Plain name of the game, or ``module:callable``."""
    episodes: int
    """Games of all shares."""
    seed: int
    rules: EvaluationRules
    backend: Backend
    network: dict[str, Any]
    """`QNetwork.settings`."""
    stack: int
    """Frames in one observation."""
    bars: bool
    """Whether the film shows Q-values."""
    suffix: str
    """Of the film, which says its format: ``.gif`` or ``.mp4``."""
    masked: bool = False
    """Whether the network was trained with action masks."""


@dataclass(frozen=True)
class Played:
    """What a share gave."""

    games: Games
    """Without its pictures."""
    film: bytes
    """The file of the film of the first game of all; empty for the shares without it, or if there are no pictures."""


@dataclass(frozen=True)
class Playing:
    """How far a share is that has not been played yet."""

    steps: int
    """How often the network has acted."""
    films: bool
    """The games are over, and the film is being written."""


class Player:
    """Plays shares of evaluations. Its arguments are plain, so that a node with another version can say so.

    A share is played in a thread, so that the process can tell that it lives, and whether its games go on.

    Parameters
    ----------
    number : int
        Of this process among the players.
    wanted : dict
        `fastrl.distributed.actor.versions` of the process that asks.
    """

    def __init__(self, number: int, wanted: dict[str, str]) -> None:
        self._number, self._wanted = number, wanted

    def ready(self) -> bool:
        """Return True; raise ConfigError if this node has other versions."""
        require_versions(f"collector {self._number}", self._wanted)
        return True

    def play(self, plan: Plan, weights: Weights, first: int, count: int) -> Played | Playing:
        """Begin with the games `first` to `first + count - 1` of the plan's; return what `go_on` does."""
        self._steps, self._films = 0, False
        self._share = Background(lambda: self._play(plan, weights, first, count), "fastrl-share")
        self._share.start()
        return self.go_on()

    def go_on(self) -> Played | Playing:
        """Return the share once it is played, or after `NEWS_SECONDS` how far it is.

        Raises
        ------
        ConfigError, RunError
            As of `play_games`.
        ImportError, RunError
            If the film cannot be written, as of `write_film`.
        """
        self._share.wait(NEWS_SECONDS)
        return self._share.result() if self._share.done else Playing(self._steps, self._films)

    def _play(self, plan: Plan, weights: Weights, first: int, count: int) -> Played:
        network = QNetwork(**plan.network)
        network.load_state_dict(tensors(weights))
        best = greedy(network.eval())

        def act(stacks: NDArray[Any]) -> Any:
            self._steps += 1
            return best(stacks)

        games = play_games(
            plan.game,
            act,
            plan.episodes,
            seed=plan.seed,
            rules=plan.rules,
            backend=plan.backend,
            stack=plan.stack,
            film=first == 0,
            bars=plan.bars,
            threads=1,  # a player is one core
            share=range(first, first + count),
            masked=plan.masked,
        )
        self._films = True
        film = b""
        if games.film:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"film{plan.suffix}"
                write_film(path, games.film)
                film = path.read_bytes()
        games.film = []  # which takes up to 200 MB
        return Played(games, film)
