"""What a user's other processes found out already: small JSON files under the user's folder of caches.

A cache may vanish, and may hold anything: what is damaged, of another key, or cannot be read counts as missing, and
what cannot be written is not kept, both without a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastrl.base.files import write_atomically

LARGEST = 1 << 16
"""Bytes of a file that is read; ours are hundreds."""


def cache_folder() -> Path | None:
    """Return this package's folder of caches: in ``XDG_CACHE_HOME``, or in ``~/.cache`` where that is no absolute path.

    None if the user has no home. The folder need not exist.
    """
    place = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(place):
        return Path(place) / "fastrl"
    try:
        return Path.home() / ".cache" / "fastrl"
    except RuntimeError:
        return None


def cached(kind: str, key: Mapping[str, Any]) -> Any:
    """Return what was kept under a key, as JSON gives it back; None if there is nothing to rely on.

    Parameters
    ----------
    kind : str
        The folder: one for each kind of thing.
    key : mapping
        JSON-able; equal keys have equal files.
    """
    path = _path(kind, key)
    try:
        if path is None or not path.is_file() or path.stat().st_size > LARGEST:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found.get("value") if isinstance(found, dict) and found.get("key") == _plain(key) else None


def keep(kind: str, key: Mapping[str, Any], value: Any) -> None:
    """Keep a JSON-able value for `cached`, in one move."""
    path = _path(kind, key)
    if path is not None and (path.is_file() or not os.path.lexists(path)):  # no pipe, which would wait for a reader
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"key": _plain(key), "value": value}, indent=2) + "\n")


def _path(kind: str, key: Mapping[str, Any]) -> Path | None:
    folder = cache_folder()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return folder and folder / kind / f"{name}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    """Return a key as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(key))
