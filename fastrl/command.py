"""What the commands share: their names, from a command line to a config, and from an error to one clear line."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from fastrl.config import ConfigError
from fastrl.extras import need
from fastrl.stop import RunError

T = TypeVar("T")


def program(command: str) -> str:
    """Return how this process's user calls a command: ``fastrl train``, or ``python -m fastrl.train``."""
    return f"fastrl {command}" if Path(sys.argv[0]).stem == "fastrl" else f"python -m fastrl.{command}"


def examples(doc: str | None) -> str:
    """Return what a command's docstring has below its first line, examples, as its user would type them."""
    return (doc or "").partition("\n\n")[2].replace("python -m fastrl.", program(""))


def parse(
    kind: type[T], default: T | None, arguments: Sequence[str], *, prog: str, description: str, examples: str = ""
) -> T:
    """Read flags into a dataclass: every field is a flag, its docstring the help, which the examples end."""
    tyro = need("tyro", "train")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: T = tyro.cli(kind, args=list(arguments), default=default, prog=prog, description=description)
    except SystemExit as leaving:
        if leaving.code:
            raise ConfigError(f"{_first_words(said.getvalue())}; --help lists the flags and their values") from None
        if examples:
            print("\nexamples:\n" + textwrap.indent(examples, "  "), end="")
        raise
    return parsed


def _first_words(box: str) -> str:
    """Return what a framed message of tyro's says before its first rule, on one line."""
    inside = [line.strip("│ ") for line in box.splitlines()[1:]]
    end = next((i for i, line in enumerate(inside) if not line.strip("─╰╯ ")), len(inside))
    return " ".join(inside[:end]) or box.strip()


def run_command(main: Callable[[list[str]], int], prog: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit status; an error of the user's is one line, not a traceback."""
    try:
        try:
            status = main(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has left, as in `fastrl train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or leaving would write to it once more
        status = 128 + signal.SIGPIPE
    except (ConfigError, ImportError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        status = 2
    except RunError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt as asked:
        print(f"{prog}: left at once; what was saved before is whole", file=sys.stderr)
        status = 128 + (asked.args[0] if asked.args else signal.SIGINT)
    sys.exit(status)
