"""The folder that a buffer lives in: frames in files, and what a flush writes beside them.

::

    lock           held by the one process that uses the folder
    unfinished     there while the folder is made: what else is there holds nothing yet
    frames-0       frames of all slots, mapped into memory and changed in place; frames-1 and so on for further arrays
    state          columns, cursors, priorities, generator: a zip as for saves (see `archive`), replaced in one move
    reserved.json  how far each ring may have run since

A crash leaves the state of the last flush beside frames that may be newer. So before row ``r`` of a ring of T slots is
written, ``reserved.json`` on the disk gives a number above ``r``. When the folder is used again, rows before
``reserved - T`` may have been overwritten, and are given up; every other row has the frame it had. `reserve` moves the
mark ahead by a thirty-second of a ring at a time, so that few steps wait for the disk.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.base.checks import assert_that
from fastrl.replay.saves.archive import STATE, SavedReplay, write_state
from fastrl.replay.saves.segments import frame_bytes
from fastrl.replay.stores.mapped import MmapStore

LOCK, UNFINISHED, RESERVED, FRAMES = "lock", "unfinished", "reserved.json", "frames-"
AHEAD = 32
"""A ring's rows over those that `ReplayFolder.reserve` reserves at a time."""
_ROW = 32  # bytes of a row in the state, and a little more; its action comes on top
_KEEP = 1 << 20  # bytes for headers and small files


