"""Compare settings: ``python bench/study.py arms.toml`` trains the arms of a table side by side, one on each core.

The table (docs/training.md, "Studies", has all of it; examples/arms.toml is one to start from):

    game = "breakout"
    seeds = [1, 2]                    # of each arm that names none of its own

    [flags]                           # settings of all arms, by the names of DQNConfig's fields
    total_samples = 4_000_000         # where an arm ends; total_frames says on which schedules

    [[arm]]
    name = "preset"

    [[arm]]
    name = "wide"
    flags = { width = 2 }

Each arm and seed is a run of `python -m fastrl.train` in a folder of its own, on one core with one thread. Whatever
stops the study, the same command resumes it. It checks memory and disk first, refuses an arm that has begun with other
settings, goes on after an arm that fails, and deletes the replay of one that has ended. At its end, and with
``--report`` alone, it writes study.csv and the curves of all arms into the study's folder. ``--speed`` measures how
fast the arms are, in turns on one core of a quiet machine; minutes are those of that measurement from then on.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import difflib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine_card import machine_card
from side_by_side import Contestant, quartiles, side_by_side
from timed_run import TimedRun

import fastrl
from fastrl import plot
from fastrl.base.console import say
from fastrl.base.errors import ConfigError, DamageError
from fastrl.base.files import why_no_place, write_atomically
from fastrl.base.machine import available_bytes, bytes_in_words, free_disk_bytes, has_hard_links
from fastrl.base.ranges import OneFolder, as_tuples, spelled
from fastrl.base.stop import Stop
from fastrl.cli import run_command
from fastrl.config import DQNConfig, from_record, to_record
from fastrl.dqn.checkpoint import load_state
from fastrl.dqn.collector import build_envs
from fastrl.dqn.device.device import pick_device, pick_precision
from fastrl.dqn.run.build import bytes_beside_replay, compressed_bytes, lz4_installed
from fastrl.dqn.run.replay_plan import ReplayPlan, plan_disk, plan_replay, refusal
from fastrl.envs.step import Envs, frame_bytes
from fastrl.runs import checkpoints
from fastrl.runs.curves import MeasuredRun, curve_of, filled, read_run
from fastrl.runs.folder import RunFolder, load_dqn_config
from fastrl.train import config_for

PROG = "python bench/study.py"
PINNED: dict[str, Any] = {"device": "cpu", "torch_threads": 1, "env_threads": 1, "collectors": 0}
"""Settings of every arm: one core, one thread."""
PLACED = ("seed", "name", "runs_dir", "game")
"""Settings that the rest of the table says."""
FOUND = ("capacity", "frame_store", "precision", "kernels")
"""Settings that are fixed when an arm begins, by what the machine has then, unless the table says them."""
COLUMNS = ("arm", "seed", "kind", "frames", "samples", "minutes", "score", "median", "q_max")
SAY_EVERY_SECONDS = 60.0
SPEED = "speed.json"
TIMED_ROWS, TIMED_UPDATES = 20_000, 20
"""Rows of replay of a loop that is timed, a tenth of them before it learns; updates that it makes before."""
Row = dict[str, Any]


# --- the table ----------------------------------------------------------------------------------------


@dataclass
class Arm:
    """One arm with one seed: a run."""

    name: str
    config: DQNConfig
    flags: dict[str, Any]
    """Settings that the table or the study gives, by name; the others are the preset's or the agent's."""
    folder: RunFolder

    @property
    def key(self) -> str:
        """What it is called: arm and seed."""
        return self.folder.path.name

    @property
    def begun(self) -> bool:
        """Whether there is anything of it to resume."""
        return bool(self.folder.numbered())

    @property
    def ended(self) -> bool:
        """Whether it has played its last evaluation, and saved that."""
        if not self.begun:
            return False
        try:
            state = load_state(self.folder.find())
        except DamageError:
            return False
        return bool(state.get("callbacks", {}).get("evaluation", {}).get("ended_at") == state["frames"])

    def fix(self, name: str, value: Any) -> None:
        """Fix one of `FOUND`."""
        self.flags[name] = value
        self.config = self.config.replace(**{name: value})

    def command(self) -> list[str]:
        """Return the command that begins or resumes it."""
        train = [sys.executable, "-m", "fastrl.train"]
        if self.begun:
            return [*train, "--resume", str(self.folder)]
        flags = [as_flag(name, value) for name, value in self.flags.items()]
        return [*train, self.config.game, *itertools.chain(*flags)]

    def measured(self, speed: float | None = None) -> MeasuredRun | None:
        """Return what it has measured so far, None before its first line; minutes by a speed in frames a second."""
        try:
            run = read_run(self.folder.path)
        except ConfigError:
            return None
        if speed is None:
            return run
        rows = [row | {"time/minutes": repr(float(row["frames"]) / speed / 60)} for row in run.rows]
        return dataclasses.replace(run, rows=rows)


@dataclass
class Study:
    """What a table says."""

    table: Path
    folder: Path
    jobs: int
    arms: list[Arm] = field(default_factory=list)


def as_flag(name: str, value: Any) -> list[str]:
    """Return a setting as words of a command line."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, *spelled(value).split()] if isinstance(value, tuple) else [f"{flag}={value}"]


