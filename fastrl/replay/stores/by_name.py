"""The stores of this package, by name."""

from __future__ import annotations

from typing import Any

from fastrl.replay.stores.compressed import Lz4Store
from fastrl.replay.stores.layout import Nesting, per_array
from fastrl.replay.stores.ram import RamStore
from fastrl.replay.stores.store import MakeStore, Store

STORES: dict[str, MakeStore] = {"ram": RamStore, "lz4": Lz4Store}
MMAP = "mmap"
"""The store that a buffer's folder makes (see `ReplayFolder`)."""


def makers(store: Store, like: Nesting) -> list[MakeStore]:
    """Return the callables that make a store for each array of an observation, given such callables or names.

    Parameters
    ----------
    store : str, callable, or such in a nesting
        One for all, or one for each array.
    like : Nesting
        How observations are nested.

    Raises
    ------
    ValueError
        If there is no store of a name, it needs a folder, or they are nested in another way.
    """
    return per_array(like, store, "store", _maker)


def _maker(store: Any, name: str) -> MakeStore:
    if callable(store):
        return store  # type: ignore[no-any-return]
    nested = name != "store"
    if store == MMAP and nested:
        raise ValueError(f"{name} is {MMAP!r}, but a folder holds all arrays of a row; give store={MMAP!r} and folder")
    if store == MMAP:
        raise ValueError(f"{name} is {MMAP!r}, but folder is None; give the folder that holds its files")
    if not isinstance(store, str) or store not in STORES:
        names = ", ".join(map(repr, STORES if nested else (*STORES, MMAP)))
        raise ValueError(f"{name} is {store!r}; give {names} or a callable that makes a FrameStore")
    return STORES[store]


def require_mmap(store: Store) -> None:
    """Raise ValueError unless this is the store for a buffer with a folder."""
    if store != MMAP:  # a folder holds all arrays of a row
        raise ValueError(f"folder is given, but store is {store!r}; give store={MMAP!r}, or no folder")
