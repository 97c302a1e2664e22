"""Q-values beside a picture: a bar and a number for each action, the chosen one marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.extras import extra
from fastrl.film.picture import Picture, upscale

with extra("train"):
    from PIL import Image, ImageDraw, ImageFont

WIDTH = 132
"""Columns that bars add to a picture."""
ROW, WORD, BASELINE = 24, 11, 9
"""Height of a row at most, of a word, and of the part of a word above its baseline."""
WIDEST, MOST_ROWS = 320, 18
"""Columns of a picture beside bars at most, and the actions that it is made high enough for: those of the console."""
GROUND, BAR, CHOSEN, LETTERS = (16, 16, 20), (48, 84, 140), (168, 84, 16), (244, 244, 244)


class Bars:
    """Draws Q-values beside the pictures of a game.

    All bars share one scale, from the lowest to the highest value so far, which only ever grows. They add four colours
    and soften no edges, so that a film of Atari still fits into the 255 colours of a GIF.

    Parameters
    ----------
    names : sequence of str
        Names of the A actions.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._low, self._high = np.inf, -np.inf
        self._font = ImageFont.load_default(10)
        self._words: dict[str, npt.NDArray[np.bool_]] = {}  # drawn before: letters take most of the time

    def beside(
        self, picture: Picture, values: npt.NDArray[np.floating[Any]] | None = None, action: int | None = None
    ) -> Picture:
        """Return a picture with the bars at its right.

        Parameters
        ----------
        picture : [H, W, 3] uint8
            Pictures wider than ``WIDEST`` are shrunk by a whole factor, every k-th pixel of both axes: else the film
            would be shrunk later, letters included. Pictures too low for the words are enlarged by a whole factor.
        values : [A] float, optional
            Q-values; without them, where nothing is decided, the names stand alone.
        action : int, optional
            The action taken, which need not be the best one.

        Returns
        -------
        picture : [H, W + WIDTH, 3] uint8, H and W after shrinking or enlarging
        """
        picture = self._fitted(picture)
        height, width = picture.shape[:2]
        both = np.empty((height, width + WIDTH, 3), np.uint8)
        both[:, :width], both[:, width:] = picture, GROUND
        if values is not None:
            finite = values[np.isfinite(values)].tolist()
            self._low, self._high = min([self._low, *finite]), max([self._high, *finite])
        row = min(ROW, height // len(self._names))
        for number, name in enumerate(self._names):
            value = None if values is None else float(values[number])
            self._draw_row(both[number * row : (number + 1) * row, width:], name, value, number == action)
        return both

    def _fitted(self, picture: Picture) -> Picture:
        """Return a picture that is not too wide and, as far as its width allows, not too low."""
        smaller = -(-picture.shape[1] // WIDEST)
        picture = picture[::smaller, ::smaller]
        height, width = picture.shape[:2]
        needed = WORD * min(len(self._names), MOST_ROWS)
        return upscale(picture, max(1, min(-(-needed // height), WIDEST // width)))

    def _draw_row(self, row: Picture, name: str, value: float | None, chosen: bool) -> None:
        """Draw a bar, a name and a number into ``row [h, WIDTH, 3]``, in a frame if chosen."""
        if chosen:
            row[:] = LETTERS
            row[1:-1, 1:-1] = GROUND
        inside = row[2:-2, 3:-3]
        if value is not None:
            span = self._high - self._low
            share = (value - self._low) / span if span > 0 else float(np.isfinite(value))
            inside[:, : round(share * inside.shape[1]) if np.isfinite(share) else 0] = CHOSEN if chosen else BAR
            self._write(row, f"{value:.2f}", right=True)
        self._write(row, name, right=False)

    def _write(self, row: Picture, text: str, *, right: bool) -> None:
        """Write at one end of a row, in the middle of its height; what does not fit is cut off."""
        if text not in self._words:
            image = Image.new("1", (12 * len(text), WORD))
            ImageDraw.Draw(image).text((0, BASELINE), text, 1, font=self._font, anchor="ls")
            letters: npt.NDArray[np.bool_] = np.asarray(image)
            self._words[text] = letters[:, : np.flatnonzero(letters.any(axis=0)).max(initial=0) + 1]
        top = max(0, (len(row) - WORD + 1) // 2)
        word = self._words[text][: len(row) - top, : WIDTH - 10]
        place = row[top : top + len(word), -5 - word.shape[1] : -5] if right else row[top:, 5 : 5 + word.shape[1]]
        place[: len(word)][word] = LETTERS
