"""Atari-5: one number for five games, from what ``python -m fastrl.evaluate RUN --episodes 100 --json FILE`` wrote.

``python bench/atari5.py FILE...`` takes at least one file of each game, and one of each seed where there are several.
It prints a table, and the score with a 95 % interval: a bootstrap over the seeds of each game, and over the games
played of each seed. One seed has no spread between seeds, so then the interval is that of its games alone. The
weights are fitted anew (`fastrl.envs.levels`), so the score compares only with others of this script.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.base.errors import ConfigError
from fastrl.cli import run_command
from fastrl.envs.levels import ATARI_5, atari_5_score, human_normalized
from fastrl.runs.curves import interquartile_mean

RESAMPLES = 2_000


class Result(NamedTuple):
    """Scores of one seed's games."""

    path: Path
    game: str
    protocol: str
    env: str
    checkpoint: str
    scores: NDArray[np.float64]


def read(path: Path) -> Result:
    """Read a file that `fastrl.evaluate` wrote."""
    try:
        found = json.loads(path.read_text())
        if not all(type(score) in (int, float) and math.isfinite(score) for score in found["scores"]):
            raise ValueError("scores that are no finite numbers")
        scores = np.array(found["scores"], np.float64)
        return Result(path, found["game"], found["protocol"], found["env"], found["checkpoint"], scores)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read as scores ({type(error).__name__}: {error}); write it with `python -m "
            "fastrl.evaluate RUN --json FILE`"
        ) from error


def by_game(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Sort by game; refuse games that are missing, protocols or emulators that differ, and a checkpoint given twice."""
    games: dict[str, list[Result]] = {name: [] for name in ATARI_5}
    for result in results:
        if result.game not in games:
            raise ConfigError(f"{result.path} is of {result.game}, and Atari-5 is {', '.join(ATARI_5)}; leave it out")
        if not result.scores.size:
            raise ConfigError(f"{result.path} has no scores; evaluate with --episodes 1 or more")
        games[result.game].append(result)
    missing = [name for name, found in games.items() if not found]
    if missing:
        raise ConfigError(f"no file is of {' and of '.join(missing)}; evaluate a run of each of the five games")
    first, *others = (result for found in games.values() for result in found)
    for other in others:
        if other.protocol != first.protocol:
            raise ConfigError(
                f"{first.path} was played by '{first.protocol}' and {other.path} by '{other.protocol}'; evaluate "
                "all with one --protocol"
            )
        if other.env != first.env:
            raise ConfigError(
                f"{first.path} was played on {first.env} and {other.path} on {other.env}; evaluate all with one --env"
            )
    seen: dict[str, Path] = {}
    for result in (first, *others):
        if result.checkpoint in seen:
            raise ConfigError(
                f"{seen[result.checkpoint]} and {result.path} are of one checkpoint, {result.checkpoint}, which is one "
                "seed; give one of them"
            )
        seen[result.checkpoint] = result.path
    return games


def score(means: Mapping[str, NDArray[np.float64]]) -> float:
    """Return the score of ``[seeds]`` mean scores of each game."""
    return atari_5_score({name: float(interquartile_mean(found)) for name, found in means.items()})


def interval(games: Mapping[str, list[Result]]) -> tuple[float, float]:
    """Return the interval of the score."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        means = {}
        for name, seeds in games.items():
            drawn = [seeds[number].scores for number in rng.integers(len(seeds), size=len(seeds))]
            means[name] = np.array([scores[rng.integers(scores.size, size=scores.size)].mean() for scores in drawn])
        found.append(score(means))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="of `fastrl.evaluate --json`")
    games = by_game(map(read, parser.parse_args(arguments).files))
    print("| game | seeds | games | score | human-normalised |\n| --- | --- | --- | --- | --- |")
    means, below = {}, []
    for name, seeds in games.items():
        means[name] = np.array([seed.scores.mean() for seed in seeds])
        middle, count = float(interquartile_mean(means[name])), sum(seed.scores.size for seed in seeds)
        share = human_normalized(name, middle)
        print(f"| {name} | {len(seeds)} | {count} | {middle:,.1f} | {share:.1%} |")
        if share <= 0:
            below.append(name)
    low, high = interval(games)
    protocol = next(iter(games.values()))[0].protocol
    print(f"\nAtari-5: {score(means):.1f} [{low:.1f}, {high:.1f}]; {protocol}")
    if below:
        print(f"Not above random play, and counted as 0 %: {', '.join(below)}.")
    print("Its weights are fitted anew: compare it with scores of this script only.")
    return 0


if __name__ == "__main__":
    run_command(main, "python bench/atari5.py")
