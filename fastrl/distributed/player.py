"""What plays whole games on a node: a trained network, and the share of an evaluation that it is handed.

Nothing here knows of Ray: `fastrl.distributed.engine` runs a `Player` in a process of its own.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrl.distributed.actor import Weights, require_versions, tensors
from fastrl.dqn.agent import greedy
from fastrl.dqn.network import QNetwork
from fastrl.envs.make import Backend
from fastrl.envs.rules import EvaluationRules
from fastrl.film.video import write_film
from fastrl.play.games import Games, play_games


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


@dataclass(frozen=True)
class Played:
    """What a share gave."""

    games: Games
    """Without its pictures."""
    film: bytes
    """The file of the film of the first game of all; empty for the shares without it, or if there are no pictures."""


class Player:
    """Plays shares of evaluations. Its arguments are plain, so that a node with another version can say so.

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

    def play(self, plan: Plan, weights: Weights, first: int, count: int) -> Played:
        """Play the games `first` to `first + count - 1` of the plan's.

        Raises
        ------
        ConfigError, RunError
            As of `play_games`.
        ImportError, RunError
            If the film cannot be written, as of `write_film`.
        """
        network = QNetwork(**plan.network)
        network.load_state_dict(tensors(weights))
        games = play_games(
            plan.game,
            greedy(network.eval()),
            plan.episodes,
            seed=plan.seed,
            rules=plan.rules,
            backend=plan.backend,
            stack=plan.stack,
            film=first == 0,
            bars=plan.bars,
            threads=1,  # a player is one core
            share=range(first, first + count),
        )
        film = b""
        if games.film:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"film{plan.suffix}"
                write_film(path, games.film)
                film = path.read_bytes()
        games.film = []  # which takes up to 200 MB
        return Played(games, film)
