"""Run folders: where a run's files lie, and what is written there at its start."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from fastrl.config import ConfigError, DQNConfig, RunConfig, SarsaConfig

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


def path_for(config: RunConfig, game: str) -> Path:
    """Return where a new run goes; nothing is written yet.

    Raises
    ------
    ConfigError
        If a run of that name exists.
    """
    started = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(config.runs_dir) / (config.name or f"{game}-s{config.seed}-{started}")
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
