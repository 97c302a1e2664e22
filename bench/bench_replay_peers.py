"""Prioritized replays of Atari frames, side by side: ``python bench/bench_replay_peers.py``, some 15 minutes.

Contenders (``replay_turn.py``): fastrl, other people's replays as their documentation uses them for stacks of frames
(``peers.py``, ``peers_torch.py``), and the floor (``floor.py``): the same copies and a bare tree in C. Rings are full:
a million frames of 84x84 bytes, or as many rows as fit into 10 GiB where whole stacks are kept. 32 environments,
stacks of 4, random frames.

* A turn is a process of its own on one core, unless more threads are said, so that libraries, allocators and threads
  do not meet. Turns are played one at a time, since rings of several GB do not fit beside each other, and in several
  rounds, every other one in reversed order: what the machine does meanwhile hits all alike. A new process in each
  round costs filling the ring again, and pays for it by averaging over how memory happens to lie.
* Figures are medians of calls within a turn, then over rounds; ratios are taken within rounds, then their median.
* The batch drawn last is held until the next one is there, as trainers do, so fastrl writes into two batches in turns.
  The floor writes into one; so does "fastrl, one batch" (`sample` with ``out``).
* Cold: between two calls, outside the timed part, 64 MB are written. Warm: calls follow each other.
* Before it is timed, each contender proves in a small ring that its stacks, n-step returns and priorities are what they
  should be; the share of drawn rows for which they are stands in the table, of rows whose episodes did not end.
* A contender that cannot be imported or fails is named with its reason.

Operations: add one vector step of 1, 8, 32 or 128 environments; draw and update 256 of 2^20 leaves of the bare tree,
where there is access to it; draw batches; and the cycle of adding 32 rows, drawing 256 and updating them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replay_turn import ADDS, BATCH, BATCHES, N_STEPS, NUM_ENVS, STATES, Contender, contenders, environment

PATIENCE_SECONDS = 1_200
Answers = dict[str, list[dict[str, Any]]]
"""By contender, one answer of `replay_turn` a round; none after a failure."""
OPERATIONS = [f"add {n}" for n in ADDS] + [f"tree: draw {BATCH}", f"tree: update {BATCH}"]
OPERATIONS += [f"sample {size}, n = {n}" for n in N_STEPS for size in BATCHES]
OPERATIONS += [f"cycle {NUM_ENVS}, {BATCH}, {BATCH}, n = {n}" for n in N_STEPS]
OVER_FLOORS = [
    ("fastrl", "floor"), ("fastrl-out", "floor"), ("fastrl-2", "floor-2"), ("fastrl-out-2", "floor-2"),
    ("fastrl", "floor-turns"), ("fastrl-2", "floor-turns-2"),
]  # fmt: skip
FACTS = {  # rows of the table on top of the operations, and how they are written
    "rows": "{:,.0f}", "bytes": "{:,.0f}", "construct": "{:.2f}", "fill": "{:.1f}", "right": "{:.1%}",
}  # fmt: skip
LABELS = {
    "rows": "transitions held", "bytes": "bytes a transition, of memory in use", "construct": "seconds to construct",
    "fill": "seconds to fill", "right": "drawn rows that are right",
}  # fmt: skip


def turn(threads: int, script: str, *arguments: object) -> dict[str, Any]:
    """Let a contender take a turn; return its answer, or ``failure`` with the reason."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    try:
        done = subprocess.run(
            command, env=os.environ | environment(threads), capture_output=True, text=True, timeout=PATIENCE_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failure": f"silent for {PATIENCE_SECONDS:,} seconds"}
    if not done.stdout.endswith("\n"):
        last = done.stderr.strip().splitlines()[-1:] or ["no last words"]
        return {"failure": f"exit status {done.returncode}: {last[0]}"}
    return json.loads(done.stdout)


def play(chosen: dict[str, Contender], rounds: int, script: str, *arguments: object) -> Answers:
    """Let everyone take turns of ``script``; who failed once is not asked again."""
    answers: Answers = {name: [] for name in chosen}
    for number in range(rounds):
        for name in chosen if number % 2 == 0 else reversed(chosen):
            if any("failure" in answer for answer in answers[name]):
                continue
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            answers[name].append(turn(chosen[name].threads, script, name, *arguments))
    return answers


def failure(answers: Sequence[dict[str, Any]]) -> str | None:
    """Return why a contender has no figures."""
    return next((" ".join(answer["failure"].split()) for answer in answers if "failure" in answer), None)


def figure(answers: Sequence[dict[str, Any]], state: str, operation: str) -> float | None:
    """Return the median microseconds over rounds; None where the operation was not measured."""
    if failure(answers) or not all(operation in answer["figures"][state] for answer in answers):
        return None
    return statistics.median(answer["figures"][state][operation] for answer in answers)


def ratio(one: Sequence[Any], other: Sequence[Any], state: str, operation: str) -> float | None:
    """Return the median over rounds of the quotient of microseconds within a round."""
    if figure(one, state, operation) is None or figure(other, state, operation) is None:
        return None
    pairs = [[answer["figures"][state][operation] for answer in pair] for pair in zip(one, other, strict=True)]
    return statistics.median(mine / theirs for mine, theirs in pairs)


def microseconds(value: float) -> str:
    """Return three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times_beside(answers: Answers, fastrl: Sequence[dict[str, Any]], state: str, operation: str) -> list[str]:
    """Return a cell for each contender: microseconds and, but for fastrl, their ratio to fastrl's; "" without any."""
    cells = []
    for name, turns in answers.items():
        value, over = figure(turns, state, operation), ratio(turns, fastrl, state, operation)
        time = "" if value is None else microseconds(value)
        cells.append(time if over is None or name == "fastrl" else f"{time} ({over:.2f})")
    return cells


def table(chosen: dict[str, Contender], answers: Answers) -> list[str]:
    """Return the lines of a Markdown table: facts, then operations; one column for each contender."""
    fastrl = answers.get("fastrl", [])
    pairs = [pair for pair in OVER_FLOORS if set(pair) <= answers.keys()]
    titles = [" / ".join(chosen[name].title for name in pair) for pair in pairs]
    lines = [["", *(contender.title for contender in chosen.values()), *titles]]
    lines.append(["---"] * len(lines[0]))
    versions = ["failed" if failure(a) else a[0]["version"] for a in answers.values()]
    lines.append(["version", *versions, *[""] * len(pairs)])
    for fact, form in FACTS.items():
        for n_step in N_STEPS:
            key = f"{fact}, n = {n_step}"
            values = [[a[key] for a in turns if not math.isnan(a.get(key, math.nan))] for turns in answers.values()]
            cells = [form.format(statistics.median(value)) if value else "" for value in values]
            if any(cells):
                lines.append([f"{LABELS[fact]}, n = {n_step}", *cells, *[""] * len(pairs)])
    for operation in OPERATIONS:
        for state in STATES:
            cells = times_beside(answers, fastrl, state, operation)
            for one, floor in pairs:
                share = ratio(answers[one], answers[floor], state, operation)
                cells.append("" if share is None else f"{share:.2f}")
            lines.append([f"{operation}, {state}", *cells])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def notes(chosen: dict[str, Contender], answers: Answers) -> list[str]:
    """Return one line for each contender: how it is used, or why it has no figures."""
    how = {name: failure(turns) for name, turns in answers.items()}
    return [
        f"* {contender.title}: " + (f"failed: {how[name]}" if how[name] else answers[name][0]["about"]) + "."
        for name, contender in chosen.items()
    ]


def parse(arguments: Sequence[str], names: Sequence[str]) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns that each contender takes (3)")
    parser.add_argument("--frames", type=int, default=1_000_000, help="frames in the ring (1,000,000)")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long an operation is repeated in a turn (0.3)")
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every answer there too")
    flags = parser.parse_args(arguments)
    if flags.rounds < 1 or flags.frames < 100 * NUM_ENVS or flags.seconds <= 0:
        parser.error(f"give at least one round, {100 * NUM_ENVS:,} frames and more than 0 seconds")
    return flags


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 1 if fastrl or its floor failed: others may be missing."""
    from machine_card import machine_card

    everyone = contenders()
    flags = parse(arguments, list(everyone))
    chosen = {name: contender for name, contender in everyone.items() if name in flags.only}
    here = shlex.quote(str(Path(__file__).parent))
    commit = subprocess.getoutput(f"git -C {here} describe --always --dirty 2>/dev/null || echo unknown")
    card, command = machine_card() | {"commit": commit}, shlex.join(["python", *sys.orig_argv[1:]])
    print(f"Machine: {', '.join(f'{name} {value}' for name, value in card.items())}.")
    print(f"Command: `{command}`.\n", flush=True)
    answers = play(chosen, flags.rounds, "replay_turn.py", flags.frames, flags.seconds)
    print("Microseconds; in brackets over fastrl's. One thread unless said.\n")
    print(*table(chosen, answers), "", *notes(chosen, answers), sep="\n")
    if flags.json:
        flags.json.write_text(json.dumps({"machine": card, "command": command, "answers": answers}, indent=2) + "\n")
    return int(any(failure(answers.get(name, [])) for name in ("floor", "fastrl")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
