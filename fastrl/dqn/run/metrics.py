"""Lines of metrics, and what the screen shows."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from fastrl.dqn.callbacks import Callback, TrainingRun
from fastrl.dqn.run.clock import Clock
from fastrl.replay import Batch

ABOVE = 1.1
"""Values above this many times the largest possible return are suspect: the noise of learning stays below."""
LEAST_BOUND = 10.0
"""Where the largest possible return is smaller, a network that has learned little may be above it."""


class Metrics(Callback):
    """One line of metrics every ``log_every_frames``, and what the screen shows."""

    key = "metrics"

    def __init__(self) -> None:
        self._scores: deque[float] = deque(maxlen=100)
        self._lengths: deque[int] = deque(maxlen=100)
        self._games = 0
        self._actions: list[np.ndarray[Any, Any]] = []
        self._look, self._seen = True, dict[str, float]()  # at the next batch; what was seen of one since the last line
        self._shown: dict[str, float | str] = {}
        self._warned = False

    def on_start(self, run: TrainingRun) -> None:
        self._clock = Clock(run.config.log_every_frames)
        self._clock.set(run.frames)
        self._mark = (time.monotonic(), run.frames)
        scored = run.config.all_envs - run.config.first_scored_env
        self._of = "" if scored == run.config.all_envs else f" of {scored} with the lowest epsilon"
        run.reporter.extras.scores = self._scores
        self._show_score()

    def on_step(self, run: TrainingRun, actions: np.ndarray[Any, Any]) -> None:
        self._actions.append(actions)
        run.reporter.progress(run.frames, **self._shown)
        if self._clock.due(run.frames):
            self._log(run)

    def on_update(self, run: TrainingRun, batch: Batch) -> None:
        if self._look:
            self._look, self._seen = False, self._look_at(batch, run)

    def on_game(self, run: TrainingRun, score: float, length: int) -> None:
        self._games += 1
        if run.game_env < run.config.first_scored_env:
            return
        self._scores.append(score)
        self._lengths.append(length)
        self._show_score()

    def on_end(self, run: TrainingRun) -> None:
        if self._actions and not run.stop:  # a resumed run adds to the line in progress
            self._log(run)

    def _log(self, run: TrainingRun) -> None:
        """Write one line: all but ``time/`` is the same in two runs of one seed."""
        metrics = {
            "steps": float(run.steps),
            "updates": float(run.learner.updates),
            "samples": float(run.samples),
            "games/finished": float(self._games),
            "games/abandoned": float(run.abandoned),
        }
        if self._scores:
            scores = np.array(self._scores)
            metrics |= {
                "games/return_mean_100": float(scores.mean()),
                "games/return_max_100": float(scores.max()),
                "games/length_mean_100": float(np.mean(self._lengths)),
            }
        metrics |= run.learner.metrics()
        metrics |= {
            "explore/epsilon": run.epsilon,
            "replay/beta": run.beta,
            "replay/n_step": float(run.buffer.settings["n_step"]),
            "replay/rows": float(len(run.buffer)),
            "replay/drawable": float(run.buffer.drawable),
            "replay/max_priority": run.buffer.max_priority,
        }
        if run.config.target_period_end is not None and not run.config.target_tau:
            metrics["train/target_period"] = float(run.learner.target_period)
        if run.config.gamma_schedule:
            metrics["replay/gamma"] = float(run.buffer.settings["gamma"])
        taken = np.concatenate(self._actions)
        self._actions.clear()
        for action, name in enumerate(run.envs.action_names):
            metrics[f"actions/{name.lower()}"] = float((taken == action).mean()) if len(taken) else 0.0
        run.reporter.histogram("actions", taken, run.frames)
        metrics |= self._seen
        self._look, self._seen = True, {}
        now, (then, frames) = time.monotonic(), self._mark
        self._mark = (now, run.frames)
        metrics["time/frames_per_second"] = (run.frames - frames) / max(now - then, 1e-9)
        metrics["time/minutes"] = run.seconds / 60
        run.reporter.extras.shares = shares = run.lap.shares()
        metrics |= {f"time/{stage}": share for stage, share in shares.items()}
        for callback in run.callbacks:
            callback.on_log(run, metrics)
        run.reporter.write(metrics, run.frames)
        self._show(metrics)
        self._warn_of_values(metrics, run)

    def _warn_of_values(self, metrics: dict[str, float], run: TrainingRun) -> None:
        """Say once that values are larger than any return can be, to which targets are clipped."""
        config = run.config
        bound, largest = config.largest_return, metrics.get("train/q_max", 0.0)
        if self._warned or bound < LEAST_BOUND or largest <= ABOVE * bound:
            return
        self._warned = True
        longest = max(period for _, period in config.target_period_points)
        slope = config.target_period_steps <= config.total_steps  # it would end within the run
        flag = "--target-period-end" if slope else "--target-period-updates"
        remedy = f"--target-tau below {config.target_tau:g}" if config.target_tau else f"{flag} above {longest:,}"
        run.reporter.line(
            f"warning: train/q_max is {largest:.4g} after {run.frames:,} frames, and no state is worth more than "
            f"{bound:.4g} (1 / (1 - gamma), as rewards are clipped to 1): some values may diverge, and the clip of the "
            f"targets alone holds them. If they stay so large, start a run with {remedy}"
        )

    def _look_at(self, batch: Batch, run: TrainingRun) -> dict[str, float]:
        """Write how a batch is distributed, the first one after each line, and return means."""
        age = run.buffer.age(batch.index)
        shown: dict[str, np.ndarray[Any, Any]] = {
            "replay/age": age,
            "replay/priority_weight": run.buffer.weights(batch.index),
            "train/q": run.learner.q_values(batch.obs),  # of all actions, after the update
            "train/abs_td": run.learner.errors,
        }
        for name, values in shown.items():
            run.reporter.histogram(name, values, run.frames)
        return {"replay/age_mean": float(age.mean()), "replay/weight_mean": float(batch.weight.mean())}

    def _show_score(self) -> None:
        if self._scores:
            self._shown["score"] = f"{np.mean(self._scores):.1f} (last {len(self._scores)} games{self._of})"

    def _show(self, metrics: dict[str, float]) -> None:
        self._shown["epsilon"] = f"{metrics['explore/epsilon']:.2f}"
        if "train/loss" in metrics:
            self._shown["loss"] = f"{metrics['train/loss']:.4f}"

    def state(self) -> dict[str, Any]:
        taken = np.bincount(np.concatenate(self._actions)) if self._actions else np.zeros(0, int)
        return {
            "scores": list(self._scores),
            "lengths": list(self._lengths),
            "games": self._games,
            "actions": taken.tolist(),
            "look": self._look,
            "seen": self._seen,
            "shown": self._shown,
            "warned": self._warned,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._scores.extend(state.get("scores", []))
        self._lengths.extend(state.get("lengths", []))
        self._games = state.get("games", 0)
        taken = state.get("actions", [])
        self._actions = [np.repeat(np.arange(len(taken)), taken)] if taken else []
        self._look, self._seen = state.get("look", True), state.get("seen", {})
        self._shown = state.get("shown", {})
        self._warned = state.get("warned", False)
