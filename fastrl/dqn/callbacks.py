"""What hangs on a run: the base class of callbacks, and what they see of the run.

A custom callback derives from `Callback` and overrides what it needs; `examples/` has one that draws.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastrl.base.errors import ConfigError, RunError
from fastrl.base.stop import Stop
from fastrl.base.stopwatch import Stopwatch
from fastrl.config import DQNConfig
from fastrl.dqn.learner import Learner
from fastrl.dqn.peers import Peers
from fastrl.envs.step import Envs
from fastrl.play.games import Games
from fastrl.replay import Batch, PrioritizedReplayBuffer
from fastrl.runs.folder import RunFolder
from fastrl.runs.report import Reporter


class TrainingRun(Protocol):
    """What a callback sees of a run, and may rely on; `fastrl.dqn.run.Run` is one."""

    config: DQNConfig
    """All settings."""
    folder: RunFolder
    """Where the run's files go: ``run.folder / "mine.png"``."""
    learner: Learner
    """Networks and optimizer. `q_values` are of the network that learns, `judged_q_values` of what evaluations play."""
    buffer: PrioritizedReplayBuffer
    """The replay."""
    envs: Envs
    """Games of the first group, to ask about shapes and actions; do not step them."""
    reporter: Reporter
    """Takes metrics, histograms, images and messages."""
    stop: Stop
    """True once a signal has asked the run to stop."""
    callbacks: list[Callback]
    """All callbacks of the run, in the order in which they are called."""
    lap: Stopwatch
    """Where the time of the loop goes."""
    peers: Peers
    """The run's learners. Callbacks are called in each of them, at the same steps, but for `Callback.on_evaluation`:
    in the one that ``leads``."""
    steps: int
    """Agent steps played so far."""
    samples: int
    """Samples learned so far, by all learners."""
    abandoned: int
    """Games cut short, because a resumed run could not continue them."""
    game_env: int
    """Environment of the game that ended last, numbered over all groups; -1 before the first."""

    @property
    def frames(self) -> int:
        """Emulator frames played so far."""

    @property
    def over(self) -> bool:
        """Whether the run has come to its end, in frames or in samples: what is left is its last evaluation."""

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run, the parts before a resume included."""

    @property
    def epsilon(self) -> float:
        """Share of random actions now; with a ladder of them, mean over the games whose scores are reported."""

    @property
    def beta(self) -> float:
        """Exponent of the importance weights now."""

    def save(self, name: str | None = None, *, wait: bool = True, timed: bool = False) -> Path:
        """Write a checkpoint and return its folder.

        One with a name holds the weights alone; the next checkpoint replaces a timed one.
        """

    def settle(self, *, wait: bool = True) -> None:
        """Tell callbacks of a checkpoint that has become whole, or raise what kept it from that."""


class Callback:
    """Base class of callbacks: every method may be overridden; ``run`` is described in `TrainingRun`.

    Attributes
    ----------
    key : str
        Names the state of this very class in checkpoints; subclasses do not inherit it (default: the name of the
        class). With a key of its own a class may be renamed, and its runs still resume.
    """

    key = ""

    def on_start(self, run: TrainingRun) -> None:
        """The run is built, and restored if it is resumed."""

    def on_step(self, run: TrainingRun, actions: np.ndarray[Any, Any]) -> None:
        """A vector step was made; ``actions [n]`` are those that counted. Called often: keep it cheap."""

    def on_update(self, run: TrainingRun, batch: Batch) -> None:
        """The learner learned a batch, which may be kept; its frames are tensors where they lie on a GPU."""

    def on_game(self, run: TrainingRun, score: float, length: int) -> None:
        """A whole game ended with an unclipped score after ``length`` agent steps."""

    def on_log(self, run: TrainingRun, metrics: dict[str, float]) -> None:
        """A line of metrics is due; add your own to it."""

    def on_evaluation(self, run: TrainingRun, games: Games) -> None:
        """An evaluation was played; ``games.film`` holds RGB pictures of its first game, with Q-values."""

    def on_checkpoint(self, run: TrainingRun, folder: Path) -> None:
        """A checkpoint lies whole in ``folder``; a thread finished it, so the run may be some steps ahead of it."""

    def on_end(self, run: TrainingRun) -> None:
        """The run is over or stopped; its reporter still writes."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-able."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; an empty one if the checkpoint was saved without this callback."""


def key_of(callback: Callback) -> str:
    """Return the key of a callback's state, without the number that a second one gets.

    Raises
    ------
    ConfigError
        If its class has a key that is no text, is empty or holds a ``#``.
    """
    key = vars(type(callback)).get("key") or type(callback).__name__  # a subclass has a state of its own
    if not isinstance(key, str) or "#" in key:
        raise ConfigError(f"callback {type(callback).__name__} has the key {key!r}; give text without a #")
    return key


def named(callbacks: Iterable[Callback]) -> dict[str, Callback]:
    """Return callbacks by key, a second one of a key numbered, so that each finds its state again."""
    known: dict[str, Callback] = {}
    used: Counter[str] = Counter()
    for callback in callbacks:
        key = key_of(callback)
        used[key] += 1
        known[f"{key}#{used[key]}" if used[key] > 1 else key] = callback
    return known


def check_callbacks(callbacks: Iterable[Callback], of_the_run: Iterable[Callback]) -> None:
    """Raise ConfigError if a user's callback is none, has no valid key, or one of a callback of every run."""
    taken = {key_of(callback) for callback in of_the_run}
    if not isinstance(callbacks, Sequence):
        raise ConfigError(f"callbacks is of type {type(callbacks).__name__}; give a list of callbacks")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            what = f"the class {callback.__name__}" if isinstance(callback, type) else repr(callback)
            raise ConfigError(f"callbacks holds {what}; give objects of classes derived from fastrl.Callback")
        if (key := key_of(callback)) in taken:
            raise ConfigError(
                f"callback {type(callback).__name__} has the key {key!r}, which belongs to a callback of every run; "
                "give its class another key"
            )


def states(callbacks: Iterable[Callback], *, leave_out: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Return the states of callbacks by key, as a checkpoint keeps them.

    Parameters
    ----------
    callbacks : iterable of Callback
        All callbacks of the run.
    leave_out : callable, optional
        Takes a message on each callback whose state cannot be saved; it is left out then.

    Raises
    ------
    RunError
        Without ``leave_out``, if a ``state`` raises or returns what JSON cannot hold; the message names the callback.
    """
    found: dict[str, Any] = {}
    for key, callback in named(callbacks).items():
        try:
            state = callback.state()
            json.dumps(state)
        except Exception as error:
            reason = f"the state of callback {key} cannot be saved ({type(error).__name__}: {error})"
            if leave_out is None:
                raise RunError(f"{reason}; return numbers, text, lists and dicts of them from its state()") from error
            leave_out(f"{reason}; it is left out")
        else:
            found[key] = state
    return found
