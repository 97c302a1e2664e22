"""Pictures: what they are, and how frames and what environments draw become some."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import at_least
from fastrl.base.errors import in_words

Picture = npt.NDArray[np.uint8]
"""[H, W, 3] uint8, red, green, blue."""
CHANNELS = (1, 3, 4)
"""Grey, RGB, RGBA."""


class PictureError(RuntimeError):
    """There is no picture to take or to draw; the message says what came instead, in one line."""


@contextlib.contextmanager
def picture_errors(doing: str) -> Iterator[None]:
    """Turn what other people's code raises inside, an exit included, into a `PictureError` that quotes it."""
    try:
        yield
    except PictureError:
        raise
    except (Exception, SystemExit) as error:
        raise PictureError(f"{doing} raised {in_words(error)}") from error


def to_picture(rendered: Any) -> Picture:
    """Return what an environment's ``render()`` gave as a picture, in memory of its own.

    Parameters
    ----------
    rendered : array_like
        [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels (grey, RGB, RGBA, whose transparency is dropped), or
        several of them, of which the last is taken. Integers from 0 to 255; bool; floats from 0 to 1 or, if one is
        above 1, from 0 to 255. What lies outside is clipped, and NaN is black.

    Returns
    -------
    picture : [H, W, 3] uint8

    Raises
    ------
    PictureError
        For anything else, and for a picture without pixels.
    """
    try:
        array: npt.NDArray[Any] = np.asarray(rendered)
    except Exception as error:  # whatever an object's own conversion raises, or rows of several lengths
        raise _no_picture(type(rendered).__name__) from error
    if array.dtype.kind not in "buif":
        raise _no_picture("None" if rendered is None else type(rendered).__name__)
    found = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 4 and len(array):
        array = array[-1]
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in CHANNELS or not array.size:
        raise _no_picture(found)
    if array.dtype.kind in "bf":
        array = np.nan_to_num(array.astype(np.float64), nan=0.0)
        array = np.rint(array * (255 if array.max() <= 1 else 1))
    picture = np.clip(array[:, :, :3], 0, 255).astype(np.uint8)
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else np.ascontiguousarray(picture)


def _no_picture(found: str) -> PictureError:
    return PictureError(f"render() returned {found}; return a picture [H, W, 3] uint8")


def fit(picture: Picture, height: int, width: int) -> Picture:
    """Return a picture of this size: as large as fits, both axes by one factor, in the middle of black."""
    high, wide = picture.shape[:2]
    if (high, wide) == (height, width):
        return picture
    factor = min(height / high, width / wide)
    rows, columns = max(1, round(high * factor)), max(1, round(wide * factor))
    top, left = (height - rows) // 2, (width - columns) // 2
    whole = np.zeros((height, width, 3), np.uint8)
    whole[top : top + rows, left : left + columns] = picture[
        (np.arange(rows) * high // rows)[:, None], np.arange(columns) * wide // columns
    ]
    return whole


def upscale(frame: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Return [H, W, ...] enlarged to [H * factor, W * factor, ...] by repeating pixels."""
    at_least(1, factor=factor)
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def frame_to_rgb(frame: npt.NDArray[Any], min_height: int = 160) -> Picture:
    """Return a picture of a frame that the agent sees, for games without a screen.

    Parameters
    ----------
    frame : [H, W] or [H, W, 3]
        uint8, or floats from 0 (black) to 1 (white).
    min_height : int
        Smaller frames are enlarged by a whole factor to at least this height or just below it.

    Returns
    -------
    picture : [H * factor, W * factor, 3] uint8
    """
    picture = to_picture(frame)
    return upscale(picture, max(1, min_height // len(picture)))
