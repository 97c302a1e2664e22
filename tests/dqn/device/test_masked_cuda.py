"""Action masks in what a GPU records, on one that the CPU plays: see `stand_in_cuda`."""

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
from fastrl.envs.masks import ACTION_MASK
from fastrl.replay import PrioritizedReplayBuffer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
IMAGE, ACTIONS = (1, 36, 36), 4
SMALL = PRESETS["cuda"].config.replace(
    trunk="small", hidden=16, batch_size=8, num_envs=8, env_groups=2, precision="float32", target_period_updates=3,
    learning_rate=2.0**-8, torch_threads=1, stack=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def the_cpu_goes_by_the_eager_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "_fast_trunk", lambda *_: None)


def replay(store: Any) -> PrioritizedReplayBuffer:
    """Return a replay of images in a store, with masks that change from row to row."""
    rng, n, no = np.random.default_rng(0), 8, np.zeros(8, bool)
    buffer = PrioritizedReplayBuffer(
        capacity=400, num_envs=n, obs_shape=IMAGE[1:], n_step=2, seed=1, store=store,
        extra={ACTION_MASK: ((ACTIONS,), bool)}, next_extra=(ACTION_MASK,),
    )  # fmt: skip
    for _ in range(40):
        mask = rng.random((n, ACTIONS)) < 0.5
        mask[np.arange(n), rng.integers(ACTIONS, size=n)] = True
        frames, reward = rng.integers(0, 256, (n, *IMAGE[1:]), np.uint8), rng.normal(size=n).astype(np.float32)
        buffer.add(frames, mask.argmax(axis=1), reward, rng.random(n) < 0.1, no, extra={ACTION_MASK: mask})
    return buffer


@pytest.mark.parametrize(
    "settings", [{}, {"double": False}, {"munchausen": True}, {"head": "iqn", "quantiles": 5, "noisy": True}], ids=str
)
def test_recorded_updates_and_actions_read_the_masks_of_each_call(cuda, settings):
    config = SMALL.replace(**settings)
    make = partial(Learner, obs_shape=IMAGE, obs_dtype=np.uint8, num_actions=ACTIONS, seed=1, masked=True)
    gpu, cpu = make(config, device=GPU), make(config.replace(compile=False), device=CPU)
    assert all(hasattr(function, "recorded") for function in (gpu._act, gpu._update))
    here, there = replay("ram"), replay(partial(DeviceStore, device=GPU))
    for got, expected in errors_of_both(gpu, there, cpu, here):
        np.testing.assert_array_equal(got, expected)
    obs = np.random.default_rng(3).integers(0, 256, (config.group_size, *IMAGE), np.uint8)
    taken = set()
    for k in range(ACTIONS):
        mask = np.ones((config.group_size, ACTIONS), bool)
        mask[:, k] = False
        actions = gpu.act(obs, mask)
        np.testing.assert_array_equal(actions, cpu.act(obs, mask))
        assert (actions != k).all()
        taken |= set(actions.tolist())
    assert len(taken) > 1
    assert cuda.log["recordings"] == 2