class ReplayFolder:
    """A folder with one buffer in it, for one process at a time.

    Parameters
    ----------
    path : Path
        The folder; it is made if it is not there.
    kind : str
        Kind of the buffer (see `archive`).
    settings : dict
        Its settings.

    Attributes
    ----------
    is_new : bool
        Whether the folder held no buffer; `complete` must follow then.
    reserved : [N] int64
        Rows of each ring from this one on were not written since the last flush.

    Raises
    ------
    ValueError
        If it holds a buffer of another kind or with other settings, a damaged one, or no buffer but other files.
    OSError
        If another process uses it, it cannot be written to, a file in it is missing, or the disk is too small.
    """

    def __init__(self, path: Path, kind: str, settings: dict[str, Any]) -> None:
        self.path, self._kind, self._settings = path, kind, settings
        self._stores: list[MmapStore] = []
        self._rows_left = 0  # so many rows of every ring are reserved at least
        self.reserved = np.zeros(settings["num_envs"], np.int64)
        self._broken = ""
        self._flushing = threading.Lock()
        if not _holds_replay(path):
            _require_room(path, settings)
        self._unlock = weakref.finalize(self, os.close, _locked(path))
        try:
            self.is_new = not _holds_replay(path)  # another process may have been here meanwhile
            if self.is_new:
                self._remove_files()
                (path / UNFINISHED).touch()
            else:
                self._read_and_compare()
        except BaseException:
            self.close()
            raise

    def make(self, count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> MmapStore:
        """Make a store over the next file of frames; a `MakeStore`."""
        path = self.path / f"{FRAMES}{len(self._stores)}"
        try:
            store = MmapStore(count, shape, dtype, path=path, make=self.is_new)
        except OSError as error:
            self.abandon()
            raise _explained(error, self.path) from error
        self._stores.append(store)
        return store

    def complete(self, state: dict[str, Any]) -> None:
        """Write the state of a new buffer; from here on the folder holds one."""
        self._write_reserved(np.zeros_like(self.reserved))
        self.flush(lambda: (state, 0))
        (self.path / UNFINISHED).unlink()
        _sync_folder(self.path)
        _sync_folder(self.path.absolute().parent)

    @contextmanager
    def saved(self) -> Iterator[SavedReplay]:
        """Open the state of the last flush; errors that damage causes inside the statement become ValueErrors."""
        with _saved(self.path, self._kind) as saved:
            yield saved

    def reserve(self, count: NDArray[np.int64], rows: int | NDArray[np.int64], most: int) -> None:
        """Make sure that rings may be written ``rows`` further, each or ``[N]``; ``count [N]`` are the rows they have.

        ``most`` is the largest of ``rows``.

        Raises
        ------
        OSError
            If the disk does not take the note. Nothing may be written then.
        """
        self._rows_left -= most
        if self._rows_left >= 0:
            return
        ring = self._settings["capacity"] // self._settings["num_envs"]
        ahead = np.maximum(rows, ring // AHEAD)
        self._rows_left = -1
        try:
            # Until a ring is full, nothing is overwritten.
            self._write_reserved(np.maximum(self.reserved, np.maximum(count + ahead, ring)))
        except OSError as error:
            raise _explained(error, self.path) from error
        self._rows_left = int((self.reserved - count - rows).min())

    def release(self, count: NDArray[np.int64]) -> None:
        """Note that no ring was written beyond its row ``count [N]``, all of which the state on the disk holds."""
        if (self.reserved != count).any():
            self._rows_left = 0
            try:
                self._write_reserved(count)
            except OSError as error:
                raise _explained(error, self.path) from error

    def flush(self, take: Callable[[], tuple[dict[str, Any], int]]) -> None:
        """Write the state, after the frames that its rows need are on the disk.

        Parameters
        ----------
        take : callable
            Returns a state that does not change any more, and the slots of each ring that hold rows.

        Raises
        ------
        OSError
            If the disk fails, or is full. The state of the flush before is left as it was.
        """
        with self._flushing:
            if self._broken:
                raise OSError(
                    f"an earlier flush to {self.path} failed ({self._broken}), and the system does not say which "
                    "frames are on the disk; save the buffer to another place"
                )
            state, held = take()
            try:
                for store in self._stores:
                    store.sync()
            except OSError as error:
                self._broken = str(error)  # a second fsync may succeed though the first lost pages
                raise _explained(error, self.path) from error
            try:
                header = {"kind": self._kind, "settings": self._settings, "held": held}
                write_state(self.path / STATE, header, state)
                _sync_folder(self.path)
            except OSError as error:
                raise _explained(error, self.path) from error

    def set_settings(self, settings: dict[str, Any]) -> None:
        """Write these settings from the next flush on."""
        self._settings = settings

    def abandon(self) -> None:
        """Give the folder free, and remove a buffer that was made here."""
        if self.is_new:
            self._remove_files()
        self.close()

    def close(self) -> None:
        """Give the folder free, in a forked child to the parent: it keeps its lock."""
        for store in self._stores:
            store.close()
        self._unlock()

    def _read_and_compare(self) -> None:
        with self.saved() as saved:
            found = saved.settings
        given = json.loads(json.dumps(self._settings))
        others = [name for name in {**given, **found} if found.get(name) != given.get(name)]
        if others:
            each = ", ".join(f"{name} is {self._settings.get(name)!r}, not {found.get(name)!r}" for name in others)
            instead = ", ".join(f"{name}={found.get(name)!r}" for name in others)
            raise ValueError(
                f"folder is {str(self.path)!r}, which holds a replay with other settings: {each}; give {instead}, or "
                "another folder"
            )
        path = self.path / RESERVED
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
            reserved = np.array(noted["rows"], np.int64)
            assert_that(_checksum(noted["rows"]) == noted["checksum"], "its checksum is another")
            assert_that(reserved.shape == self.reserved.shape, "it is of other rings")
        except OSError as error:
            raise _explained(error, self.path) from error
        except (AssertionError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} is damaged ({error}); {_RESTORE}") from error
        self.reserved = reserved

    def _write_reserved(self, rows: NDArray[np.int64]) -> None:
        """Replace the note of how far each ring may have run; on the disk when this returns."""
        content = json.dumps({"rows": rows.tolist(), "checksum": _checksum(rows.tolist())})
        path = self.path / RESERVED
        partial = path.with_name(f"{RESERVED}.partial")
        with open(partial, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(self.path)
        self.reserved = rows.copy()

    def _remove_files(self) -> None:
        """Remove all but the lock."""
        for name in sorted(filter(_is_ours, os.listdir(self.path)), key=(STATE, UNFINISHED).__contains__):
            if name != LOCK:
                (self.path / name).unlink()


def settings_in(path: Path, kind: str) -> dict[str, Any]:
    """Return the settings of the buffer in a folder; errors as for `ReplayFolder`."""
    if not _holds_replay(path):
        raise ValueError(
            f"folder is {str(path)!r}, which holds no replay; give it to the class, with store='mmap', to make one"
        )
    with _saved(path, kind) as saved:
        return saved.settings


def require_none_in(path: Path) -> None:
    """Raise ValueError if a folder holds a buffer."""
    if _holds_replay(path):
        raise ValueError(f"folder is {str(path)!r}, which holds a replay; give a new or an empty one")


@contextmanager
def _saved(path: Path, kind: str) -> Iterator[SavedReplay]:
    state = path / STATE
    if not state.exists():
        raise FileNotFoundError(f"folder is {str(path)!r}, and {state} is missing; {_RESTORE}")
    try:
        with SavedReplay(state, kind) as saved:
            yield saved
    except ValueError as error:
        raise ValueError(f"folder is {str(path)!r}: {error}, or give another folder") from error


_RESTORE = "put back the file that was there, or give another folder"


def _is_ours(name: str) -> bool:
    return name in (LOCK, UNFINISHED) or name.startswith((STATE, RESERVED, FRAMES))


def _holds_replay(path: Path) -> bool:
    """Return whether a folder holds a buffer. False if it is empty, not there, or was left while it was made.

    Raises
    ------
    ValueError
        If it holds other files, or is no folder, or none can have its name.
    """
    try:
        _require_possible(path)
    except OSError as error:
        raise _explained(error, path) from error
    if not path.exists():
        return False
    if not path.is_dir():
        raise ValueError(f"folder is {str(path)!r}, which is no folder; give a new or an empty one")
    try:
        names = os.listdir(path)
    except OSError as error:
        raise _explained(error, path) from error
    if UNFINISHED in names:
        return False
    if any(name != LOCK and _is_ours(name) for name in names):
        return True
    others = sorted(name for name in names if not _is_ours(name))
    if others:
        raise ValueError(
            f"folder is {str(path)!r}, which holds no replay, but {others[0]!r}; give a new or an empty one"
        )
    return False


def _require_possible(path: Path) -> None:
    """Raise ValueError if no folder can be at a path, whatever is made on the way; OSError as the disk does."""
    whole = path.absolute()
    above = whole
    while not os.path.lexists(above):
        above = above.parent
    if above.is_symlink() and not os.path.exists(above):
        raise ValueError(
            f"folder is {str(path)!r}, and {str(above)!r} is a link to {os.readlink(above)!r}, where there is no "
            "folder; make one there, or give another folder"
        )
    if above != whole and not above.is_dir():
        raise ValueError(f"folder is {str(path)!r}, below {str(above)!r}, which is no folder; give another folder")
    try:
        for each in (whole, *(above / name for name in whole.relative_to(above).parts)):
            with suppress(FileNotFoundError):
                os.lstat(each)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(f"folder is {str(path)!r}, a name too long for its disk; give a shorter one") from error


def _require_room(path: Path, settings: dict[str, Any]) -> None:
    """Raise OSError unless the disk holds a new buffer: its frames, and its state twice, since one replaces another."""
    num_envs = settings["num_envs"]
    action = np.dtype(settings["action_dtype"]).itemsize * int(np.prod(settings["action_shape"], dtype=object))
    row = frame_bytes(settings) + 2 * (_ROW + action)
    needed = settings["capacity"] // num_envs * num_envs * row + _KEEP
    above = path.absolute()
    while not above.exists():
        above = above.parent
    disk = shutil.disk_usage(above)
    if not disk.total:
        raise OSError(
            f"folder is {str(path)!r}, and {above} belongs to the system and is on no disk; give a folder on a disk"
        )
    if needed > disk.free:
        less = "less capacity, or " if num_envs * row + _KEEP <= disk.free else ""
        raise OSError(
            f"folder is {str(path)!r}, on a disk with {_gib(disk.free)} GiB free, but capacity = "
            f"{settings['capacity']} needs {_gib(needed)}; give {less}a folder on another disk"
        )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.3g}"


def _locked(path: Path) -> int:
    """Return the handle of a file with a lock that the system releases with the process, however it ends."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError("store='mmap' needs file locks (flock), which this system lacks; use store='ram'") from error
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _explained(error, path) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(file, 1000, 0).decode("utf-8", "replace").strip() or "another process"
        os.close(file)
        if not isinstance(error, BlockingIOError):
            raise _explained(error, path) from error
        raise BlockingIOError(
            f"folder is {str(path)!r}, which {holder} uses; close its buffer or end the process, or give another folder"
        ) from None
    os.truncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return file


def _explained(error: OSError, path: Path) -> OSError:
    """Return an error of the same class that names the folder, the file and a remedy."""
    file = error.filename or path
    return type(error)(
        f"folder is {str(path)!r}, and {file} fails ({error.strerror or error}); make it whole, writable and large "
        "enough, or give another folder"
    )


def _checksum(rows: Any) -> int:
    return zlib.crc32(json.dumps(rows).encode())


def _sync_folder(path: Path) -> None:
    """Make sure that the list of a folder's files is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
