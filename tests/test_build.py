"""Where the frames of a replay lie, and what is said where they do not fit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastrl.config import ConfigError, DQNConfig
from fastrl.dqn import build
from fastrl.dqn.frames import DeviceStore
from fastrl.replay import PrioritizedReplayBuffer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ENVS = SimpleNamespace(frame_shape=(84, 84), frame_dtype=np.dtype(np.uint8))
FRAME, ROW = 84 * 84, 84 * 84 + build.BYTES_BESIDE_FRAME
CONFIG = DQNConfig(num_envs=2, env_groups=1, total_frames=4_000, learn_start_steps=50, capacity=1_000)


@pytest.fixture
def free(monkeypatch):
    """Bytes free in both memories, to be set; "GPU" frames go to a store on the CPU."""
    sizes = SimpleNamespace(host=10**9, gpu=10**9)
    monkeypatch.setattr(build, "available_bytes", lambda: sizes.host)
    monkeypatch.setattr(build, "gpu_free_bytes", lambda device: sizes.gpu)
    monkeypatch.setattr(build, "DeviceStore", lambda *shape, device: DeviceStore(*shape, CPU))
    return sizes


def on_device(buffer):
    return isinstance(buffer._store, DeviceStore)


@pytest.mark.parametrize(
    ("device", "where", "expected", "words"),
    [
        (CPU, "auto", False, "frames in 0.0 GiB"),
        (CPU, "ram", False, "frames in 0.0 GiB"),
        (CPU, "device", True, "frames in 0.0 GiB"),
        (GPU, "auto", True, "frames in 0.0 GiB on the GPU"),
        (GPU, "ram", False, "frames in 0.0 GiB of memory"),
        (GPU, "device", True, "frames in 0.0 GiB on the GPU"),
    ],
)
def test_frames_lie_where_the_setting_says(free, tmp_path, device, where, expected, words):
    config = CONFIG.replace(frame_store=where)
    buffer, said = build.build_replay(config, ENVS, 0, device)
    assert on_device(buffer) == expected
    assert said == f"replay of 1,000 {words}"
    no = np.zeros(2, bool)
    for t in range(20):
        buffer.add(np.full((2, 84, 84), t, np.uint8), np.zeros(2, int), np.zeros(2), no, no)
    buffer.save(tmp_path / "replay")
    again, said = build.load_replay(tmp_path / "replay", config, ENVS, device)
    assert on_device(again) == expected
    assert said == f"replay of 1,000 {words}"
    first, second = torch.as_tensor(buffer.sample(8).obs), torch.as_tensor(again.sample(8).obs)
    assert torch.equal(first, second)


def test_auto_takes_the_gpu_where_the_frames_leave_room_for_the_network(free):
    for gpu, expected in ((1_000 * FRAME * 10 // 6 + 10, True), (1_000 * FRAME * 10 // 6 - 10, False)):
        free.gpu = gpu
        buffer, said = build.build_replay(CONFIG, ENVS, 0, GPU)
        assert on_device(buffer) == expected
    assert said == "replay of 1,000 frames in 0.0 GiB of memory, the GPU having 0.0 GiB free"


def test_a_capacity_that_nobody_gave_adapts_to_the_memory_that_holds_the_frames(free):
    config = CONFIG.replace(capacity=None, frame_store="device")
    free.gpu = 800 * FRAME
    buffer, said = build.build_replay(config, ENVS, 0, GPU)
    assert buffer.settings["capacity"] == 480
    assert said.endswith("on the GPU (what memory allows)")
    free.host = 500 * build.BYTES_BESIDE_FRAME  # columns and tree lie on the host
    assert build.build_replay(config, ENVS, 0, GPU)[0].settings["capacity"] == 300


@pytest.mark.parametrize(
    ("device", "changes", "host", "gpu", "message"),
    [
        (CPU, {}, 1000 * ROW, 0, r"--capacity is 1,000, which takes .* GiB free; give 900 or less$"),
        (CPU, {"frame_store": "device"}, 1000 * ROW, 0, r"--capacity is 1,000, .* GiB free; give 900 or less$"),
        (GPU, {"frame_store": "device"}, 10**9, 1000 * FRAME,
         r"--capacity is 1,000, .* GiB free on the GPU; give 900 or less, or .* --frame-store ram$"),
        (GPU, {"frame_store": "device", "capacity": None}, 10**9, 100 * FRAME,
         r"0\.0 GiB of memory are free on the GPU, too little .* --frame-store ram$"),
        (GPU, {}, 1000 * ROW, 0, r"--capacity is 1,000, which takes .* GiB free; give 900 or less$"),
    ],
)  # fmt: skip
def test_too_large_a_replay_is_refused_with_a_remedy(free, device, changes, host, gpu, message):
    free.host, free.gpu = host, gpu
    with pytest.raises(ConfigError, match=message):
        build.build_replay(CONFIG.replace(**changes), ENVS, 0, device)


def test_a_saved_replay_that_does_not_fit_is_refused(free, tmp_path):
    PrioritizedReplayBuffer(capacity=1_000, **build._settings(CONFIG, ENVS)).save(tmp_path / "replay")
    free.gpu = 1000 * FRAME
    with pytest.raises(ConfigError, match=r"the capacity of .*replay is 1,000, which takes .*on the GPU"):
        build.load_replay(tmp_path / "replay", CONFIG.replace(frame_store="device"), ENVS, GPU)
