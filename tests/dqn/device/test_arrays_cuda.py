"""Observations of several arrays in what a GPU records, on one that the CPU plays: see `stand_in_cuda`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from stand_in_cuda import errors_of_both

from fastrl.config import PRESETS
from fastrl.dqn.device.store import DeviceStore
from fastrl.dqn.learner import Learner
from fastrl.replay import PrioritizedReplayBuffer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FRAMES, STACK, ACTIONS = {"image": (10, 10), "vector": (3,)}, 2, 4
DTYPES = {"image": np.uint8, "vector": np.float32}
SMALL = PRESETS["cuda"].config.replace(
    trunk="small", hidden=16, batch_size=8, num_envs=8, env_groups=2, precision="float32", target_period_updates=3,
    learning_rate=2.0**-8, torch_threads=1, stack=STACK,
)  # fmt: skip


def frames(rng: np.random.Generator, *axes: int) -> dict[str, np.ndarray]:
    image = rng.integers(0, 256, (*axes, *FRAMES["image"]), np.uint8)
    return {"image": image, "vector": rng.normal(size=(*axes, *FRAMES["vector"])).astype(np.float32)}


def replay(store: Any) -> PrioritizedReplayBuffer:
    rng, n, no = np.random.default_rng(0), 8, np.zeros(8, bool)
    buffer = PrioritizedReplayBuffer(
        capacity=400, num_envs=n, obs_shape=FRAMES, obs_dtype=DTYPES, stack=STACK, n_step=2, seed=1, store=store
    )
    for _ in range(40):
        buffer.add(frames(rng, n), rng.integers(ACTIONS, size=n), rng.normal(size=n), rng.random(n) < 0.1, no)
    return buffer


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("settings", [{}, {"munchausen": True, "head": "iqn", "quantiles": 5, "noisy": True}], ids=str)
def test_recorded_updates_and_actions_read_all_arrays_of_each_call(cuda, settings, on_device):
    config = SMALL.replace(**settings)
    make = partial(
        Learner, obs_shape={name: (STACK, *shape) for name, shape in FRAMES.items()}, obs_dtype=DTYPES,
        num_actions=ACTIONS, seed=1,
    )  # fmt: skip
    gpu, cpu = make(config, device=GPU), make(config.replace(compile=False), device=CPU)
    assert all(hasattr(function, "recorded") for function in (gpu._act, gpu._update))
    here, there = replay("ram"), replay(partial(DeviceStore, device=GPU) if on_device else "ram")
    for got, expected in errors_of_both(gpu, there, cpu, here):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)  # a CPU's images come scaled
    rng, taken = np.random.default_rng(3), set()
    for _ in range(4):
        obs = frames(rng, config.group_size, STACK)
        obs["vector"] *= 100  # large enough for other actions to be best
        actions = gpu.act(obs)
        np.testing.assert_array_equal(actions, cpu.act(obs))
        taken |= set(actions.tolist())
    assert len(taken) > 1
    assert cuda.log["recordings"] == 2
