"""The experiment: build, restore, loop, close."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fastrl.base import console
from fastrl.base.errors import ConfigError, Stopped
from fastrl.base.extras import need
from fastrl.base.last_words import last_words
from fastrl.base.launch import first_rank
from fastrl.base.ranges import as_flag, flag_of
from fastrl.base.stop import Stop
from fastrl.config import DQNConfig
from fastrl.distributed.engine import build_collectors
from fastrl.distributed.ranks import joined
from fastrl.dqn import checkpoint
from fastrl.dqn.callbacks import Callback, check_callbacks, named
from fastrl.dqn.collector import RowSource, build_collector
from fastrl.dqn.device.device import forget_compiled, pick_device
from fastrl.dqn.learner import Learner
from fastrl.dqn.network import NETWORK
from fastrl.dqn.pace import Pace
from fastrl.dqn.peers import ALONE, Peers
from fastrl.dqn.policy import Policy
from fastrl.dqn.run.build import find_replay, require_disk
from fastrl.dqn.run.checkpointing import Checkpoints
from fastrl.dqn.run.collecting import CollectorReport
from fastrl.dqn.run.evaluation import Evaluation
from fastrl.dqn.run.faults import NotFiniteError
from fastrl.dqn.run.loop import Loop
from fastrl.dqn.run.metrics import Metrics
from fastrl.dqn.run.replay_plan import check_rings
from fastrl.dqn.run.saver import RunSnapshot
from fastrl.dqn.schedules import Schedules
from fastrl.dqn.tune import OPEN, Shapes, settle
from fastrl.envs.frames import in_words, stacked_shape
from fastrl.envs.masks import have_masks
from fastrl.envs.names import is_atari, is_custom, refuse_while_loading, same_game
from fastrl.envs.step import Envs
from fastrl.runs import checkpoints
from fastrl.runs.folder import RunFolder, load_dqn_config
from fastrl.runs.report import NoReporter, Reporter

MAY_CHANGE = frozenset(
    "game films device total_frames total_samples env_threads ray_address collector_timeout frame_store compile "
    "precision torch_threads kernels log_every_frames evaluate_every_frames evaluate_episodes final_episodes "
    "checkpoint_every_frames checkpoint_every_minutes keep_checkpoints checkpoint_replay".split()
)
"""Settings of a run that has ended which may still be others: its last evaluation may be left to play."""
SEEN_SECONDS = 60.0
"""Until a folder made on one machine is seen on another, which remembers for a while that there was none."""


def train(
    config: DQNConfig,
    callbacks: Sequence[Callback] = (),
    *,
    resume: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Run:
    """Train an agent until ``config.total_frames``, ``config.total_samples`` or a signal.

    Parameters
    ----------
    config : DQNConfig
        All settings; ``runs_dir`` and ``name`` say where the run's folder goes.
    callbacks : sequence of Callback
        Called before the run's own, in order.
    resume : path-like, optional
        Resume the newest whole checkpoint in this run's folder, all to the bit. Games that cannot be saved, such as
        EnvPool's, start anew.
    quiet : bool
        Print nothing.

    Returns
    -------
    Run
        Its ``stop.signal`` says whether a signal ended it, its ``evaluation.last`` what the last one gave.

    Raises
    ------
    ConfigError
        If a setting does not fit the machine, the game or the checkpoint, another run has the folder, or a module is
        being loaded for its environment (`fastrl.envs.names.refuse_while_loading`); nothing was written then.
    RunError
        If the folder takes no more files, a loss or a weight is not finite, or a custom environment fails.
    """
    with Stop(quiet=quiet or not first_rank()) as own, joined(config.device, own) as peers:
        stop = peers.agreed(own)
        config, resume = _or_begun_before(config, resume, peers, quiet=quiet)
        try:
            with stop.after(_then_compiled("the start of the run", config)):
                run = Run(config, callbacks, stop, resume=resume, quiet=quiet, peers=peers)
        except Stopped as asked:  # while collectors were starting: nothing is written yet
            raise KeyboardInterrupt(own.signal) from asked
        tells = (config.collectors or peers.several) and peers.leads and not quiet
        try:
            with run.reporter, last_words(_if_killed(run, peers)) if tells else contextlib.nullcontext():
                run.play()
        except KeyboardInterrupt:
            run.saver.give_up()
            run.evaluation.films.give_up()
            raise
        finally:
            run.close()
    return run


def _if_killed(run: Run, peers: Peers) -> str:
    """Return what there is to say where the process of a run is gone without leaving."""
    by_ray = ", or Ray ended it" if run.config.collectors else ""
    unless = "unless torchrun starts it anew, " if peers.several else ""
    resume = f"if it has a checkpoint, resume with: {run.folder.resume_command}"
    return f"the run's process was killed{by_ray}; {unless}{resume}"


def _then_compiled(what: str, config: DQNConfig) -> str:
    """Return what a stop comes after that comes in a part of the start: the compiling behind it takes longest."""
    return f"{what} and torch.compile" if config.compile else what


class Run(Loop):
    """One training run, from its settings to its last checkpoint.

    Parameters
    ----------
    config, callbacks, resume, quiet
        As for `train`.
    stop : Stop
        Asked by a signal to stop.
    peers : Peers, optional
        The run's learners.

    Attributes
    ----------
    evaluation : Evaluation
        The callback that plays whole games: its ``last`` and ``best``.
    """

    def __init__(
        self,
        config: DQNConfig,
        callbacks: Sequence[Callback],
        stop: Stop,
        *,
        resume: str | os.PathLike[str] | None,
        quiet: bool,
        peers: Peers = ALONE,
    ) -> None:
        refuse_while_loading()
        self.evaluation = Evaluation()
        of_the_run = [Metrics(), self.evaluation, Checkpoints()]
        check_callbacks(callbacks, of_the_run)
        self._last = contextlib.ExitStack()  # closes what was made, the newest first
        folder = _place(config, resume, peers)
        try:
            self._last.callback(folder.close)
            self._last.callback(self.evaluation.films.wait)
            config = peers.shared(lambda: config if resume is None else folder.reopen(config))
            self._build(config, folder, stop, [*callbacks, *of_the_run], new=resume is None, quiet=quiet, peers=peers)
        except BaseException as error:
            self.close()
            if refused := folder.unwritable(error):
                raise refused from error
            raise

    def _build(
        self,
        config: DQNConfig,
        folder: RunFolder,
        stop: Stop,
        callbacks: list[Callback],
        *,
        new: bool,
        quiet: bool,
        peers: Peers,
    ) -> None:
        """Make all parts, or restore them from the newest checkpoint that is whole."""
        found, mine, notes = (None, None, []) if new else _newest(folder, config, peers)
        state = checkpoint.load_state(found) if found else {}
        if state and not same_game(state["game"], config.game):
            raise ConfigError(f"{found} plays {state['game']}, not {config.game}; start a new run for that")
        earlier = None if new else load_dqn_config(folder)
        if earlier is not None:
            _refuse_other_play(config, earlier, found, state)
        steps = int(state.get("steps", 0))
        last_step = peers.count * config.num_envs * config.frame_skip  # a run ends with the step that reaches it
        if (played := steps * config.frame_skip) - last_step >= config.total_frames:
            raise ConfigError(
                f"--total-frames is {config.total_frames:,}, and {found} has played {played:,} already; give more, or "
                "leave it out"
            )
        schedules = Schedules(config)
        longer = bool(state) and schedules.load_state(state.get("schedules") or _schedules_before(folder), steps)
        # Every generator has a stream of its own; resumed games must not repeat the first ones.
        seeds = [int(s) for s in np.random.SeedSequence([config.seed, steps]).generate_state(4)]
        if peers.rank:  # one seed of the weights for all learners
            own = np.random.SeedSequence([config.seed, steps, peers.rank]).generate_state(3)
            seeds[:3] = [int(s) for s in own]
        for package in ("tensorboard", "rich", "PIL", "safetensors"):  # before anything is written
            need(package, "train")
        device = pick_device(config.device)
        self._last.callback(forget_compiled)
        collector: RowSource
        if config.collectors:
            collector = remote = build_collectors(config, seeds[1], stop.check)
            notes = [*remote.notes, *notes]
            callbacks.append(CollectorReport(remote))
        else:
            collector = build_collector(config, seeds[1])
        self._last.callback(collector.close)
        if is_custom(config.game) and not config.collectors:
            collector.open_games()  # which may fail, and only then says whether there are action masks
        envs = collector.envs
        if (had := state.get("network", {}).get("num_actions", envs.num_actions)) != envs.num_actions:
            _refuse_other_actions(config, found, had, envs.num_actions)
        if new:  # one that was trained so goes on so
            _refuse_two_stacks(config, envs)
        part = peers.part(config)
        start = "the loading of the replay" if mine else "the start of the run"
        with stop.after(_then_compiled(start, config)):
            replay = find_replay(
                mine, part, envs, seeds[2], device, notes, schedules.warm_up_steps, longer, folder.path, peers
            )
        if config.collectors:
            notes += check_rings(part, replay.buffer.settings["capacity"])
        replay_words = replay.words + require_disk(part, envs, replay.buffer, steps, folder.path, replay.earlier, peers)
        obs_shape = stacked_shape(config.stack, envs.frame_shape)
        # Before anything is written, since what is chosen belongs to the settings.
        chosen, arithmetic = peers.shared(
            lambda: settle(
                part,
                Shapes(obs_shape, envs.frame_dtype, envs.num_actions),
                device,
                earlier=earlier,
                notes=notes,
            )
        )
        config = config.replace(**{name: getattr(chosen, name) for name in OPEN})
        with stop.after("torch.compile" if config.compile else "the start of the run"):
            learner = Learner(
                peers.part(config),
                obs_shape,
                envs.frame_dtype,
                envs.num_actions,
                device,
                seeds[3],
                peers=peers,
                masked=have_masks(envs),
            )
        super().__init__(
            config,
            folder,
            stop,
            callbacks,
            collector=collector,
            policy=Policy(learner, envs.num_actions, np.random.default_rng(seeds[0])),
            pace=Pace(config.samples_per_step, config.batch_size, schedules.warm_up_steps),
            learner=learner,
            buffer=replay.buffer,
            schedules=schedules,
            earlier=replay.earlier,
            steps=steps,
            abandoned=int(state.get("abandoned", 0)),
            seconds=float(state.get("seconds", 0.0)),
            peers=peers,
        )
        self._last.callback(self.saver.wait)
        games_continue = found is not None and self._restore(found, mine, notes, pace=replay.earlier is not None)
        if not new and self.over:
            peers.shared(lambda: folder.ended(self.config, MAY_CHANGE, f"give a larger {self._longer}"))
        if config.collectors:
            collector.open_games()  # which may fail: before anything is written
        peers.wait()  # for all learners, any of which may refuse something: before anything is written
        if peers.leads:
            folder.open(config, new=new)
            peers.remember(folder.path)
        peers.wait()
        self.reporter = (
            Reporter(folder.path, total=config.total_frames, resume=state or None, quiet=quiet)
            if peers.leads
            else NoReporter()
        )
        if not peers.leads:
            _must_see(folder)
        rules = f", protocol {config.protocol_name}" if is_atari(config.game) else ""
        if is_custom(config.game):
            trunk = getattr(learner.online.trunk, "words", config.trunk)
            rules = f", frames {in_words(envs.frame_shape)} stacked {config.stack} high, trunk {trunk}"
            rules += ", with action masks" if have_masks(envs) else ""
        if device.type == "cuda":
            no = config.precision == "auto" and learner.precision == "float32"
            arithmetic = f" in {learner.precision}{' (this GPU has no bfloat16)' if no else ''}"
        side_by_side = f"{config.num_envs} games side by side"
        if config.collectors:
            many = config.collectors > 1
            side_by_side += f" in each of {config.collectors} collectors" if many else " in one collector"
        games = f"{config.game} on {device}{arithmetic}, {side_by_side}{rules}"
        each = f"; all of this in each of {peers.count} learners" if peers.several else ""
        self.reporter.line(f"{games}; {replay_words}{each}; {folder}")
        if found is not None and peers.leads:
            notes += folder.set_aside(found)
        for note in notes:
            self.reporter.line(note)
        if found is not None:
            self._say_what_is_resumed(found, games_continue)
        if longer:
            beta = f", beta goes from {self.beta:.2f} to {config.beta_end:.2f} over what is left"
            self.reporter.line(
                f"the run has {config.total_frames:,} frames now; epsilon ({self.epsilon:.2f}), n-step and learning "
                f"rate stay on the course they had{beta if self.beta != config.beta_end else ''}"
            )

    def _say_what_is_resumed(self, found: Path, games_continue: bool) -> None:
        kept = "with its replay" if len(self.buffer) else "without its replay"
        games = "games continue" if games_continue else "games start anew"
        self.reporter.line(f"resuming after {self.frames:,} frames from {found}, {kept}; {games}")
        if self.over:
            self.reporter.line(f"the run has ended: nothing is left to play; a larger {self._longer} makes it longer")

    @property
    def _longer(self) -> str:
        """The flag that lets a run go on that has ended."""
        return "--total-frames" if self.frames >= self.config.total_frames else "--total-samples"

    def _restore(self, found: Path, mine: Path | None, notes: list[str], *, pace: bool) -> bool:
        """Take over a checkpoint but for its replay, the pace if asked; return whether the games continue.

        Parameters
        ----------
        found : Path
            The checkpoint.
        mine : Path or None
            This learner's part of it; None where other learners saved it.
        notes : list of str
            Gets what the user should know.
        pace : bool
            Whether the replay was loaded.
        """
        state, learner = checkpoint.load_state(mine or found), checkpoint.load_learner(found)
        if mine is None and not self.peers.leads:
            learner |= {"generator": None, "pending": None}
        elif mine is not None and mine != found:
            learner |= checkpoint.load_learner(mine)
        network = state.get("network", {})
        # Weights of one support fit another with all values stretched, and implicit quantiles fit any number of them; a
        # config.json that was edited hides that from _refuse_other_play.
        for head, name, setting in (("c51", "v_max", "v_max"), ("iqn", "atoms", "quantiles")):
            own = getattr(self.config, setting)
            if self.config.head == network.get("head") == head and network[name] != own:
                raise ConfigError(f"{flag_of(setting)} is {own:g}; the saved state needs {network[name]:g}")
        if pace:
            self.pace.load_state(state)
        self.learner.load_state(learner)
        kept = learner.get("average") is not None
        if kept != bool(self.config.average_updates):
            notes.append(
                "the average of the weights is dropped: --average-updates is 0"
                if kept
                else "the average of the weights begins here: the run has kept none (--average-updates)"
            )
        # Older checkpoints lack the samples.
        self.samples = int(state.get("samples", self.learner.updates * self.config.batch_size))
        if not len(self.buffer):
            self.learner.flush()  # priorities of rows that are gone
        elif not self.learner.delayed:
            self._update_priorities(self.learner.flush())  # of a run resumed from a GPU
        if mine is not None or self.peers.leads:
            self.policy.load_state(state)
        for name, callback in named(self.callbacks).items():
            callback.load_state(state["callbacks"].get(name, {}))
        games_continue = mine is not None and self.collector.load_state(checkpoint.load_games(mine))
        if not games_continue and self.steps:
            self.abandoned += self.config.all_envs
        return games_continue

    def play(self) -> None:
        """Play to the end, or until a stop is asked for; an error comes out once what was learned is saved."""
        try:
            with contextlib.suppress(Stopped):
                self.start()
                while not self.over and not self.stop:
                    self.step()
            for callback in self.callbacks:
                try:
                    callback.on_end(self)
                except Stopped:
                    self.reporter.line("stopped during the evaluation")
        except Exception as error:
            tell = console.complain if isinstance(error, BrokenPipeError) else self.reporter.line
            # What was learned is spoilt, a checkpoint would need all learners, or there is no place for it.
            if not (isinstance(error, NotFiniteError) or self.peers.several or self.folder.gone):
                keeps = self.config.checkpoint_replay

                def take(replay: bool) -> RunSnapshot:  # without games, which stand in the middle of a step
                    return self.snapshot(replay=replay and keeps, rescue=True)

                self.saver.rescue(error, f"{self.frames:012d}", take, tell)
            elif self.peers.several and self.peers.leads and (saved := self.folder.numbered()):
                tell(
                    f"what was learned after checkpoint {saved[-1].name} is lost; unless torchrun starts it anew, "
                    f"resume with: {self.folder.resume_command}"
                )
            if refused := self.folder.unwritable(error):
                raise refused from error
            raise

    def close(self) -> None:
        """Wait for what threads write, close the games, forget what was compiled, release the folder."""
        self._last.close()


def _or_begun_before(
    config: DQNConfig, resume: str | os.PathLike[str] | None, peers: Peers, *, quiet: bool
) -> tuple[DQNConfig, str | os.PathLike[str] | None]:
    """Return settings and the run to resume: those given, or those of the run that torchrun has started anew.

    A run without a checkpoint to resume from is set aside, and another one begins under its name.
    """

    def find() -> tuple[Path | None, bool]:
        path = peers.remembered()
        if path is None or not path.exists():
            return None, False
        if RunFolder(path).numbered():
            return path, True
        number = 1
        while (aside := path.with_name(f"{path.name}-failed-{number}")).exists():
            number += 1
        os.replace(path, aside)
        if not quiet:
            console.say(f"{path} had no checkpoint to resume from: it is set aside as {aside}, and the run starts anew")
        return path, False

    begun, resumable = peers.shared(find)
    if begun is None:
        return config, resume
    return (load_dqn_config(begun), begun) if resumable else (config.replace(name=begun.name), None)


def _place(config: DQNConfig, resume: str | os.PathLike[str] | None, peers: Peers) -> RunFolder:
    """Return the run's folder, which the first learner names; nothing is written yet."""

    def name() -> tuple[str, str]:
        folder = RunFolder.new(config, config.game) if resume is None else RunFolder(resume)
        if resume is None:
            peers.part(config)  # refuses what cannot be divided, for all
        return os.fspath(folder), os.path.abspath(folder)

    named_here, elsewhere = peers.shared(name)
    return RunFolder(named_here if peers.leads else elsewhere)


