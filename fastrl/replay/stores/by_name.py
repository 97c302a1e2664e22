"""The stores of this package, by name."""

from __future__ import annotations

from fastrl.replay.stores.compressed import Lz4Store
from fastrl.replay.stores.ram import RamStore
from fastrl.replay.stores.store import MakeStore

STORES: dict[str, MakeStore] = {"ram": RamStore, "lz4": Lz4Store}


def maker(store: str | MakeStore) -> MakeStore:
    """Return the callable that makes a store, given that callable or the name of a store.

    Raises
    ------
    ValueError
        If there is no store of that name.
    """
    if callable(store):
        return store
    if not isinstance(store, str) or store not in STORES:
        raise ValueError(
            f"store is {store!r}; give {', '.join(map(repr, STORES))} or a callable that makes a FrameStore"
        )
    return STORES[store]
