"""The experiment: build, restore, then act, step, add, learn. Everything else hangs on as a callback."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl import folder, report
from fastrl.atari import Step
from fastrl.config import ConfigError, DQNConfig
from fastrl.dqn import checkpoint
from fastrl.dqn.build import build_groups, build_replay, load_replay, require_disk
from fastrl.dqn.callbacks import Callback, Checkpoints, Evaluation, Metrics
from fastrl.dqn.device import pick_device
from fastrl.dqn.laps import Laps
from fastrl.dqn.learner import Learner, Priorities
from fastrl.extras import need
from fastrl.schedule import linear
from fastrl.stop import Stop, Stopped

MEASURE_EVERY_UPDATES = 100  # norms of parameters and update cost a copy of all weights
LEAVE_SECONDS = 1.0  # that a thread has to stop saving, when the run leaves at once


def train(
    config: DQNConfig, callbacks: Sequence[Callback] = (), *, resume: Path | None = None, quiet: bool = False
) -> Run:
    """Train an agent until ``config.total_frames`` or a signal.

    Parameters
    ----------
    config : DQNConfig
        All settings; ``runs_dir`` and ``name`` say where the run's folder goes.
    callbacks : sequence of Callback
        Called before the run's own, in order.
    resume : Path, optional
        Go on from the newest checkpoint in this run's folder. Games begin anew; all else goes on.
    quiet : bool
        Print nothing.

    Returns
    -------
    Run
        Its ``stop.signal`` says whether a signal ended it, its ``evaluation.last`` what the last one gave.

    Raises
    ------
    ConfigError
        If a setting does not fit the machine, the game or the checkpoint; nothing was written then.
    """
    with Stop() as stop:
        run = Run(config, callbacks, stop, resume=resume, quiet=quiet)
        try:
            with run.reporter:
                run.play()
        except KeyboardInterrupt:
            run.give_up()
            raise
        finally:
            run.close()
    return run


class Run:
    """One experiment under way: what callbacks see.

    Attributes
    ----------
    config, callbacks, stop
        As given.
    folder, reporter
        Where files and metrics go.
    envs, learner, buffer
        Games of the first group, to ask about shapes and actions; networks with their optimizer; the replay.
    lap : Laps
        Called at the end of each stage of a step: where the time goes.
    steps, frames : int
        Agent steps and emulator frames played so far.
    """

    def __init__(
        self, config: DQNConfig, callbacks: Sequence[Callback], stop: Stop, *, resume: Path | None, quiet: bool
    ) -> None:
        self.config, self.stop = config, stop
        self.evaluation = Evaluation()
        self.callbacks: list[Callback] = [*callbacks, Metrics(), self.evaluation, Checkpoints()]
        self.folder = resume or folder.path_for(config, config.game)
        if resume:
            checkpoint.tidy(resume)
        saved = checkpoint.find(resume) if resume else None
        self._saving: checkpoint.Background | None = None  # the checkpoint under way
        self._earlier: Path | None = None  # the newest save of the replay
        state = checkpoint.load_state(saved) if saved else {}
        self.steps: int = state.get("steps", 0)
        self._seconds_before: float = state.get("seconds", 0.0)
        self._started = time.monotonic()
        self._credit, self._warm = 0.0, False  # samples that may be learned now; the replay is warm

        # Every generator has a stream of its own; resumed games must not repeat the first ones.
        seeds = [int(s) for s in np.random.SeedSequence([config.seed, self.steps]).generate_state(4)]
        self._rng = np.random.default_rng(seeds[0])
        for package in ("tensorboard", "rich", "PIL"):  # before anything is written
            need(package, "train")
        device = pick_device(config.device)
        self._groups = deque(build_groups(config, seeds[1]))  # whose turn it is stands first
        self.envs = self._groups[0].envs
        if saved and (saved / "replay").exists():
            self.buffer, chosen = load_replay(saved / "replay", config, self.envs, device)
            self._credit, self._warm, self._earlier = state["credit"], state["warm"], saved / "replay"
        else:
            self.buffer, chosen = build_replay(config, self.envs, seeds[2], device)
        chosen += require_disk(config, self.buffer, self.steps, self.folder, self._earlier)
        obs_shape = (config.stack, *self.envs.frame_shape)
        self.learner = Learner(config, obs_shape, self.envs.frame_dtype, self.envs.num_actions, device, seeds[3])
        if saved:
            self._restore(saved, state)

        folder.open_run(self.folder, config, new=resume is None)
        self.reporter = report.Reporter(
            self.folder, total=config.total_frames, resume_at=state.get("resume_at"), quiet=quiet
        )
        games = f"{config.game} on {device}, {config.num_envs} games side by side"
        self.reporter.line(f"{games}; {chosen}; {self.folder}")
        if saved:
            with_replay = "with" if len(self.buffer) else "without"
            self.reporter.line(f"going on after {self.frames:,} frames from {saved}, {with_replay} its replay")

    def play(self) -> None:
        """Play to the end, or until a stop is asked for."""
        try:
            self.start()
            while self.frames < self.config.total_frames and not self.stop:
                self.step()
        except Stopped:
            pass
        for callback in self.callbacks:
            try:
                callback.on_end(self)
            except Stopped:
                self.reporter.line("stopped during the evaluation")

    def start(self) -> None:
        """Open the games."""
        for callback in self.callbacks:
            callback.on_start(self)
        for group in self._groups:
            group.reset()
        for group in list(self._groups)[1:]:
            group.send(self._act(group.observe()))
        self.lap = Laps()

    def step(self) -> None:
        """Act, step, add, learn: once in one group of environments."""
        group = self._groups[0]
        actions = self._act(group.observe())
        self.lap("act")
        group.send(actions)
        self._learn()  # while the environments step
        self._groups.rotate(-1)
        group = self._groups[0]  # with one group the same again
        before, actions, after = group.recv()
        self.lap("environments")
        self.buffer.add(
            before.frame, actions, after.reward, after.terminated, after.truncated, before.first, env_id=group.env_id
        )
        self.lap("add")
        self._count(after, actions)
        self.lap("callbacks")

    def close(self) -> None:
        """Wait for a checkpoint that is under way, and close the games."""
        try:
            if self._saving is not None:
                self._saving.wait()
        finally:
            for group in self._groups:
                group.envs.close()

    # --- the parts of a step --------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Emulator frames played so far."""
        return self.steps * self.config.frame_skip

    @property
    def seconds(self) -> float:
        """Wall-clock time of this run, the parts before a resume included."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        c = self.config
        return linear(c.epsilon_start, c.epsilon_end, c.epsilon_decay_steps, self.steps - c.warm_up_steps)

    @property
    def beta(self) -> float:
        """Exponent of the importance weights now."""
        return linear(self.config.beta_start, self.config.beta_end, self.config.total_steps, self.steps)

    @property
    def n_step(self) -> int:
        """Rewards that a return sums now."""
        c = self.config
        end = c.n_step if c.n_step_end is None else c.n_step_end
        return round(linear(c.n_step, end, c.n_step_steps, self.steps - c.warm_up_steps))

    @property
    def learning_rate(self) -> float:
        """Step size of the optimizer now."""
        c = self.config
        end = c.learning_rate if c.learning_rate_end is None else c.learning_rate_end
        learned = self.steps - c.warm_up_steps
        warmth = linear(0.0, 1.0, c.learning_rate_warmup_steps, learned)
        return warmth * linear(c.learning_rate, end, c.learning_rate_steps, learned)

    def _act(self, obs: NDArray[Any]) -> NDArray[np.int64]:
        """Toss a coin for each environment: a random action, or the greedy one; before any update all are random."""
        if not self.learner.updates:
            return self._random_actions(len(obs))
        greedy = self.learner.act(obs)
        coins = self._rng.random(len(obs)) < self.epsilon
        return np.where(coins, self._random_actions(len(obs)), greedy)

    def _random_actions(self, n: int) -> NDArray[np.int64]:
        return self._rng.integers(self.envs.num_actions, size=n)

    def _learn(self) -> None:
        """Learn as many batches as are due."""
        if self.n_step != self.buffer.settings["n_step"]:
            self.buffer.set_n_step(self.n_step)
        self.learner.set_learning_rate(self.learning_rate)
        while self._credit >= self.config.batch_size:
            self._credit -= self.config.batch_size
            batch = self.buffer.sample(self.config.batch_size, self.beta)
            self.lap("sample")
            measure = self.learner.updates % MEASURE_EVERY_UPDATES == 0
            priorities = self.learner.learn(batch, measure=measure)
            self.lap("update")
            self._update_priorities(priorities)
            self.lap("priorities")
            for callback in self.callbacks:
                callback.on_update(self, batch)
            self.lap("callbacks")

    def _update_priorities(self, priorities: Priorities | None) -> None:
        if priorities is not None and self.config.prioritized:
            self.buffer.update_priorities(*priorities)

    def _count(self, step: Step, actions: NDArray[np.int64]) -> None:
        """Count what a vector step brought and tell the callbacks."""
        counted = actions[~step.reset]
        self.steps += len(counted)
        if self._warm:
            self._credit += len(counted) * self.config.samples_per_step
        self._warm = self._warm or self.buffer.drawable >= max(self.config.warm_up_steps, 1)
        for i in np.flatnonzero(step.game_over):
            for callback in self.callbacks:
                callback.on_game(self, float(step.score[i]), int(step.length[i]))
        for callback in self.callbacks:
            callback.on_step(self, counted)

    # --- checkpoints ----------------------------------------------------------------------------------

    def save(self, name: str | None = None, *, wait: bool = True) -> Path:
        """Write a checkpoint, named after the frames played unless a name is given; return its folder.

        A named one holds the weights alone: it is for looking at, not for going on. Of others a thread does what takes
        time, and without ``wait`` the run may go on meanwhile; callbacks hear of it when it is whole.

        Raises
        ------
        OSError
            If this checkpoint cannot be written, or the one under way could not; the last whole one is left as it is.
        """
        if name is None:
            self.settle()
        self._update_priorities(self.learner.flush())
        state = {
            "game": self.config.game,
            "network": self.learner.online.settings,
            "steps": self.steps,
            "frames": self.frames,
            "seconds": self.seconds,
            "credit": self._credit,
            "warm": self._warm,
            "rng": self._rng.bit_generator.state,
            "callbacks": {name: callback.state() for name, callback in self._named_callbacks().items()},
            **self.reporter.state(),
        }
        weights = self.learner.online.state_dict()
        if name is not None:
            return checkpoint.Draft(self.folder, name, state, None, weights).finish()
        replay = self.buffer if self.config.checkpoint_replay else None
        draft = checkpoint.Draft(
            self.folder, f"{self.frames:012d}", state, self.learner.state(), weights, replay, self._earlier
        )
        self._saving = checkpoint.Background(draft, lambda: checkpoint.prune(self.folder, self.config.keep_checkpoints))
        if wait:
            self.settle()
        return draft.folder

    def settle(self, *, wait: bool = True) -> None:
        """Tell callbacks of a checkpoint that is whole now, or raise what kept it from that; wait for one under way."""
        if self._saving is None or not (wait or self._saving.done):
            return
        self._saving.wait()
        saving, self._saving = self._saving, None
        saved = saving.result()
        if self.config.checkpoint_replay:
            self._earlier = saved / "replay"
        for callback in self.callbacks:
            callback.on_checkpoint(self, saved)

    def give_up(self) -> None:
        """Leave a checkpoint that is under way unfinished."""
        if self._saving is not None:
            self._saving.give_up(LEAVE_SECONDS)
            self._saving = None

    def _restore(self, saved: Path, state: dict[str, Any]) -> None:
        """Take over a checkpoint but for its replay."""
        if state["game"] != self.config.game:
            raise ConfigError(f"{saved} plays {state['game']}, not {self.config.game}; start a new run for that")
        self.learner.load_state(checkpoint.load_learner(saved))
        self._rng.bit_generator.state = state["rng"]
        for name, callback in self._named_callbacks().items():
            callback.load_state(state["callbacks"].get(name, {}))

    def _named_callbacks(self) -> dict[str, Callback]:
        """Return the callbacks by class, a second one of a class numbered, so that each finds its state again."""
        named: dict[str, Callback] = {}
        for callback in self.callbacks:
            name = type(callback).__name__
            number = sum(type(other) is type(callback) for other in named.values())
            named[f"{name}#{number + 1}" if number else name] = callback
        return named