def _newest(folder: RunFolder, config: DQNConfig, peers: Peers) -> tuple[Path, Path | None, list[str]]:
    """Return the newest checkpoint that is whole, this learner's part of it, and words on what was passed over.

    The part is None if other learners saved it; that is refused unless the run keeps no replay.
    """

    def find() -> tuple[str, bool, list[str]]:
        found, notes = folder.newest_whole()
        saved, now = checkpoints.learners(found), peers.count
        if saved == now:
            return found.name, True, notes
        by, there = (console.counted(n, "learner") for n in (saved, now))
        if config.checkpoint_replay:
            remedy = (
                f"let torchrun start {saved}: --nproc-per-node times --nnodes" if saved > 1 else "leave out torchrun"
            )
            raise ConfigError(
                f"{found} was saved by {by}, and there {'are' if now > 1 else 'is'} {there} now; {remedy}, or resume "
                "with empty replays by --no-checkpoint-replay (and none is saved from there on, until a resume gives "
                "--checkpoint-replay)"
            )
        start = "starts with an empty replay" if now == 1 else "start with empty replays"
        return found.name, False, [*notes, f"{found} was saved by {by}: {there} {start}"]

    name, same, notes = peers.shared(find)
    found = folder.checkpoints / name
    return found, checkpoints.part(found, peers.rank) if same else None, notes


