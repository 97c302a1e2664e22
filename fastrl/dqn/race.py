"""Which of several ways to do the same work is the fastest: measured in turns, within a given time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Way = TypeVar("Way")
Work = Callable[[], object]

TIE = 0.05
"""A way that is faster by less than this share is not taken: noise is as large."""
LEAST_TURNS, MOST_TURNS, TURNS_IN_DOUBT = 3, 5, 15
"""Turns after which a way may win; after which the race is over; and after which it is over though still in doubt."""
LOST = 1.5
"""A way that takes this many times as long in its first turn takes no more; LATE times in each turn from the second."""
LATE = 1.2
MISSED = 1.25
"""A choice holds for other days if none of its rivals may well be this many times as fast."""
PIECES, TURN_SECONDS = 3, 0.05
"""Pieces of work in a turn, fewer when they take this long; its time is their median, since the first is cold."""
CARE = 1.5
"""What is planned is taken to last this many times as long as it did before."""


class Race(Generic[Way]):
    """Builds ways to work, and lets them work in turns until a deadline.

    Nothing is begun that would not end in time by what was seen so far; a way that no longer fits is left out.

    Parameters
    ----------
    build : callable
        Makes the work of a way, ready to be called again and again.
    deadline : float
        When all must be over, by `clock`.
    clock : callable
        Seconds that only grow.
    """

    def __init__(
        self,
        build: Callable[[Way], Work],
        deadline: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._build, self._deadline, self._clock = build, deadline, clock
        self._longest_build = 0.0
        self._runners: dict[Way, _Runner] = {}
        self._holds: list[bool] = []  # of each choice

    def winner(
        self, champion: Way, challengers: Sequence[Way], *, until: float = math.inf, falling: bool = False
    ) -> Way:
        """Return the way that is clearly faster than the champion, or the champion.

        Clearly: by more than `TIE` in the median of the turns, and faster in three turns of four. Where that is
        in doubt, a way has up to `TURNS_IN_DOUBT` turns, if there is time. Of several clearly faster ways that are
        within `TIE` of the fastest, the first wins.

        Parameters
        ----------
        champion, challengers
            The challengers are in order of preference.
        until : float
            When this must be over, if before the deadline.
        falling : bool
            Each challenger does with less than the one before: once one is beaten, the rest are not tried.
        """
        until = min(until, self._deadline)
        first = self._runners.get(champion) or self._made(champion)
        field: dict[Way, list[float]] = {}  # each challenger's turns over the champion's beside them
        likely = first.seconds
        for way in challengers:
            runner = self._challenger(
                way, until, 2 * likely, beside=first.cost + sum(self._runners[w].cost for w in field)
            )
            if runner is None:
                continue
            first.turn(self._clock)
            runner.turn(self._clock)
            field[way] = [runner.turns[-1] / first.turns[-1]]
            if field[way][0] > LOST:
                del field[way], self._runners[way]
                if falling:
                    break
            likely = runner.seconds if falling else likely
        while racing := [way for way, ratios in field.items() if _wants_turns(ratios)]:
            others = [self._runners[way] for way in racing]
            if self._clock() + CARE * (first.cost + sum(other.cost for other in others)) > until:
                break
            for runner in (first, *others) if len(first.turns) % 2 else (*reversed(others), first):
                runner.turn(self._clock)
            for way in racing:
                ratios = field[way]
                ratios.append(self._runners[way].turns[-1] / first.turns[-1])
                if min(ratios) > LATE:
                    del field[way], self._runners[way]
        medians = {way: statistics.median(ratios) for way, ratios in field.items() if _is_clear(ratios)}
        winner = next((way for way, m in medians.items() if m <= min(medians.values()) * (1 + TIE)), champion)
        if len(first.turns):
            level = medians.get(winner, 1.0)
            self._holds.append(all(_is_passed(ratios, level) for way, ratios in field.items() if way != winner))
        return winner

    @property
    def holds(self) -> bool:
        """Whether the choices say something about other days: none of the ways passed over may well be much faster.

        A way may well be if it was faster than the chosen one by `MISSED` in more than a quarter of its turns, and in
        more than one. Only ratios within turns count: neither turns of very different length, as on a quiet machine
        whose threads wait for the games beside them, nor a machine that becomes slower speak against a choice.
        """
        return bool(self._holds) and all(self._holds)

    def _challenger(self, way: Way, until: float, likely: float, beside: float) -> _Runner | None:
        """Return a way that has worked once; None if it would not have its turns in time.

        ``beside`` is what a turn of the others takes.
        """
        turns = LEAST_TURNS * (beside + max(likely, min(PIECES * likely, TURN_SECONDS)))
        if self._clock() + CARE * (self._longest_build + 2 * likely + turns) > until:
            return None
        return self._made(way)

    def _made(self, way: Way) -> _Runner:
        """Build a way and let it work once."""
        start = self._clock()
        work = self._build(way)
        built = self._clock()
        self._longest_build = max(self._longest_build, built - start)
        runner = self._runners[way] = _Runner(work)
        work()  # what is made at the first call only
        runner.warm = self._clock() - built
        return runner


class _Runner:
    """One way at work."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.turns: list[float] = []  # seconds of one piece of work
        self.warm = self.cost = 0.0  # seconds of the first call; of the newest turn

    @property
    def seconds(self) -> float:
        """What one piece of work takes."""
        return statistics.median(self.turns) if self.turns else self.warm

    def turn(self, clock: Callable[[], float]) -> None:
        """Work some times."""
        pieces: list[float] = []
        while len(pieces) < PIECES and sum(pieces) < TURN_SECONDS:
            start = clock()
            self._work()
            pieces.append(clock() - start)
        self.turns.append(statistics.median(pieces))
        self.cost = sum(pieces)


def _wants_turns(ratios: Sequence[float]) -> bool:
    """Whether a way has more turns, given those that it has had beside the champion."""
    if len(ratios) < MOST_TURNS:
        return True
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return len(ratios) < TURNS_IN_DOUBT and low < 1 - TIE < high


def _is_passed(ratios: Sequence[float], level: float) -> bool:
    """Whether turns leave little hope that a way is much faster than one of this level, one disturbed turn aside."""
    better = sum(ratio * MISSED < level for ratio in ratios)
    return len(ratios) >= LEAST_TURNS and better <= max(1, len(ratios) // 4)


def _is_clear(ratios: Sequence[float]) -> bool:
    """Whether turns show a way to be faster than the champion."""
    wins = sum(ratio < 1 for ratio in ratios)
    return len(ratios) >= LEAST_TURNS and statistics.median(ratios) < 1 - TIE and wins >= 0.75 * len(ratios)
