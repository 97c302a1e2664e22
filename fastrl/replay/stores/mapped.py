"""Frames in a file, mapped into memory: as many as the disk holds."""

from __future__ import annotations

import errno
import math
import mmap
import os
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.stores.copy_threads import Team
from fastrl.replay.stores.ram import RamStore

if sys.platform == "linux":
    import resource

AHEAD = 64
"""Gathers that ask the disk for all their frames at once, after one that had to wait for it."""
ROWS_AHEAD = 32
"""Rows of each ring whose pages are asked for before they are overwritten, half of them anew each time."""
_PIECE = 1 << 24  # bytes of zeros written at a time where the system cannot reserve a file's room


class MmapStore(RamStore):
    """Frames as one array ``[count, *shape]`` over a file; the system keeps in memory what there is room for.

    The folder of a buffer makes it (``store="mmap", folder=…``; see `ReplayFolder`): alone, a store could not say which
    of its frames belong to which rows. A file without a name needs no folder, since no later process finds it. The
    room on the disk is reserved at once, since a write into a mapped file that finds the disk full would kill the
    process.

    Parameters
    ----------
    count : int
        Frames to hold.
    shape, dtype
        Shape and dtype of one frame.
    path : Path
        The file; with ``named=False`` a folder on the disk that holds it.
    make : bool
        Whether to make the file, of zeros. If not, it must be there.
    named : bool
        Whether the file has a name. If not, the system deletes it with this store, or with the process, however that
        ends.

    Raises
    ------
    OSError
        If the disk is too small, or the file is there where it should be made, or missing or of another size where not.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        path: Path,
        make: bool = True,
        named: bool = True,
    ) -> None:
        size = count * math.prod(shape) * dtype.itemsize
        self._path = path
        if named:
            self._file = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if make else 0), 0o666)
        else:
            with tempfile.TemporaryFile("w+b", dir=path) as file:
                self._file = os.dup(file.fileno())
        self._end = weakref.finalize(self, os.close, self._file)
        if make:
            _reserve(self._file, size)
        found = os.fstat(self._file).st_size
        if found != size:
            raise OSError(f"{path} has {found} bytes instead of {size}; put back the file that was there")
        self._memory = mmap.mmap(self._file, size)
        if hasattr(mmap, "MADV_RANDOM"):
            self._memory.madvise(mmap.MADV_RANDOM)  # rows are drawn from anywhere: what lies beside one is not needed
        self.frames = np.frombuffer(self._memory, dtype).reshape(count, *shape)
        self._team = Team(1)
        self._ahead = 0  # gathers still to come that ask for all their frames at once
        self._unasked = 0  # rows of each ring that may still be written before the next are asked for
        self._asks, self._waits = 0, _waits_for_disk()  # such questions still to come; waits when it was last looked

    def gather(self, ids: NDArray[np.int64], *outs: NDArray[Any]) -> None:
        """Put frame ``ids[m, b, k]`` into ``outs[m][b, k]``, one or two of them; -1 is a frame of zeros.

        A page that is not in memory makes the copying wait for the disk, one after the other. If that has happened
        lately, the disk is first asked for all pages, which it then reads side by side.
        """
        if self._ahead:
            self._ahead -= 1
            self._ask_for(ids)
        before = _waits_for_disk()
        super().gather(ids, *outs)
        if _waits_for_disk() != before:
            self._ahead = AHEAD

    def _ask_for(self, ids: NDArray[np.int64]) -> None:
        """Let the system begin to read the pages of these frames."""
        frame, page = self.frames[0].nbytes, mmap.PAGESIZE
        numbers = np.unique(ids[ids >= 0])
        if not len(numbers):
            return
        gaps = np.flatnonzero(np.diff(numbers) > 1) + 1
        begins = numbers[np.concatenate(([0], gaps))] * frame // page * page
        ends = numbers[np.concatenate((gaps - 1, [-1]))] * frame + frame
        for begin, size in zip(begins.tolist(), (ends - begins).tolist(), strict=True):
            self._memory.madvise(mmap.MADV_WILLNEED, begin, size)

    def will_overwrite(self, count: NDArray[np.int64], ring: int, rows: int) -> None:
        """Hear that ``rows`` rows are about to be added to each ring, and have the disk read what later ones overwrite.

        A frame is no whole number of pages, so writing it reads the pages of an older frame where they have left the
        memory. The disk is asked only if the thread that adds has had to wait for it lately.

        Parameters
        ----------
        count : [N] int64
            Rows ever written to each ring.
        ring : int
            Rows that a ring holds; ring ``n`` has the frames from ``n * ring`` on.
        rows : int
            Rows for each.
        """
        self._unasked -= rows
        if self._unasked > 0:
            return
        self._unasked, waits = ROWS_AHEAD // 2, _waits_for_disk()
        self._asks, self._waits = AHEAD if waits != self._waits else self._asks - 1, waits
        if self._asks > 0:
            full = np.flatnonzero(count >= ring)  # elsewhere nothing has been written that is to be read
            self._ask_for(full[:, None] * ring + (count[full, None] + np.arange(min(ring, ROWS_AHEAD))) % ring)

    def sync(self) -> None:
        """Return once all frames written so far are on the disk.

        Raises
        ------
        OSError
            If the file is not where it was, or the disk fails.
        """
        there, mine = os.stat(self._path), os.fstat(self._file)
        if (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev):
            raise FileNotFoundError(errno.ENOENT, "another file is in the place of this one", str(self._path))
        os.fsync(self._file)

    def close(self) -> None:
        """Give the file and its memory back; nothing else may be called then."""
        self.frames = self.frames[:0].copy()
        del self._memory  # unmapped once no array is over it
        self._end()

    @property
    def nbytes(self) -> int:
        """0: the system takes the memory of frames back when something else needs it."""
        return 0

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the frames of this buffer are in {self._path}, and a copy or pickle would share them; save the buffer, "
            "and load the save where a copy is needed"
        )


def _waits_for_disk() -> int:
    """Return how often this thread has waited for a page from the disk; 0 where that is not counted."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def _reserve(file: int, size: int) -> None:
    """Give a new file so many zeros, and its room on the disk."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        for start in range(0, size, _PIECE):  # a system or file system that cannot
            os.pwrite(file, bytes(min(_PIECE, size - start)), start)
