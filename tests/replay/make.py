"""Small buffers for the tests."""

from __future__ import annotations

import copy
import json
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest

from fastrl.replay import Batch, PrioritizedReplayBuffer, RamStore

NO = np.zeros(2, bool)


def small(**changes):
    settings = {
        "capacity": 40, "num_envs": 2, "obs_shape": (3,), "stack": 2, "n_step": 1, "gamma": 0.5, "seed": 0,
    } | changes  # fmt: skip
    return PrioritizedReplayBuffer(**settings)


def filled(steps=12, **changes):
    buffer = small(**changes)
    dtype = np.dtype(buffer.settings["obs_dtype"])
    for t in range(steps):
        frames = np.full((2, *buffer.settings["obs_shape"]), t).astype(dtype)
        buffer.add(frames, np.array([t, -t]), np.array([t, 10 * t]), NO, NO)
    return buffer


def step(t=12, **changes):
    """What the next call of `add` gets after `filled`, but for ``changes``."""
    return {
        "obs": np.full((2, 3), t, np.uint8), "action": np.array([t, -t]), "reward": np.array([t, 10.0 * t]),
        "terminated": NO, "truncated": NO,
    } | changes  # fmt: skip


def frames_of(buffer):
    """Return all frames of a buffer, whatever its stores, as bytes ``[slots, …]``."""
    slots = np.arange(buffer._tree.capacity)
    parts = []
    for store, field in zip(buffer._stores, buffer._layout.fields, strict=True):
        if isinstance(store, RamStore):
            frames = store.frames
        else:
            frames = store.empty((len(slots), 1, *field.shape))
            store.gather(slots[None, :, None], frames)
        parts.append(frames.reshape(len(slots), -1).view(np.uint8))
    return np.concatenate(parts, axis=1)


def snapshot(buffer):
    """Copy all that a buffer is: rings, tree, frames, counters, settings and generator."""
    ring = {f"ring.{name}": value for name, value in vars(buffer._ring).items() if name not in ("_changed", "_rings")}
    rest = {
        "nodes": buffer._tree._nodes, "frames": frames_of(buffer),
        "drawable": buffer.drawable, "new_weight": buffer._new_weight, "settings": buffer.settings,
        "max_priority": getattr(buffer, "max_priority", None), "in_flight": buffer._prefetcher.in_flight,
        "generator": buffer._rng.bit_generator.state,
    }  # fmt: skip
    return copy.deepcopy(ring | rest)


@contextmanager
def refused(buffer, message, error=ValueError):
    """Expect an error that leaves nothing behind: the buffer is as it was, to the bit, and whole."""
    before = snapshot(buffer)
    with pytest.raises(error, match=message):
        yield
    after = snapshot(buffer)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert np.array_equal(value, after[name]), name
    buffer.check()


def go_on_alike(one, other, steps=30):
    """Check that two buffers take the same rows and draw the same batches from now on."""
    for t in range(20, 20 + steps):
        for buffer in (one, other):
            buffer.add(**step(t % 250))
        first, second = one.sample(5), other.sample(5)
        for name in Batch.__slots__:
            assert np.array_equal(getattr(first, name), getattr(second, name)), name
        for buffer in (one, other):
            buffer.check()


def header_of(path):
    """Return the header of a saved replay, or of an index."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("header.json"))


def altered(path, change):
    """Rewrite a saved replay with valid checksums, after ``change(header, arrays)``."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members["header.json"])
    arrays = {}
    for name in [name for name in members if name.endswith(".npy")]:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member)
    change(header, arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=True)
        if "frames" in members:  # an index has none
            archive.writestr("frames", members["frames"])
