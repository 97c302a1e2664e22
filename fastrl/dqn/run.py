"""The experiment: build, restore, then act, step, add, learn. Everything else hangs on as a callback."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.atari import AtariEnvs, FrameStack, Step
from fastrl.config import ConfigError, DQNConfig
from fastrl.dqn import checkpoint
from fastrl.dqn.callbacks import Callback, Checkpoints, Evaluation, Metrics
from fastrl.dqn.learner import Learner, Priorities, pick_device
from fastrl.machine import GIB, available_bytes
from fastrl.replay import PrioritizedReplayBuffer
from fastrl.report import Reporter
from fastrl.schedule import linear
from fastrl.stop import Stop, Stopped

DEFAULT_CAPACITY = 1_000_000
# Of the memory that is free, what a replay that nobody asked for may take, and one that somebody did.
DEFAULT_SHARE, LARGEST_SHARE = 0.6, 0.9


def train(
    config: DQNConfig,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Train an agent in a run's folder until ``config.total_frames`` or a signal.

    Parameters
    ----------
    config : DQNConfig
        All settings.
    folder : Path
        Folder of the run, made by `fastrl.folder.new_run`.
    callbacks : sequence of Callback
        Called before the run's own, in order.
    resume : bool
        Go on from the newest checkpoint in the folder. Games begin anew; all else goes on.
    quiet : bool
        Print nothing.

    Returns
    -------
    Run
        Its ``stop.signal`` says whether a signal ended it, its ``evaluation`` what the last evaluation gave.

    Raises
    ------
    ConfigError
        If a setting does not fit the machine, the game or the checkpoint; nothing was written then.
    """
    with Stop() as stop:
        run = Run(config, folder, callbacks, stop, resume=resume, quiet=quiet)
        try:
            with run.reporter:
                run.play()
        finally:
            run.envs.close()
    return run


