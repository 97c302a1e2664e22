"""Frames of consecutive rows in files that never change once written, so that a save writes only new frames."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastrl.base.checks import assert_that
from fastrl.replay.stores.layout import Layout

PIECE = 1 << 24
"""Bytes of frames that a save or a load holds in memory at a time, besides the store."""
LARGEST, SMALL = 1 / 16, 1 / 64
"""Shares of a ring in one file. A file is left behind only once all its rows are overwritten."""

SavedRows = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Environments ``[n]``, and the numbers of their rows ``[n]``."""


class Segment(NamedTuple):
    """One file: rows ``begin[e]`` to ``end[e] - 1`` of every environment e, the oldest of all environments first."""

    number: int
    begin: NDArray[np.int64]  # [N]
    end: NDArray[np.int64]  # [N]
    checksum: int = 0  # CRC-32 of the file

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"frames-{self.number:06d}"

    @property
    def rows(self) -> int:
        """Rows of all environments."""
        return sum((self.end - self.begin).tolist())

    @property
    def longest(self) -> int:
        """Most rows of one environment."""
        return int((self.end - self.begin).max())

    def pieces(self, most: int) -> Iterator[SavedRows]:
        """Yield the rows in the order of the file, at most ``most`` at a time."""
        together = max(1, most // len(self.begin))
        for start in range(0, self.longest, together):
            row = self.begin + np.arange(start, min(start + together, self.longest))[:, None]
            nth, env = np.nonzero(row < self.end)
            for i in range(0, len(env), most):
                yield env[i : i + most], row[nth[i : i + most], env[i : i + most]]

    def write(self, folder: Path, frames: NDArray[Any], gather: Callable[[SavedRows, NDArray[Any]], None]) -> Segment:
        """Write the file in pieces that ``gather`` puts into ``frames [most, …]``; return this with its checksum."""
        checksum = 0
        with open(folder / self.name, "xb") as file:
            for rows in self.pieces(len(frames)):
                piece = frames[: len(rows[0])]
                gather(rows, piece)
                checksum = zlib.crc32(memory_of(piece), checksum)
                file.write(memory_of(piece))
                file.flush()
                os.fsync(file.fileno())  # piece by piece: a backlog would delay any other sync
        return self._replace(checksum=checksum)

    def read(self, folder: Path, frames: NDArray[Any]) -> Iterator[tuple[SavedRows, NDArray[Any]]]:
        """Yield all rows with their frames, in pieces read into ``frames [most, …]``.

        Raises AssertionError for a damaged file.
        """
        checksum = 0
        with open(folder / self.name, "rb") as file:
            for rows in self.pieces(len(frames)):
                piece = frames[: len(rows[0])]
                assert_that(file.readinto(memory_of(piece)) == piece.nbytes, f"{self.name} ends too early")
                checksum = zlib.crc32(memory_of(piece), checksum)
                yield rows, piece
        assert_that(checksum == self.checksum, f"{self.name} differs from its checksum")

    def as_json(self) -> dict[str, Any]:
        """Return the segment as types that JSON can hold."""
        return self._asdict() | {"begin": self.begin.tolist(), "end": self.end.tolist()}

    @classmethod
    def from_json(cls, entry: dict[str, Any], num_envs: int) -> Self:
        """Return the segment that `as_json` was called on; AssertionError for invalid cursors."""
        begin, end = np.array(entry["begin"]), np.array(entry["end"])
        for cursor in (begin, end):
            assert_that(cursor.shape == (num_envs,) and cursor.dtype == np.int64, "a cursor of its frames is invalid")
        assert_that((0 <= begin).all() and (begin <= end).all(), "a file of frames ends before it begins")
        return cls(int(entry["number"]), begin, end, int(entry["checksum"]))


def frame_bytes(settings: dict[str, Any]) -> int:
    """Return the bytes that a row takes in the files: those of one frame, or of all arrays of a row."""
    return sum(each.dtype.itemsize * math.prod(each.shape) for each in Layout(settings).fields)


def piece_for(settings: dict[str, Any]) -> NDArray[Any]:
    """Return memory for a piece of frames, ``[most, 1, *obs_shape]``; of several arrays, of records as bytes."""
    layout, size = Layout(settings), frame_bytes(settings)
    most = max(1, min(PIECE // size, settings["capacity"]))
    if layout.single:
        return np.empty((most, 1, *settings["obs_shape"]), settings["obs_dtype"])
    return np.empty((most, 1, size), np.uint8)


def memory_of(frames: NDArray[Any]) -> memoryview:
    """Return the memory of a C-contiguous array."""
    return frames.reshape(-1).view(np.uint8).data


def split(
    earlier: list[Segment], oldest: NDArray[np.int64], count: NDArray[np.int64], rows: int, frame: int
) -> tuple[list[Segment], list[Segment]]:
    """Return the files of an earlier save that a new save keeps, and those that it has to write.

    Kept files come first, in order. Small files at the end are not kept but written again together with the new rows,
    so that there are never many. Kept files also hold frames that were overwritten since: at most half as many as live
    ones, and a sixteenth if all environments add equally many rows.

    Parameters
    ----------
    earlier : list of Segment
        In order of their rows; if empty, everything is written.
    oldest, count : [N] int64
        Rows that each ring holds: from number ``oldest`` to ``count - 1``.
    rows : int
        Rows that a ring holds, T.
    frame : int
        Bytes of one frame.

    Returns
    -------
    kept, new : lists of Segment
        The new ones have no checksums yet.
    """
    one_piece = -(-PIECE // (frame * len(count)))
    kept = [each for each in earlier if _alive(each, oldest)]
    while kept and kept[-1].longest < max(one_piece, int(rows * SMALL)):
        kept.pop()
    alive = sum(_alive(each, oldest) for each in kept)
    if sum(each.rows for each in kept) - alive > alive / 2:
        kept = []
    begin = np.maximum(oldest, kept[-1].end) if kept else oldest
    number, most = kept[-1].number + 1 if kept else 1, max(one_piece, int(rows * LARGEST))
    starts = range(0, int((count - begin).max()), most)
    return kept, [
        Segment(number + i, np.minimum(begin + start, count), np.minimum(begin + start + most, count))
        for i, start in enumerate(starts)
    ]


def _alive(segment: Segment, oldest: NDArray[np.int64]) -> int:
    """Return how many rows of a file are still held: those from ``oldest [N]`` on."""
    return int(np.maximum(segment.end - np.maximum(segment.begin, oldest), 0).sum())


def assert_complete(segments: list[Segment], oldest: NDArray[np.int64], count: NDArray[np.int64]) -> None:
    """Raise AssertionError unless files hold, in order, the rows ``oldest [N]`` to ``count [N] - 1`` of each ring."""
    missing = oldest
    for each in segments:
        assert_that(((each.begin <= missing) | (each.end <= missing)).all(), f"frames before {each.name} are missing")
        missing = np.maximum(missing, each.end)
    assert_that(np.array_equal(missing, count), "its files hold other frames than its rows need")
