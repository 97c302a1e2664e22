"""The loop of a run: act, learn while the games step, receive, add, count. All else hangs on it as a callback."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.base.errors import Stopped
from fastrl.base.stop import Stop
from fastrl.base.stopwatch import Stopwatch
from fastrl.config import DQNConfig
from fastrl.dqn import checkpoint
from fastrl.dqn.callbacks import Callback, states
from fastrl.dqn.collector import Rows, RowSource
from fastrl.dqn.learner import Learner, Priorities
from fastrl.dqn.pace import Pace
from fastrl.dqn.peers import ALONE, Peers, Turn
from fastrl.dqn.policy import Policy
from fastrl.dqn.run.faults import NotFiniteError, not_finite, spoilt
from fastrl.dqn.run.saver import RunSnapshot, Saver
from fastrl.dqn.schedules import Schedules
from fastrl.envs.masks import ACTION_MASK, have_masks
from fastrl.replay import Batch, PrioritizedReplayBuffer
from fastrl.runs.folder import RunFolder
from fastrl.runs.report import Reporter

MEASURE_EVERY_UPDATES = 100  # norms of parameters and update cost a copy of all weights


class Loop:
    """The parts of a run at work, step by step; a callback sees this object, as a `TrainingRun`.

    Parameters
    ----------
    config : DQNConfig
        All settings.
    folder : RunFolder
        Where the run's files go.
    stop : Stop
        Asked by a signal.
    callbacks : list of Callback
        Called in order.
    collector, policy, pace, learner, buffer, schedules
        Games and acting; the acting network; when a batch is due; networks with their optimizer; the replay; what
        changes over the run.
    earlier : Path or None
        The save that the replay was loaded from.
    steps, abandoned : int
        Counters of `TrainingRun`, as they stood at the checkpoint.
    seconds : float
        Wall-clock time of the run until then.
    peers : Peers
        The run's learners. Steps, updates and clocks are those of all together; games and replay are this one's.
    """

    reporter: Reporter

    def __init__(
        self,
        config: DQNConfig,
        folder: RunFolder,
        stop: Stop,
        callbacks: list[Callback],
        *,
        collector: RowSource,
        policy: Policy,
        pace: Pace,
        learner: Learner,
        buffer: PrioritizedReplayBuffer,
        schedules: Schedules,
        earlier: Path | None = None,
        steps: int = 0,
        abandoned: int = 0,
        seconds: float = 0.0,
        peers: Peers = ALONE,
    ) -> None:
        self.config, self.folder, self.stop, self.callbacks = config, folder, stop, callbacks
        self.collector, self.policy, self.pace, self.learner, self.buffer = collector, policy, pace, learner, buffer
        self.schedules, self.envs = schedules, collector.envs
        self.peers, self._batch_size = peers, peers.part(config).batch_size
        self._turn = Turn(0, 0)
        self.saver = Saver(folder, config.keep_checkpoints, earlier, self._on_checkpoint, peers)
        self.steps, self.abandoned = steps, abandoned
        self.samples = 0  # learned so far, by all learners
        self.game_env = -1
        self.lap = Stopwatch()
        self._seconds_before, self._started = seconds, time.monotonic()
        self._recent: deque[Batch] = deque(maxlen=2 if learner.delayed else 1)  # whose errors may not be known

    @property
    def frames(self) -> int:
        """Emulator frames played so far."""
        return self.steps * self.config.frame_skip

    @property
    def over(self) -> bool:
        """Whether the run has come to its end, in frames or in samples."""
        total_samples = self.config.total_samples
        return self.frames >= self.config.total_frames or (total_samples is not None and self.samples >= total_samples)

    @property
    def epsilon(self) -> float:
        """Share of random actions now; see `TrainingRun`."""
        return self.schedules.epsilon(self.steps)

    @property
    def beta(self) -> float:
        """Exponent of the importance weights now."""
        return self.schedules.beta(self.steps)

    @property
    def seconds(self) -> float:
        """Wall-clock time of this run, the parts before a resume included."""
        return self._seconds_before + time.monotonic() - self._started

    def start(self) -> None:
        """Open the games, unless they continue."""
        for callback in self.callbacks:
            callback.on_start(self)
        self.policy.epsilon = self.schedules.epsilons(self.steps)
        self.collector.start(self.policy)
        self.lap = Stopwatch()

    def step(self) -> None:
        """Act, learn, receive, add, count: once in one group of games."""
        self.policy.epsilon = self.schedules.epsilons(self.steps)
        self.collector.send(self.policy)
        self.lap("act")
        self._learn()  # while the games step
        rows = self._receive()
        self.lap("environments")
        if rows is not None:
            self.buffer.add(
                rows.frame, rows.action, rows.reward, rows.terminated, rows.truncated, rows.first, rows.final,
                rows.env_id, extra=_field(rows.mask), final_extra=_field(rows.final_mask),
            )  # fmt: skip
        self.lap("add")
        self._count(rows)
        self.lap("callbacks")

    def _receive(self) -> Rows | None:
        """Wait for the rows of the step; None if a stop was asked for meanwhile, of which other learners must hear."""
        try:
            return self.collector.recv()
        except Stopped:
            if not self.peers.several:
                raise
            return None

    def _learn(self) -> None:
        """Learn as many batches as are due."""
        n_step = self.schedules.n_step(self.steps)
        if n_step != self.buffer.settings["n_step"]:
            self.buffer.set_n_step(n_step)
        gamma = self.schedules.gamma(self.steps)
        if gamma != self.buffer.settings["gamma"]:
            self.buffer.set_gamma(gamma)
        self.learner.set_learning_rate(self.schedules.learning_rate(self.steps))
        self.learner.target_period = self.schedules.target_period(self.steps)
        while self.pace.due():
            batch = self.buffer.sample(self._batch_size, self.beta)
            if self.peers.several and self.config.prioritized:
                weigh_part(batch.weight, self.buffer.least_probability(batch.index), self.beta, self.peers)
            self.lap("sample")
            measure = self.learner.updates % MEASURE_EVERY_UPDATES == 0
            self._recent.append(batch)
            priorities = self.learner.learn(batch, measure=measure)
            self.lap("update")
            self.samples += self.config.batch_size
            self._update_priorities(priorities)
            if not self.learner.finite:
                raise self._not_finite("the gradient", {})
            self.lap("priorities")
            for callback in self.callbacks:
                callback.on_update(self, batch)
            self.lap("callbacks")

    def _update_priorities(self, priorities: Priorities | None) -> None:
        if priorities is None:
            return
        index, errors = priorities
        if not np.isfinite(errors).all():
            raise self._not_finite("the loss", {"errors": errors, "of": index})
        if self.config.prioritized:
            self.buffer.update_priorities(index, errors)

    def _count(self, rows: Rows | None) -> None:
        """Count what a vector step brought to all learners, and tell the callbacks what it brought to this one."""
        counted = np.zeros(0, np.int64) if rows is None else rows.counted
        turn = self._turn = self.peers.turn(Turn(len(counted), self.buffer.drawable, self.saver.written), self.stop)
        self.steps += turn.steps
        self.pace.added(turn.steps, turn.drawable)
        if rows is not None:
            for i in np.flatnonzero(rows.game_over):
                self.game_env = int(rows.env_id[i])
                for callback in self.callbacks:
                    callback.on_game(self, float(rows.score[i]), int(rows.length[i]))
        for callback in self.callbacks:
            callback.on_step(self, counted)

    # --- checkpoints ----------------------------------------------------------------------------------

    def save(self, name: str | None = None, *, wait: bool = True, timed: bool = False) -> Path:
        """Write a checkpoint, named after the frames played unless a name is given; return its folder.

        Changes nothing of the run. A named one holds the weights alone: to evaluate, not to resume. All others hold the
        run of this moment; a thread does what takes time, and without ``wait`` the run may continue meanwhile.
        Callbacks hear of it when it is whole.

        Parameters
        ----------
        name : str, optional
            Its name.
        wait : bool
            Return when it is whole.
        timed : bool
            The next checkpoint replaces it, and it does not count towards ``keep_checkpoints``.

        Raises
        ------
        NotFiniteError
            If a weight is NaN or infinite; only the newest batch is written then.
        OSError
            If this checkpoint cannot be written, or the one in progress could not; the last whole one is left as it is.
        """
        if name is not None:
            here = self.folder.checkpoints / name
            return self.saver.save_weights(name, self.snapshot()) if self.peers.leads else here
        self.settle()
        snapshot = self.snapshot(games=True, replay=self.config.checkpoint_replay)
        folder = self.saver.save(f"{self.frames:012d}", snapshot, timed=timed)
        self.settle(wait=wait)
        return folder

    def settle(self, *, wait: bool = True) -> None:
        """Tell callbacks of a checkpoint that has become whole, or raise what kept it from that; see `Saver`."""
        if self.peers.several and not wait:
            if not self._turn.saved:
                return
            self._turn = self._turn._replace(saved=False)
        self.saver.settle(wait=wait)

    def snapshot(self, *, games: bool = False, replay: bool = False, rescue: bool = False) -> RunSnapshot:
        """Return this moment of the run for a checkpoint, with the games, if they can be saved, and the replay.

        Parameters
        ----------
        games, replay : bool
            Whether to include them.
        rescue : bool
            Leave out the states of callbacks that cannot be saved, with a message, instead of raising.

        Raises
        ------
        NotFiniteError
            If a weight is NaN or infinite.
        RunError
            If the state of a callback cannot be saved.
        """
        learner = self.learner.state()
        if names := spoilt({key: learner[key] for key in checkpoint.OF_ALL}):
            raise self._not_finite(", ".join(names[:3]), {"weights": names})
        state = {
            "game": self.config.game,
            "network": self.learner.online.settings,
            "masked": have_masks(self.envs),
            "averaged": self.learner.judged is not self.learner.online,
            "steps": self.steps,
            "frames": self.frames,
            "seconds": self.seconds,
            "abandoned": self.abandoned,
            "samples": self.samples,
            "schedules": self.schedules.state(),
            **self.pace.state(),
            **self.policy.state(),
            "callbacks": states(self.callbacks, leave_out=self.reporter.line if rescue else None),
            **self.reporter.state(),
        }
        if self.peers.several and self.peers.leads and games:
            state["learners"] = self.peers.count
        return RunSnapshot(
            state=state,
            weights=self.learner.judged.state_dict() if self.peers.leads else None,
            learner=learner if self.peers.leads else checkpoint.own_part(learner),
            games=self.collector.state() if games else None,
            replay=self.buffer if replay else None,
        )

    def _on_checkpoint(self, folder: Path) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(self, folder)

    def _not_finite(self, what: str, found: dict[str, Any]) -> NotFiniteError:
        self.saver.wait()  # a checkpoint in progress, of before, may be the one to resume from
        return not_finite(what, self.folder, self.learner.updates, self._recent, found, self.config, self.peers)


def _field(mask: NDArray[np.bool_] | None) -> dict[str, NDArray[np.bool_]] | None:
    """Return a mask as the replay takes fields; None where there is none."""
    return None if mask is None else {ACTION_MASK: mask}


def weigh_part(weight: NDArray[np.float32], least: float, beta: float, peers: Peers) -> None:
    """Give importance weights of one learner's part of a batch the scale that they have in the whole batch.

    Learner r draws its row i with probability P_r(i), so of R learners' whole batch row i makes up P_r(i) / R, and its
    weight is (P_r(i) / R)^-beta over the largest of the whole batch (Schaul et al. 2016, section 3.4). The replay gives
    (P_r(i) / q_r)^-beta, q_r the least P of its part. The whole batch has the least q of all parts, hence the factor
    (q_r / min q)^-beta, at most 1.

    Parameters
    ----------
    weight : [B] float32
        Importance weights of this learner's part; changed in place.
    least : float
        q_r.
    beta : float
        Their exponent.
    peers : Peers
        The learners.
    """
    np.multiply(weight, (least / peers.least(least)) ** -beta, out=weight, casting="same_kind")
