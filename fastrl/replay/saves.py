"""Saving a replay again and again: only what is new is written, while rows go on being added."""

from __future__ import annotations

import copy
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.files import SavedReplay, save_index
from fastrl.replay.segments import Rows, Segment, frame_bytes, piece_for, split

if TYPE_CHECKING:
    from fastrl.replay.buffer import ReplayBuffer


class Save:
    """One save of a buffer into a folder, which ``load`` takes as it takes a file.

    Making it takes a picture of all but the frames, 24 bytes a row, and is done in a moment. `write` takes its time and
    may run in a thread while rows are added, drawn and updated: what it writes is the buffer as it was in the picture.
    A row waits only where it would overwrite a frame that is yet to be written; the oldest are written first.
    `write`, or `close` to do without, must follow.

    Parameters
    ----------
    buffer : ReplayBuffer
        What is saved; another save of it must not be under way.
    folder : Path
        Where to; it is made here. It is whole once `write` has returned, and not before.
    earlier : Path, optional
        An earlier save of this very buffer, or what it was loaded from. Files of frames there that are still needed
        are linked, not written; where they cannot be, all is written.

    Raises
    ------
    ValueError
        If a batch that was prefetched has not been taken, or another save is under way.
    OSError
        If the folder exists or cannot be made.
    """

    def __init__(self, buffer: ReplayBuffer, folder: Path, earlier: Path | None = None) -> None:
        self._buffer, self._folder, self._given_up = buffer, folder, False
        self._written = threading.Condition(buffer._lock)
        with buffer._lock:
            buffer._prefetcher.require_none("save")
            if buffer._save is not None:
                raise ValueError("a save is under way; wait for its end before you start another")
            folder.mkdir()
            settings, ring, frame = buffer.settings, buffer._ring, frame_bytes(buffer.settings)
            self._settings, self._held = settings, ring.held
            self._state = {name: copy.deepcopy(value) for name, value in buffer._state().items()}
            self._kept, self._new = split(_segments(earlier, buffer), ring.count, ring.rows, frame)
            if earlier is not None and not _link(self._kept, earlier, folder):
                self._kept, self._new = split([], ring.count, ring.rows, frame)
            self._unsaved = np.zeros(len(ring.first), np.bool_)  # by slot
            for each in self._new:
                for rows in each.pieces(len(self._unsaved)):
                    self._unsaved[self._slots(rows)] = True
            buffer._save = self

    def write(self) -> None:
        """Write what is new; once, in any thread, with at most 16 MB of frames in memory at a time.

        Raises
        ------
        RuntimeError
            If `close` was called meanwhile.
        """
        try:
            frames = piece_for(self._settings)
            new = [each.write(self._folder, frames, self._gather) for each in self._new]
            header = {"kind": type(self._buffer).__name__, "settings": self._settings, "held": self._held}
            save_index(self._folder, header, self._state, self._kept + new)
        finally:
            self.close()

    def close(self) -> None:
        """Let no row wait any longer; a `write` under way gives up at its next piece."""
        with self._written:
            self._given_up = True
            if self._buffer._save is self:
                self._buffer._save = None
            self._written.notify_all()

    def needs(self, slots: NDArray[np.int64]) -> bool:
        """Return whether a frame in these slots is yet to be written; the buffer's lock is held."""
        return bool(self._unsaved[slots].any())

    def wait(self) -> None:
        """Wait until a piece more is written; the buffer's lock is held, and let go meanwhile."""
        self._written.wait()

    def _slots(self, rows: Rows) -> NDArray[np.int64]:
        env, row = rows
        return env * self._buffer._ring.rows + row % self._buffer._ring.rows

    def _gather(self, rows: Rows, frames: NDArray[Any]) -> None:
        """Take a piece out of the store; under the lock, as a store need not bear two threads at once."""
        slots = self._slots(rows)
        with self._written:
            if self._given_up:
                raise RuntimeError("the save was given up")
            self._buffer._prefetcher.wait()
            self._buffer._store.gather(slots[None, :, None], frames)
            self._unsaved[slots] = False
            self._written.notify_all()


def _segments(earlier: Path | None, buffer: ReplayBuffer) -> list[Segment]:
    """Return the files of frames in an earlier save; none if it is damaged, a single file, or not of this buffer."""
    if earlier is None:
        return []
    try:
        with SavedReplay(earlier, type(buffer).__name__) as saved:
            found, segments = saved.settings | {"n_step": 0}, saved.segments or []
    except (OSError, ValueError):
        return []
    own = json.loads(json.dumps(buffer.settings | {"n_step": 0}))  # which may change from save to save
    later = any((each.end > buffer._ring.count).any() for each in segments)
    return segments if found == own and not later else []


def _link(segments: list[Segment], earlier: Path, folder: Path) -> bool:
    """Let a folder have the files of an earlier one; return False, and leave it empty, if the file system cannot."""
    try:
        for each in segments:
            os.link(earlier / each.name, folder / each.name)
    except OSError:
        for each in segments:
            (folder / each.name).unlink(missing_ok=True)
        return False
    return True
