"""Evaluations: whole games during the run and at its end."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from fastrl.base.console import counted
from fastrl.base.errors import DamageError
from fastrl.dqn import checkpoint
from fastrl.dqn.callbacks import Callback, TrainingRun, named
from fastrl.dqn.run.clock import Clock, announce
from fastrl.dqn.run.films import FILMED_STEPS, Films
from fastrl.envs.rules import EvaluationRules
from fastrl.play.games import Games, play_games
from fastrl.runs import checkpoints


class Evaluation(Callback):
    """Plays whole games during the run and at its end; each evaluation films one, and the best weights are kept.

    Attributes
    ----------
    films : Films
        Writes the films. The next line of metrics waits for one at the latest.
    """

    key = "evaluation"

    def __init__(self) -> None:
        self.best: float | None = None
        self.last: Games | None = None
        self.films = Films()
        self._rules: dict[str, Any] | None = None  # by which the best was found
        self._due = False  # and not played to the end yet
        self._ended_at = -1  # frames after which the run's last evaluation was played

    def on_start(self, run: TrainingRun) -> None:
        self._clock = Clock(run.config.evaluate_every_frames)
        self._clock.set(run.frames)
        self._evaluate_if_due(run)  # a stop interrupted it

    def on_step(self, run: TrainingRun, actions: np.ndarray[Any, Any]) -> None:
        self._due = self._clock.due(run.frames)
        self._evaluate_if_due(run)

    def on_log(self, run: TrainingRun, metrics: dict[str, float]) -> None:
        self.films.settle(run)

    def on_end(self, run: TrainingRun) -> None:
        self.films.settle(run)
        if not run.stop and self._ended_at != run.frames:  # a run that had ended already has it
            self._evaluate(run, run.config.final_episodes)
            self._ended_at = run.frames
            self.films.settle(run)

    def _evaluate_if_due(self, run: TrainingRun) -> None:
        if self._due and not run.over:
            self._evaluate(run, run.config.evaluate_episodes)
        self._due = False
        announce(run, "evaluation", self._clock)

    def _evaluate(self, run: TrainingRun, episodes: int) -> None:
        run.peers.leading(lambda: self._play(run, episodes), run.stop)

    def _play(self, run: TrainingRun, episodes: int) -> None:
        config = run.config
        rules = EvaluationRules(max_steps=config.max_episode_steps, **config.rules())
        recorded = dataclasses.asdict(rules)

        def act(stacks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            run.stop.check()  # an evaluation changes nothing that is saved: it may be left at any point
            return run.learner.judged_q_values(stacks)

        run.reporter.line(f"evaluating {counted(episodes, 'game')} ...")
        games = play_games(
            config.game,
            act,
            episodes,
            seed=run.frames + config.seed,
            rules=rules,
            stack=config.stack,
            film=config.films,
            film_steps=FILMED_STEPS - 1,  # and the first picture
            bars=True,
            threads=config.env_threads,
        )
        figures = {f"evaluation/return_{name}": value for name, value in games.figures().items()}
        run.reporter.write(figures, run.frames)
        film = f"; film: {self.films.path(run, run.frames)}" if games.film else ""  # a custom environment may draw none
        weights = " by averaged weights" if config.average_updates else ""
        run.reporter.line(f"after {run.frames:,} frames{weights}: {games.summary()}{film}")
        if games.film_error:
            self.films.warn(run, games.film_error)
        if games.mean > self._best_so_far(run, recorded):
            self.best, self._rules = games.mean, recorded
            run.save(checkpoints.BEST)
        for callback in run.callbacks:
            callback.on_evaluation(run, games)
        if games.film:
            self.films.start(run, games.film)
        self.last = dataclasses.replace(games, film=[])  # which takes up to 100 MB

    def state(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "rules": self._rules,
            "due": self._due,
            "ended_at": self._ended_at,
            "film": self.films.pending,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.best, self._due, self._rules = state.get("best"), state.get("due", False), state.get("rules")
        self._ended_at, self.films.pending = state.get("ended_at", -1), state.get("film")

    def _best_so_far(self, run: TrainingRun, rules: dict[str, Any]) -> float:
        """Return the best score by these rules; the best checkpoint may be newer than the one resumed from."""
        folder, found = run.folder.checkpoints / checkpoints.BEST, [(self.best, self._rules)]
        if folder.exists():
            try:
                checkpoints.check(folder)
                (key,) = (key for key, callback in named(run.callbacks).items() if callback is self)
                saved = checkpoint.load_state(folder)["callbacks"][key]
                found.append((saved["best"], saved.get("rules")))
            except DamageError as error:
                run.reporter.line(f"{error}; this evaluation's weights replace it")
                return -math.inf
        scores = [score for score, its in found if score is not None and its in (None, rules)]  # older ones have none
        if not scores and any(score is not None for score, _ in found):
            run.reporter.line(
                "the best evaluation so far was by other rules, which do not compare: this one replaces it"
            )
        return max(scores, default=-math.inf)
