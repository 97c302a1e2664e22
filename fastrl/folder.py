"""Run folders: where a run's files lie, and what is written there at its start."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import sys
from pathlib import Path
from typing import IO, Any

from fastrl.config import ConfigError, DQNConfig, RunConfig, SarsaConfig
from fastrl.stop import RunError

CONFIGS: dict[str, type[RunConfig]] = {"dqn": DQNConfig, "sarsa": SarsaConfig}
_REPORTED = "fastrl-atari numpy torch gymnasium ale-py envpool tensorboard".split()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one move: whoever reads it sees the old content or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make sure that a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def path_for(config: RunConfig, game: str) -> Path:
    """Return where a new run of a game, or of ``module:callable``, goes; nothing is written yet.

    Raises
    ------
    ConfigError
        If a run of that name exists.
    """
    started = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    plain = re.sub(r"\W+", "-", game).strip("-")
    folder = Path(config.runs_dir) / (config.name or f"{plain}-s{config.seed}-{started}")
    if folder.exists():
        raise _exists(folder)
    return folder


def open_run(folder: Path, config: RunConfig, *, new: bool) -> None:
    """Make a run's folder if it is new, and write settings, versions and this command line into it.

    Raises
    ------
    ConfigError
        If a new run's folder exists already or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=not new)
    except FileExistsError:
        raise _exists(folder) from None
    except OSError as error:
        raise ConfigError(f"--runs-dir is {config.runs_dir!r}, where no folder can be made: {error}") from error
    agent = next(name for name, kind in CONFIGS.items() if isinstance(config, kind))
    write_atomically(folder / "config.json", json.dumps({"agent": agent} | dataclasses.asdict(config), indent=2) + "\n")
    write_atomically(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
    with (folder / "commands.txt").open("a") as file:
        file.write(_command_line() + "\n")


def _command_line() -> str:
    """Return what was typed, as far as Python knows, without the folders that programs lie in."""
    words = sys.orig_argv[1:]
    if words and Path(words[0]).stem == "fastrl":  # the console script
        return shlex.join(["fastrl", *words[1:]])
    return shlex.join([Path(sys.executable).name, *words])


def lock(folder: Path) -> IO[str]:
    """Keep other processes' runs out of a run's folder until the file returned is closed or this process is gone.

    Raises
    ------
    ConfigError
        If another run has the folder, or no file can be written there.
    """
    try:
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to ({error.strerror}); make it writable, or copy it and go on with the copy"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it with the process, however it ends
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ConfigError(
            f"{folder} belongs to {holder}, which is still running there; wait for it or stop it, or start a run of "
            "another --name"
        ) from None
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def go_on(folder: Path) -> str:
    """Return the command that goes on with a run."""
    return shlex.join(["python", "-m", "fastrl.train", "--resume", str(folder)])


def no_room(error: BaseException) -> bool:
    """Whether an error says that the disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def unwritable(folder: Path, error: BaseException) -> RunError | None:
    """Return the error that says what to do if another says that a run's folder takes no files; None if it does not."""
    if not isinstance(error, OSError):
        return None
    inside = str(error.filename).startswith(str(folder))
    if not no_room(error) and not (inside and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)):
        return None
    remedy = "free some space" if no_room(error) else "make it writable"
    reason = os.strerror(error.errno or 0)
    return RunError(f"{folder} cannot be written to ({reason}); {remedy}, then go on with: {go_on(folder)}")


def load_config(folder: Path) -> Any:
    """Return the settings of the run in a folder, a `DQNConfig` or a `SarsaConfig`.

    Raises
    ------
    ConfigError
        If the folder holds no run, or its settings are out of range.
    """
    try:
        fields = json.loads((folder / "config.json").read_text())
        kind = CONFIGS[fields.pop("agent")]
        return kind(**fields)
    except OSError:
        raise ConfigError(f"{folder} is no run folder: it has no config.json; give one that a run made") from None
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'} is damaged ({error!r}); restore it from a copy") from error


def load_dqn_config(folder: Path) -> DQNConfig:
    """Return the settings of the DQN run in a folder; errors as of `load_config`, and for a run of another agent."""
    config = load_config(folder)
    if not isinstance(config, DQNConfig):
        raise ConfigError(f"{folder} is a cartpole run, which saves no network; give a DQN run")
    return config


def _exists(folder: Path) -> ConfigError:
    return ConfigError(f"{folder} exists already; give another --name, or go on with --resume {folder}")


def versions() -> dict[str, str]:
    """Return what ran: Python, platform, and the packages that decide results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _REPORTED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
