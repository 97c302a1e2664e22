"""What hangs on a run: the protocol, and the callbacks that measure, evaluate, film and save.

A callback of your own derives from `Callback` and overrides what it needs; `examples/` has one that draws.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrl import saved, video
from fastrl.dqn import checkpoint
from fastrl.games import Games, play_games
from fastrl.plan import Protocol

if TYPE_CHECKING:
    from fastrl.dqn.run import Run
    from fastrl.replay import Batch


class Callback:
    """Every method may be overridden; ``run`` has config, folder, network, replay, counters and reporter.

    `run.frames` and `run.steps` count emulator frames and agent steps played so far.
    """

    def on_start(self, run: Run) -> None:
        """The run is built, and restored if it goes on."""

    def on_step(self, run: Run, actions: np.ndarray[Any, Any]) -> None:
        """A vector step was made; ``actions [n]`` are those that counted. Called often: keep it cheap."""

    def on_update(self, run: Run, batch: Batch) -> None:
        """The learner learned a batch, which may be kept; its frames are tensors where they lie on a GPU."""

    def on_game(self, run: Run, score: float, length: int) -> None:
        """A whole game ended with an unclipped score after ``length`` agent steps."""

    def on_log(self, run: Run, metrics: dict[str, float]) -> None:
        """A line of metrics is due; add your own to it."""

    def on_evaluation(self, run: Run, games: Games) -> None:
        """An evaluation was played; ``games.film`` holds RGB pictures of its first game, with Q-values."""

    def on_checkpoint(self, run: Run, folder: Path) -> None:
        """A checkpoint lies whole in ``folder``; a thread finished it, so the run may be some steps ahead of it."""

    def on_end(self, run: Run) -> None:
        """The run is over or stopped; its reporter still writes."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-able."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; an empty one if the run went on without this callback before."""


def named(callbacks: Iterable[Callback]) -> dict[str, Callback]:
    """Return callbacks by class, a second one of a class numbered, so that each finds its state again."""
    known: dict[str, Callback] = {}
    for callback in callbacks:
        name = type(callback).__name__
        number = sum(type(other) is type(callback) for other in known.values())
        known[f"{name}#{number + 1}" if number else name] = callback
    return known


class Clock:
    """Says when another ``every`` has passed."""

    def __init__(self, every: int) -> None:
        self._every, self._rung = every, 0

    def set(self, now: int) -> None:
        """Start at ``now``."""
        self._rung = now // self._every

    def due(self, now: int) -> bool:
        """Return True once each time a multiple of ``every`` is reached."""
        rung, self._rung = self._rung, now // self._every
        return self._rung > rung

    @property
    def next(self) -> int:
        """The multiple of ``every`` that is due next."""
        return (self._rung + 1) * self._every


class Metrics(Callback):
    """One line of metrics every ``log_every_frames``, and what the screen shows."""

    def __init__(self) -> None:
        self._scores: deque[float] = deque(maxlen=100)
        self._lengths: deque[int] = deque(maxlen=100)
        self._games = 0
        self._actions: list[np.ndarray[Any, Any]] = []
        self._look, self._seen = True, dict[str, float]()  # at the next batch; what was seen of one since the last line
        self._shown: dict[str, float | str] = {}

    def on_start(self, run: Run) -> None:
        self._clock = Clock(run.config.log_every_frames)
        self._clock.set(run.frames)
        self._mark = (time.monotonic(), run.frames)
        run.reporter.extras.scores = self._scores
        self._show_score()

    def on_step(self, run: Run, actions: np.ndarray[Any, Any]) -> None:
        self._actions.append(actions)
        run.reporter.progress(run.frames, **self._shown)
        if self._clock.due(run.frames):
            self._log(run)

    def on_update(self, run: Run, batch: Batch) -> None:
        if self._look:
            self._look, self._seen = False, self._look_at(batch, run)

    def on_game(self, run: Run, score: float, length: int) -> None:
        self._scores.append(score)
        self._lengths.append(length)
        self._games += 1
        self._show_score()

    def on_end(self, run: Run) -> None:
        if self._actions and not run.stop:  # a run that goes on adds to the line under way
            self._log(run)

    def _log(self, run: Run) -> None:
        """Write one line: all but ``time/`` is the same in two runs of one seed."""
        metrics = {
            "steps": float(run.steps),
            "updates": float(run.learner.updates),
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

    def _look_at(self, batch: Batch, run: Run) -> dict[str, float]:
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
            self._shown["score"] = f"{np.mean(self._scores):.1f} (last {len(self._scores)} games)"

    def _show(self, metrics: dict[str, float]) -> None:
        self._shown["epsilon"] = f"{metrics['explore/epsilon']:.2f}"
        if "train/loss" in metrics:
            self._shown["loss"] = f"{metrics['train/loss']:.4f}"

    def state(self) -> dict[str, Any]:
        taken = np.bincount(np.concatenate(self._actions)) if self._actions else np.zeros(0, int)
        return {
            "scores": list(self._scores), "lengths": list(self._lengths), "games": self._games,
            "actions": taken.tolist(), "look": self._look, "seen": self._seen, "shown": self._shown,
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self._scores.extend(state.get("scores", []))
        self._lengths.extend(state.get("lengths", []))
        self._games = state.get("games", 0)
        taken = state.get("actions", [])
        self._actions = [np.repeat(np.arange(len(taken)), taken)] if taken else []
        self._look, self._seen = state.get("look", True), state.get("seen", {})
        self._shown = state.get("shown", {})


class Evaluation(Callback):
    """Whole games on the way and at the end; each evaluation films one and keeps the best weights."""

    def __init__(self) -> None:
        self.best: float | None = None
        self.last: Games | None = None
        self._due = False  # and not played to the end yet
        self._ended_at = -1  # frames after which the run's last evaluation was played

    def on_start(self, run: Run) -> None:
        self._clock = Clock(run.config.evaluate_every_frames)
        self._clock.set(run.frames)
        self._evaluate_if_due(run)  # a stop interrupted it

    def on_step(self, run: Run, actions: np.ndarray[Any, Any]) -> None:
        self._due = self._clock.due(run.frames)
        self._evaluate_if_due(run)

    def on_end(self, run: Run) -> None:
        if not run.stop and self._ended_at != run.frames:  # a run that had ended already has it
            self._evaluate(run, run.config.final_episodes)
            self._ended_at = run.frames

    def _evaluate_if_due(self, run: Run) -> None:
        if self._due and run.frames < run.config.total_frames:
            self._evaluate(run, run.config.evaluate_episodes)
        self._due = False
        _announce(run, "evaluation", self._clock)

    def _evaluate(self, run: Run, episodes: int) -> None:
        config = run.config

        def act(stacks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            run.stop.check()  # an evaluation changes nothing that is saved: it may be left at any point
            return run.learner.q_values(stacks)

        run.reporter.line(f"evaluating {episodes} games …")
        games = play_games(
            config.game, act, episodes, seed=run.frames + config.seed, protocol=Protocol(**config.rules()),
            stack=config.stack, film=True, bars=True, threads=config.env_threads,
        )  # fmt: skip
        film = ""
        if games.film:  # an own environment may draw none
            gif = run.folder / "pictures" / f"{run.frames:012d}.gif"
            video.write_gif(gif, games.film, max_pictures=1_000)
            run.reporter.image("agent", gif, run.frames)
            film = f"; film: {gif}"
        names = ("mean", "median", "std", "min", "max")
        run.reporter.write({f"evaluation/return_{name}": getattr(games, name) for name in names}, run.frames)
        run.reporter.line(f"after {run.frames:,} frames: {games.summary()}{film}")
        if games.mean > self._best_so_far(run):
            self.best = games.mean
            run.save(checkpoint.BEST)
        for callback in run.callbacks:
            callback.on_evaluation(run, games)
        self.last = dataclasses.replace(games, film=[])  # which takes up to 400 MB

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "due": self._due, "ended_at": self._ended_at}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best, self._due = state.get("best"), state.get("due", False)
        self._ended_at = state.get("ended_at", -1)

    def _best_so_far(self, run: Run) -> float:
        """Return the best score; the best checkpoint may be newer than the one that the run goes on from."""
        folder, score = run.folder / "checkpoints" / checkpoint.BEST, None
        if folder.exists():
            try:
                saved.check(folder)
                score = checkpoint.load_state(folder)["callbacks"][type(self).__name__]["best"]
            except saved.DamageError as error:
                run.reporter.line(f"{error}; this evaluation's weights replace it")
                return -math.inf
        return max((known for known in (self.best, score) if known is not None), default=-math.inf)


class Checkpoints(Callback):
    """A checkpoint every ``checkpoint_every_frames``, in a thread, and one at the end, however it comes."""

    def __init__(self) -> None:
        self._saved_at = -1  # of this process

    def on_start(self, run: Run) -> None:
        self._clock = Clock(run.config.checkpoint_every_frames)
        self._clock.set(run.frames)
        _announce(run, "save", self._clock)

    def on_step(self, run: Run, actions: np.ndarray[Any, Any]) -> None:
        run.settle(wait=False)
        if self._clock.due(run.frames) and run.frames < run.config.total_frames:
            run.save(wait=False)
            self._saved_at = run.frames
            _announce(run, "save", self._clock)

    def on_end(self, run: Run) -> None:
        if run.stop and self._saved_at == run.frames:  # a stop during the last save finds nothing new
            run.settle()
        else:
            run.save()


def _announce(run: Run, what: str, clock: Clock) -> None:
    """Tell the screen when something comes next: when its clock says so, and at the end of the run."""
    run.reporter.extras.due[what] = min(clock.next, run.config.total_frames)