def read_table(path: Path, jobs: int | None = None) -> Study:
    """Read a table and check all of it.

    Parameters
    ----------
    path : Path
        The TOML file.
    jobs : int, optional
        Arms at once (default: what the table says, else one for each core of this process).

    Raises
    ------
    ConfigError
        If it cannot be read, knows no such key, or an arm's settings do not fit; the message names table and arm.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); give a table of arms, as examples/arms.toml"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is no TOML ({error}); correct it there") from None
    known = {"game": str, "folder": str, "jobs": int, "seeds": list, "flags": dict, "arm": list}
    _check_keys(f"{path}", table, known)
    cores = len(os.sched_getaffinity(0))
    jobs = jobs if jobs is not None else table.get("jobs", cores)
    if not 1 <= jobs <= cores:
        raise ConfigError(f"{path}: jobs is {jobs}; give between 1 and {cores}, the cores that this process may use")
    for key in ("game", "arm"):
        if not table.get(key):
            raise ConfigError(f"{path}: {key} is missing; give a game, and an [[arm]] with a name for each setting")
    study = Study(path, Path(table.get("folder", Path("runs") / path.stem)), jobs)
    common = table.get("flags", {})
    for row in table["arm"]:
        where = f"{path}, arm {row.get('name', 'without a name')}"
        _check_keys(where, row, {"name": str, "seeds": list, "flags": dict})
        name = row.get("name", "")
        if not OneFolder().allows(f"{name}-s1") or not name:
            raise ConfigError(f"{where}: name is {name!r}; give {OneFolder()}")
        if name in {arm.name for arm in study.arms}:
            raise ConfigError(f"{where}: two arms have this name; give each a name of its own")
        seeds = row.get("seeds", table.get("seeds", [1]))
        if not seeds or len(set(map(repr, seeds))) < len(seeds):
            raise ConfigError(f"{where}: seeds is {seeds}; give one whole number or more, each once")
        study.arms += [_arm(study, where, name, table["game"], seed, common | row.get("flags", {})) for seed in seeds]
    _check_apart(study)
    return study


def _check_keys(where: str, found: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for key, value in found.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}; settings stand under flags"
            raise ConfigError(f"{where}: there is no key {key}; {remedy}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise ConfigError(f"{where}: {key} is {value!r}; give a value of type {known[key].__name__}")


def _arm(study: Study, where: str, name: str, game: str, seed: Any, given: Mapping[str, Any]) -> Arm:
    for key in given:
        if key in PLACED:
            raise ConfigError(
                f"{where}: flags has {key}, which game, seeds, name and folder of the table say; leave it out"
            )
        if key in PINNED:
            raise ConfigError(f"{where}: flags has {key}, but an arm has one core and one thread; leave it out")
        if isinstance(given[key], list) and any(isinstance(one, str) for one in given[key]):
            raise ConfigError(f"{where}: {key} is {given[key]}; give numbers, a schedule as [[0, 3], [600_000, 1]]")
    folder = study.folder / f"{name}-s{seed}"
    flags: dict[str, Any] = {"films": False}
    flags |= {key: as_tuples(value) for key, value in given.items()}
    flags |= {**PINNED, "seed": seed, "runs_dir": str(study.folder), "name": folder.name}
    try:
        config = config_for(game, **flags)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return Arm(name, config, flags, RunFolder(folder))


def _check_apart(study: Study) -> None:
    """Raise ConfigError if two arms are the same run under two names."""
    seen: dict[Any, Arm] = {}
    for arm in study.arms:
        other = seen.setdefault(arm.config.replace(name=None), arm)
        if other is not arm:
            raise ConfigError(f"{study.table}: arms {other.name} and {arm.name} have the same settings; leave one out")


# --- before anything is written -----------------------------------------------------------------------


def check_begun(study: Study) -> None:
    """Give arms that have begun the settings that were fixed then.

    Raises
    ------
    ConfigError
        If one has begun with other settings than the table has now, is still running, or began on another processor.
    """
    for arm in study.arms:
        if not arm.begun:
            continue
        began = load_dqn_config(arm.folder)
        for name in FOUND:
            if name not in arm.flags:
                arm.fix(name, getattr(began, name))
        for one in dataclasses.fields(DQNConfig):
            then, now = getattr(began, one.name), getattr(arm.config, one.name)
            if one.name not in ("name", "runs_dir") and then != now:
                raise ConfigError(
                    f"{study.table}: arm {arm.key} has begun with {one.name} {then!r}, and the table gives it {now!r} "
                    f"now; put that back, give the arm another name, or delete {arm.folder} to begin it anew"
                )
        try:
            arm.folder.lock()
        except ConfigError as error:
            holder = str(error).partition(";")[0]
            raise ConfigError(f"arm {arm.key} is still being trained: {holder}; wait for it, or stop it") from None
        finally:
            arm.folder.close()
    card = study.folder / "machine.json"
    if any(arm.begun for arm in study.arms) and card.exists():
        then, now = json.loads(card.read_text(encoding="utf-8"))["processor"], machine_card()["processor"]
        if then != now:
            raise ConfigError(
                f"{study.folder} began on {then}, and this is {now}; arms of two kinds of processor do not compare: go "
                "on there, or give the table another folder"
            )


def check_room(study: Study) -> None:
    """Fix what new arms need fixed, so that they are the same whatever else runs, and see that the arms fit.

    Raises
    ------
    ConfigError
        If memory or disk is too small for the arms that run at once, or an arm's trunk does not fit its game.
    """
    if reason := why_no_place(study.folder / "new"):
        raise ConfigError(f"{study.table}: folder is {study.folder}, where no run can be made ({reason}); give another")
    waiting = [arm for arm in study.arms if not arm.ended]
    jobs = min(study.jobs, len(waiting))
    free = available_bytes()
    disk, links = free_disk_bytes(study.folder), has_hard_links(study.folder)
    needs, games = [], dict[Any, Envs]()
    for arm in waiting:
        config = arm.config
        kind = (config.game, *config.rules().values())
        if kind not in games:
            games[kind] = _closed_envs(config)
        row_bytes = frame_bytes(games[kind])
        try:
            beside = bytes_beside_replay(config, games[kind])
        except ConfigError as error:
            raise ConfigError(f"{study.table}: arm {arm.key}: {error}") from error
        plan = plan_replay(
            config,
            row_bytes,
            None if free is None else free // jobs,
            None,
            lz4_installed=lz4_installed(),
            compressed_bytes=lambda config=config: compressed_bytes(config),
            disk_free=disk // jobs,
        )
        if error := refusal(plan) or _too_small(plan):
            raise ConfigError(f"{study.table}: arm {arm.key}, {jobs} at once: {error}")
        arm.fix("capacity", plan.capacity)
        arm.fix("frame_store", plan.store)
        arm.fix("precision", pick_precision(config.precision, pick_device("cpu")))
        needs.append(plan.capacity * row_bytes if plan.store == "mmap" else 0)  # a file that goes with the process
        if config.checkpoint_replay:
            needed = plan_disk(
                config, row_bytes, plan.capacity, disk, held=0, steps=0, share_files=links, beside=beside
            ).needed
            there = sum(path.stat().st_size for path in arm.folder.path.rglob("*") if path.is_file())
            needs[-1] += max(0, needed - there)
    if (needed := sum(sorted(needs)[-jobs:])) > disk:
        raise ConfigError(
            f"{study.table}: {jobs} at once need up to {bytes_in_words(needed)} of disk for checkpoints with the "
            f"replay and frames in files, and {bytes_in_words(disk)} are free at {study.folder}; free some, give "
            "another folder or fewer jobs, or to flags a smaller capacity or checkpoint_replay = false"
        )


def _closed_envs(config: DQNConfig) -> Envs:
    """Return environments that only say what they show and which actions there are."""
    envs = build_envs(config.replace(num_envs=1, env_groups=1), seed=0)
    envs.close()
    return envs


def _too_small(plan: ReplayPlan) -> ConfigError | None:
    """Return the error for a replay that memory would make smaller than the arm wants it."""
    if plan.capacity == plan.wanted:
        return None
    return ConfigError(
        f"its share of the free {'disk' if plan.memory.kind == 'disk' else 'memory'} holds {plan.capacity:,} rows of "
        f"replay, and it fills {plan.wanted:,}; give "
        'fewer jobs, or to flags a capacity or frame_store = "lz4"'
    )


# --- the arms -----------------------------------------------------------------------------------------


@dataclass
class Job:
    """An arm that is being trained."""

    arm: Arm
    process: subprocess.Popen[bytes]
    log: Path


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Give processes that are started inside one core, one thread, and this process's fastrl."""
    allowed, before = os.sched_getaffinity(0), dict(os.environ)
    paths = [str(Path(fastrl.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Kernels by the rule, not by a measurement beside other arms.
    os.environ |= {"OMP_NUM_THREADS": "1", "FASTRL_TUNE": "off", "PYTHONPATH": os.pathsep.join(paths)}
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        os.environ.clear()
        os.environ.update(before)


def start(study: Study, arm: Arm, core: int) -> Job:
    """Start an arm on a core, in a session of its own: a Ctrl-C on the terminal is the study's alone."""
    log = study.folder / "logs" / f"{arm.key}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if not arm.begun and arm.folder.path.exists():  # killed before its first checkpoint
        shutil.rmtree(arm.folder)
    with log.open("ab") as out, on_core(core):
        process = subprocess.Popen(
            arm.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    say(f"{arm.key}: {'resumed' if arm.begun else 'begun'} on core {core}, process {process.pid}")
    return Job(arm, process, log)


def run_arms(study: Study) -> int:
    """Train all arms that have not ended; return the exit status of the study."""
    waiting = [arm for arm in study.arms if not arm.ended]
    waiting.sort(key=lambda arm: not arm.begun)  # those first that hold disk
    cores = sorted(os.sched_getaffinity(0))[: study.jobs]
    jobs: dict[int, Job] = {}
    failed: list[str] = []
    said, signalled = time.monotonic(), False
    ended = len(study.arms) - len(waiting)
    say(f"{ended} of {len(study.arms)} runs have ended; {study.jobs} at once, in {study.folder}")
    with Stop() as stop:
        try:
            while jobs or (waiting and not stop):
                if stop and not signalled:
                    signalled = True
                    say(f"stopping: {', '.join(job.arm.key for job in jobs.values())} save their checkpoints")
                    for job in jobs.values():
                        job.process.terminate()
                for core in cores:
                    if core not in jobs and waiting and not stop:
                        jobs[core] = start(study, waiting.pop(0), core)
                for core, job in list(jobs.items()):
                    if job.process.poll() is not None:
                        del jobs[core]
                        failed += _finish(job, bool(stop))
                if time.monotonic() - said >= SAY_EVERY_SECONDS:
                    said = time.monotonic()
                    for job in jobs.values():
                        say(progress(job.arm))
                time.sleep(0.1)
        except BaseException as error:  # a second signal: at once, as the study itself; else they save
            for job in jobs.values():
                job.process.kill() if isinstance(error, KeyboardInterrupt) else job.process.terminate()
            for job in jobs.values():
                job.process.wait()
            raise
    for words in failed:
        say(words)
    if stop.signal is not None:
        say(f"stopped; go on with: {PROG} {study.table}")
        return 128 + stop.signal
    if failed:
        say(f"{len(failed)} of {len(study.arms)} runs failed; once the cause is gone, go on with: {PROG} {study.table}")
    return 1 if failed else 0


def _finish(job: Job, stopped: bool) -> Iterator[str]:
    """Take note of an arm whose process is gone; yield words on it if it failed."""
    arm, status = job.arm, job.process.returncode
    if arm.ended:
        drop_replay(arm)
        say(f"{progress(arm)}: ended")
    elif not stopped:
        lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        say(f"{arm.key}: failed; the others go on")
        yield f"{arm.key} failed with status {status}: {last} (all of it: {job.log})"


def drop_replay(arm: Arm) -> None:
    """Delete the replay of an arm that has ended, by far the most of its files; weights and metrics stay."""
    for folder in arm.folder.numbered():
        checkpoints.remove(folder / checkpoints.REPLAY)


def progress(arm: Arm) -> str:
    """Return a line on what an arm has reached."""
    rows = list(measurements([arm]))
    if not rows:
        return f"{arm.key}: nothing measured yet"
    last = {kind: [row for row in rows if row["kind"] == kind][-1:] for kind in ("training", "evaluation")}
    words = [f"{kind} {row['score']:.1f}" for kind, found in last.items() for row in found]
    return f"{arm.key}: {rows[-1]['frames']:,} frames, {rows[-1]['samples'] or 0:,} samples, {', '.join(words)}"


# --- how fast they are --------------------------------------------------------------------------------


class Timed(TimedRun):
    """The loop of an arm, to be timed beside those of others; see `side_by_side.Loop`."""

    def __init__(self, record: dict[str, Any]) -> None:
        config = from_record(record, Path("arm"))
        assert isinstance(config, DQNConfig)
        rows = {"capacity": TIMED_ROWS, "learn_start_steps": TIMED_ROWS // 10}
        super().__init__(
            config.replace(checkpoint_every_minutes=0.0, checkpoint_replay=False, name=None, **rows), TIMED_UPDATES
        )


def measure_speed(study: Study, rounds: int, seconds: float) -> int:
    """Time the loops of all arms in turns, on one core; write speed.json and return the exit status."""
    first = {arm.name: arm for arm in reversed(study.arms)}  # one seed of each
    contestants = [Contestant(name, "study:Timed", {"record": to_record(first[name].config)}) for name in first][::-1]
    with on_core(min(os.sched_getaffinity(0))):
        results = side_by_side(contestants, rounds, seconds, say)
    speeds = {}
    for result in results:
        if result.failure:
            say(f"{result.name} could not be timed: {result.failure}")
            continue
        low, middle, high = quartiles(result.rates("frames"))
        speeds[result.name] = {"frames_per_second": middle, "lower_quartile": low, "upper_quartile": high}
        say(f"{result.name}: {middle:,.0f} frames/s ({low:,.0f} to {high:,.0f})")
    foreign = sum(result.total("foreign_cpu_seconds") for result in results)
    share = foreign / max(sum(result.total("seconds") for result in results), 1e-9)
    say(f"everything else on the machine took {share:.2f} of a core meanwhile")
    found = {"machine": machine_card(), "rounds": rounds, "seconds": seconds, "share_of_others": share, "arms": speeds}
    study.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(study.folder / SPEED, json.dumps(found, indent=2) + "\n")
    return 1 if len(speeds) < len(results) else 0


def speeds_of(study: Study) -> dict[str, float]:
    """Return frames a second by arm, as `measure_speed` found them; none unless it measured all arms of the table."""
    try:
        found = json.loads((study.folder / SPEED).read_text(encoding="utf-8"))["arms"]
    except FileNotFoundError:
        return {}
    if missing := sorted({arm.name for arm in study.arms} - found.keys()):
        say(f"{SPEED} lacks {', '.join(missing)}, so minutes are those of the runs; measure again with --speed")
        return {}
    return {name: float(one["frames_per_second"]) for name, one in found.items()}


# --- what was measured --------------------------------------------------------------------------------


def measurements(arms: Sequence[Arm], speeds: Mapping[str, float] = types.MappingProxyType({})) -> Iterator[Row]:
    """Yield the rows of study.csv: for each arm its training scores and its evaluations, in the order of its run.

    Minutes are those of the runs, or, where speeds are given in frames a second, those that the frames take by them.
    """
    for arm in arms:
        if (run := arm.measured(speeds.get(arm.name))) is None:
            continue
        frames = run.column("frames", "")
        samples, minutes = filled(run, "samples"), filled(run, "time/minutes")
        for kind, score, others in (
            ("training", "games/return_mean_100", {"q_max": "train/q_max"}),
            ("evaluation", "evaluation/return_mean", {"median": "evaluation/return_median"}),
        ):
            if score not in run.columns:
                continue
            scores = run.column(score, "")
            found = {name: run.column(column, "") for name, column in others.items() if column in run.columns}
            for i in np.flatnonzero(np.isfinite(scores)):
                yield {
                    "arm": arm.name,
                    "seed": arm.config.seed,
                    "kind": kind,
                    "frames": int(frames[i]),
                    "samples": _number(samples[i], whole=True),
                    "minutes": _number(round(minutes[i], 3)),
                    "score": float(scores[i]),
                    **{name: _number(values[i]) for name, values in found.items()},
                }


def _number(value: float, *, whole: bool = False) -> float | int | None:
    return None if not np.isfinite(value) else round(value) if whole else float(value)


def write_report(study: Study) -> None:
    """Write study.csv, and draw scores and evaluations over frames, samples and minutes."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    speeds = speeds_of(study)
    writer.writerows(measurements(study.arms, speeds))
    if len(table.getvalue().splitlines()) == 1:
        say("nothing is measured yet")
        return
    write_atomically(study.folder / "study.csv", table.getvalue())
    say(str(study.folder / "study.csv"))
    for y in ("score", "evaluation"):
        for x in ("frames", "samples", "minutes"):
            args = plot.Arguments(x=x, y=y)
            groups: dict[str, list[MeasuredRun]] = {}
            for arm in study.arms:
                if (run := arm.measured(speeds.get(arm.name))) and _has(run, *args.columns):
                    groups.setdefault(arm.name, []).append(run)
            labels = [f"{name}, {len(runs)} seeds" if len(runs) > 1 else name for name, runs in groups.items()]
            try:
                files = (
                    plot.draw_groups(list(groups.values()), labels, study.folder / f"{y}-{x}", args) if groups else []
                )
            except ConfigError as error:  # such as seeds that have no range in common yet
                say(f"{y} over {x} is not drawn: {str(error).partition('; ')[0]}")  # its remedy is of `fastrl.plot`
            else:
                say(" ".join(map(str, files)))


def _has(run: MeasuredRun, x: str, y: str) -> bool:
    try:
        curve_of(run, x, y)
    except ConfigError:
        return False
    return True


def commit() -> str:
    """Return the commit that is checked out, marked if files differ from it; "unknown" outside of a clone."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="TOML file of arms")
    parser.add_argument("--jobs", type=int, help="arms at once (default: the table's, else one for each core)")
    parser.add_argument("--report", action="store_true", help="train nothing; write table and curves of what is there")
    parser.add_argument("--speed", action="store_true", help="train nothing; time the arms in turns, on one core")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of --speed (7)")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long a round of --speed takes (4)")
    args = parser.parse_args(arguments)
    study = read_table(args.table, args.jobs)
    if args.speed:
        if args.rounds < 1 or args.seconds <= 0:
            raise ConfigError("--speed is for at least one round of more than 0 seconds; give --rounds and --seconds")
        return measure_speed(study, args.rounds, args.seconds)
    if args.report:
        write_report(study)
        return 0
    check_begun(study)
    check_room(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    lock = RunFolder(study.folder)
    try:
        lock.lock()
    except ConfigError as error:
        raise ConfigError(f"{str(error).partition(';')[0]}; wait for that study, or stop it") from None
    try:
        card = study.folder / "machine.json"
        if not card.exists():
            write_atomically(card, json.dumps(machine_card() | {"commit": commit()}, indent=2) + "\n")
        for arm in study.arms:
            if arm.ended:  # the study may have been killed before it did this
                drop_replay(arm)
        status = run_arms(study)
        write_report(study)
        return status
    finally:
        lock.close()


if __name__ == "__main__":
    run_command(main, PROG)
