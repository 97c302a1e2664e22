"""After how many episodes SARSA solves CartPole-v0: 1,000 learners of each variant, ``python bench/sarsa_seeds.py``.

Two questions that make the variants: are the features scaled or raw observations, and is the reward -1 on failure or +1
a step? Every learner plays the same 300 episodes whatever becomes of it, so that none is missing from the shares.
Three answers to "when", all counted in episodes:

* ``before_window``: played before the first 100 consecutive ones begin whose average is at least 195, so 0 at best
  (what Gym's own list of results called "episodes before solve");
* ``window_end``: played when that window is complete, so 100 at best;
* ``first_195``: played up to and with the first single one of at least 195 steps, so 1 at best.

Writes ``sarsa-v0-solved.csv`` (empty: never in 300 episodes), ``.svg`` and ``.png``, and prints a table. The CartPoles
are `fastrl.sarsa.cartpole.OwnCartPoles`, equal to Gymnasium's to the bit. ``--search`` prints instead how the
settings were found, with other seeds than that of the 1,000: 50 learners in every cell of a grid, then 1,000 in each
of the best five.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fastrl.config import SarsaConfig
from fastrl.sarsa.cartpole import SOLVED_RETURN
from fastrl.sarsa.learners import WINDOW, SarsaLearners, SarsaResult

LEARNERS, EPISODES, SEED = 1_000, 300, 1
GRID = {
    "learning_rate": (0.5, 0.1, 0.01, 0.001),
    "gamma": (0.95, 0.99, 1.0),
    "lam": (0.0, 0.5, 0.9),
    "epsilon": (0.0, 0.01, 0.05),
}
ROUNDS = ((50, 2), (1_000, 3))
"""Learners in each cell, and seed, of the two rounds of `search`."""
BEST = 5
"""Cells that reach the second round."""
CLAIM = 60
"""Episodes after which the source's variant (raw observations, reward +1 a step) is said to have solved the task."""

VARIANTS: dict[str, dict[str, Any]] = {
    "scaled-failure": {},
    "scaled-survival": {"features": "scaled", "reward": "survival", "learning_rate": 0.5, "gamma": 0.99, "lam": 0.9},
    "raw-failure": {"features": "raw", "reward": "failure", "learning_rate": 0.5, "gamma": 0.95, "lam": 0.0},
    "raw-survival": {"features": "raw", "reward": "survival", "learning_rate": 0.5, "epsilon": 0.01},
    "raw-survival-longest": {"features": "raw", "reward": "survival", "learning_rate": 0.001, "epsilon": 0.05},
}
"""What each differs in from `SarsaConfig`'s defaults: those that solved the task most often in the search, but for the
first, which are the defaults, and the last, which lived longest of the source's variant's best five."""
LABELS = {
    "scaled-failure": "scaled, -1 on failure (fastrl's defaults)",
    "scaled-survival": "scaled, +1 a step",
    "raw-failure": "raw, -1 on failure",
    "raw-survival": "raw, +1 a step (the source's variant): solves most often",
    "raw-survival-longest": "raw, +1 a step (the source's variant): lives longest",
}
COLOURS = dict(zip(VARIANTS, "#0072B2 #56B4E9 #E69F00 #D55E00 #CC79A7".split(), strict=True))
NEVER = -1


def play(learners: SarsaLearners) -> SarsaResult:
    """Let all learners play their episodes."""
    result = learners.run()
    assert (result.played == EPISODES).all(), "max_steps ended the run: some learners are short of episodes"
    return result


def prepared(learners: int, seed: int, settings: dict[str, Any]) -> SarsaLearners:
    """Return learners that have not played yet."""
    config = SarsaConfig(version="v0", learners=learners, episodes=EPISODES, seed=seed, dynamics="own", **settings)
    return SarsaLearners(config)


def solved(result: SarsaResult) -> dict[str, np.ndarray]:
    """Return when each learner had solved the task, ``[L]`` by each definition; `NEVER` where it had not."""
    before, good = result.solved_at_episode, result.returns >= SOLVED_RETURN["v0"]
    return {
        "before_window": before,
        "window_end": np.where(before >= 0, before + WINDOW, NEVER),
        "first_195": np.where(good.any(axis=1), good.argmax(axis=1) + 1, NEVER),
    }


def trial(kind: dict[str, Any], cells: list[tuple[float, ...]], each: int, seed: int) -> np.ndarray:
    """Play some cells of the grid at once; return ``[cells, 4]``: shares and means as `search` names them."""
    learners = prepared(len(cells) * each, seed, kind)
    for key, column in zip(GRID, np.repeat(cells, each, axis=0).T, strict=True):
        setattr(learners, key, column)
    result = play(learners)
    at = solved(result)
    scores = [at["before_window"] >= 0, at["first_195"] >= 0, result.returns[:, -WINDOW:].mean(axis=1), result.lost]
    return np.stack([score.reshape(len(cells), each).mean(axis=1) for score in scores], axis=1)


