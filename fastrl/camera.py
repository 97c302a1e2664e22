"""Pictures of a game on their way to a film and to whoever looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.bars import Bars

Picture = npt.NDArray[np.uint8]
Show = Callable[[Picture], object]
"""Takes a picture [H, W, 3] uint8. What it raises ends the games and reaches the caller."""


class Camera:
    """Films one game, a picture every `every` agent steps up to step `last` (-1: none at all), and shows pictures.

    With `bars` both have beside them what the agent thinks: what was last given to `decided`. `take` does it all; games
    that show more pictures than they film call its three parts.
    """

    def __init__(self, every: int, last: int, show: Show | None, bars: bool) -> None:
        self.film: list[Picture] = []
        self.films, self.shows = last >= 0, show is not None
        self._every, self._last, self._show, self._wanted = every, last, show, bars
        self._bars: Bars | None = None
        self._decision: tuple[Any, int | None] = (None, None)

    def without_film(self) -> Camera:
        """Return one that shows pictures as this one does, and films none."""
        return Camera(1, -1, self._show, self._wanted)

    @property
    def on(self) -> bool:
        """Whether anyone wants pictures."""
        return self.films or self.shows

    def names(self, actions: Sequence[str]) -> None:
        """Take the names of the game's actions, before the first picture."""
        self._bars = Bars(actions) if self._wanted and self.on else None

    def take(
        self, step: int, picture: Callable[[], Picture], values: npt.ArrayLike | None = None, action: int | None = None
    ) -> None:
        """Film and show the picture of an agent step, with what was decided there if the game is not over."""
        self.decided(values, action)
        self.shoot(step, picture)
        self.show(picture)

    def decided(self, values: npt.ArrayLike | None = None, action: int | None = None) -> None:
        """Note the Q-values [n, A] of a decision, the filmed game's first, and the action that it came to; or none."""
        if self._bars is None:
            return
        if values is not None and np.ndim(values) != 2:
            raise ValueError("bars are asked for, but act returned actions; return Q-values [n, A]")
        self._decision = (None if values is None else np.asarray(values)[0], action)

    def shoot(self, step: int, picture: Callable[[], Picture]) -> None:
        """Film a picture, if one is due at this agent step."""
        if step <= self._last and step % self._every == 0:
            self.film.append(self._drawn(picture()))

    def show(self, picture: Callable[[], Picture]) -> None:
        """Show a picture, if anyone looks."""
        if self._show:
            self._show(self._drawn(picture()))

    def _drawn(self, picture: Picture) -> Picture:
        return picture if self._bars is None else self._bars.beside(picture, *self._decision)
