"""Commands for this process's user to type: quoted, and right from any folder (standard library only)."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from fastrl.base.launch import launcher

CLONE = Path(__file__).resolve().parents[2]
"""The folder that holds this package: the clone, unless the package was installed from a wheel."""


def program(command: str) -> str:
    """Return how this process's user calls a command: ``fastrl train``, or ``python -m fastrl.train``.

    Where torchrun runs several learners, training is called by it, with its arguments.
    """
    script = Path(sys.argv[0]).stem == "fastrl"
    if command == "train" and (words := launcher()):
        return f"{shlex.join(words)} {'fastrl train' if script else '-m fastrl.train'}"
    return f"fastrl {command}" if script else f"python -m fastrl.{command}"


def command_line(called: str, *words: str | os.PathLike[str]) -> str:
    """Return a command as a shell reads it: what is called as it is, words quoted, paths absolute and quoted.

    >>> command_line("tensorboard", "--logdir", "my runs")
    "tensorboard --logdir 'my runs'"
    """
    return f"{called} {shlex.join(word if isinstance(word, str) else os.path.abspath(word) for word in words)}"


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this project: right from any folder where there is a clone."""
    constraints = CLONE / "constraints.txt"
    if not constraints.exists():  # installed from a wheel: the command stands for one to be typed in a clone
        return f"pip install -c constraints.txt -e '.[{extra}]'"
    return command_line("pip install -c", constraints, "-e", f"{CLONE}[{extra}]")
