"""What the commands share: from a command line to a config, and from an error to one clear line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from fastrl.config import ConfigError
from fastrl.extras import need

T = TypeVar("T")


def parse(kind: type[T], default: T | None, arguments: Sequence[str], *, prog: str, description: str) -> T:
    """Read flags into a dataclass: every field is a flag, its docstring the help."""
    tyro = need("tyro", "train")
    parsed: T = tyro.cli(kind, args=list(arguments), default=default, prog=prog, description=description)
    return parsed


def run_command(main: Callable[[list[str]], int], prog: str) -> None:
    """Run a command and leave with its exit status; an error of the user's is one line, not a traceback."""
    try:
        status = main(sys.argv[1:])
    except (ConfigError, ImportError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"{prog}: left at once; the last checkpoint is whole", file=sys.stderr)
        status = 130
    sys.exit(status)