def search() -> Iterator[str]:
    """Find the settings of each variant but the default; yield the lines of a Markdown table of the best.

    Best is who has solved the task most often, and among equals who lived longest in the last 100 episodes.
    """
    yield f"| variant | {' | '.join(GRID)} | solved | with an episode of 195 | mean return of the last 100 | lost |"
    yield "|" + " --- |" * (len(GRID) + 5)
    for name in list(VARIANTS)[1:4]:
        kind = {key: VARIANTS[name][key] for key in ("features", "reward")}
        cells = list(itertools.product(*GRID.values()))
        for each, seed in ROUNDS:
            means = trial(kind, cells, each, seed)
            best = np.lexsort((-means[:, 2], -means[:, 0]))[:BEST]
            cells, means = [cells[cell] for cell in best], means[best]
        for cell, (solved_share, long_share, score, lost) in zip(cells, means, strict=True):
            numbers = [f"{solved_share:.1%}", f"{long_share:.1%}", f"{score:.0f}", f"{lost:.1%}"]
            yield f"| {' | '.join([name, *map(str, cell), *numbers])} |"


def interval(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a share."""
    z, share = 1.96, successes / trials
    centre, room = share + z * z / (2 * trials), z * math.sqrt(share * (1 - share) / trials + (z / trials / 2) ** 2)
    return (centre - room) / (1 + z * z / trials), (centre + room) / (1 + z * z / trials)


def table(times: dict[str, dict[str, np.ndarray]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| variant | definition | solved (95 % interval) | by 60 | by 100 | by 200 | median of those |"
    yield "|" + " --- |" * 7
    for name, by_definition in times.items():
        for definition, episode in by_definition.items():
            reached = episode[episode != NEVER]
            low, high = interval(len(reached), len(episode))
            shares = [f"{np.count_nonzero(reached <= k) / len(episode):.1%}" for k in (CLAIM, 100, 200)]
            whole = f"{len(reached) / len(episode):.1%} ({low:.1%} to {high:.1%})"
            median = f"{np.median(reached):g}" if len(reached) else ""
            yield f"| {name} | {definition} | {whole} | {' | '.join(shares)} | {median} |"


def write_csv(path: Path, times: dict[str, dict[str, np.ndarray]]) -> None:
    """Write one line per learner."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "learner", *next(iter(times.values()))])
        for name, by_definition in times.items():
            for learner, episodes in enumerate(zip(*by_definition.values(), strict=True)):
                writer.writerow([name, learner, *("" if at == NEVER else int(at) for at in episodes)])


def draw(times: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draw which share of the learners had solved the task by which episode."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    windows, games = figure.subplots(1, 2, sharey=True)
    for axes, definition, last in ((windows, "before_window", EPISODES - WINDOW), (games, "first_195", EPISODES)):
        for name, by_definition in times.items():
            episode = by_definition[definition]
            reached = np.sort(episode[episode != NEVER])
            shares = np.arange(len(reached) + 1) / len(episode)
            x, y = np.r_[0, reached, last], np.r_[shares, shares[-1]]
            axes.step(x, y, where="post", label=LABELS[name], color=COLOURS[name], linewidth=2)
        axes.axvline(CLAIM, color="0.5", linestyle=":", linewidth=1)
        axes.set(xlim=(-last / 50, last), ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    windows.set(
        xlabel="episodes before the first 100 that average 195",
        ylabel=f"share of {LEARNERS:,} learners",
        title="CartPole-v0 solved",
    )
    above = windows.secondary_xaxis("top", functions=(lambda x: x + WINDOW, lambda x: x - WINDOW))
    above.set_xlabel("episodes to the end of that window")
    games.set(xlabel="episodes to the first single one of 195 steps", title="one long episode")
    games.annotate(f"claim: {CLAIM}", (CLAIM, 0.9), xytext=(4, 0), textcoords="offset points", color="0.4")
    figure.legend(*windows.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--search", action="store_true", help="play the grid of settings instead; some minutes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "results", metavar="FOLDER")
    flags = parser.parse_args()
    if flags.search:
        for line in search():
            print(line, flush=True)
        return
    times = {}
    for name, settings in VARIANTS.items():
        result = play(prepared(LEARNERS, SEED, settings))
        times[name] = solved(result)
        print(
            f"{name}: {result.learner_steps:,} learner steps in {result.seconds:.0f} s, {result.lost.sum()} lost, "
            f"mean return of the last {WINDOW} episodes {result.returns[:, -WINDOW:].mean():.1f}",
            flush=True,
        )
    write_csv(flags.out / "sarsa-v0-solved.csv", times)
    with matplotlib.rc_context({"svg.hashsalt": "fastrl"}):  # the same file every time
        figure = draw(times)
        figure.savefig(flags.out / "sarsa-v0-solved.svg", metadata={"Date": None})
        figure.savefig(flags.out / "sarsa-v0-solved.png", dpi=120)
    print(*table(times), sep="\n")


if __name__ == "__main__":
    main()
