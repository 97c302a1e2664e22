"""The stores of this package, by name."""

from __future__ import annotations

from fastrl.replay.stores.compressed import Lz4Store
from fastrl.replay.stores.ram import RamStore
from fastrl.replay.stores.store import MakeStore

STORES: dict[str, MakeStore] = {"ram": RamStore, "lz4": Lz4Store}
MMAP = "mmap"
"""The store that a buffer's folder makes (see `ReplayFolder`)."""


def maker(store: str | MakeStore) -> MakeStore:
    """Return the callable that makes a store, given that callable or the name of a store.

    Raises
    ------
    ValueError
        If there is no store of that name, or it needs a folder.
    """
    if callable(store):
        return store
    if store == MMAP:
        raise ValueError(f"store is {MMAP!r}, but folder is None; give the folder that holds its files")
    if not isinstance(store, str) or store not in STORES:
        names = ", ".join(map(repr, (*STORES, MMAP)))
        raise ValueError(f"store is {store!r}; give {names} or a callable that makes a FrameStore")
    return STORES[store]


def require_mmap(store: str | MakeStore) -> None:
    """Raise ValueError unless this is the store for a buffer with a folder."""
    if store != MMAP:
        raise ValueError(f"folder is given, but store is {store!r}; give store={MMAP!r}, or no folder")
