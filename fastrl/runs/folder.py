"""The folder of a run: its lock, its settings, its checkpoints, and what to do where it takes no files."""

from __future__ import annotations

import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Collection
from pathlib import Path
from typing import IO, Self, TypeVar

from fastrl.base.commands import command_line, program
from fastrl.base.errors import ConfigError, DamageError, RunError
from fastrl.base.files import why_no_place, write_atomically
from fastrl.base.launch import launcher
from fastrl.base.ranges import fields_of, flag_of
from fastrl.config import DQNConfig, RunConfig, from_record, read_record, to_record
from fastrl.runs import checkpoints

Settings = TypeVar("Settings", bound=RunConfig)
_REPORTED = "fastrl-atari numpy torch gymnasium ale-py envpool tensorboard".split()


class RunFolder:
    """The folder of one run, a path-like object: ``folder / "pictures"`` is a `Path`.

    A process that trains in it holds its lock, from `lock` or `open` until `close`.

    Parameters
    ----------
    path : path-like
        Where it is; it need not exist.

    Attributes
    ----------
    path : Path
        As given.
    checkpoints : Path
        Folder of the checkpoints.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._lock: IO[str] | None = None

    @classmethod
    def new(cls, config: RunConfig, game: str) -> Self:
        """Return the folder of a new run of a game, or of ``module:callable``; nothing is written yet.

        Raises
        ------
        ConfigError
            If the settings name a run that exists, or no folder can be made there.
        """
        started = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        plain = re.sub(r"\W+", "-", game).strip("-")[:50]
        dated = f"{plain}-s{config.seed}-{started}"
        folder, number = cls(Path(config.runs_dir) / (config.name or dated)), 1
        while os.path.lexists(folder.path):
            if config.name is not None:
                raise folder._exists()
            number += 1  # runs of one second, such as those of a cell that is run twice
            folder = cls(Path(config.runs_dir) / f"{dated}-{number}")
        if reason := why_no_place(folder.path):
            raise no_place_for_runs(config, reason)
        return folder

    def open(self, config: RunConfig, *, new: bool) -> None:
        """Make the folder if it is new, write settings, versions and this command line into it, and lock it.

        Raises
        ------
        ConfigError
            If a new run's folder exists already or cannot be made, or another run has it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=not new)
        except FileExistsError:
            raise self._exists() from None
        except OSError as error:
            raise no_place_for_runs(config, error.strerror or str(error)) from error
        if self._lock is None:
            self.lock()
        write_atomically(self / "config.json", json.dumps(to_record(config), indent=2) + "\n")
        write_atomically(self / "versions.json", json.dumps(versions(), indent=2) + "\n")
        with (self / "commands.txt").open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(_command_line() + "\n")

    def reopen(self, config: Settings) -> Settings:
        """Lock the folder of a run that is resumed, and put in order what was left; nothing else is written.

        Parameters
        ----------
        config : RunConfig
            Settings to resume with. Their ``runs_dir`` and ``name`` may be those of this folder, those that the run
            recorded, wherever its folder lies now, or their defaults.

        Returns
        -------
        RunConfig
            The settings with the recorded ``runs_dir`` and ``name``.

        Raises
        ------
        ConfigError
            If the folder holds no run, or one of another agent; if the settings ask for another folder, or another run
            has this one.
        """
        known = load_config(self)
        if not isinstance(config, type(known)):
            raise ConfigError(f"{self} is a run of {type(known).__name__}; give settings of that type")
        place = self.path.resolve()
        if config.name not in (known.name, None, place.name):
            raise self.stays("name", config.name)
        if (
            config.runs_dir not in (known.runs_dir, RunConfig.runs_dir)
            and Path(config.runs_dir).resolve() != place.parent
        ):
            raise self.stays("runs_dir", config.runs_dir)
        self.lock()
        self.recover()
        return config.replace(runs_dir=known.runs_dir, name=known.name)

    def ended(self, config: RunConfig, may_change: Collection[str], longer: str) -> None:
        """Refuse new settings of a run that has ended: nothing would play by them, and they would be on record.

        Parameters
        ----------
        config : RunConfig
            Settings that the run is resumed with.
        may_change : collection of str
            Settings that say nothing of how the run was trained.
        longer : str
            What lets the run go on.

        Raises
        ------
        ConfigError
            If any other setting is not as recorded.
        """
        known = load_config(self)
        fields = [field for field in fields_of(type(config)) if field.name not in {"runs_dir", "name", *may_change}]
        other = [field.flag for field in fields if getattr(config, field.name) != getattr(known, field.name)]
        if other:
            raise ConfigError(
                f"{self} has ended, so another {', '.join(other)} would change nothing but its record; leave that out, "
                f"or {longer}"
            )

    def stays(self, setting: str, value: object) -> ConfigError:
        """Return the error to raise where ``runs_dir`` or ``name`` would name another folder for a resumed run."""
        return ConfigError(
            f"{flag_of(setting)} is {value!r}, but a resumed run stays in its folder; leave it out, or copy "
            f"{self} there and resume the copy"
        )

    def lock(self) -> None:
        """Keep the runs of other processes out until `close`, or until this process is gone.

        Raises
        ------
        ConfigError
            If another run has the folder, or no file can be written there.
        """
        try:
            file = (self / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{self} cannot be written to ({error.strerror}); make it writable, or copy it and resume the copy"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it with the process, however it ends
        except BlockingIOError:
            with file:
                raise self._belongs_to(file) from None
        except OSError:  # a file system without locks
            self._lock = file
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._lock = file

    def close(self) -> None:
        """Release the lock, if this process holds it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # --- checkpoints ----------------------------------------------------------------------------------

    def numbered(self) -> list[Path]:
        """Return the checkpoints to resume from or to evaluate, oldest first, without the best."""
        folders = self.checkpoints.glob("[0-9]*")
        return sorted(folder for folder in folders if (folder / "state.json").exists())

    def find(self, name: str = "newest") -> Path:
        """Return the folder of a checkpoint: ``"newest"``, ``"best"`` or a folder's own name.

        Raises
        ------
        ConfigError
            If the run has no such checkpoint; the message lists those that it has.
        """
        if name != Path(name).name or name == "..":  # of this folder alone
            raise ConfigError(f"--checkpoint is {name!r}; give newest, best or the name of a folder in checkpoints/")
        known = [folder.name for folder in self.numbered()]
        if name == "newest" and known:
            return self.checkpoints / known[-1]
        if name != "newest" and (self.checkpoints / name / "state.json").exists():
            return self.checkpoints / name
        if self._has_best():
            known.append(checkpoints.BEST)
        none = "the run has none yet: wait for the first, or start it anew with another --name"
        there_is = f"there is {', '.join(known)}" if known else none
        raise ConfigError(f"{self} has no checkpoint {name!r}; {there_is}")

    def newest_whole(self) -> tuple[Path, list[str]]:
        """Return the newest checkpoint whose checksums hold, and words on those passed over.

        Raises
        ------
        ConfigError
            If no checkpoint is whole.
        """
        wrong: list[DamageError] = []
        for folder in reversed(self.numbered()):
            try:
                checkpoints.check(folder)
            except DamageError as error:
                wrong.append(error)
            else:
                reasons = (str(error).partition(";")[0] for error in wrong)
                return folder, [f"{reason}; resuming from the checkpoint before" for reason in reasons]
        if not wrong:
            raise ConfigError(f"{self} has no checkpoint yet; start a run of another --name")
        reason = str(wrong[0]).partition(";")[0]
        raise ConfigError(
            f"{self} has no whole checkpoint: {reason}; restore it from a copy, or start a run of another --name"
        ) from wrong[0]

    def prune(self, keep: int) -> None:
        """Delete all numbered checkpoints but the newest ``keep`` and the one that has the replay.

        Timed ones do not count: each goes as soon as there is a newer checkpoint.
        """
        known = self.numbered()
        timed = [folder for folder in known if (folder / checkpoints.TIMED).exists()]
        counted = [folder for folder in known if folder not in timed]
        for folder in [*counted[:-keep], *(folder for folder in timed if folder != known[-1])]:
            if not (folder / checkpoints.REPLAY).exists():
                checkpoints.remove(folder)

    def set_aside(self, found: Path) -> list[str]:
        """Rename checkpoints newer than the one found whole, so that none of them counts; return words on each."""
        words = []
        for folder in self.numbered():
            if folder > found:
                aside = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)
                words.append(f"the damaged one is set aside as {aside}; delete it when you like")
        return words

    def recover(self) -> None:
        """Put in order what a run left behind that was killed while it saved; nothing else may be saving into it."""
        for old in self.checkpoints.glob(".*.old"):
            final = self.checkpoints / old.name[1:].removesuffix(".old")
            if not final.exists():  # killed between two moves
                os.replace(old, final)
        for pattern in (".*.partial", ".*.old", ".*.gone", "*/.*.gone", "*/*/.*.gone"):
            for left in self.checkpoints.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)
        for pattern in (".*.partial", "pictures/.*.partial"):  # of `write_atomically`
            for left in self.path.glob(pattern):
                left.unlink()

    # --- words ----------------------------------------------------------------------------------------

    @property
    def resume_command(self) -> str:
        """The command that resumes the run from any folder; for a run that has a checkpoint, see `how_to_resume`."""
        return command_line(program("train"), "--resume", self.path)

    @property
    def how_to_resume(self) -> str:
        """Words on how the run continues: the command, or without a checkpoint how to start anew."""
        if self.numbered():
            return f"resume with: {self.resume_command}"
        if self._has_best():
            return "start anew with another --name: it has no checkpoint to resume from, but its best network"
        return f"start anew with another --name, or delete {shlex.quote(str(self))}: it has no checkpoint yet"

    @property
    def gone(self) -> bool:
        """Whether the folder of this run, which is going on, was moved or deleted."""
        return self._lock is not None and not os.path.exists(self / "config.json")

    def unwritable(self, error: BaseException) -> RunError | None:
        """Return the error that says what to do where another says that this folder takes no files, else None."""
        if not isinstance(error, OSError):
            return None
        if self.gone:
            return RunError(
                f"{self} is gone, moved or deleted, and with it what was learned since its last checkpoint; a run that "
                f"was moved resumes with: {command_line(program('train'), '--resume', 'NEW_PLACE')}"
            )
        inside = str(error.filename).startswith(str(self))
        if not no_room(error) and not (inside and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)):
            return None
        remedy = "free some space" if no_room(error) else "make it writable"
        reason = os.strerror(error.errno or 0)
        return RunError(f"{self} cannot be written to ({reason}); {remedy}, then {self.how_to_resume}")

    def _exists(self) -> ConfigError:
        try:
            with (self / "lock").open(encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return self._belongs_to(file)
        except OSError:  # no lock, or a file system without locks
            pass
        quoted = shlex.quote(str(self))
        if self.numbered():
            other = f", or resume it with --resume {quoted}"
        elif self._has_best():
            other = "; it has no checkpoint to resume from, but its best network"
        else:
            other = f", or delete {quoted}, which has no checkpoint"
        return ConfigError(f"{self} exists already; give another --name{other}")

    def _belongs_to(self, lock: IO[str]) -> ConfigError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        return ConfigError(
            f"{self} belongs to {holder}, which is still running there; wait for it or stop it, or start a run of "
            "another --name"
        )

    def _has_best(self) -> bool:
        return (self.checkpoints / checkpoints.BEST / "state.json").exists()

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __truediv__(self, name: str) -> Path:
        return self.path / name


def no_place_for_runs(config: RunConfig, reason: str) -> ConfigError:
    """Return the error to raise where a run's folder cannot be made."""
    return ConfigError(f"--runs-dir is {config.runs_dir!r}, where no folder can be made ({reason}); give another")


def no_room(error: BaseException) -> bool:
    """Whether an error says that the disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def load_config(folder: str | os.PathLike[str]) -> RunConfig:
    """Return the settings of the run in a folder, a `DQNConfig` or a `SarsaConfig`.

    Raises
    ------
    ConfigError
        If the folder holds no run, or its settings cannot be read or are out of range.
    """
    path = Path(folder) / "config.json"
    return from_record(read_record(path), path)


def load_dqn_config(folder: str | os.PathLike[str]) -> DQNConfig:
    """Return the settings of the DQN run in a folder; errors as of `load_config`, and for a run of another agent."""
    config = load_config(folder)
    if not isinstance(config, DQNConfig):
        raise ConfigError(f"{folder} is a cartpole run, which saves no network; give a DQN run")
    return config


def versions() -> dict[str, str]:
    """Return what ran: Python, platform, and the packages that decide results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _REPORTED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _command_line() -> str:
    """Return what was typed, as far as Python knows, without the folders that programs lie in."""
    words, by = sys.orig_argv[1:], launcher()
    if by and words[:1] == ["-u"]:  # which torchrun gives
        words = words[1:]
    if words and Path(words[0]).stem == "fastrl":  # the console script
        return shlex.join([*by, "fastrl", *words[1:]])
    return shlex.join([*(by or [Path(sys.executable).name]), *words])
