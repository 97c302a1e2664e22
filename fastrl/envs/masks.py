"""Action masks: which actions an environment allows, as its ``info["action_mask"]`` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.errors import RunError
from fastrl.envs.step import place

ACTION_MASK = "action_mask"
"""Key of `info`, and name of the replay's field."""
Mask = npt.NDArray[np.bool_]
_GIVE = "give it in the info of reset() and of every step()"
GIVE_LAST = "give it in info['final_info'] too, for the last observation of an episode that is truncated"


class Masks:
    """Reads the masks of N environments, whose first reset decides whether they give any.

    Parameters
    ----------
    game : str
        Name of the environment, for messages.
    num_envs, num_actions : int
        N and A.

    Attributes
    ----------
    given : bool
        Whether the environments give masks; False before the first reset.
    """

    def __init__(self, game: str, num_envs: int, num_actions: int) -> None:
        self._game, self._shape = game, (num_envs, num_actions)
        self.given = self._begun = False

    def begin(self, info: Any) -> Mask | None:
        """Return the masks of the infos of a reset of all, as `read`; the first one decides whether there are any."""
        if not self._begun:
            self.given, self._begun = bool(_has(info, self._shape[0]).any()), True
        return self.read(info, np.zeros(self._shape[0], np.int64))

    def read(self, info: Any, steps: npt.NDArray[Any], unread: Mask | None = None, remedy: str = _GIVE) -> Mask | None:
        """Return the masks of a vector's infos, [N, A] bool and the caller's own; None if the environments give none.

        Parameters
        ----------
        info : dict
            ``info["action_mask"]`` is [N, A] bool or integers of 0 and 1; ``info["_action_mask"]`` [N] bool, if there,
            says which environments have one.
        steps : [N] integers
            Steps of the episode in which each stands, for messages.
        unread : [N] bool, optional
            Where no action is chosen any more or the environment does not matter: all True there, whatever is given.
        remedy : str
            Where to give a mask that is missing.

        Raises
        ------
        RunError
            If a mask is missing, is no such array or allows no action, or if the first reset gave none and this info
            has one; the message names environment and step.
        """
        if not self.given:
            if isinstance(info, Mapping) and ACTION_MASK in info and (late := _has(info, self._shape[0])).any():
                env = int(np.argmax(late))
                raise RunError(
                    f"environment {self._game!r} gave info['action_mask'] {place(env, int(steps[env]))}, and none in "
                    f"its first reset(); {_GIVE}, or never"
                )
            return None
        there = _has(info, self._shape[0])
        unread = np.zeros_like(there) if unread is None else unread
        if (whole := self._whole(info, there, unread)) is not None:
            return whole
        mask = np.ones(self._shape, np.bool_)
        for i in np.flatnonzero(~unread):
            where = place(int(i), int(steps[i]))
            if not there[i]:
                raise RunError(
                    f"environment {self._game!r} gave no info['action_mask'] {where}, and gave masks before or in "
                    f"other environments; {remedy}, all True where every action is allowed"
                )
            mask[i] = self._one(info[ACTION_MASK][i], where)
        return mask

    def _whole(self, info: Any, there: Mask, unread: Mask) -> Mask | None:
        """Return what `read` returns, if the masks are one array and nothing is wrong; else None."""
        given = info.get(ACTION_MASK) if isinstance(info, Mapping) else None
        if not isinstance(given, np.ndarray) or given.shape != self._shape or given.dtype.kind not in "biu":
            return None
        mask = given.astype(np.bool_)
        right = there & mask.any(axis=1) & (given == mask).all(axis=1)
        if not (right | unread).all():
            return None
        mask[unread] = True
        return mask

    def _one(self, given: Any, where: str) -> npt.NDArray[Any]:
        """Return the mask of one environment, [A] bool; RunError if it is none, or allows nothing."""
        found = np.asarray(given)
        wanted = f"give bools, or integers 0 and 1, of shape [{self._shape[1]}]"
        if found.shape != self._shape[1:] or found.dtype.kind not in "biu":
            raise RunError(
                f"environment {self._game!r} gave an info['action_mask'] of {found.dtype} {list(found.shape)} {where}; "
                f"{wanted}"
            )
        if found.dtype.kind != "b" and ((found != 0) & (found != 1)).any():
            raise RunError(f"environment {self._game!r} gave info['action_mask'] {found.tolist()} {where}; {wanted}")
        if not found.any():
            raise RunError(
                f"environment {self._game!r} gave an info['action_mask'] that allows no action {where}; allow one, or "
                "end the episode there by terminated=True"
            )
        return found.astype(np.bool_)


def _has(info: Any, num_envs: int) -> Mask:
    """Return which environments have a mask in a vector's infos, [N] bool."""
    if not isinstance(info, Mapping) or ACTION_MASK not in info:
        return np.zeros(num_envs, np.bool_)
    return np.asarray(info.get(f"_{ACTION_MASK}", np.ones(num_envs)), np.bool_)


def have_masks(envs: Any) -> bool:
    """Whether environments that were reset give action masks."""
    return bool(getattr(envs, "masked", False))


def only_allowed(values: npt.ArrayLike, mask: Mask) -> npt.NDArray[Any]:
    """Return values [n, A] with -inf where the mask [n, A] bool forbids the action."""
    return np.where(mask, values, -np.inf)


def random_allowed(rng: np.random.Generator, mask: Mask) -> npt.NDArray[np.int64]:
    """Return one of the actions that each row of a mask [n, A] bool allows, [n] int64, all with equal probability."""
    return nth_allowed(mask, rng.integers(mask.sum(axis=1)))


def nth_allowed(mask: Mask, n: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the action of each row of a mask [n, A] bool that has `n` [n] integers allowed ones before it."""
    counted: npt.NDArray[np.int64] = (mask.cumsum(axis=1) > n[:, None]).argmax(axis=1)
    return counted
