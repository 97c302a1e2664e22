"""Saving a replay again and again: each save writes only new frames, while more rows are added."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastrl.base.checks import check_state
from fastrl.replay.saves.archive import INDEX, SavedReplay, write_index
from fastrl.replay.saves.segments import SavedRows, Segment, frame_bytes, piece_for, split

ABANDONED = "this save was given up; begin another, into another folder"
WRITTEN = "write of this save was called before; begin another, into another folder"
LEFT_TO_PARENT = (
    "this save was begun before this process was forked, and the parent process writes it; begin another here, into "
    "another folder"
)
PATIENCE_SECONDS = 10.0
"""So long a row waits for a save whose `Save.write` was not called, before it warns."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What a save reads of a buffer: its state at one moment, and access to its frames."""

    kind: str
    """Kind of buffer, as the header of a file gives it (see `archive`)."""
    settings: dict[str, Any]
    """Arguments of the buffer's class."""
    state: dict[str, Any]
    """All but the frames: columns, cursors, priorities, generator. Copies."""
    rows: int
    """Slots of each ring, T."""
    count: NDArray[np.int64]
    """``[N]``: rows ever added to each ring. A copy."""
    oldest: NDArray[np.int64]
    """``[N]``: number of the oldest row that each ring holds."""
    held: int
    """Slots of each ring that were written to."""
    lock: threading.RLock
    """Lock of the buffer, held whenever rows are added."""
    gather: Callable[[NDArray[np.int64], NDArray[Any]], None]
    """Puts the frames in slots ``[n]`` into an array ``[n, 1, *obs_shape]``; called with the lock held."""
    release: Callable[[], None]
    """Tells the buffer that the save reads no more frames; called once, with the lock held."""


class Save:
    """One save of a buffer into a folder, begun by `ReplayBuffer.begin_save`; ``load`` takes the folder like a file.

    Beginning a save copies all but the frames, 24 bytes a row, and takes a moment. `write` takes longer and may run in
    a thread while rows are added, drawn and updated: it writes the buffer as it was when the save began. A row waits
    only where it would overwrite a frame that is yet to be written; the oldest frames are written first. `write` must
    follow, or `close` to abandon the save. A save that fails or is abandoned leaves no folder behind. In a child forked
    meanwhile the save is closed: the parent writes it.

    Parameters
    ----------
    snapshot : Snapshot
        What is saved.
    folder : Path
        Where to; it is made here. It is complete once `write` has returned, and not before.
    earlier : Path, optional
        An earlier save of the same buffer, or what the buffer was loaded from. Files of frames there that are still
        needed are linked, not written; if they cannot be linked, all frames are written.

    Raises
    ------
    OSError
        If the folder exists or cannot be made.
    """

    def __init__(self, snapshot: Snapshot, folder: Path, earlier: Path | None = None) -> None:
        folder.mkdir()
        self._snapshot, self._folder = snapshot, folder
        self._begun = self._closed = False  # `write` was called; no row waits any longer
        self._why_not = ABANDONED
        self._written = threading.Condition(snapshot.lock)
        held = snapshot.oldest, snapshot.count, snapshot.rows, frame_bytes(snapshot.settings)
        self._kept, self._new = split(_segments(earlier, snapshot), *held)
        if earlier is not None and not _link(self._kept, earlier, folder):
            self._kept, self._new = split([], *held)
        self._unsaved = np.zeros(len(snapshot.count) * snapshot.rows, np.bool_)  # by slot
        for each in self._new:
            for piece in each.pieces(len(self._unsaved)):
                self._unsaved[self._slots(piece)] = True

    def write(self) -> None:
        """Write the new frames and then the index; once, in any thread. Holds at most 16 MB of frames in memory.

        Raises
        ------
        RuntimeError
            If `close` was called before or meanwhile, `write` before, or in a forked child.
        """
        snapshot = self._snapshot
        self._require_open()
        with self._written:
            self._require_open()
            check_state(not self._begun, WRITTEN)
            self._begun = True
        try:
            frames = piece_for(snapshot.settings)
            new = [each.write(self._folder, frames, self._gather) for each in self._new]
            header = {"kind": snapshot.kind, "settings": snapshot.settings, "held": snapshot.held}
            write_index(self._folder, header, snapshot.state, self._kept + new)
            self._why_not = WRITTEN
        except BaseException:
            self._remove()
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Let no row wait any longer; a `write` in progress raises at its next piece. May be called again."""
        with self._written:
            if not self._closed:
                self._closed = True
                self._snapshot.release()
                self._written.notify_all()
                if not self._begun:
                    self._remove()

    def leave_to_parent(self) -> None:
        """Go on in a forked child: the parent process writes this save; here nothing waits for it."""
        self._closed, self._why_not = True, LEFT_TO_PARENT

    def __reduce__(self) -> NoReturn:
        raise TypeError("a save cannot be copied or pickled; begin another, of a copy of the buffer")

    def wait_for(self, slots: NDArray[np.int64]) -> bool:
        """Wait for one more piece to be written if a frame in these slots is yet to be written; see `Reader`.

        Raises
        ------
        RuntimeError
            If `write` was not called, and no other thread runs that could call it.
        """
        if self._closed or not self._unsaved[slots].any():
            return False
        unwritten = (
            f"a save into {self._folder} was begun and its write() not called, and a row would overwrite a frame"
        )
        check_state(
            self._begun or threading.active_count() > 1,
            f"{unwritten} that it needs; call write() or close() of what begin_save returned",
        )
        if not self._written.wait(PATIENCE_SECONDS) and not self._begun:
            warnings.warn(
                f"{unwritten} that it needs: add waits until another thread calls write() or close() of what "
                "begin_save returned",
                stacklevel=4,
            )
        return True

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(self._why_not)

    def _remove(self) -> None:
        """Remove what was written; the folder too, if nothing else is in it."""
        with suppress(OSError):
            for name in (INDEX, *(each.name for each in self._kept + self._new)):
                (self._folder / name).unlink(missing_ok=True)
            self._folder.rmdir()

    def _slots(self, rows: SavedRows) -> NDArray[np.int64]:
        env, row = rows
        return env * self._snapshot.rows + row % self._snapshot.rows

    def _gather(self, rows: SavedRows, frames: NDArray[Any]) -> None:
        """Take a piece out of the store, under the lock: a store need not support two threads at once."""
        slots = self._slots(rows)
        with self._written:
            self._require_open()
            self._snapshot.gather(slots, frames)
            self._unsaved[slots] = False
            self._written.notify_all()


_MAY_CHANGE = {"n_step": 0, "gamma": 0, "capacity": 0}
"""Settings that may change from save to save: rows keep their numbers, and frames their files."""


def _segments(earlier: Path | None, snapshot: Snapshot) -> list[Segment]:
    """Return the files of frames in an earlier save; none if it is damaged, a single file, or of another buffer."""
    if earlier is None:
        return []
    try:
        with SavedReplay(earlier, snapshot.kind) as saved:
            found, segments = saved.settings | _MAY_CHANGE, saved.segments or []
    except (OSError, ValueError):
        return []
    own = json.loads(json.dumps(snapshot.settings | _MAY_CHANGE))
    later = any((each.end > snapshot.count).any() for each in segments)
    return segments if found == own and not later else []


def _link(segments: list[Segment], earlier: Path, folder: Path) -> bool:
    """Link the files of an earlier save into a folder; if the file system cannot, leave it empty and return False."""
    try:
        for each in segments:
            os.link(earlier / each.name, folder / each.name)
    except OSError:
        for each in segments:
            (folder / each.name).unlink(missing_ok=True)
        return False
    return True
