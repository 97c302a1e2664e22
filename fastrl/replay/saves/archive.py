"""A replay as one file: a zip of plain .npy arrays and a JSON header. No pickle; the zip has checksums.

Or as a folder: its ``index`` is such a file without the frames, and the header lists the files that hold them (see
`segments`).

The header::

    {"format": 2, or 3,
     "kind": "uniform" or "prioritized",
     "settings": arguments of the buffer's class,
     "held": slots of each ring that were written to,
     "state": what of the buffer's state is no array,
     "segments": files of frames, in an index only}

In format 1 ``kind`` was the name of the class. Format 3 is that of buffers whose rows hold several arrays (see
`layout`): the frame of a row is a record there, the bytes of all its arrays side by side, in the order of
`Layout.fields`. The array ``ring.lost`` is there only if rings have grown and rows are
missing from them (see `Ring`).
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastrl.base.checks import assert_that
from fastrl.replay.saves.segments import SavedRows, Segment, assert_complete, frame_bytes, memory_of, piece_for
from fastrl.replay.stores.layout import Layout
from fastrl.replay.stores.store import FrameStore

FORMAT, FORMAT_OF_SEVERAL = 2, 3
INDEX = "index"
STATE = "state"
"""What a buffer's own folder has in its place (see `folder`)."""

_KINDS_OF_FORMAT_1 = {"ReplayBuffer": "uniform", "PrioritizedReplayBuffer": "prioritized"}


def write_file(
    path: Path, kind: str, settings: dict[str, Any], state: dict[str, Any], store: FrameStore, held: int
) -> None:
    """Write settings, state and the frames of the first ``held`` slots of each ring to ``path``, atomically.

    Links are followed, and a file that is replaced keeps its permissions. ValueError for what is no regular file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise ValueError(f"path is {path}, which is no regular file; give the name of a file")
    mode = path.stat().st_mode if path.exists() else None
    partial = path.with_name(path.name + ".partial")
    try:
        with _new_archive(partial) as archive:
            _write_all_but_frames(archive, {"kind": kind, "settings": settings, "held": held}, state)
            with archive.open("frames", "w", force_zip64=True) as member:
                for slots, frames in _pieces(settings, held):
                    store.gather(slots[None], frames)
                    member.write(memory_of(frames))
        if mode is not None:
            os.chmod(partial, stat.S_IMODE(mode))
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_index(folder: Path, header: dict[str, Any], state: dict[str, Any], segments: list[Segment]) -> None:
    """Write ``index`` beside the files of frames: a header (kind, settings, held) and state as `write_file` does."""
    with _new_archive(folder / INDEX) as archive:
        _write_all_but_frames(archive, header | {"segments": [each.as_json() for each in segments]}, state)


def write_state(path: Path, header: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a header (kind, settings, held) and state as `write_file` does, without frames, in one move."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with _new_archive(partial) as archive:
            _write_all_but_frames(archive, header, state)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _new_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a new zip; when the context ends, it is on the disk."""
    with open(path, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            yield archive
        file.flush()
        os.fsync(file.fileno())


def _write_all_but_frames(archive: zipfile.ZipFile, header: dict[str, Any], state: dict[str, Any]) -> None:
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    rest = {name: value for name, value in state.items() if name not in arrays}
    version = FORMAT if Layout(header["settings"]).single else FORMAT_OF_SEVERAL
    archive.writestr("header.json", json.dumps({"format": version} | header | {"state": rest}))
    for name, array in arrays.items():
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, array, allow_pickle=False)


# Errors that damage causes: in zipfile, in NumPy, in JSON, in the checks of settings, rings and tree. RuntimeError is
# not among them: that is how the device of a store fails.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    TypeError,
    UnicodeError,
    ValueError,
    struct.error,
)


