"""What objects do when their process forks: a child gets neither the threads nor the locks that they hold."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - its handler is registered first, so that it runs after `_before`
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple


class _Watched(NamedTuple):
    owner: weakref.ref[Any]
    before: Callable[[Any], Any] | None
    in_parent: Callable[[Any, Any], None] | None
    in_child: Callable[[Any, Any], None]


class _Ready(NamedTuple):
    """An object that is ready for the fork in progress."""

    owner: Any
    watched: _Watched
    noted: Any  # by `before`


_watched: dict[int, _Watched] = {}
_forks: list[list[_Ready]] = []  # in progress; more than one only if a handler forks
_turn = threading.RLock()  # one thread forks at a time


def watch(
    owner: Any,
    *,
    in_child: Callable[[Any, Any], None],
    before: Callable[[Any], Any] | None = None,
    in_parent: Callable[[Any, Any], None] | None = None,
) -> None:
    """Call functions at each fork of this process from now on, as long as ``owner`` lives.

    Parameters
    ----------
    owner : object
        Not kept alive by this. Watched once, however often this is called.
    in_child : callable
        ``in_child(owner, noted)`` in the child, before its code runs.
    before : callable, optional
        ``before(owner)`` in the parent. What it returns is ``noted`` of the other two; None if it could not return.
    in_parent : callable, optional
        ``in_parent(owner, noted)`` in the parent after the fork, whether or not that succeeded.
    """
    key = id(owner)
    reference = weakref.ref(owner, lambda _: _watched.pop(key, None))
    _watched[key] = _Watched(reference, before, in_parent, in_child)


def _before() -> None:
    _turn.acquire()
    ready: list[_Ready] = []
    _forks.append(ready)
    owners = [(each.owner(), each) for each in list(_watched.values())]
    living = [(owner, each) for owner, each in owners if owner is not None]
    ready += [_Ready(owner, each, None) for owner, each in living]
    for i, (owner, each) in enumerate(living):
        if each.before is not None:
            ready[i] = _Ready(owner, each, each.before(owner))


def _in_parent() -> None:
    for owner, each, noted in reversed(_forks.pop()):
        if each.in_parent is not None:
            each.in_parent(owner, noted)
    _turn.release()


def _in_child() -> None:
    for owner, each, noted in reversed(_forks.pop()):
        each.in_child(owner, noted)
    _turn.release()  # taken by the thread that forked, the one thread of the child


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
