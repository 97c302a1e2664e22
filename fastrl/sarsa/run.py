"""The SARSA run: many linear learners on CartPole-v0 and v1, from start to film."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.base.commands import command_line
from fastrl.base.errors import ConfigError, Stopped, damaged, in_words
from fastrl.base.extras import need
from fastrl.base.stop import Stop
from fastrl.config import SarsaConfig
from fastrl.envs.names import refuse_while_loading
from fastrl.film import video
from fastrl.runs import checkpoints, report
from fastrl.runs.folder import RunFolder
from fastrl.sarsa.cartpole import SOLVED_RETURN, CartPoles
from fastrl.sarsa.learners import SarsaLearners, SarsaResult, action_values, choose_actions, film

FILM_FPS = 50  # CartPole's own clock: 0.02 s a step
CHECKPOINT_EVERY_STEPS = 10_000  # a few seconds
KEEP_CHECKPOINTS = 2
STATE_FORMAT = 1
"""Of state.json; one without a format has this one."""
_UNCHANGED = ("version", "features", "reward")  # what weights and tasks of a resumed run stand for


def train(config: SarsaConfig, *, resume: str | os.PathLike[str] | None = None, quiet: bool = False) -> SarsaRun:
    """Run the learners on each version of CartPole asked for.

    Parameters
    ----------
    config : SarsaConfig
        All settings.
    resume : Path, optional
        Resume the newest whole checkpoint in this run's folder, all to the bit.
    quiet : bool
        Print nothing.

    Returns
    -------
    SarsaRun
        Its ``folder`` holds the weights; its ``stop.signal`` says whether a signal ended it.

    Raises
    ------
    ConfigError
        If a setting does not fit the checkpoint, another run has the folder, or a module is being loaded for its
        environment (`fastrl.envs.names.refuse_while_loading`); nothing was written then.
    RunError
        If the folder takes no more files.
    """
    refuse_while_loading()
    folder = RunFolder.new(config, "cartpole") if resume is None else RunFolder(resume)
    for package in ("gymnasium", "pygame", "torch", "tensorboard", "rich", "PIL", "safetensors"):
        need(package, "train")  # before anything is written
    with Stop() as stop, contextlib.closing(folder):
        try:
            if resume is not None:
                config = folder.reopen(config)
            run = SarsaRun(config, folder, stop, resume=resume is not None)
            if run.over:
                folder.ended(config, {"films"}, "start a new run")
            folder.open(config, new=resume is None)
            run.play(quiet)
            return run
        except OSError as error:
            if refused := folder.unwritable(error):
                raise refused from error
            raise


class SarsaRun:
    """The versions of CartPole, one task after another, and how far the run is.

    It is saved at the beginning of a task and now and then right after a line of metrics, where no statistics are
    in progress.

    Attributes
    ----------
    folder : RunFolder
        What the run leaves behind; ``checkpoints/sarsa-v0.npz`` in it holds the weights.
    stop : Stop
        Its ``signal`` is the one that asked to stop, or None.
    status : int
        Exit status of the command: 0, or 128 and the signal that cut the run short.
    """

    def __init__(self, config: SarsaConfig, folder: RunFolder, stop: Stop, *, resume: bool) -> None:
        self._config, self.folder, self.stop = config, folder, stop
        self.status = 0
        self._tasks = [config]
        if config.version == "both":
            self._tasks = [dataclasses.replace(config, version="v0"), dataclasses.replace(config, version="v1")]
        self._task = 0  # the one in progress
        self._learners: SarsaLearners | None = None  # of that task, if it is resumed
        self._found: Path | None = None
        self._reported: dict[str, Any] | None = None
        self._notes: list[str] = []
        if resume:
            self._found, self._notes = folder.newest_whole()
            self._restore(self._found)

    @property
    def over(self) -> bool:
        """Whether no task is left."""
        return self._task == len(self._tasks)

    def _restore(self, found: Path) -> None:
        try:
            state = json.loads((found / "state.json").read_text(encoding="utf-8"))
            written = state.get("format", 1)
            checkpoints.check_format(found / "state.json", written, STATE_FORMAT, f"format {STATE_FORMAT}")
            needs = {name: state["unchanged"][name] for name in _UNCHANGED}
            self._task, self._reported = state["task"], state["reporter"]
        except ConfigError:
            raise
        except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(found / "state.json", error) from error
        for name, value in needs.items():
            mine = getattr(self._config, name)
            if mine != value:
                raise ConfigError(f"--{name} is {mine!r}, but {found} needs {value!r}; give that, or start a new run")
        if self._task < len(self._tasks):
            arrays = checkpoints.read(found / "arrays.safetensors")
            self._learners = SarsaLearners(self._tasks[self._task]) if arrays else None
            if self._learners:
                self._learners.load_state(arrays)

    def play(self, quiet: bool) -> None:
        """Run the tasks that are left."""
        total = self._config.episodes * len(self._tasks)
        with report.Reporter(
            self.folder.path, total=total, unit="episodes", resume=self._reported, quiet=quiet
        ) as self._reporter:
            if self._found:
                for note in [*self._notes, *self.folder.set_aside(self._found)]:
                    self._reporter.line(note)
                self._reporter.line(f"resuming from {self._found}")
                if self.over:
                    self._reporter.line("the run has ended: nothing is left to play")
            else:
                self._save(None)
            try:
                while self._task < len(self._tasks):
                    self._train(self._tasks[self._task])
                    self._task, self._learners = self._task + 1, None
                    self._save(None)
            except Stopped:
                self._reporter.line(f"stopped; {self.folder.how_to_resume}")
                self.status = 128 + (self.stop.signal or 0)
                return
            self._reporter.line(f"look: {command_line('tensorboard', '--logdir', self.folder.path.absolute().parent)}")

    def _save(self, learners: SarsaLearners | None) -> None:
        """Write a checkpoint; without learners, at the beginning of a task or at the end of all."""
        state = {
            "format": STATE_FORMAT,
            "unchanged": {name: getattr(self._config, name) for name in _UNCHANGED},
            "task": self._task,
            "reporter": self._reporter.state(),
        }
        steps = 0 if learners is None else learners.steps
        arrays = {} if learners is None else learners.state()
        checkpoints.write_checkpoint(self.folder.path, f"{self._task:03d}-{steps:09d}", state, arrays)
        self.folder.prune(KEEP_CHECKPOINTS)

    def _train(self, config: SarsaConfig) -> None:
        """Train on one version, then judge, save, evaluate and film."""
        version, reporter, before = config.version, self._reporter, self._task * config.episodes
        learners = self._learners or SarsaLearners(config)

        def log(values: dict[str, float], steps: int) -> None:
            at = before + int(values["games/episodes_least"])
            shown = {_key(version, key): value for key, value in values.items()}
            reporter.write(shown | {f"{version}/steps": steps}, at)
            solved, score = values["sarsa/solved_share"], values["games/return_mean_100"]
            reporter.progress(at, task=f"CartPole-{version}", score=f"{score:.0f}", solved=f"{solved:.0%}")
            if self.stop or steps % CHECKPOINT_EVERY_STEPS == 0:
                self._save(learners)
            self.stop.check()

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

        weights = self.folder.checkpoints / f"sarsa-{version}.npz"
        weights.parent.mkdir(exist_ok=True)
        solved_at = result.solved_at_episode
        np.savez(weights, weights=result.weights, solved_at_episode=solved_at, returns=result.returns)
        scores = evaluate(result.weights, config)
        reporter.write({f"{version}/evaluation_return_mean": float(scores.mean())}, at)
        reporter.line(
            f"  evaluation, one greedy episode for each: mean {scores.mean():.1f}, median {np.median(scores):g}, "
            f"min {scores.min()}, max {scores.max()}; weights: {weights}"
        )
        if config.films:
            self._film(result.weights[int(np.argmax(scores))], config, at)

    def _film(self, weights: NDArray[np.float64], config: SarsaConfig, at: int) -> None:
        """Film one learner, ``weights [A, F]``; a film that fails is said, and the run continues."""
        gif = self.folder / "pictures" / f"cartpole-{config.version}.gif"
        try:
            video.write_gif(gif, film(weights, config, config.seed), fps=FILM_FPS)
            self._reporter.image(f"{config.version}/agent", gif, at)
        except Exception as error:  # of the library that draws, of the disk, of TensorBoard
            self._reporter.line(
                f"  the film {gif} could not be made ({in_words(error)}); the run continues without the film; "
                "--no-films turns films off"
            )
        else:
            self._reporter.line(f"  film: {gif}")


def _verdict(config: SarsaConfig, result: SarsaResult) -> Iterator[str]:
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
        _, terminated, truncated = envs.step(choose_actions(action_values(inside, envs.features), 0.0, rng))
        scores += playing
        playing &= ~(terminated | truncated)
    return scores


def _key(version: str, key: str) -> str:
    """Put the version into a key, behind ``time/`` so that clock-dependent keys stay known as such."""
    return f"time/{version}/{key.removeprefix('time/')}" if key.startswith("time/") else f"{version}/{key}"
