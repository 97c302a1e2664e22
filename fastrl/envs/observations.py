"""Observations of custom environments as frames: which arrays they are, where channels are, which are stacks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastrl.base.errors import ConfigError, RunError, in_words
from fastrl.base.extras import extra
from fastrl.envs.foreign import passed
from fastrl.envs.step import place

with extra("train"):
    from gymnasium import Space, spaces

Array = npt.NDArray[Any]
COLOURS = (1, 3, 4)
_told: set[str] = set()  # what was warned of: a run makes an environment several times
STACK_PIXELS = 36
"""From this size on, four planes before an image are taken for a stack: those of Atari preprocessing are 84 x 84."""


def observations_of(game: str, space: Space[Any], wrappers: Sequence[str] = ()) -> Observations | SeveralObservations:
    """Return how the observations in a space become frames; arguments and errors as of these classes."""
    several = isinstance(space, spaces.Dict | spaces.Tuple)
    return SeveralObservations(game, space, wrappers) if several else Observations(game, space, wrappers)


class _Explained(Protocol):
    """What says of an observation why it does not fit, or that it is cast."""

    _game: str

    @property
    def _says(self) -> str:
        """What the observation space says, in words."""

    def misfit(self, obs: Any, where: str) -> RunError | None:
        """Return the error for one observation that does not fit its space, with words on where; None if it does."""

    def casts(self, obs: Any) -> Iterator[str]:
        """Yield for each array of an observation that is cast to the dtype of its space, and may lose by it, words."""

    @contextmanager
    def explained(self, one_by_one: Iterable[Any] | None, steps: Callable[[], Array]) -> Iterator[None]:
        """Say of an observation that does not fit its space, if one made the code inside fail, what is wrong with it.

        Parameters
        ----------
        one_by_one : iterable or None
            The newest observation of each environment, where the vector has them before it puts them together. None
            among them: not known, or what the environment returned.
        steps : callable
            Returns the steps [N] of each one's episode so far.

        Raises
        ------
        RunError
            In place of the error raised inside.
        """
        try:
            yield
        except Exception as error:
            together = passed(error, "gymnasium.vector.utils.space_utils")  # all gave one, be it None
            for i, obs in enumerate(one_by_one or ()):
                if (together or obs is not None) and (misfit := self.misfit(obs, f", {place(i, int(steps()[i]))}")):
                    raise misfit from error
            if together and not one_by_one:  # they came from other processes
                raise RunError(
                    f"environment {self._game!r} returned what is no array of its observation_space "
                    f"({in_words(error)}){_where((), steps())}; return what the space says, {self._says}"
                ) from error
            raise

    def warn_of_casts(self, one_by_one: Iterable[Any] | None) -> None:
        """Warn of observations, as of `explained`, that are cast; once in a process of each array."""
        for obs in one_by_one or ():
            for words in self.casts(obs):
                if words not in _told:
                    _told.add(words)
                    warnings.warn(words, stacklevel=2)


class Observations(_Explained):
    """How the observations of an environment become frames.

    Parameters
    ----------
    game : str
        Name of the environment, for messages.
    space : gymnasium.Space
        Of one observation.
    wrappers : sequence of str
        Names of the classes that the environment consists of.
    place : str
        Where the array stands in an observation of several, as Python writes it: ``['goal'][0]``. A stack of vectors
        then becomes one vector, so that two axes make an image.

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

    def __init__(self, game: str, space: Space[Any], wrappers: Sequence[str] = (), place: str = "") -> None:
        self._game, self._place = game, place
        if not isinstance(space, spaces.Box) or not 1 <= len(space.shape) <= 4 or 0 in space.shape:
            if place:
                raise ConfigError(
                    f"environment {game!r} has {space} as its observation{place}; give a Box of shape [n], [H, W], "
                    "[H, W, C] or [C, H, W], leave it out (gymnasium.wrappers.FilterObservation), or make one vector "
                    "of all (gymnasium.wrappers.FlattenObservation)"
                )
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
        if place and not self.images:
            self.frame_shape = (math.prod(self._shape),)
        self.frame_dtype: np.dtype[Any] = np.dtype(np.uint8 if self._dtype in (np.bool_, np.uint8) else np.float32)
        self.stacked = self._stack_words(stackers)
        if self._dtype == np.uint8 and space.high.max() <= 1:
            warnings.warn(
                f"environment {game!r} observes uint8 of at most {space.high.max()}{place and f' in {place}'}, which "
                "the network divides by 255; make them bool or float32 (gymnasium.wrappers.DtypeObservation)",
                stacklevel=2,
            )

    def frame(self, obs: Any, env_id: int, steps: int) -> Array:
        """Return the observation of one environment as a fresh frame [*frame_shape]; see `frames`."""
        frame: Array = self.frames(_as_array(obs)[None], [env_id], np.array([steps]))[0]
        return frame

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
            where = _where(env_id, steps)
            came = None if obs is None else _in_words(given.dtype, given.shape[1:] if given.ndim else given.shape)
            raise self._misfit(came, where)
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

    def misfit(self, obs: Any, where: str) -> RunError | None:
        """Return the error for one observation that does not fit its space, with words on where; None if it does."""
        given = _as_array(obs)
        fits = given.shape == self._shape and np.can_cast(given.dtype, self._dtype, "same_kind")
        return None if fits else self._misfit(None if obs is None else _in_words(given.dtype, given.shape), where)

    def casts(self, obs: Any) -> Iterator[str]:
        """Yield words on an observation whose dtype may hold more than its space's; numbers in lists have none."""
        if isinstance(obs, np.ndarray | np.generic) and not np.can_cast(obs.dtype, self._dtype, "safe"):
            yield (
                f"environment {self._game!r} returned an observation{self._place} of {obs.dtype}, and its "
                f"observation_space says {self._dtype}, to which it is cast; let the two agree "
                f"(.astype({str(self._dtype)!r}), or dtype={str(self._dtype)!r} where the array is made)"
            )

    # --- inside ---------------------------------------------------------------------------------------

    @property
    def _says(self) -> str:
        return _in_words(self._dtype, self._shape)

    def _image(self) -> tuple[int, tuple[int, ...]]:
        """Return the axis of an image's channels, counted from its end, and the shape of a frame."""
        shape = self._shape[-3:]
        axis = channel_axis(shape)
        if axis is None:
            raise ConfigError(
                f"environment {self._game!r} has observations{self._place} of shape {list(self._shape)}, whose "
                "channels may be the first axis or the last; pad the images to squares, or make vectors of them "
                f"(gymnasium.wrappers.{'TransformObservation' if self._place else 'FlattenObservation'})"
            )
        channels, image = (shape[-1], shape[:2]) if axis == -1 else (shape[0], shape[1:])
        channels *= self._shape[0] if len(self._shape) == 4 else 1
        return axis if axis == -1 else -3, image if channels == 1 else (channels, *image)

    def _stack_words(self, stackers: list[str]) -> str:
        if stackers:
            return f"{stackers[0]} is among its wrappers"
        if len(self._shape) == 4:
            return f"its observations{self._place} have the shape {list(self._shape)}"
        first = self._axis == -3 and self._shape[0] == 4
        if first and min(self._shape[1:]) >= STACK_PIXELS and self._dtype != np.bool_:
            return (
                f"its observations{self._place} have the shape {list(self._shape)}, four planes before an image "
                f"(channels of one image belong behind it: {[*self._shape[1:], 4]})"
            )
        return ""

    def _misfit(self, came: str | None, where: str) -> RunError:
        """Return the error for an observation of a dtype and shape in words; None: for None in its place."""
        what = f"None as the observation{self._place}" if came is None else f"an observation{self._place} of {came}"
        return RunError(
            f"environment {self._game!r} returned {what}{where}, and its observation_space says "
            f"{self._says}; {'return such an array' if came is None else 'let the two agree'}"
        )

    def _not_finite(self, given: Array, env_id: Sequence[int] | Array, steps: Array) -> RunError:
        """Return the error that names the first number that is not finite in float32."""
        row, *index = (int(i) for i in np.argwhere(~np.isfinite(given.astype(np.float32)))[0])
        value = given[(row, *index)]
        where = place(int(env_id[row]), int(steps[row]))
        remedy = "correct it there" if not np.isfinite(value) else "scale observations down to what float32 holds"
        return RunError(
            f"environment {self._game!r} returned an observation{self._place} whose {index} is {value:g}, {where}; "
            f"{remedy}"
        )


