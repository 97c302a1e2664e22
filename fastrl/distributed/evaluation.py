"""Whole games played by several processes: shares handed out, those of lost processes played again."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastrl.base.errors import ConfigError, RunError
from fastrl.distributed.actor import Weights
from fastrl.distributed.collectors import POLL_SECONDS, START_SECONDS, LostError
from fastrl.distributed.player import Plan, Played
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

    def put(self, weights: Weights) -> Any:
        """Store weights for all players; return what stands for them."""

    def wait(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """Return those refs whose answers are there; if there are none, wait for one until the time is over."""

    def get(self, number: int, ref: Any) -> Any:
        """Return the answer of a ref that `wait` returned; raise LostError or what the player raised."""


def play_shares(
    players: Players,
    collectors: int,
    plan: Plan,
    weights: Weights,
    *,
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
    refs: dict[int, tuple[Any, int | None]] = {}  # by player: the answer to come, and the share; None: is it ready?
    idle, ask_at = set[int](), dict.fromkeys(numbers, 0.0)
    heard_at = clock()
    while len(played) < len(parts):
        for number in [number for number, at in ask_at.items() if at <= clock()]:
            del ask_at[number]
            refs[number] = (players.ready(number), None)
        for number in list(idle)[: len(to_play)]:
            idle.remove(number)
            share = to_play.popleft()
            refs[number] = (players.play(number, plan, stored, parts[share]), share)
        asked = {ref: number for number, (ref, _) in refs.items()}
        for ref in players.wait(list(asked), POLL_SECONDS):
            number = asked[ref]
            _, done = refs.pop(number)
            try:
                found = players.get(number, ref)
            except LostError as error:
                ask_at[number] = clock() + PAUSE_SECONDS  # the process that takes its place
                if done is not None:
                    losses[done] += 1
                    _play_again(number, parts[done], losses[done], error, say)
                    to_play.appendleft(done)
                continue
            idle.add(number)
            heard_at = clock()
            if done is not None:
                played[done] = found
        if all(share is None for _, share in refs.values()) and clock() - heard_at > START_SECONDS:
            raise ConfigError(
                f"--collectors is {collectors}, and none has started within {START_SECONDS:.0f} seconds; give a "
                "--ray-address with free cores and memory, or --collectors 0"
            )
    return [played[share] for share in range(len(parts))]


def _play_again(number: int, games: range, losses: int, error: LostError, say: Callable[[str], None]) -> None:
    """Say that games are played again, or raise RunError if they have ended too many processes."""
    words = f"games {games.start + 1} to {games.stop}"
    if losses == MOST_LOSSES:
        raise RunError(
            f"{words} were lost with {losses} collectors, one after the other ({error}); if memory is short, give "
            "fewer --collectors"
        ) from error
    say(f"collector {number} is gone ({error}); {words} are played again")
