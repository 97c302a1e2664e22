"""What the commands share: their names, from a command line to a config, and from an error to one clear line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fastrl.config import ConfigError
from fastrl.extras import need
from fastrl.screen import print_nowhere, though_closed
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
            parsed: T = tyro.cli(
                kind, args=_with_values(kind, arguments), default=default, prog=prog, description=description
            )
    except SystemExit as leaving:
        if leaving.code:
            raise ConfigError(f"{_first_words(said.getvalue())}; --help lists the flags and their values") from None
        if examples:
            print("\nexamples:\n" + textwrap.indent(examples, "  "), end="")
        raise
    return parsed


def _with_values(kind: Any, arguments: Sequence[str]) -> list[str]:
    """Let switches whose default is not known here be set like all others, ``--x`` and ``--no-x``, or by a value."""
    flags = {field.name.replace("_", "-") for field in dataclasses.fields(kind) if field.type == "bool | None"}
    values = {f"--{flag}": [f"--{flag}", "True"] for flag in flags}
    values |= {f"--no-{flag}": [f"--{flag}", "False"] for flag in flags}
    pairs = itertools.zip_longest(arguments, arguments[1:])
    given = [[word] if after in ("True", "False", "None") else values.get(word, [word]) for word, after in pairs]
    return list(itertools.chain.from_iterable(given))


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
            with though_closed():
                sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has left, as in `fastrl train --help | head`
        print_nowhere()
        status = 128 + signal.SIGPIPE
    except (ConfigError, ImportError) as error:
        _say_why(f"{prog}: error: {error}")
        status = 2
    except RunError as error:
        _say_why(f"{prog}: error: {error}")
        status = 1
    except KeyboardInterrupt as asked:
        _say_why(f"{prog}: left at once; what was saved before is whole")
        status = 128 + (asked.args[0] if asked.args else signal.SIGINT)
    sys.exit(status)


def _say_why(text: str) -> None:
    with contextlib.suppress(OSError):  # of a terminal that was closed
        print(text, file=sys.stderr)