class SeveralObservations(_Explained):
    """How observations of several arrays become frames: dicts of arrays by name, whatever they are nested in.

    An array of a ``Dict`` in a ``Dict`` has both names, joined by a dot; those of a ``Tuple`` are numbered from 0.
    Arguments, attributes and methods are those of `Observations`; shapes, dtypes and frames are dicts, in the order of
    their names.

    Raises ConfigError as `Observations` for each array, and if there are none or two of one name.
    """

    def __init__(self, game: str, space: Space[Any], wrappers: Sequence[str] = ()) -> None:
        self._game = game
        self._paths: dict[str, tuple[Any, ...]] = {}
        self._arrays: dict[str, Observations] = {}
        for path, part in _leaves(space):
            name = ".".join(map(str, path))
            if name in self._arrays:
                raise ConfigError(
                    f"environment {game!r} has two observations of the name {name!r}, {_place(self._paths[name])} and "
                    f"{_place(path)}; rename one"
                )
            self._arrays[name], self._paths[name] = Observations(game, part, wrappers, _place(path)), path
        if not self._arrays:
            raise ConfigError(f"environment {game!r} has the observations {space}; give a Dict or Tuple of Boxes")
        self.frame_shape = {name: array.frame_shape for name, array in self._arrays.items()}
        self.frame_dtype = {name: array.frame_dtype for name, array in self._arrays.items()}
        self.images = any(array.images for array in self._arrays.values())
        self.stacked = next((array.stacked for array in self._arrays.values() if array.stacked), "")

    def frame(self, obs: Any, env_id: int, steps: int) -> dict[str, Array]:
        """Return the observation of one environment as fresh frames."""
        where = partial(_where, [env_id], np.array([steps]))
        return {name: array.frame(self._part(name, obs, where), env_id, steps) for name, array in self._arrays.items()}

    def frames(self, obs: Any, env_id: Sequence[int] | Array, steps: Array) -> dict[str, Array]:
        """Return observations, nested as their space and with [n, *shape] arrays inside, as fresh frames."""
        where = partial(_where, env_id, steps)
        return {name: array.frames(self._part(name, obs, where), env_id, steps) for name, array in self._arrays.items()}

    def misfit(self, obs: Any, where: str) -> RunError | None:
        """Return the error for one observation that does not fit its space, with words on where; None if it does."""
        for name, array in self._arrays.items():
            try:
                misfit = array.misfit(self._part(name, obs, lambda: where), where)
            except RunError as error:
                return error
            if misfit:
                return misfit
        return None

    def casts(self, obs: Any) -> Iterator[str]:
        """Yield words on each array of an observation that is cast."""
        for name, array in self._arrays.items():
            yield from array.casts(self._part(name, obs, str))

    @property
    def _says(self) -> str:
        return ", ".join(f"{_place(self._paths[name])} {array._says}" for name, array in self._arrays.items())

    def _part(self, name: str, obs: Any, where: Callable[[], str]) -> Any:
        """Return an array of an observation, as it was given; ``where`` says of which, for an error."""
        if obs is None:
            raise RunError(
                f"environment {self._game!r} returned None as the observation{where()}, and its observation_space says "
                f"{self._says}; return such arrays"
            )
        part = obs
        for key in self._paths[name]:
            try:
                part = part[key]
            except (KeyError, IndexError, TypeError):
                raise RunError(
                    f"environment {self._game!r} returned an observation without {_place(self._paths[name])}{where()}, "
                    "and its observation_space has one; let the two agree"
                ) from None
        return part


def _leaves(space: Space[Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Space[Any]]]:
    """Yield the spaces of all arrays, and the keys on the way to each; those of a Dict in the order of their names."""
    if isinstance(space, spaces.Dict):
        for key in sorted(space.spaces, key=str):
            yield from _leaves(space.spaces[key], (*path, key))
    elif isinstance(space, spaces.Tuple):
        for i, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, i))
    else:
        yield path, space


def _where(env_id: Sequence[int] | Array, steps: Array) -> str:
    """Return words on where observations come from: one environment, or all of a vector side by side."""
    if len(env_id) == 1:
        return f", {place(int(env_id[0]), int(steps[0]))}"
    return f", in {'a step' if np.any(steps) else 'reset()'} of all environments"


def _in_words(dtype: np.dtype[Any], shape: Sequence[int]) -> str:
    return f"{dtype} of shape {list(shape)}"


def _place(path: Sequence[Any]) -> str:
    return "".join(f"[{key!r}]" for key in path)


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
