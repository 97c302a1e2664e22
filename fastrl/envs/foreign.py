"""Calls of other people's code: whatever it raises ends in one line that names the environment, file and line."""

from __future__ import annotations

import os
import signal
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fastrl.base.errors import ConfigError, RunError, in_words

# Packages whose frames say nothing of where an environment is wrong; those of Gymnasium's own environments do.
_BETWEEN = ("fastrl", "gymnasium", "numpy", "importlib", "contextlib", "functools", "multiprocessing")
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


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
        From whatever that code raises, SystemExit included, but for a KeyboardInterrupt that may be a signal's. The
        message names the innermost line of the environment's own code. Errors that this package raises itself come out
        as they are.
    """
    try:
        yield
    except (ConfigError, RunError):  # what names its remedy already
        raise
    except KeyboardInterrupt as error:
        # A second Ctrl-C has the signal's number (`fastrl.base.stop`), and without a handler of ours any may be one.
        numbered = bool(error.args) and isinstance(error.args[0], int)
        if numbered or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise
        where = line_of(error)
        at = f", at {where}; correct it there" if where else f"; {remedy}"
        raise kind(f"environment {game!r} raised KeyboardInterrupt in {what}{at}") from error
    except BaseException as error:
        if all(module.partition(".")[0] == "fastrl" for module, _, _ in _lines(error)):
            raise
        said = in_words(error)
        if where := line_of(error):
            raise kind(f"environment {game!r} raised {said} in {what}, at {where}; correct it there") from error
        if isinstance(error, EOFError | ConnectionError):
            remedy = "a process of its vector is gone, by a crash, a kill or an exit of its own: see what it printed"
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


def line_of(error: BaseException) -> str:
    """Return ``file:line`` where the environment's own code raised an error; empty if none of its lines took part."""
    if isinstance(error, SyntaxError) and error.filename:
        return place(error.filename, error.lineno)
    lines = []  # (whether of an installed package, file, line), the innermost last
    for module, file, line in _lines(error):
        of_gymnasium = module.startswith("gymnasium.envs.") and module != "gymnasium.envs.registration"
        if of_gymnasium or (module.partition(".")[0] not in _BETWEEN and not file.startswith("<frozen")):
            lines.append((file.startswith(_INSTALLED), file, line))
    own = [line for line in lines if not line[0]] or lines
    return place(*own[-1][1:]) if own else ""


def passed(error: BaseException, module: str) -> bool:
    """Whether an error came through a call of this module."""
    return any(name == module for name, _, _ in _lines(error))


def _lines(error: BaseException) -> Iterator[tuple[str, str, int]]:
    """Return module, file and line of each call that an error came through, the innermost last."""
    trace = error.__traceback__
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


def place(file: str, line: int | None) -> str:
    """Return ``file:line``, the file relative to the working directory if it is below it."""
    below = os.path.relpath(file) if os.path.isabs(file) else file
    return f"{file if below.startswith(os.pardir) else below}:{line}"