class SavedReplay:
    """An open saved replay, file or folder, for a ``with`` statement.

    An error that damage may have caused, raised inside the statement, comes out as ValueError and names the file.

    Parameters
    ----------
    path : Path
        File that `write_file` wrote, or folder with the index that `write_index` wrote.
    kind : str
        Kind of buffer that is expected.
    class_name : str, optional
        Name of its class, by which format 1 knew a subclass.

    Attributes
    ----------
    settings : dict
        Arguments of the buffer to build.
    held : int
        Slots of each ring that were written to.
    segments : list of Segment or None
        Files of frames; None for a single file.

    Raises
    ------
    ValueError
        If a file is damaged or too short, or holds another kind of buffer.
    """

    def __init__(self, path: Path, kind: str, class_name: str = "") -> None:
        self._path, self._kind, self._class_name = path, kind, class_name

    def __enter__(self) -> SavedReplay:
        in_pieces = self._path.is_dir()
        if in_pieces and (self._path / STATE).exists():
            raise ValueError(f"{self._path} is the folder of a buffer with store='mmap', which from_folder takes")
        if in_pieces and not (self._path / INDEX).exists():
            raise ValueError(
                f"{self._path} is a folder without an index: it is no saved replay, or one that was not written to its "
                "end; write() of what begin_save returned completes it, else use an earlier one"
            )
        self._file = open(self._path / INDEX if in_pieces else self._path, "rb")
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._archive = zipfile.ZipFile(self._file)
            with self._open("header.json") as member:
                header = json.loads(member.read())
            version, found = header["format"], header["kind"]
            if version == 1:
                found = {self._class_name: self._kind}.get(found) or _KINDS_OF_FORMAT_1.get(found, found)
            self.settings: dict[str, Any] = header["settings"]
            self._rest, self.held = header["state"], int(header["held"])
            self.segments = self._segments(header["segments"]) if in_pieces else None
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        if version not in (1, FORMAT, FORMAT_OF_SEVERAL) or found != self._kind:
            self._file.close()
            raise ValueError(
                f"{self._path} holds a replay of kind {found!r} in format {version}; expected kind {self._kind!r} in "
                f"format 1, {FORMAT} or {FORMAT_OF_SEVERAL}: load it with the class and version that saved it"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if isinstance(error, _DAMAGE):
            raise ValueError(
                f"{self._path} is not a saved replay, or is damaged ({error}); use an earlier one"
            ) from error

    def state(self) -> dict[str, Any]:
        """Return the state of the saved buffer."""
        names = [name for name in self._archive.namelist() if name.endswith(".npy")]
        return {**self._rest, **{name.removesuffix(".npy"): self._array(name) for name in names}}

    def fill(self, store: FrameStore, oldest: NDArray[np.int64], count: NDArray[np.int64], rows: int) -> None:
        """Read the frames of some rows into a store.

        Parameters
        ----------
        store : FrameStore
            Of N rings of ``rows`` slots, which need not be as many as were saved.
        oldest, count : [N] int64
            The rows that these rings hold: from number ``oldest`` to ``count - 1``.
        rows : int
            Slots of each ring.
        """
        if self.segments is not None:
            assert_complete(self.segments, oldest, count)
        for (env, row), frames in self._frames(count):
            held = row >= oldest[env]
            slots = env * rows + row % rows
            if held.all():  # no copy of the frames
                store.write(slots, frames[:, 0])
            elif held.any():
                store.write(slots[held], frames[held, 0])

    @property
    def rows(self) -> int:
        """Slots of each ring that was saved."""
        return int(self.settings["capacity"]) // int(self.settings["num_envs"])

    def _frames(self, count: NDArray[np.int64]) -> Iterator[tuple[SavedRows, NDArray[Any]]]:
        """Yield rows with their frames ``[n, 1, *obs_shape]``, all that were saved, in pieces.

        Of a single file, slots that hold no row come with a number that is negative or below the oldest row's.
        """
        if self.segments is not None:
            frames = piece_for(self.settings)
            for each in self.segments:
                yield from each.read(self._path, frames)
            return
        with self._open("frames") as member:
            for slots, frames in _pieces(self.settings, self.held):
                _read_exactly(member, memory_of(frames))
                env, t = np.divmod(slots[:, 0], self.rows)
                yield (env, count[env] - 1 - (count[env] - 1 - t) % self.rows), frames
            assert_that(not member.read(1), "it holds more frames than its header says")  # also compares the checksum

    def _segments(self, entries: list[dict[str, Any]]) -> list[Segment]:
        """Return the files that the header lists; raise unless each is there and as long as it should be."""
        segments = [Segment.from_json(entry, self.settings["num_envs"]) for entry in entries]
        for each in segments:
            wanted, found = each.rows * frame_bytes(self.settings), (self._path / each.name).stat().st_size
            assert_that(found == wanted, f"{each.name} has {found} bytes instead of {wanted}")
        return segments

    def _open(self, name: str) -> IO[bytes]:
        # Members are not compressed, so that none can be longer than the file, whatever the zip says.
        member = self._archive.getinfo(name)
        fits = member.compress_type == zipfile.ZIP_STORED and member.file_size <= self._size
        assert_that(fits and member.header_offset >= 0, f"{name} cannot be so long or lie there")
        try:
            return self._archive.open(name)
        except RuntimeError as error:  # a flipped bit may mark it as encrypted
            raise zipfile.BadZipFile(str(error)) from error

    def _array(self, name: str) -> NDArray[Any]:
        with self._open(name) as member:  # compares the size before memory is taken
            assert_that(np.lib.format.read_magic(member) == (1, 0), f"{name} has another format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            size = self._archive.getinfo(name).file_size - member.tell()
            assert_that(math.prod(shape) * dtype.itemsize == size, f"{name} is {size} bytes, not {dtype} {list(shape)}")
        with self._open(name) as member:
            array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
            member.read(1)  # makes zipfile compare the checksum
        return array


def _pieces(settings: dict[str, Any], held: int) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Yield the slots held, ``[n, 1]``, ring by ring, each time with a view ``[n, 1, *obs_shape]`` of one array."""
    frames, rows = piece_for(settings), settings["capacity"] // settings["num_envs"]
    for env in range(settings["num_envs"]):
        for start in range(0, held, len(frames)):
            slots = env * rows + np.arange(start, min(start + len(frames), held))[:, None]
            yield slots, frames[: len(slots)]


def _read_exactly(member: IO[bytes], into: memoryview) -> None:
    done = 0
    while done < len(into):
        piece = member.read(len(into) - done)
        if not piece:
            raise EOFError("it ends in the middle of the frames")
        into[done : done + len(piece)] = piece
        done += len(piece)
