"""One ``write()`` to TensorBoard, ``metrics.csv`` and the terminal.

Keys that begin with ``time/`` depend on the clock and differ between two equal runs; all others are equal to
the last bit on a deterministic environment, in the CSV too.
"""

from __future__ import annotations

import atexit
import contextlib
import csv
import io
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastrl.config import ConfigError
from fastrl.extras import need
from fastrl.folder import sync, write_atomically
from fastrl.screen import Extras, open_screen


class MetricsCsv:
    """A growing table: one row per `append`, columns in the order in which their keys first appeared.

    Parameters
    ----------
    path : Path
        The file; made with the first row.
    unit : str
        Name of the first column, which says when: ``"frames"`` or ``"steps"``.
    rows : int, optional
        Go on with the file after a resume: rows after so many are dropped, and one that a crash cut short with
        them. Without it the file must not exist.

    Raises
    ------
    ConfigError
        If the file exists and ``rows`` is not given, or if it counts in another unit.
    """

    def __init__(self, path: Path, unit: str, rows: int | None = None) -> None:
        self.path, self.rows = path, 0
        self._columns = [unit]
        if not path.exists():
            return
        if rows is None:
            raise ConfigError(f"{path} exists already; give --name another name, or resume that run")
        known = self._read()
        if self._columns[0] != unit:
            raise ConfigError(f"{path} counts {self._columns[0]}, not {unit}; resume the run with its own command")
        self._rewrite(known[:rows])
        self.rows = len(known[:rows])

    def append(self, values: Mapping[str, float], at: int) -> None:
        """Add a row and flush it; a new key rewrites the file with a longer header first."""
        new = [key for key in values if key not in self._columns]
        if new or not self.path.exists():
            rows = self._read() if self.path.exists() else []
            self._columns += new
            self._rewrite(rows)
        row = {self._columns[0]: str(int(at))} | {key: repr(float(value)) for key, value in values.items()}
        with self.path.open("a", newline="") as file:
            self._writer(file).writerow(row)
        self.rows += 1

    def _read(self) -> list[dict[str, str]]:
        """Read the columns and every whole row."""
        whole = self.path.read_text().rpartition("\n")[0]  # what has no line end was cut short
        lines = csv.DictReader(whole.splitlines())
        self._columns = list(lines.fieldnames or self._columns)
        return [row for row in lines if None not in row and None not in row.values()]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """Replace the file in one move: a crash leaves the old one or the new one."""
        table = io.StringIO()
        writer = self._writer(table)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, table.getvalue())

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")


class Reporter:
    """Where a run says what happens: TensorBoard, ``metrics.csv`` and the screen.

    Use it as a context manager: whatever ends the run, the terminal is left as it was.

    Parameters
    ----------
    folder : Path
        The run's folder; TensorBoard's events and ``metrics.csv`` go there.
    total : int
        Where the run ends, in ``unit``.
    unit : str
        What ``at`` counts everywhere: ``"frames"`` (emulator frames) or ``"steps"`` (agent steps).
    resume : mapping, optional
        Go on where this `state` was taken: rows and events written after it are dropped, so that no curve is double.
    quiet : bool
        Print nothing; the files are written all the same.

    Raises
    ------
    ConfigError
        If the folder holds metrics already and ``resume`` is not given.
    ImportError
        If PyTorch, TensorBoard or rich is missing; the message names the extra.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total: int,
        unit: str = "frames",
        resume: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        for package in ("torch", "tensorboard", "rich"):  # PyTorch's face of TensorBoard would not name the extra
            need(package, "train")
        board = need("torch.utils.tensorboard", "train")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._csv = MetricsCsv(folder / "metrics.csv", unit, None if resume is None else resume["rows"])
        self._at: int = 0 if resume is None else resume["resume_at"]
        purge = None
        if resume is not None:
            _cut(folder, resume["events"])
            _wait_for_another_second(folder)
            purge = self._at + 1  # for a TensorBoard that has read the later events already
        self._board = board.SummaryWriter(str(folder), purge_step=purge, flush_secs=10)
        self._screen = open_screen(total, unit, quiet)
        self._closed = False
        atexit.register(self.close)

    def write(self, values: Mapping[str, float], at: int) -> None:
        """Write one row of the CSV and one TensorBoard scalar per value.

        Parameters
        ----------
        values : mapping of str to float
            By key, such as ``games/return_mean_100``; nothing is written if it is empty.
        at : int
            Point of the run, in the reporter's unit.
        """
        if not values:
            return
        self._at = at
        self._csv.append(values, at)
        for key, value in values.items():
            self._board.add_scalar(key, float(value), at)
        self._board.flush()  # its own clock for that is the wall's, which may be set back

    def histogram(self, tag: str, values: NDArray[Any], at: int) -> None:
        """Write the distribution of ``values``, an array, to TensorBoard; NaN and what no bin takes are left out."""
        inside = values[np.abs(values) < 1e20]
        if inside.size:
            self._board.add_histogram(tag, inside, at)

    def image(self, tag: str, gif: Path, at: int) -> None:
        """Write a GIF file to TensorBoard, whose page plays it.

        Raises
        ------
        ValueError
            If the file is no GIF.
        """
        # SummaryWriter.add_video needs a moviepy older than 2, so the file's own bytes go into the event.
        content = gif.read_bytes()
        if content[:6] not in (b"GIF87a", b"GIF89a"):
            raise ValueError(f"{gif} is no GIF; it begins with {content[:6]!r}")
        width, height = struct.unpack("<HH", content[6:10])
        summary = need("tensorboard.compat.proto.summary_pb2", "train").Summary
        image = summary.Image(encoded_image_string=content, height=height, width=width, colorspace=3)
        self._board.file_writer.add_summary(summary(value=[summary.Value(tag=tag, image=image)]), at)

    def progress(self, at: int, **shown: float | str) -> None:
        """Renew the picture of how far, how fast and how long still, and the fields given.

        Cheap enough to be called at every step: what is too soon to be seen is not drawn.
        """
        self._at = at
        self._screen.show(at, shown)

    def line(self, text: str) -> None:
        """Print a message; it stays, above whatever is redrawn."""
        self._screen.line(text)

    @property
    def extras(self) -> Extras:
        """What a panel shows besides; set what you know."""
        return self._screen.extras

    def state(self) -> dict[str, Any]:
        """Return what a resumed reporter needs, JSON-able; what was written is on disk then.

        TensorBoard's writer is lost for good once a write has failed, to a full disk say: then what it wrote before.
        """
        with contextlib.suppress(OSError):  # no event is worth what was learnt
            self._board.flush()
        written = [self._csv.path] if self._csv.path.exists() else []
        for path in [*written, *_event_files(self._folder)]:
            sync(path)
        events = {path.name: path.stat().st_size for path in _event_files(self._folder)}
        return {"resume_at": self._at, "rows": self._csv.rows, "events": events}

    def close(self) -> None:
        """Flush all and give the terminal back; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            self._screen.close()
        finally:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # or the error under way would not be heard of
                raise


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def _cut(folder: Path, sizes: Mapping[str, int]) -> None:
    """Cut TensorBoard's files down to the sizes that they had, and delete those that were not there."""
    for path in _event_files(folder):
        if path.name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[path.name]:
            os.truncate(path, sizes[path.name])


def _wait_for_another_second(folder: Path) -> None:
    """Let the second pass in which a file was begun: TensorBoard reads files by their names, and these hold it."""
    while any(path.name.split(".")[3] == f"{int(time.time()):010d}" for path in _event_files(folder)):
        time.sleep(0.02)
