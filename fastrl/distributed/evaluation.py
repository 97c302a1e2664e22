"""Whole games played by several processes: shares handed out, those of lost processes played again."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastrl.base.errors import ConfigError, RunError
from fastrl.distributed.actor import Weights
from fastrl.distributed.collectors import POLL_SECONDS, START_SECONDS, LostError
from fastrl.distributed.player import Plan, Played, Playing
from fastrl.play.games import shares

MOST_LOSSES = 5
"""A share that so many processes were lost with is not handed out again."""
PAUSE_SECONDS = 0.5
"""Before a player that was lost is asked whether it is ready again."""


class Players(Protocol):
    """Starts players and carries shares and what they gave; `fastrl.distributed.engine.RayPlayers` is one.

    A *ref* stands for an answer that may not be there yet.
    """

    def start(self, number: int) -> None:
        """Start a player."""

    def ready(self, number: int) -> Any:
        """Ask for `Player.ready`; return the ref."""

    def play(self, number: int, plan: Plan, weights: Any, share: range) -> Any:
        """Ask for `Player.play`, `weights` as `put` returned it; return the ref."""

    def go_on(self, number: int) -> Any:
        """Ask for `Player.go_on`; return the ref."""

    def put(self, weights: Weights) -> Any:
        """Store weights for all players; return what stands for them."""

    def wait(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """Return those refs whose answers are there; if there are none, wait for one until the time is over."""

    def get(self, number: int, ref: Any) -> Any:
        """Return the answer of a ref that `wait` returned; raise LostError or what the player raised."""

    def restart(self, number: int) -> None:
        """End a player's process, however it hangs; a new one takes its place."""


@dataclass
class Question:
    """What a player is asked."""

    ref: Any
    """Of the answer to come."""
    share: int | None = None
    """The number of the share that it plays; None: is it ready?"""
    steps: int = -1
    """Of this share, when it last answered."""
    moved_at: float = 0.0
    """When it last answered that it was further than before."""
    films: bool = False
    """Whether it said then that it writes the film."""


def play_shares(
    players: Players,
    collectors: int,
    plan: Plan,
    weights: Weights,
    *,
    timeout: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Played]:
    """Play all games of a plan and return what its shares gave, in order.

    Which player has which share, and how many players there are, changes nothing: see `play_games`. A player gets a
    share once it is ready, so those that never start keep none waiting.

    Parameters
    ----------
    players : Players
        Where they run; closed by the caller.
    collectors : int
        Players to start, at least 1; no more than shares are started.
    plan : Plan
        What is played.
    weights : dict
        Of the network, by the names of its state.
    timeout : float
        Seconds after which a player is replaced whose games do not go on, and its share played again. To open its first
        games, and to write the film, it has `START_SECONDS` more.
    say : callable
        Takes a message about a player that was lost.
    clock : callable
        Seconds that only grow.

    Raises
    ------
    ConfigError
        If no player starts, or one has other versions or cannot play these games.
    RunError
        If an environment fails, or the same games end one process after the other.
    """
    parts = shares(plan.episodes)
    to_play, played, losses = deque(range(len(parts))), dict[int, Played](), Counter[int]()
    stored, numbers = players.put(weights), range(min(collectors, len(parts)))
    for number in numbers:
        players.start(number)
    asked: dict[int, Question] = {}  # by player
    idle, ask_at = set[int](), dict.fromkeys(numbers, 0.0)
    has_played = set[int]()  # players whose process has opened games
    heard_at = clock()  # of any player, or that it was lost

    def lose(number: int, share: int | None, why: str) -> None:
        nonlocal heard_at
        ask_at[number] = clock() + PAUSE_SECONDS  # the process that takes its place
        has_played.discard(number)
        if share is not None:
            heard_at = clock()
            losses[share] += 1
            _play_again(number, parts[share], losses[share], why, say)
            to_play.appendleft(share)

    while len(played) < len(parts):
        for number in [number for number, at in ask_at.items() if at <= clock()]:
            del ask_at[number]
            asked[number] = Question(players.ready(number))
        for number in list(idle)[: len(to_play)]:
            idle.remove(number)
            share = to_play.popleft()
            asked[number] = Question(players.play(number, plan, stored, parts[share]), share, moved_at=clock())
        answers = {question.ref: number for number, question in asked.items()}
        for ref in players.wait(list(answers), POLL_SECONDS):
            number = answers[ref]
            question = asked.pop(number)
            try:
                found = players.get(number, ref)
            except LostError as error:
                lose(number, question.share, f"is gone ({error})")
                continue
            heard_at = clock()
            if isinstance(found, Playing):
                if found.steps > question.steps or found.films > question.films:
                    question.steps, question.films, question.moved_at = found.steps, found.films, heard_at
                if found.steps:
                    has_played.add(number)
                question.ref = players.go_on(number)
                asked[number] = question
                continue
            idle.add(number)
            if question.share is not None:
                played[question.share] = found
                has_played.add(number)
        for number, question in list(asked.items()):
            patience = timeout + (START_SECONDS if question.films or number not in has_played else 0.0)
            if question.share is not None and clock() - question.moved_at > patience:
                del asked[number]
                players.restart(number)
                lose(number, question.share, f"has not got further for {patience:g} seconds")
        if all(question.share is None for question in asked.values()) and clock() - heard_at > START_SECONDS:
            raise ConfigError(
                f"--collectors is {collectors}, and none has started within {START_SECONDS:.0f} seconds; give a "
                "--ray-address with free cores and memory, or --collectors 0"
            )
    return [played[share] for share in range(len(parts))]


def _play_again(number: int, games: range, losses: int, why: str, say: Callable[[str], None]) -> None:
    """Say that games are played again, or raise RunError if they have been lost with too many processes."""
    words = f"games {games.start + 1} to {games.stop}"
    if losses == MOST_LOSSES:
        raise RunError(
            f"{words} were lost with {losses} collectors, one after the other (the last one {why}); if memory is "
            "short, give fewer --collectors; if a step of the games takes longer, a larger --collector-timeout"
        )
    say(f"collector {number} {why}; {words} are played again")