class Run:
    """One experiment under way: what callbacks see.

    Attributes
    ----------
    config, folder, callbacks, reporter, stop
        As given, and where metrics go.
    envs, learner, buffer
        The games, the networks with their optimizer, the replay.
    steps, frames : int
        Agent steps and emulator frames played so far.
    """

    def __init__(
        self,
        config: DQNConfig,
        folder: Path,
        callbacks: Sequence[Callback],
        stop: Stop,
        *,
        resume: bool,
        quiet: bool,
    ) -> None:
        self.config, self.folder, self.stop = config, folder, stop
        self.steps, self.seconds_before, self._started = 0, 0.0, time.monotonic()
        self._credit = 0.0  # samples that may be learned now
        self._metrics, self.evaluation = Metrics(), Evaluation()
        self.callbacks: list[Callback] = [*callbacks, self._metrics, self.evaluation, Checkpoints()]
        saved = checkpoint.find(folder) if resume else None
        state = checkpoint.load_state(saved) if saved else None
        if state:
            self.steps, self.seconds_before = state["steps"], state["seconds"]

        # Every generator has a stream of its own; resumed games must not repeat the first ones.
        seeds = [int(s) for s in np.random.SeedSequence([config.seed, self.steps]).generate_state(4)]
        self._rng = np.random.default_rng(seeds[0])
        device = pick_device(config.device)
        self.envs = _build_envs(config, seeds[1])
        self.buffer, chosen = _build_buffer(config, self.envs, seeds[2])
        obs_shape = (config.stack, *self.envs.frame_shape)
        self.learner = Learner(config, obs_shape, self.envs.frame_dtype, self.envs.num_actions, device, seeds[3])
        if saved and state:
            self._restore(saved, state)
        self.reporter = Reporter(
            folder, total=config.total_frames, resume_at=self.frames if resume else None, quiet=quiet
        )
        self.reporter.line(f"{config.game} on {device}, {self.envs.num_envs} games side by side; {chosen}; {folder}")
        if saved:
            with_replay = "with" if len(self.buffer) else "without"
            self.reporter.line(f"going on after {self.frames:,} frames from {saved}, {with_replay} its replay")

    def play(self) -> None:
        """Act, step, add, learn."""
        config, envs, learner = self.config, self.envs, self.learner
        stack = FrameStack(envs.num_envs, config.stack, envs.frame_shape, envs.frame_dtype)
        for callback in self.callbacks:
            callback.on_start(self)
        step = envs.reset()
        step.first[:] = True  # whatever was under way before a resume is abandoned
        try:
            while self.frames < config.total_frames and not self.stop:
                obs = stack.push(step.frame, step.first)
                actions = self._explore(learner.act(obs)) if self.learning else self._random_actions()
                envs.send(actions)
                self._learn()  # while the environments step
                after = envs.recv()
                self.buffer.add(step.frame, actions, after.reward, after.terminated, after.truncated, first=step.first)
                step = after
                self._count(step, actions)
            self._finish()
        except Stopped:
            self._finish()

    # --- the parts of a step --------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Emulator frames played so far."""
        return self.steps * self.config.frame_skip

    @property
    def seconds(self) -> float:
        """Wall-clock time since the start of the first of the runs that make up this one."""
        return self.seconds_before + time.monotonic() - self._started

    @property
    def learning(self) -> bool:
        """Whether the replay is warm: so many rows that learning goes on."""
        return self.buffer.drawable >= max(self.config.warm_up_steps, 1)

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        c = self.config
        return linear(c.epsilon_start, c.epsilon_end, c.epsilon_decay_steps, self.steps - c.warm_up_steps)

    @property
    def beta(self) -> float:
        """Exponent of the importance weights now."""
        return linear(self.config.beta_start, self.config.beta_end, self.config.total_steps, self.steps)

    def _random_actions(self) -> NDArray[np.int64]:
        return self._rng.integers(self.envs.num_actions, size=self.envs.num_envs)

    def _explore(self, greedy: NDArray[np.int64]) -> NDArray[np.int64]:
        """Toss a coin for each environment: a random action, or the greedy one."""
        coins = self._rng.random(self.envs.num_envs) < self.epsilon
        return np.where(coins, self._random_actions(), greedy)

    def _learn(self) -> None:
        """Learn as many batches as are due."""
        while self.learning and self._credit >= self.config.batch_size:
            self._credit -= self.config.batch_size
            batch = self.buffer.sample(self.config.batch_size, self.beta)
            self._update_priorities(self.learner.learn(batch, measure=self._measure_now()))
            for callback in self.callbacks:
                callback.on_update(self, batch)

    def _update_priorities(self, priorities: Priorities | None) -> None:
        if priorities is not None and self.config.prioritized:
            self.buffer.update_priorities(*priorities)

    def _measure_now(self) -> bool:
        """Norms of parameters and update cost a copy of all weights: measure one update in a hundred."""
        return self.learner.updates % 100 == 0

    def _count(self, step: Step, actions: NDArray[np.int64]) -> None:
        """Count what a vector step brought and tell the callbacks."""
        taken = int(np.count_nonzero(~step.reset))
        self.steps += taken
        if self.learning:
            self._credit += taken * self.config.samples_per_step
        for i in np.flatnonzero(step.game_over):
            for callback in self.callbacks:
                callback.on_game(self, float(step.score[i]), int(step.length[i]))
        for callback in self.callbacks:
            callback.on_step(self, actions)

    def _finish(self) -> None:
        for callback in self.callbacks:
            try:
                callback.on_end(self)
            except Stopped:
                self.reporter.line("stopped during the evaluation")

    # --- checkpoints ----------------------------------------------------------------------------------

    def save(self, name: str | None = None) -> Path:
        """Write a checkpoint, named after the frames played unless a name is given; return its folder.

        A named one holds the weights alone: it is for looking at, not for going on.
        """
        self._update_priorities(self.learner.flush())
        network = {
            "obs_shape": [self.config.stack, *self.envs.frame_shape],
            "num_actions": self.envs.num_actions,
            "trunk": self.config.trunk,
            "hidden": self.config.hidden,
            "dueling": self.config.dueling,
        }
        state = {
            "steps": self.steps,
            "frames": self.frames,
            "seconds": self.seconds,
            "credit": self._credit,
            "rng": self._rng.bit_generator.state,
            "network": network,
            "game": self.config.game,
            "callbacks": [callback.state() for callback in self.callbacks],
            **self.reporter.state(),
        }
        weights = self.learner.online.state_dict()
        if name is not None:
            return checkpoint.save(self.folder, name, state, None, weights)
        replay = self.buffer if self.config.checkpoint_replay else None
        folder = checkpoint.save(self.folder, f"{self.frames:012d}", state, self.learner.state(), weights, replay)
        checkpoint.prune(self.folder, self.config.keep_checkpoints)
        for callback in self.callbacks:
            callback.on_checkpoint(self, folder)
        return folder

    def _restore(self, saved: Path, state: dict[str, Any]) -> None:
        """Take over a checkpoint; without its replay the warm-up comes again."""
        self.learner.load_state(checkpoint.load_learner(saved))
        self._rng.bit_generator.state = state["rng"]
        if len(state["callbacks"]) != len(self.callbacks):
            raise ConfigError(
                f"{saved} was written with {len(state['callbacks'])} callbacks, this run has {len(self.callbacks)}; "
                "give the same ones"
            )
        for callback, its_state in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state(its_state)
        if (saved / "replay").exists():
            self.buffer = self._saved_replay(saved / "replay")
            self._credit = state["credit"]

    def _saved_replay(self, path: Path) -> PrioritizedReplayBuffer:
        """Load a replay after checking that this run would have built the same."""
        replay, own = PrioritizedReplayBuffer.load(path), dict(self.buffer.settings)
        if self.config.capacity is None:
            own["capacity"] = replay.settings["capacity"]  # what memory allows now may differ
        for name, value in own.items():
            if replay.settings[name] != value:
                raise ConfigError(
                    f"{path} was made with {name} {replay.settings[name]}, this run has {value}; give the run's "
                    "own settings, or delete that file to go on with an empty replay"
                )
        return replay


