"""Words for a process that ends without leaving (standard library only): killed, or ended by a library's C++."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

_SHELL = """
trap '' INT TERM HUP
read -r left && exit
[ -t 2 ] && printf '\\n' >&2  # below what stands there, such as a panel
printf '%s\\n' "$1" >&2
"""


@contextlib.contextmanager
def last_words(text: str) -> Iterator[None]:
    """Let a shell print a text on stderr if this process ends within; however else it leaves, nothing is printed.

    The shell waits on a pipe that the end of this process closes, and that of processes forked from it. Where no shell
    can be started, nothing is printed.
    """
    shell = None
    with contextlib.suppress(OSError):
        shell = subprocess.Popen(
            ["/bin/sh", "-c", _SHELL, "sh", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield
    finally:
        if shell is not None:
            with contextlib.suppress(OSError):
                shell.communicate(b"left\n")