def _must_see(folder: RunFolder) -> None:
    """Raise ConfigError if the folder that the first learner has made is not here within some seconds."""
    until = time.monotonic() + SEEN_SECONDS
    while not (folder / "config.json").exists():
        if time.monotonic() > until:
            raise ConfigError(
                f"{folder} is not there on {platform.node()}; give a --runs-dir that all machines share, such as one "
                "on NFS"
            )
        time.sleep(0.1)


def _schedules_before(folder: RunFolder) -> dict[str, Any]:
    """Return the state of the schedules of a checkpoint that holds none: an older version saved it."""
    total = load_dqn_config(folder).total_frames
    return {"planned_frames": total, "total_frames": total, "beta_from": None}


def _refuse_other_actions(config: DQNConfig, found: Path | None, had: int, has: int) -> NoReturn:
    said = f"the environment has {has} actions, and {found} learned {had}"
    if is_custom(config.game):
        raise ConfigError(f"{said}; give the environment that it was trained on")
    flag = "--no-full-action-set" if config.full_action_set else "--full-action-set"
    raise ConfigError(f"{said}; --full-action-set is {config.full_action_set} now: add {flag}")


def _refuse_other_play(config: DQNConfig, earlier: DQNConfig, found: Path | None, state: dict[str, Any]) -> None:
    """Raise ConfigError if a resume would count frames or learn rewards in another way, or has another network."""
    steps, frames = int(state.get("steps", 0)), int(state.get("frames", 0))
    if steps and frames != steps * config.frame_skip:
        was = frames // steps
        raise ConfigError(
            f"--frame-skip is {config.frame_skip}, and {found} was played with {was}; give --frame-skip {was}, or "
            "start a new run"
        )
    if earlier.reward_clip != config.reward_clip:
        flags = "--no-reward-clip", "--reward-clip"
        raise ConfigError(
            f"{flags[config.reward_clip]} is given, and the run has learned with {flags[earlier.reward_clip]}: its "
            "values and its replay are of those rewards; leave it out, or start a new run"
        )
    for name in NETWORK if found else ():
        if (now := getattr(config, name)) != (had := getattr(earlier, name)):
            raise ConfigError(
                f"{as_flag(name, now)} is given, and the network in {found} was built with {as_flag(name, had)}; leave "
                "it out, or start a new run"
            )


def _refuse_two_stacks(config: DQNConfig, envs: Envs) -> None:
    """Raise ConfigError if an environment stacks its frames itself and the run would stack them again."""
    if config.stack > 1 and (known := getattr(envs, "stacked", "")):
        raise ConfigError(f"--stack is {config.stack}, and {config.game} stacks frames itself: {known}; give --stack 1")
