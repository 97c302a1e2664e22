"""Dictionaries, stretches of episodes and frames in files, side by side: ``python bench/bench_replay_kinds.py``.

Some five minutes. Each kind (``kinds.py``) has a full ring of its own: 64,000 rows of an 84x84 image and seven floats,
64,000 frames of 84x84, 256,000 rows of 1 kB in files. Contenders (``peers_kinds.py``) that lack a kind are named.

Turns, rounds, medians and ratios are those of ``bench_replay_peers.py``: a process of its own on one core, one at a
time, every other round in reversed order; warm calls follow each other, cold ones have 64 MB written in between. Before
it is timed, each contender's draws are checked in a small ring: the share of items that are right stands in the table.

Operations: add one vector step of 32 environments; draw 256 transitions or 64 stretches of 80 frames; the cycle of an
add, a draw and new priorities for what was drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench_replay_peers import Answers, failure, play, ratio, times_beside
from kind_turn import CLOCKS, contenders
from kinds import KINDS
from replay_turn import STATES, Contender

OPERATIONS = ("add 32", "draw", "cycle")


def table(chosen: dict[str, Contender], answers: Answers) -> list[str]:
    """Return the lines of a Markdown table of one kind: one column for each contender that has figures."""
    there = {name: turns for name, turns in answers.items() if not failure(turns)}
    floor, fastrl = there.get("floor", []), there.get("fastrl", [])
    lines = [["", *(chosen[name].title for name in there), "fastrl / floor"]]
    lines.append(["---"] * len(lines[0]))
    lines.append(["version", *(turns[0]["version"] for turns in there.values()), ""])
    shares = [statistics.median(answer["right"] for answer in turns) for turns in there.values()]
    lines.append(["drawn items that are right", *("" if math.isnan(s) else f"{s:.1%}" for s in shares), ""])
    for operation in OPERATIONS:
        for state in STATES:
            cells = times_beside(there, fastrl, state, operation)
            over = ratio(fastrl, floor, state, operation)
            lines.append([f"{operation}, {state}", *cells, "" if over is None else f"{over:.2f}"])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 1 if fastrl or its floor failed: others may be missing."""
    from machine_card import machine_card

    everyone = contenders()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns that each contender takes (3)")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long an operation is repeated in a turn (0.5)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--only", nargs="+", choices=everyone, default=list(everyone), metavar="NAME")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall",
        help="cpu: processor time of a contender, for a machine that does other work; waits for the disk do not count",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for frames in files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every answer there too")
    flags = parser.parse_args(arguments)
    if flags.rounds < 1 or flags.seconds <= 0:
        parser.error("give at least one round and more than 0 seconds")
    chosen = {name: contender for name, contender in everyone.items() if name in flags.only}
    here = shlex.quote(str(Path(__file__).parent))
    commit = subprocess.getoutput(f"git -C {here} describe --always --dirty 2>/dev/null || echo unknown")
    card, command = machine_card() | {"commit": commit}, shlex.join(["python", *sys.orig_argv[1:]])
    print(f"Machine: {', '.join(f'{name} {value}' for name, value in card.items())}.")
    print(f"Command: `{command}`.\n\nMicroseconds; in brackets over fastrl's. One thread.", flush=True)
    found: dict[str, Answers] = {}
    for kind in flags.kinds:
        found[kind] = play(
            chosen, flags.rounds, "kind_turn.py", kind, flags.folder.resolve(), flags.seconds, flags.clock
        )
        print(f"\n### {KINDS[kind].title}\n", *table(chosen, found[kind]), "", sep="\n")
        for name, turns in found[kind].items():
            lost = failure(turns)
            print(f"* {chosen[name].title}: {f'no figures: {lost}' if lost else turns[0]['about']}.", flush=True)
    if flags.json:
        flags.json.write_text(json.dumps({"machine": card, "command": command, "answers": found}, indent=2) + "\n")
    return int(any(failure(answers.get(name, [])) for answers in found.values() for name in ("floor", "fastrl")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
