"""Small buffers for the tests."""

from __future__ import annotations

import numpy as np

from fastrl.replay import PrioritizedReplayBuffer

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
