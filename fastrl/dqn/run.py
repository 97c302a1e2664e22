"""The experiment: build, restore, then act, step, add, learn. Everything else hangs on as a callback."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastrl import folder, report, saved
from fastrl.config import ConfigError, DQNConfig
from fastrl.dqn import checkpoint
from fastrl.dqn.build import build_groups, build_replay, load_replay, require_disk
from fastrl.dqn.callbacks import Callback, Checkpoints, Evaluation, Metrics, named
from fastrl.dqn.device import forget_compiled, pick_device
from fastrl.dqn.groups import Group, Saveable, load_states, states_of
from fastrl.dqn.health import NotFiniteError, not_finite, spoilt
from fastrl.dqn.laps import Laps
from fastrl.dqn.learner import Learner, Priorities
from fastrl.extras import need
from fastrl.gymnasium_envs import is_own, same_game
from fastrl.replay import Batch
from fastrl.schedule import Schedules
from fastrl.steps import Step
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
        Go on from the newest whole checkpoint in this run's folder, all to the bit. Games that cannot be saved, such
        as EnvPool's, begin anew.
    quiet : bool
        Print nothing.

    Returns
    -------
    Run
        Its ``stop.signal`` says whether a signal ended it, its ``evaluation.last`` what the last one gave.

    Raises
    ------
    ConfigError
        If a setting does not fit the machine, the game or the checkpoint, or another run has the folder; nothing was
        written then.
    RunError
        If the folder takes no more files, or a loss or a weight is not finite.
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


class Run(Schedules):
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
    abandoned : int
        Games that were cut short because a resumed run could not go on with them.
    """

    def __init__(
        self, config: DQNConfig, callbacks: Sequence[Callback], stop: Stop, *, resume: Path | None, quiet: bool
    ) -> None:
        self.config, self.stop = config, stop
        self.evaluation = Evaluation()
        self.callbacks: list[Callback] = [*callbacks, Metrics(), self.evaluation, Checkpoints()]
        self.folder = resume or folder.path_for(config, config.game)
        self._groups: deque[Group] = deque()  # whose turn it is stands first
        self._lock: IO[str] | None = None
        self._saving: checkpoint.Background | None = None  # the checkpoint under way
        self._earlier: Path | None = None  # the newest save of the replay
        try:
            self._build(resume, quiet)
        except BaseException as error:
            self.close()
            if refused := folder.unwritable(self.folder, error):
                raise refused from error
            raise

    def _build(self, resume: Path | None, quiet: bool) -> None:
        """Make all parts, or restore them from the newest checkpoint that is whole."""
        config = self.config
        if resume:
            self._lock = folder.lock(resume)
            saved.recover(resume)
        found, notes = saved.newest_whole(resume) if resume else (None, [])
        state = checkpoint.load_state(found) if found else {}
        if state and not same_game(state["game"], config.game):
            raise ConfigError(f"{found} plays {state['game']}, not {config.game}; start a new run for that")
        self.steps, self.abandoned = int(state.get("steps", 0)), int(state.get("abandoned", 0))
        self._seconds_before, self._started = float(state.get("seconds", 0.0)), time.monotonic()
        self._credit, self._warm = 0.0, False  # samples that may be learned now; the replay is warm

        # Every generator has a stream of its own; resumed games must not repeat the first ones.
        seeds = [int(s) for s in np.random.SeedSequence([config.seed, self.steps]).generate_state(4)]
        self._rng = np.random.default_rng(seeds[0])
        for package in ("tensorboard", "rich", "PIL", "safetensors"):  # before anything is written
            need(package, "train")
        device = pick_device(config.device)
        self._groups.extend(build_groups(config, seeds[1]))
        self.envs = self._groups[0].envs
        loaded = None
        if found and (found / saved.REPLAY).exists():
            try:
                loaded = load_replay(found / saved.REPLAY, config, self.envs, device)
                self._credit, self._warm, self._earlier = state["credit"], state["warm"], found / saved.REPLAY
            except saved.DamageError as error:
                notes.append(f"{error}; going on with an empty replay")
        self.buffer, chosen = loaded or build_replay(config, self.envs, seeds[2], device)
        chosen += require_disk(config, self.buffer, self.steps, self.folder, self._earlier)
        obs_shape = (config.stack, *self.envs.frame_shape)
        self.learner = Learner(config, obs_shape, self.envs.frame_dtype, self.envs.num_actions, device, seeds[3])
        self._recent: deque[Batch] = deque(maxlen=2 if self.learner.delayed else 1)  # whose errors may not be known
        self._games_go_on = False
        if found:
            self._restore(found, state)
        folder.open_run(self.folder, config, new=resume is None)
        self._lock = self._lock or folder.lock(self.folder)
        self.reporter = report.Reporter(self.folder, total=config.total_frames, resume=state or None, quiet=quiet)
        rules = "" if is_own(config.game) else f", protocol {config.protocol_name}"
        games = f"{config.game} on {device}, {config.num_envs} games side by side{rules}"
        self.reporter.line(f"{games}; {chosen}; {self.folder}")
        for note in [*notes, *(saved.set_aside(self.folder, found) if found else [])]:
            self.reporter.line(note)
        if found:
            replay = "with its replay" if len(self.buffer) else "without its replay"
            games = "games go on" if self._games_go_on else "games begin anew"
            self.reporter.line(f"going on after {self.frames:,} frames from {found}, {replay}; {games}")

    def play(self) -> None:
        """Play to the end, or until a stop is asked for; an error comes out once what was learnt is saved."""
        try:
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
        except Exception as error:
            if not isinstance(error, NotFiniteError):
                self._rescue(error)
            if refused := folder.unwritable(self.folder, error):
                raise refused from error
            raise

    def start(self) -> None:
        """Open the games, unless they go on."""
        for callback in self.callbacks:
            callback.on_start(self)
        if not self._games_go_on:
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
            before.frame, actions, after.reward, after.terminated, after.truncated, before.first, after.final,
            group.env_id,
        )  # fmt: skip
        self.lap("add")
        self._count(after, actions)
        self.lap("callbacks")

    def close(self) -> None:
        """Wait for a checkpoint that is under way, close the games, forget what was compiled, let go of the folder."""
        with contextlib.ExitStack() as last:  # from its end, whatever one of them raises
            if self._lock is not None:
                last.callback(self._lock.close)
            last.callback(forget_compiled)
            for group in self._groups:
                last.callback(group.envs.close)
            if self._saving is not None:
                self._saving.wait()

    # --- the parts of a step --------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Emulator frames played so far."""
        return self.steps * self.config.frame_skip

    @property
    def seconds(self) -> float:
        """Wall-clock time of this run, the parts before a resume included."""
        return self._seconds_before + time.monotonic() - self._started

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
            self._recent.append(batch)
            priorities = self.learner.learn(batch, measure=measure)
            self.lap("update")
            self._update_priorities(priorities)
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

    def save(self, name: str | None = None, *, wait: bool = True, replay: bool = True, games: bool = True) -> Path:
        """Write a checkpoint, named after the frames played unless a name is given; return its folder.

        Changes nothing of the run. A named one holds the weights alone: it is for looking at, not for going on. All
        others hold the run of this moment; a thread does what takes time, and without ``wait`` the run may go on
        meanwhile. Callbacks hear of it when it is whole.

        Parameters
        ----------
        name : str, optional
            Its name.
        wait, replay, games : bool
            Return when it is whole; keep the replay too, if the settings want that, and games that can be saved.

        Raises
        ------
        NotFiniteError
            If a weight is NaN or infinite; nothing is written then but the newest batch.
        OSError
            If this checkpoint cannot be written, or the one under way could not; the last whole one is left as it is.
        """
        if name is None:
            self.settle()
        learner = self.learner.state()
        if names := spoilt({key: learner[key] for key in ("online", "target", "optimizer")}):
            raise self._not_finite(", ".join(names[:3]), {"weights": names})
        state = {
            "game": self.config.game,
            "network": self.learner.online.settings,
            "steps": self.steps,
            "frames": self.frames,
            "seconds": self.seconds,
            "abandoned": self.abandoned,
            "credit": self._credit,
            "warm": self._warm,
            "rng": self._rng.bit_generator.state,
            "callbacks": {name: callback.state() for name, callback in named(self.callbacks).items()},
            **self.reporter.state(),
        }
        weights = self.learner.online.state_dict()
        if name is not None:
            return checkpoint.Draft(self.folder, name, state, weights).finish()
        draft = checkpoint.Draft(
            self.folder, f"{self.frames:012d}", state, weights, learner, states_of(self._groups) if games else None,
            self.buffer if replay and self.config.checkpoint_replay else None, self._earlier,
        )  # fmt: skip
        self._saving = checkpoint.Background(draft, lambda: saved.prune(self.folder, self.config.keep_checkpoints))
        self._saving.start()  # once it is known to `give_up`
        self.settle(wait=wait)
        return draft.folder

    def settle(self, *, wait: bool = True) -> None:
        """Tell callbacks of a checkpoint that is whole now, or raise what kept it from that; wait for one under way."""
        if self._saving is None or not (wait or self._saving.done):
            return
        self._saving.wait()  # may be interrupted: it is under way until then
        saving, self._saving = self._saving, None
        whole = saving.result()
        if (whole / saved.REPLAY).exists():
            self._earlier = whole / saved.REPLAY
        for callback in self.callbacks:
            callback.on_checkpoint(self, whole)

    def give_up(self) -> None:
        """Leave a checkpoint that is under way unfinished."""
        if self._saving is not None:
            self._saving.give_up(LEAVE_SECONDS)
            self._saving = None

    def _restore(self, found: Path, state: dict[str, Any]) -> None:
        """Take over a checkpoint but for its replay."""
        self.learner.load_state(checkpoint.load_learner(found))
        if not len(self.buffer):
            self.learner.flush()  # priorities of rows that are gone
        elif not self.learner.delayed:
            self._update_priorities(self.learner.flush())  # of a run that went on from a GPU
        self._rng.bit_generator.state = state["rng"]
        for name, callback in named(self.callbacks).items():
            callback.load_state(state["callbacks"].get(name, {}))
        games = checkpoint.load_games(found)
        self._games_go_on = games is not None and isinstance(self.envs, Saveable)
        if games is not None and self._games_go_on:
            load_states(self._groups, games)
        elif self.steps:
            self.abandoned += self.config.num_envs

    def _rescue(self, error: Exception) -> None:
        """Save what was learnt before an error ends the run; the games stand in the middle of a step."""
        try:
            self.settle()
        except Exception as another:
            self.reporter.line(f"the checkpoint under way could not be finished: {another}")
        here = self.folder / "checkpoints" / f"{self.frames:012d}"
        for replay in (False,) if folder.no_room(error) and not here.exists() else (True, False):
            try:
                if not here.exists():  # one of this step has its games, and its replay
                    self.save(replay=replay, games=False)
            except Exception as another:
                self.reporter.line(f"what was learnt could not be saved: {another}")
            else:
                kept = "what was learnt is saved" if replay else "what was learnt is saved without its replay"
                self.reporter.line(f"{type(error).__name__} ended the run; {kept}; go on: {folder.go_on(self.folder)}")
                return

    def _not_finite(self, what: str, found: dict[str, Any]) -> NotFiniteError:
        return not_finite(what, self.folder, self.learner.updates, self._recent, found, self.config)
