"""One ``write()`` to TensorBoard, ``metrics.csv`` and the terminal.

Keys that begin with ``time/`` depend on the clock and differ between two equal runs; all others are equal to
the last bit on a deterministic environment, in the CSV too.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastrl.base.errors import ConfigError
from fastrl.base.extras import extra
from fastrl.base.files import sync
from fastrl.runs.metrics_csv import MetricsCsv
from fastrl.runs.screen import Extras, Silent


class Reporter:
    """Where a run says what happens: TensorBoard, ``metrics.csv`` and the screen.

    Use it as a context manager: it leaves the terminal as it was, also after an error.

    Parameters
    ----------
    folder : Path
        The run's folder; TensorBoard's events and ``metrics.csv`` go there.
    total : int
        Where the run ends, in ``unit``.
    unit : str
        What ``at`` counts everywhere: ``"frames"`` (emulator frames) or ``"steps"`` (agent steps).
    resume : mapping, optional
        Continue from this `state`: rows and events written after it are dropped, so that no curve is double.
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
        with extra("train"):  # here, not above: PyTorch takes seconds to import
            import tensorboard  # noqa: F401 - PyTorch's face of it would not name the extra
            from torch.utils.tensorboard import SummaryWriter

            from fastrl.runs.panel import open_screen
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._csv = MetricsCsv(folder / "metrics.csv", unit, None if resume is None else resume["rows"])
        self._at: int = 0 if resume is None else resume["resume_at"]
        purge = None
        if resume is not None:
            _cut(folder, resume["events"])
            _wait_for_another_second(folder)
            purge = self._at + 1  # for a TensorBoard that has read the later events already
        self._board = SummaryWriter(str(folder), purge_step=purge, flush_secs=10)
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

        Raises
        ------
        ConfigError
            If a key is no text or a value no number; nothing is written then.
        """
        if not values:
            return
        measured = {key: _number(key, value) for key, value in values.items()}
        self._at = at
        self._csv.append(measured, at)
        for key, value in measured.items():
            self._board.add_scalar(key, value, at)
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
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(encoded_image_string=content, height=height, width=width, colorspace=3)
        events: Any = self._board.file_writer
        events.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), at)

    def progress(self, at: int, **shown: float | str) -> None:
        """Renew the picture of how far, how fast and how long still, and the fields given.

        Cheap enough to be called at every step: what is too soon to be seen is not drawn.
        """
        self._at = at
        self._screen.show(at, shown)

    def line(self, text: str) -> None:
        """Print a message; it stays, above what is redrawn."""
        self._screen.line(text)

    @property
    def extras(self) -> Extras:
        """What a panel shows besides; set what you know."""
        return self._screen.extras

    def state(self) -> dict[str, Any]:
        """Return what a resumed reporter needs, JSON-able; what was written is on disk then.

        TensorBoard's writer is lost for good once a write has failed, to a full disk say: then what it wrote before.
        """
        with contextlib.suppress(OSError):  # no event is worth what was learned
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
            if error is None:  # or it would hide the error that is on its way
                raise


class NoReporter(Reporter):
    """Writes nothing and shows nothing: of a learner that is not the first of its run."""

    def __init__(self) -> None:
        self._screen = Silent()

    def write(self, values: Mapping[str, float], at: int) -> None:
        """Do nothing."""

    def histogram(self, tag: str, values: NDArray[Any], at: int) -> None:
        """Do nothing."""

    def image(self, tag: str, gif: Path, at: int) -> None:
        """Do nothing."""

    def progress(self, at: int, **shown: float | str) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def close(self) -> None:
        """Do nothing."""


def _number(key: Any, value: Any) -> float:
    """Return the value of a metric as a float; raise ConfigError if it is not a number or its key is not text."""
    if not isinstance(key, str):
        raise ConfigError(f"a metric has the key {key!r}; give text, as in metrics['mine/name']")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"metric {key!r} is {value!r}; give a number") from None


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
