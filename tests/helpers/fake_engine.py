"""An engine without processes: collectors play in this one, and a seeded plan says what happens to their answers."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from fastrl.config import to_record
from fastrl.distributed.actor import Actor, versions
from fastrl.distributed.collectors import LostError

PEACE = {"drop": 0.0, "kill": 0.0, "hang": 0.0, "twice": 0.0, "swap": 0.0, "step in": 0.0}
TROUBLE = {"drop": 0.04, "kill": 0.02, "hang": 0.01, "twice": 0.04, "swap": 0.08, "step in": 0.02}
START_SECONDS = 3.0


class Ref:
    """An answer, when it is due, and whether it was lost on its way."""

    def __init__(self, number, due, answer):
        self.number, self.due, self.answer = number, due, answer


class FakeEngine:
    """Delivers late, out of order, twice and never; time is a number that `wait` moves."""

    def __init__(self, config, seed, frame_bytes=0, *, trouble=PEACE, plan=0):
        self._config, self._seed, self._trouble = config, seed, trouble
        self._rng = np.random.default_rng(plan)
        self.now, self.notes = 0.0, []
        self.actors, self.hangs, self.newest, self.free_at = {}, set(), {}, {}
        self.spare, self.lives = Actor(to_record(config), seed, -1, versions(), again=True), Counter()
        self.seen = Counter()  # what happened
        self.closed = False

    def clock(self):
        return self.now

    def start(self, number, *, again=False):
        self.actors[number] = Actor(to_record(self._config), self._seed, number, versions(), again=again)
        self.free_at[number] = self.now + START_SECONDS * self._rng.random()
        self.newest[number] = None
        self.hangs.discard(number)

    def open_games(self, number):
        return Ref(number, self.free_at[number], self.actors[number].open_games())

    def collect(self, number, request, weights):
        refs, odds, rng = self.newest.setdefault(number, None), self._trouble, self._rng
        if number in self.hangs:
            return Ref(number, math.inf, None)
        self.free_at[number] = max(self.now, self.free_at[number]) + rng.exponential(0.2)
        self.actors[number].become(number, self.lives[number])
        ref = Ref(number, self.free_at[number], self.actors[number].collect(request, weights))
        waits = refs is not None and refs.due > self.now and not isinstance(refs.answer, Exception)
        if rng.random() < odds["hang"]:
            self.seen["hang"] += 1
            self.hangs.add(number)
            ref.due = math.inf
        elif rng.random() < odds["kill"]:
            self.seen["kill"] += 1
            ref.answer = LostError("killed")
            if waits:
                refs.answer, refs.due = LostError("killed"), ref.due
            self.start(number, again=True)
        elif rng.random() < odds["drop"]:
            self.seen["drop"] += 1
            ref.answer = LostError("dropped")
        elif waits and rng.random() < odds["twice"]:
            self.seen["twice"] += 1
            ref.answer = refs.answer
        elif waits and rng.random() < odds["swap"]:
            self.seen["swap"] += 1
            ref.answer, refs.answer = refs.answer, ref.answer
        elif rng.random() < odds["step in"]:  # the process lives, but cannot be reached for a while
            self.seen["step in"] += 1
            ref.answer = LostError("out of reach")
            if waits:
                refs.answer, refs.due = LostError("out of reach"), ref.due
            self.actors[number], self.spare = self.spare, self.actors[number]
            self.lives[number] += 1
        if number in self.actors:
            self.newest[number] = ref
        return ref

    def put(self, weights):
        self.seen["put"] += 1
        return {name: value.copy() for name, value in weights.items()}

    def wait(self, refs, seconds):
        if not any(ref.due <= self.now for ref in refs):
            self.now = min([self.now + seconds, *(ref.due for ref in refs)])
        return [ref for ref in refs if ref.due <= self.now]

    def get(self, number, ref):
        assert ref.due <= self.now
        assert ref.number == number
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    def restart(self, number):
        self.seen["restart"] += 1
        self.start(number, again=True)

    def close(self):
        self.closed = True
        for actor in self.actors.values():
            actor.close()
