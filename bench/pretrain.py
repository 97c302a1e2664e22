"""Make a run's network the one that ships for its game: weights in bfloat16, and a card with the scores they reach.

``python bench/pretrain.py runs/NAME --commit HASH`` plays 100 games on EnvPool and 100 on ale-py with the rounded
weights, and writes fastrl/weights/<game>.safetensors and .json. `python -m fastrl.evaluate GAME --episodes 100`
plays the first 100 again, with `--env gymnasium` the others.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from fastrl.cli import run_command
from fastrl.config import DQNConfig
from fastrl.dqn import pretrained
from fastrl.dqn.agent import greedy
from fastrl.dqn.network import QNetwork
from fastrl.envs.make import Backend
from fastrl.envs.rules import EvaluationRules
from fastrl.play.games import play_games
from fastrl.runs.folder import versions

BACKENDS: tuple[Backend, ...] = ("envpool", "gymnasium")
SEED = 0


def current_commit() -> str:
    """Return the commit that is checked out, marked if files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()


def judge(network: QNetwork, config: DQNConfig, *, commit: str, games: int) -> pretrained.Judgement:
    """Play N games on each backend."""
    exported_at, rules, scores = current_commit(), EvaluationRules(**config.rules()), {}
    for backend in BACKENDS:
        played = play_games(
            config.game, greedy(network), games, seed=SEED, rules=rules, backend=backend, stack=config.stack
        )
        print(played.summary(), flush=True)
        scores[backend] = {"games": games, "seed": SEED} | played.figures()
    return pretrained.Judgement(
        commit=commit, exported_at=exported_at, protocol=rules.describe(), scores=scores,
        played_with=pretrained.without_platform(versions()),
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--commit", required=True, help="the commit that it was trained at")
    parser.add_argument("--checkpoint", default="best", help="newest, best (default), or a name from its checkpoints/")
    parser.add_argument("--games", type=int, default=100, help="games on each of EnvPool and ale-py (default: 100)")
    args = parser.parse_args(arguments)
    card = pretrained.export(
        args.run, args.checkpoint, lambda *played: judge(*played, commit=args.commit, games=args.games)
    )
    print(f"{card.describe()}; in {pretrained.WEIGHTS}")
    return 0


if __name__ == "__main__":
    run_command(main, "python bench/pretrain.py")
