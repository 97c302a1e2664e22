"""Messages on stdout, also where the terminal was closed or knows few letters (standard library only)."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

_expects_reader = True


def expect_a_reader(expected: bool) -> None:
    """Say whether stdout still has its reader: the Ctrl-C that asks `... | tee log` to stop ends `tee` too."""
    global _expects_reader
    _expects_reader = expected


@contextlib.contextmanager
def though_closed() -> Iterator[None]:
    """Continue where the terminal was closed: what is printed inside, and later, is dropped.

    A pipe without a reader is another matter: there BrokenPipeError comes out, unless `expect_a_reader` said otherwise.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO and (_expects_reader or error.errno != errno.EPIPE):
            raise
        print_nowhere()


def print_nowhere() -> None:
    """Let go of stdout, which takes nothing any more, so that leaving does not write to it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(name: str) -> str:
    """Return a name for a message: with escapes where a terminal would take it for anything but letters."""
    return name if name.isprintable() else repr(name)


def showable(text: str) -> str:
    """Return a text with escapes, such as ``\\xfc``, for the letters that stdout has no code for."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 game", "1,000 games"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def complain(text: str) -> None:
    """Print a message on stderr, if that is still there."""
    with contextlib.suppress(OSError):  # of a terminal that was closed
        print(text, file=sys.stderr)


def say(text: str) -> None:
    """Print a message; none is lost to letters that stdout has no code for."""
    with though_closed():
        print(showable(text), flush=True)
