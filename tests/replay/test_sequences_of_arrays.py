"""Stretches of observations of several arrays, with fields of one's own: what buffers of each array alone give."""

from __future__ import annotations

import numpy as np
import pytest

from fastrl.replay import PrioritizedReplayBuffer

N, STEPS, STACKS = 3, 120, {"image": 3, "state": 1}
SHAPES = {"image": (2, 2), "state": (3,)}
DTYPES = {"image": np.uint8, "state": np.float32}
COMMON = {"capacity": N * 40, "num_envs": N, "n_step": 2, "seed": 5, "action_dtype": np.int64}


def buffers(store):
    """A buffer of both arrays with a field, and one of each array alone whose stack is as deep."""
    both = PrioritizedReplayBuffer(
        **COMMON, obs_shape=SHAPES, obs_dtype=DTYPES, stack=STACKS, store=store, extra={"memory": ((2,), np.float64)}
    )
    alone = {
        name: PrioritizedReplayBuffer(**COMMON, obs_shape=SHAPES[name], obs_dtype=DTYPES[name], stack=3, store=store)
        for name in SHAPES
    }
    return both, alone


def fill(both, alone):
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        obs = {name: rng.integers(0, 200, (N, *shape)).astype(DTYPES[name]) for name, shape in SHAPES.items()}
        rest = rng.integers(4, size=N), rng.random(N, np.float32), rng.random(N) < 0.05, np.zeros(N, bool)
        memory = np.stack([np.full(N, step), obs["state"][:, 0]], axis=1).astype(np.float64)
        both.add(obs, *rest, extra={"memory": memory})
        for name, buffer in alone.items():
            buffer.add(obs[name], *rest)


@pytest.mark.parametrize("store", ["ram", "lz4"])
@pytest.mark.parametrize("stacked", [True, False])
def test_each_array_is_what_a_buffer_of_it_alone_gives(store, stacked):
    if store == "lz4":
        pytest.importorskip("lz4.block")
    both, alone = buffers(store)
    fill(both, alone)
    for _ in range(5):
        asked = {"batch_size": 16, "length": 6, "burn_in": 3, "period": 2, "stacked": stacked}
        batch = both.sample_sequences(**asked)
        single = {name: buffer.sample_sequences(**asked) for name, buffer in alone.items()}
        for name in ("action", "reward", "discount", "mask", "index", "weight"):
            assert np.array_equal(getattr(batch, name), getattr(single["image"], name)), name
        assert np.array_equal(batch.obs["image"], single["image"].obs)
        newest = single["state"].obs[:, :, -1:] if stacked else single["state"].obs[:, 2:]
        assert np.array_equal(batch.obs["state"], newest)
        state = batch.obs["state"][:, :-1]
        memory = batch.extra["memory"]
        assert memory.shape == (16, 9, 2)
        assert memory.dtype == np.float64
        first = state[:, :, 0, 0] if stacked else state[:, :, 0]
        assert np.array_equal(memory[..., 1][batch.mask], first[batch.mask])  # the field of the same row
        together = batch.mask[:, 1:] & batch.mask[:, :-1]
        assert (np.diff(memory[..., 0], axis=1)[together] == 1).all()
        both.update_sequence_priorities(batch, np.ones((16, 6)) * 0.5)
        for buffer, drawn in zip(alone.values(), single.values(), strict=True):
            buffer.update_sequence_priorities(drawn, np.ones((16, 6)) * 0.5)


def test_a_batch_that_is_held_keeps_its_arrays():
    both, alone = buffers("ram")
    fill(both, alone)
    held = both.sample_sequences(4, 5)
    before = {name: array.copy() for name, array in held.obs.items()}, held.extra["memory"].copy()
    for _ in range(6):
        both.sample_sequences(4, 5)
    assert all(np.array_equal(held.obs[name], array) for name, array in before[0].items())
    assert np.array_equal(held.extra["memory"], before[1])
