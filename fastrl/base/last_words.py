"""Words for a process that ends without leaving (standard library only): killed, or ended by a library's C++."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

_SHELL = """trap '' INT TERM HUP; read -r left || printf '%s\\n' "$1" >&2"""


@contextlib.contextmanager
def last_words(text: str) -> Iterator[None]:
    """Let a shell print a text on stderr if this process ends within; however else it leaves, nothing is printed.

    The shell waits on a pipe that the end of this process closes. Where none can be started, nothing is printed.
    """
    try:
        shell = subprocess.Popen(
            ["/bin/sh", "-c", _SHELL, "sh", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            shell.communicate(b"left\n")
