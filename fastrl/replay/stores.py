"""The stores that come along, by name."""

from __future__ import annotations

from fastrl.replay.compressed import Lz4Store
from fastrl.replay.ram import RamStore
from fastrl.replay.store import MakeStore

STORES: dict[str, MakeStore] = {"ram": RamStore, "lz4": Lz4Store}


def maker(store: str | MakeStore) -> MakeStore:
    """Return what makes a store, given that or its name.

    Raises
    ------
    ValueError
        If there is no store of that name.
    """
    if callable(store):
        return store
    if not isinstance(store, str) or store not in STORES:
        raise ValueError(f"store is {store!r}; give {', '.join(map(repr, STORES))} or what makes a FrameStore")
    return STORES[store]
