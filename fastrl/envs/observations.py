"""Observations of custom environments as frames: where their channels are, which are stacks, and what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.errors import ConfigError, RunError
from fastrl.base.extras import extra
from fastrl.envs.step import place

with extra("train"):
    from gymnasium import Space, spaces

Array = npt.NDArray[Any]
COLOURS = (1, 3, 4)
STACK_PIXELS = 36
"""From this size on, four planes before an image are taken for a stack: those of Atari preprocessing are 84 x 84."""


class Observations:
    """How the observations of an environment become frames.

    Parameters
    ----------
    game : str
        Name of the environment, for messages.
    space : gymnasium.Space
        Of one observation.
    wrappers : sequence of str
        Names of the classes that the environment consists of.

    Attributes
    ----------
    frame_shape : tuple of int
        [n] for vectors, [S, n] for stacks of them, [H, W] or [C, H, W] for images. A stack of images, [S, H, W, C] or
        [S, C, H, W], has the channels of all one after another.
    frame_dtype : numpy.dtype
        uint8 where observations are uint8, or bool (as 0 and 255, of which the network makes 0 and 1), else float32.
    images : bool
        Whether frames are images, else vectors.
    stacked : str
        How it is known that observations are stacks already, for a message; empty if they do not look so.

    Raises ConfigError if observations are neither vectors nor images, or an image's channels cannot be told.
    """

    def __init__(self, game: str, space: Space[Any], wrappers: Sequence[str] = ()) -> None:
        self._game = game
        if not isinstance(space, spaces.Box) or not 1 <= len(space.shape) <= 4 or 0 in space.shape:
            raise ConfigError(
                f"environment {game!r} has the observations {space}; give a Box of shape [n], [H, W], [H, W, C] or "
                "[C, H, W] (gymnasium.wrappers.FlattenObservation makes a vector of most others)"
            )
        self._shape, self._dtype = space.shape, np.dtype(space.dtype)
        stackers = [name for name in wrappers if "framestack" in name.lower().replace("_", "")]
        self._axis: int | None = None  # of the channels
        self.frame_shape: tuple[int, ...] = self._shape
        self.images = len(self._shape) > (2 if stackers else 1)
        if len(self._shape) > 2:
            self._axis, self.frame_shape = self._image()
        self.frame_dtype: np.dtype[Any] = np.dtype(np.uint8 if self._dtype in (np.bool_, np.uint8) else np.float32)
        self.stacked = self._stack_words(stackers)
        if self._dtype == np.uint8 and space.high.max() <= 1:
            warnings.warn(
                f"environment {game!r} observes uint8 of at most {space.high.max()}, which the network divides by 255; "
                "make them bool or float32 (gymnasium.wrappers.DtypeObservation)",
                stacklevel=2,
            )

    def frames(self, obs: Any, env_id: Sequence[int] | Array, steps: Array) -> Array:
        """Return observations as fresh frames.

        Parameters
        ----------
        obs : array_like
            [n, *shape of an observation].
        env_id, steps : [n] integers
            The environment of each, and the steps of its episode so far; 0: `reset` returned it.

        Returns
        -------
        [n, *frame_shape] frame_dtype

        Raises
        ------
        RunError
            If shape or dtype are not those of the observation space, or a number is not finite in float32.
        """
        given = _as_array(obs)
        if given.shape != (len(env_id), *self._shape) or not np.can_cast(given.dtype, self._dtype, "same_kind"):
            raise self._misfit(given.dtype, given.shape[1:] if given.ndim else given.shape)
        shown = given
        if self._axis is not None:
            shown = np.moveaxis(shown, self._axis, 1 if len(self._shape) == 3 else 2)
        with np.errstate(over="ignore", invalid="ignore"):
            frames: Array = np.array(shown, self.frame_dtype, order="C").reshape(-1, *self.frame_shape)
            if self._dtype == np.bool_:
                frames *= np.uint8(255)
            # One pass over memory; a sum that overflows by itself costs the second.
            elif self.frame_dtype == np.float32 and not np.isfinite(frames.sum()) and not np.isfinite(frames).all():
                raise self._not_finite(given, env_id, steps)
        return frames

    @contextmanager
    def explained(self, one_by_one: Iterable[Any] | None) -> Iterator[None]:
        """Say of an observation that does not fit its space, if one made the code inside fail, what is wrong with it.

        Parameters
        ----------
        one_by_one : iterable or None
            The newest observation of each environment, where the vector has them before it puts them together. None
            among them: not known.

        Raises
        ------
        RunError
            In place of the error raised inside.
        """
        try:
            yield
        except Exception as error:
            for i, obs in enumerate(one_by_one or ()):
                given = _as_array(obs)
                fits = given.shape == self._shape and np.can_cast(given.dtype, self._dtype, "same_kind")
                if obs is not None and not fits:
                    raise self._misfit(given.dtype, given.shape, f" in environment {i}") from error
            raise

    # --- inside ---------------------------------------------------------------------------------------

    def _image(self) -> tuple[int, tuple[int, ...]]:
        """Return the axis of an image's channels, counted from its end, and the shape of a frame."""
        shape = self._shape[-3:]
        axis = channel_axis(shape)
        if axis is None:
            raise ConfigError(
                f"environment {self._game!r} has observations of shape {list(self._shape)}, whose channels may be the "
                "first axis or the last; pad the images to squares, or make vectors of them "
                "(gymnasium.wrappers.FlattenObservation)"
            )
        channels, image = (shape[-1], shape[:2]) if axis == -1 else (shape[0], shape[1:])
        channels *= self._shape[0] if len(self._shape) == 4 else 1
        return axis if axis == -1 else -3, image if channels == 1 else (channels, *image)

    def _stack_words(self, stackers: list[str]) -> str:
        if stackers:
            return f"{stackers[0]} is among its wrappers"
        if len(self._shape) == 4:
            return f"its observations have the shape {list(self._shape)}"
        first = self._axis == -3 and self._shape[0] == 4
        if first and min(self._shape[1:]) >= STACK_PIXELS and self._dtype != np.bool_:
            return (
                f"its observations have the shape {list(self._shape)}, four planes before an image (channels of one "
                f"image belong behind it: {[*self._shape[1:], 4]})"
            )
        return ""

    def _misfit(self, dtype: np.dtype[Any], shape: tuple[int, ...], where: str = "") -> RunError:
        def words(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
            return f"{dtype} of shape {list(shape)}"

        return RunError(
            f"environment {self._game!r} returned an observation of {words(dtype, shape)}{where}, and its "
            f"observation_space says {words(self._dtype, self._shape)}; let the two agree"
        )

    def _not_finite(self, given: Array, env_id: Sequence[int] | Array, steps: Array) -> RunError:
        """Return the error that names the first number that is not finite in float32."""
        row, *index = (int(i) for i in np.argwhere(~np.isfinite(given.astype(np.float32)))[0])
        value = given[(row, *index)]
        where = place(int(env_id[row]), int(steps[row]))
        remedy = "correct it there" if not np.isfinite(value) else "scale observations down to what float32 holds"
        return RunError(
            f"environment {self._game!r} returned an observation whose {index} is {value:g}, {where}; {remedy}"
        )


def channel_axis(shape: Sequence[int]) -> int | None:
    """Return the axis of the channels of an image of three axes: -1 or 0, or None if it cannot be told.

    Beside two axes of one length it is the third, and the last of three such. Else it is the last, or the first, if
    that holds 1, 3 or 4 channels; else the last, or the first, if that is at most half as long as the others.
    """
    first, middle, last = shape
    if first == middle or middle == last:
        return -1 if first == middle else 0
    for axis in (-1, 0):
        if shape[axis] in COLOURS:
            return axis
    if 2 * last <= min(first, middle):
        return -1
    return 0 if 2 * first <= min(middle, last) else None


def _as_array(obs: Any) -> Array:
    try:
        return np.asarray(obs)
    except ValueError:  # sequences of different lengths
        return np.asarray(None)