def _build_envs(config: DQNConfig, seed: int) -> AtariEnvs:
    return AtariEnvs(
        config.game, config.num_envs, seed=seed, threads=config.env_threads, frame_skip=config.frame_skip,
        episodic_life=config.episodic_life, reward_clip=config.reward_clip, noop_max=config.noop_max,
        repeat_action_probability=config.repeat_action_probability,
        max_episode_steps=config.max_episode_steps, dephase_steps=config.dephase_steps,
    )  # fmt: skip


def _build_buffer(config: DQNConfig, envs: AtariEnvs, seed: int) -> tuple[PrioritizedReplayBuffer, str]:
    """Build the replay after asking how much memory there is; return it with words on its size."""
    row_bytes = int(np.prod(envs.frame_shape)) * envs.frame_dtype.itemsize + 32  # columns and tree: 25
    free = available_bytes()
    least = envs.num_envs * (config.stack + config.n_step + 1)
    if config.capacity is None:
        # Reset rows take a few percent besides the agent steps.
        wanted = min(DEFAULT_CAPACITY, int(config.total_steps * 1.1) + 2 * least)
        fits = wanted if free is None else int(free * DEFAULT_SHARE) // row_bytes
        capacity = min(wanted, fits)
        if capacity < max(least, min(config.warm_up_steps * 2, wanted)):
            raise ConfigError(
                f"{(free or 0) / GIB:.1f} GiB of memory are free, too little for a useful replay of {wanted:,} rows "
                f"({wanted * row_bytes / GIB:.1f} GiB); free some, or give --capacity"
            )
        reason = " (what memory allows)" if capacity < wanted else ""
    else:
        capacity, reason = config.capacity, ""
        if free is not None and capacity * row_bytes > free * LARGEST_SHARE:
            raise ConfigError(
                f"--capacity is {capacity:,}, which takes {capacity * row_bytes / GIB:.1f} GiB of the "
                f"{free / GIB:.1f} GiB free; give {int(free * LARGEST_SHARE) // row_bytes:,} or less"
            )
        if capacity < max(least, config.warm_up_steps * 11 // 10):
            raise ConfigError(
                f"--capacity is {capacity:,}; give {max(least, config.warm_up_steps * 11 // 10):,} or more, so that "
                "it holds the warm-up, or shorten that with --learn-start-steps"
            )
    buffer = PrioritizedReplayBuffer(
        capacity=capacity, num_envs=envs.num_envs, obs_shape=envs.frame_shape, obs_dtype=envs.frame_dtype,
        stack=config.stack, n_step=config.n_step, gamma=config.gamma,
        alpha=config.alpha if config.prioritized else 0.0, eps=config.priority_eps, seed=seed,
    )  # fmt: skip
    return buffer, f"replay of {capacity:,} frames in {buffer.nbytes / GIB:.1f} GiB{reason}"
