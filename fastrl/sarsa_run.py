"""The SARSA run: many linear learners on CartPole-v0 and v1, from start to film."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrl import folder, report, sarsa, video
from fastrl.cartpole import SOLVED_RETURN, CartPoles
from fastrl.config import SarsaConfig
from fastrl.extras import need
from fastrl.stop import Stop, Stopped

FILM_FPS = 50  # CartPole's own clock: 0.02 s a step


def train(config: SarsaConfig, *, quiet: bool = False) -> int:
    """Run the learners on each version of CartPole asked for; return the exit status."""
    path = folder.path_for(config, "cartpole")
    for package in ("gymnasium", "pygame", "torch", "tensorboard", "rich", "PIL"):  # before anything is written
        need(package, "train")
    folder.open_run(path, config, new=True)
    tasks = (
        [dataclasses.replace(config, version="v0"), dataclasses.replace(config, version="v1")]
        if config.version == "both"
        else [config]
    )
    with (
        Stop() as stop,
        report.Reporter(path, total=config.episodes * len(tasks), unit="episodes", quiet=quiet) as reporter,
    ):
        try:
            for number, task in enumerate(tasks):
                _train_version(task, path, reporter, stop, before=number * config.episodes)
        except Stopped:
            reporter.line(f"stopped; what was logged is in {path}; a whole run takes about a minute: start it anew")
            return 128 + (stop.signal or 0)
        reporter.line(f"look: tensorboard --logdir {config.runs_dir}")
    return 0


def _train_version(config: SarsaConfig, path: Path, reporter: report.Reporter, stop: Stop, before: int) -> None:
    """Train on one version, then judge, save, evaluate and film. ``before``: episodes of earlier versions."""
    version, learners = config.version, sarsa.SarsaLearners(config)

    def log(values: dict[str, float], steps: int) -> None:
        stop.check()
        at = before + int(values["games/episodes_least"])
        reporter.write({_key(version, key): value for key, value in values.items()} | {f"{version}/steps": steps}, at)
        solved, score = values["sarsa/solved_share"], values["games/return_mean_100"]
        reporter.progress(at, task=f"CartPole-{version}", score=f"{score:.0f}", solved=f"{solved:.0%}")

    result = learners.run(log)
    at = before + config.episodes
    reporter.progress(at)
    for line in _verdict(config, result):
        reporter.line(line)
    solved = result.solved_at_episode[result.solved_at_episode >= 0]
    reporter.write(
        {f"{version}/solved_learners": len(solved)}
        | ({f"{version}/solved_at_episode_mean": float(solved.mean())} if len(solved) else {}),
        at,
    )
    reporter.histogram(f"{version}/solved_at_episode", result.solved_at_episode, at)

    checkpoint = path / "checkpoints" / f"sarsa-{version}.npz"
    checkpoint.parent.mkdir(exist_ok=True)
    np.savez(checkpoint, weights=result.weights, solved_at_episode=result.solved_at_episode, returns=result.returns)
    scores = evaluate(result.weights, config)
    reporter.write({f"{version}/evaluation_return_mean": float(scores.mean())}, at)
    reporter.line(
        f"  evaluation, one greedy episode for each: mean {scores.mean():.1f}, median {np.median(scores):g}, "
        f"min {scores.min()}, max {scores.max()}; weights: {checkpoint}"
    )
    gif = path / "pictures" / f"cartpole-{version}.gif"
    best = int(np.argmax(scores))
    video.write_gif(gif, sarsa.film(result.weights[best], config, config.seed), fps=FILM_FPS)
    reporter.image(f"{version}/agent", gif, at)
    reporter.line(f"  film: {gif}")


def _verdict(config: SarsaConfig, result: sarsa.SarsaResult) -> Iterator[str]:
    """Say in words what the learners have come to."""
    solved, threshold = result.solved_at_episode[result.solved_at_episode >= 0], SOLVED_RETURN[config.version]
    yield (
        f"CartPole-{config.version}: {len(solved)} of {config.learners} learners solved it (100 consecutive episodes "
        f"of at least {threshold:g} on average); {np.count_nonzero(solved == 0)} with their very first 100"
    )
    if len(solved):
        yield (
            f"  episodes before that window began: mean {solved.mean():.1f}, median {np.median(solved):g}, "
            f"90 % {np.percentile(solved, 90):g}, most {solved.max()}"
        )
    if result.lost.any():
        yield (
            f"  the weights of {int(result.lost.sum())} learners grew without bound, and they played on at random: "
            f"--learning-rate is {config.learning_rate!r}; give a smaller --learning-rate or --lam"
        )
    yield (
        f"  {result.learner_steps:,} learner steps in {result.seconds:.1f} s: "
        f"{result.learner_steps_per_second:,.0f} a second"
    )


def evaluate(weights: NDArray[np.float64], config: SarsaConfig) -> NDArray[np.int64]:
    """Let each learner, ``weights [L, A, F]``, play one greedy episode of a CartPole it never saw; return ``[L]``."""
    inside = np.ascontiguousarray(weights.transpose(1, 2, 0))  # [A, F, L], as the learners keep them
    rng = np.random.default_rng(config.seed)
    envs = CartPoles(len(weights), config.version, config.seed + 1, features=config.features, dynamics=config.dynamics)
    scores, playing = np.zeros(len(weights), np.int64), np.ones(len(weights), bool)
    while playing.any():
        _, terminated, truncated = envs.step(sarsa.choose_actions(sarsa.action_values(inside, envs.features), 0.0, rng))
        scores += playing
        playing &= ~(terminated | truncated)
    return scores


def _key(version: str, key: str) -> str:
    """Put the version into a key, behind ``time/`` so that clock-dependent keys stay known as such."""
    return f"time/{version}/{key.removeprefix('time/')}" if key.startswith("time/") else f"{version}/{key}"
