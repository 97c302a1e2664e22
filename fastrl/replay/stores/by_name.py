"""The stores of this package, by name."""

from __future__ import annotations

from typing import Any

from fastrl.replay.stores.compressed import Lz4Store
from fastrl.replay.stores.layout import Nesting, per_array
from fastrl.replay.stores.ram import RamStore
from fastrl.replay.stores.store import MakeStore, Store

STORES: dict[str, MakeStore] = {"ram": RamStore, "lz4": Lz4Store}


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
        If there is no store of a name, or they are nested in another way.
    """
    return per_array(like, store, "store", _maker)


def _maker(store: Any, name: str) -> MakeStore:
    if callable(store):
        return store  # type: ignore[no-any-return]
    if not isinstance(store, str) or store not in STORES:
        raise ValueError(
            f"{name} is {store!r}; give {', '.join(map(repr, STORES))} or a callable that makes a FrameStore"
        )
    return STORES[store]
