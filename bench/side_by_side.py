"""Let training loops run side by side on one machine, and time them fairly. Linux only.

* Each contestant is a process of its own: threads, allocator settings and libraries do not meet.
* All are prepared before the first round; then one at a time plays a round, in turn, and every other round the
  order is reversed: what the machine does meanwhile (heat, neighbours) hits all alike. Ratios are taken within rounds.
* How many agent steps a round has is found in a rehearsal, so that each round takes about the seconds asked for,
  and is then the same in all rounds of a contestant.
* Nobody else should work meanwhile: with each round comes the processor time that those who wait took, and that
  everything else on the machine took. One busy stranger can slow threads that spin at barriers tenfold.
* A contestant that cannot be imported, dies or falls silent is reported with its reason, never dropped.

Seconds are those of ``Loop.play`` alone, taken inside the contestant's process: neither the pipe nor the preparation
counts.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PATIENCE_SECONDS = 1_200
"""A contestant that is silent for so long is lost: slow machines compile for minutes."""


class Loop(Protocol):
    """What a contestant's factory returns, prepared: imported, compiled, its replay filled, some updates made."""

    about: dict[str, Any]
    """Facts for the report, JSON-able."""
    unit: int
    """Agent steps after which the pattern of steps and updates repeats; rounds are whole multiples."""

    def play(self, steps: int) -> None:
        """Play and learn for about N agent steps; return when all the work is done, on a GPU too."""

    def counts(self) -> dict[str, int]:
        """Return what was done so far in all, ``steps`` among it."""

    def close(self) -> None:
        """Leave nothing behind."""


@dataclass(frozen=True)
class Contestant:
    """Who takes part: a name, ``"module:function"`` that returns a Loop, and that function's arguments (JSON-able).

    ``tree`` is a checkout whose package it imports, if not that of this process.
    """

    name: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tree: str | None = None


@dataclass
class Result:
    """What a contestant did.

    One dictionary per round: what `Loop.counts` counts; ``seconds``; and the processor seconds of the contestants that
    waited, ``waiting_cpu_seconds``, and of everything else on the machine, ``foreign_cpu_seconds``.
    """

    name: str
    about: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    failure: str | None = None
    missing: bool = False  # the failure is a package that is not installed

    def rates(self, what: str) -> list[float]:
        """Return ``what`` per second in each round."""
        return [r[what] / r["seconds"] for r in self.rounds]

    def total(self, what: str) -> float:
        """Return the sum over all rounds."""
        return sum(r[what] for r in self.rounds)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(result: Result, reference: Result, what: str) -> float | None:
    """Return the median over rounds of the two rates' ratio within a round; None where either failed."""
    if result.failure or reference.failure:
        return None
    pairs = zip(result.rates(what), reference.rates(what), strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def side_by_side(
    contestants: Sequence[Contestant], rounds: int, seconds: float, say: Callable[[str], None]
) -> list[Result]:
    """Prepare all contestants, let them play ``rounds`` of about ``seconds`` in turn, and return their results."""
    with contextlib.ExitStack() as stack:
        players = []
        for contestant in contestants:
            say(f"preparing {contestant.name}")
            players.append(stack.enter_context(_Player(contestant)))
            players[-1].prepare(seconds)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for player in players if number % 2 == 0 else reversed(players):
                player.turn(waiting=[other for other in players if other is not player])
        return [player.result for player in players]


class _LostError(Exception):
    """A contestant gave no answer; says why."""


class _Player:
    """A contestant's process, seen from outside."""

    def __init__(self, contestant: Contestant) -> None:
        self.result = Result(contestant.name)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe without a reader would fill up and block
        self._process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), contestant.factory, json.dumps(contestant.arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=contestant.tree,
            env=os.environ | ({"PYTHONPATH": os.path.abspath(contestant.tree)} if contestant.tree else {}),
        )  # fmt: skip

    def __enter__(self) -> _Player:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # asks it to leave
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def prepare(self, seconds: float) -> None:
        """Wait until it is ready, then rehearse: find the agent steps that take about ``seconds``."""
        try:
            ready = self._answer()
            self.result.about, unit = ready["about"], ready["unit"]
            self._play(unit)  # the first is often slow
            self._steps, took = unit, 0.0
            while took < seconds / 2:
                played = self._play(self._steps)
                took = played["seconds"]
                units = round(played["steps"] / took * seconds / unit)
                self._steps = max(1, min(units, 8 * self._steps // unit)) * unit
        except _LostError as error:
            self.result.failure = str(error)

    def turn(self, waiting: Sequence[_Player]) -> None:
        """Play one round while the others wait."""
        if self.result.failure:
            return
        before = _machine_cpu_seconds(), self._cpu_seconds(), sum(other._cpu_seconds() for other in waiting)
        try:
            played = self._play(self._steps)
        except _LostError as error:
            self.result.failure = f"lost in round {len(self.result.rounds) + 1}: {error}"
            return
        after = _machine_cpu_seconds(), self._cpu_seconds(), sum(other._cpu_seconds() for other in waiting)
        machine, own, others = (now - then for now, then in zip(after, before, strict=True))
        cpu = {"waiting_cpu_seconds": others, "foreign_cpu_seconds": max(0.0, machine - own - others)}
        self.result.rounds.append(played | cpu)

    def _cpu_seconds(self) -> float:
        """Return the processor time that all its threads have taken so far; 0 if it is gone."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def _play(self, steps: int) -> dict[str, float]:
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except OSError:
            raise _LostError(self._epitaph()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        """Wait for one line of JSON."""
        if not select.select([self._process.stdout], [], [], PATIENCE_SECONDS)[0]:
            self._process.kill()
            raise _LostError(f"silent for {PATIENCE_SECONDS:,} seconds")
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise _LostError(self._epitaph())
        answer = json.loads(line)
        if "failure" in answer:
            self.result.missing = answer["missing"]
            raise _LostError(answer["failure"])
        return answer

    def _epitaph(self) -> str:
        """Return how a process ended that could not say so itself."""
        status = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no last words"]
        return f"exit status {status}: {last[0]}"


def _machine_cpu_seconds() -> float:
    """Return the processor time of all processes so far, and what a hypervisor gave to other machines."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


def serve(factory: str, arguments: dict[str, Any]) -> None:
    """Be a contestant: prepare, say ready, then play as many agent steps as each line on stdin says."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # libraries print to stdout, so that the answers leave it
    os.dup2(2, 1)
    try:
        module, _, name = factory.partition(":")
        loop: Loop = getattr(importlib.import_module(module), name)(**arguments)
        with contextlib.closing(loop):
            answers.write(json.dumps({"about": loop.about, "unit": loop.unit}) + "\n")
            for line in sys.stdin:
                before, started = loop.counts(), time.perf_counter()
                loop.play(int(line))
                seconds, after = time.perf_counter() - started, loop.counts()
                done = {what: after[what] - before[what] for what in after}
                answers.write(json.dumps({"seconds": seconds} | done) + "\n")
    except Exception as error:  # whatever it was, the other side wants to know
        failure = {"failure": f"{type(error).__name__}: {error}", "missing": isinstance(error, ModuleNotFoundError)}
        answers.write(json.dumps(failure) + "\n")
        raise


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
