"""Pictures of a game on their way into a film and into a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fastrl.film.picture import Picture, PictureError, fit, picture_errors
from fastrl.film.q_bars import Bars

Show = Callable[[Picture], object]
"""Takes a picture [H, W, 3] uint8. What it raises ends the games and reaches the caller."""


class Camera:
    """Films one game, a picture every `every` agent steps up to step `last` (-1: no film), and shows pictures.

    With `bars`, pictures have the Q-values beside them that were last given to `decided`, and the action taken. All
    pictures get the size of the first one. A picture that cannot be taken or drawn ends the film and nothing else.

    Attributes
    ----------
    film : list of [H, W, 3] uint8
        The pictures so far.
    error : PictureError or None
        What ended the film early.
    """

    def __init__(self, every: int, last: int, show: Show | None, bars: bool) -> None:
        self.film: list[Picture] = []
        self.error: PictureError | None = None
        self.films, self.shows = last >= 0, show is not None
        self._every, self._last, self._show, self._wanted = every, last, show, bars
        self._names: Sequence[str] | None = None  # of the actions; None: no bars
        self._bars: Bars | None = None
        self._size: tuple[int, int] | None = None  # of the first picture
        self._values: npt.NDArray[np.floating] | None = None  # [A], of the last decision
        self._action: int | None = None

    def without_film(self) -> Camera:
        """Return a camera that shows pictures as this one does, and films none."""
        return Camera(1, -1, self._show, self._wanted)

    @property
    def on(self) -> bool:
        """Whether pictures are filmed or shown at all."""
        return self.films or self.shows

    def names(self, actions: Sequence[str]) -> None:
        """Take the names of the game's actions, before the first picture."""
        self._names = actions if self._wanted and self.on else None

    def decided(self, values: npt.ArrayLike | None = None, action: int | None = None) -> None:
        """Note what `act` returned, [n, A] with the filmed game first, and the action taken; nothing once it is over.

        Raises ValueError if bars are to be drawn and `act` returned no Q-values.
        """
        if self._names is None:
            return
        if values is not None and np.ndim(values) != 2:
            raise ValueError("bars are asked for, but act returned actions; return Q-values [n, A]")
        self._values, self._action = None if values is None else np.asarray(values)[0], action

    def shoot(self, step: int, picture: Callable[[], Picture]) -> None:
        """Film a picture, if one is due at this agent step and none has failed."""
        if self.error is None and step <= self._last and step % self._every == 0:
            try:
                self.film.append(self._drawn(picture))
            except PictureError as error:
                self.error = error

    def show(self, picture: Callable[[], Picture]) -> None:
        """Show a picture, if there is something to show it on; raise PictureError if there is no picture."""
        if self._show:
            self._show(self._drawn(picture))

    def _drawn(self, picture: Callable[[], Picture]) -> Picture:
        with picture_errors("render()"):
            taken = picture()
        if self._size is None:
            self._size = (taken.shape[0], taken.shape[1])
        taken = fit(taken, *self._size)
        if self._names is None:
            return taken
        with picture_errors("drawing the Q-values"):
            if self._bars is None:
                self._bars = Bars(self._names)
            return self._bars.beside(taken, self._values, self._action)
