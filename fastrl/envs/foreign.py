"""Calls of other people's code: whatever it raises ends in one line that names the environment, file and line."""

from __future__ import annotations

import os
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fastrl.base.errors import RunError

# Packages whose frames say nothing of where an environment is wrong; those of Gymnasium's own environments do.
_BETWEEN = ("fastrl", "gymnasium", "numpy", "importlib", "contextlib", "functools", "multiprocessing")
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_LONGEST = 300  # characters of another's message


class EnvError(RunError):
    """The code of a custom environment failed while it played; `__cause__` is what it raised."""


@contextmanager
def calling(game: str, what: str, remedy: str, *, kind: type[Exception] = EnvError) -> Iterator[None]:
    """Guard a call into the code of a custom environment.

    Parameters
    ----------
    game : str
        Its name.
    what : str
        What is called or done, such as ``"step()"``.
    remedy : str
        What to do if the error does not come from a line of the environment's own code.
    kind : type
        Of the error to raise.

    Raises
    ------
    kind
        From anything that is raised inside but KeyboardInterrupt, SystemExit included. The message names the innermost
        line of the environment's own code.
    """
    try:
        yield
    except KeyboardInterrupt:  # a second Ctrl-C
        raise
    except BaseException as error:
        said = told(error)
        where = line_of(error)
        if where:
            raise kind(f"environment {game!r} raised {said} in {what}, at {where}; correct it there") from error
        raise kind(f"environment {game!r} failed in {what}: {said}; {remedy}") from error


@contextmanager
def same_folder(game: str, what: str) -> Iterator[None]:
    """Bring the process back to its working directory if the code inside leaves it, and warn of it."""
    before = os.getcwd()
    try:
        yield
    finally:
        after = os.getcwd()
        if after != before:
            os.chdir(before)
            warnings.warn(
                f"environment {game!r} changed the working directory to {after} in {what}; it is {before} again: let "
                "the environment find its files by their full paths",
                stacklevel=2,
            )


def told(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def line_of(error: BaseException) -> str:
    """Return ``file:line`` where the environment's own code raised an error; empty if none of its lines took part."""
    if isinstance(error, SyntaxError) and error.filename:
        return place(error.filename, error.lineno)
    lines = []  # (whether of an installed package, file, line), the innermost last
    trace = error.__traceback__
    while trace is not None:
        module, file = _module(trace.tb_frame), trace.tb_frame.f_code.co_filename
        if module.startswith("gymnasium.envs.") and not module.startswith("gymnasium.envs.registration"):
            lines.append((True, file, trace.tb_lineno))
        elif module.partition(".")[0] not in _BETWEEN and not file.startswith("<frozen"):
            lines.append((file.startswith(_INSTALLED), file, trace.tb_lineno))
        trace = trace.tb_next
    own = [line for line in lines if not line[0]] or lines
    return place(*own[-1][1:]) if own else ""


def _module(frame: FrameType) -> str:
    name: Any = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""


def place(file: str, line: int | None) -> str:
    """Return ``file:line``, the file relative to the working directory if it is below it."""
    below = os.path.relpath(file) if os.path.isabs(file) else file
    return f"{file if below.startswith(os.pardir) else below}:{line}"
