"""Films of a run's evaluations: a thread writes them, and one that fails costs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastrl.base.background import Background
from fastrl.base.errors import in_words
from fastrl.dqn.callbacks import TrainingRun
from fastrl.film import video
from fastrl.film.picture import Picture

MOST_PICTURES = 300
"""Pictures of a film at most."""
FILMED_STEPS = 2 * MOST_PICTURES
"""Agent steps of a film at most, 40 seconds of play. Beyond `MOST_PICTURES` it has every second step."""


class Films:
    """Writes films into a run's folder ``pictures/``, one at a time, in a thread, and then to TensorBoard.

    TensorBoard gets a film in `settle`, in the run's own thread: always at the same step of the run, however long the
    writing takes. Whatever fails is said in one line, once, and the run continues: even a full disk, which ends a run
    as soon as it has something to write that is worth more.

    Attributes
    ----------
    pending : int or None
        Frames that the run had played when it made the film that TensorBoard lacks; a checkpoint keeps this.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._writing: Background[None] | None = None  # None beside a pending film: an earlier process wrote that
        self._warned = False

    def path(self, run: TrainingRun, frames: int) -> Path:
        """Return the file of a film by the frames that the run had played."""
        return run.folder / "pictures" / f"{frames:012d}.gif"

    def start(self, run: TrainingRun, film: Sequence[Picture]) -> None:
        """Start writing a film, made now, once the one before is written."""
        self.settle(run)
        gif = self.path(run, run.frames)
        self.pending = run.frames
        self._writing = Background(lambda: video.write_gif(gif, film, max_pictures=MOST_PICTURES), "fastrl-film")
        self._writing.start()

    def settle(self, run: TrainingRun) -> None:
        """Wait for the film that is being written, if there is one, and hand it to TensorBoard."""
        self.wait()  # may be interrupted: it is pending until then
        writing, frames = self._writing, self.pending
        self._writing = self.pending = None
        if frames is None:
            return
        gif = self.path(run, frames)
        try:
            if writing is not None:
                writing.result()
            elif not gif.exists():  # the process that wrote it was killed, or could not write it and said so
                return
            run.reporter.image("agent", gif, frames)
        except Exception as error:  # of the disk, of Pillow, of TensorBoard
            self.warn(run, f"the film {gif} could not be written ({in_words(error)})")

    def warn(self, run: TrainingRun, why: str) -> None:
        """Say that a film is missing; only the first time."""
        if not self._warned:
            self._warned = True
            run.reporter.line(f"{why}; the run continues without the film; --no-films turns films off")

    def wait(self) -> None:
        """Wait until no thread writes."""
        if self._writing is not None:
            self._writing.wait()

    def give_up(self) -> None:
        """Let `wait` return at once: the film in progress appears whole, or not at all if the process ends."""
        self._writing = None
