"""Files that appear whole or not at all, and whether there is a place for them (standard library only)."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from fastrl.base.errors import ConfigError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one move: a reader sees the old content or the new one. Text becomes UTF-8.

    A link stays, and the file that it leads to is replaced. Devices and pipes are written to.
    """
    data = content.encode() if isinstance(content, str) else content
    if _is_device(path):
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name[:50]}.{os.getpid()}.partial")  # of any name that fits, one that fits
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make sure that a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_place(path: Path, flag: str) -> None:
    """See that a file can be made, before hours of work; nothing is left behind.

    Parameters
    ----------
    path : Path
        The file. It may exist, and folders above it may be missing.
    flag : str
        What named it.

    Raises
    ------
    ConfigError
        If it is a folder, or no file can be made there.
    """
    if os.path.isdir(path):
        raise ConfigError(f"{flag} is {str(path)!r}, a folder; give the name of a file")
    if reason := why_no_place(path):
        raise ConfigError(f"{flag} is {str(path)!r}, where no file can be made ({reason}); give {flag} another place")


def why_no_place(path: Path) -> str | None:
    """Return why neither a file nor a folder of this path can be made, None if one can; nothing is left behind.

    Free space is another question.
    """
    path = path.absolute()
    if _is_device(path):
        return None if os.access(path, os.W_OK) else os.strerror(errno.EACCES)
    above = nearest(path.parent)
    try:
        longest = os.pathconf(above, "PC_NAME_MAX")
        if any(len(os.fsencode(name)) > longest for name in path.relative_to(above).parts):
            return os.strerror(errno.ENAMETOOLONG)
        os.rmdir(tempfile.mkdtemp(dir=above, prefix=".fastrl-"))
    except OSError as error:
        return error.strerror
    return None


def nearest(path: Path) -> Path:
    """Return the path, or of the folders above it the nearest one that is there."""
    while not os.path.exists(path):  # False, too, where this process may not look
        path = path.parent
    return path


def _is_device(path: Path) -> bool:
    """Whether a path leads to what is no file: a device, a pipe, and /dev/stdout wherever that leads."""
    if str(path.absolute().parent) in ("/dev", "/dev/fd", "/proc/self/fd"):
        return True
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
