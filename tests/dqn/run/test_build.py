"""Replays as the settings and this machine allow: where their frames lie, and what a run says of that."""

from __future__ import annotations

import errno
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastrl.base.commands import install_command
from fastrl.base.errors import ConfigError, RunError
from fastrl.base.machine import bytes_in_words
from fastrl.config import DQNConfig
from fastrl.dqn.device.store import DeviceStore
from fastrl.dqn.run import build
from fastrl.dqn.run.replay_plan import BYTES_BESIDE_FRAME
from fastrl.replay import Lz4Store, PrioritizedReplayBuffer, RamStore
from fastrl.replay.saves import segments
from fastrl.replay.stores.mapped import MmapStore

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ENVS = SimpleNamespace(frame_shape=(84, 84), frame_dtype=np.dtype(np.uint8), autoreset="next_step")
FRAME, ROW = 84 * 84, 84 * 84 + BYTES_BESIDE_FRAME
SMALL = 1_000 + BYTES_BESIDE_FRAME  # a row whose frame is compressed
CONFIG = DQNConfig(num_envs=2, env_groups=1, total_frames=4_000, learn_start_steps=50, capacity=1_000)


@pytest.fixture
def free(monkeypatch):
    """Bytes free in both memories, to be set; "GPU" frames go to a store on the CPU, compressed ones take 1,000."""
    sizes = SimpleNamespace(host=10**9, gpu=10**9)
    monkeypatch.setattr(build, "available_bytes", lambda: sizes.host)
    monkeypatch.setattr(build, "gpu_free_bytes", lambda device: sizes.gpu)
    monkeypatch.setattr(build, "compressed_bytes", lambda config: 1_000)
    monkeypatch.setattr(build, "DeviceStore", lambda *shape, device: DeviceStore(*shape, CPU))
    return sizes


def on_device(buffer):
    return isinstance(buffer._store, DeviceStore)


@pytest.mark.parametrize(
    ("device", "where", "store", "words"),
    [
        (CPU, "auto", RamStore, "rows in 6.8 MiB"),
        (CPU, "ram", RamStore, "rows in 6.8 MiB"),
        (CPU, "lz4", Lz4Store, "rows in up to 1.0 MiB, compressed by lz4"),
        (CPU, "mmap", MmapStore, "rows in 23.7 KiB of memory and 6.7 MiB of disk"),
        (CPU, "device", DeviceStore, "rows in 6.8 MiB"),
        (GPU, "auto", DeviceStore, "rows in 6.8 MiB on the GPU"),
        (GPU, "ram", RamStore, "rows in 6.8 MiB of memory"),
        (GPU, "lz4", Lz4Store, "rows in up to 1.0 MiB of memory, compressed by lz4"),
        (GPU, "mmap", MmapStore, "rows in 23.7 KiB of memory and 6.7 MiB of disk"),
        (GPU, "device", DeviceStore, "rows in 6.8 MiB on the GPU"),
    ],
)
def test_frames_lie_where_the_setting_says(free, tmp_path, device, where, store, words):
    config = CONFIG.replace(frame_store=where, runs_dir=str(tmp_path / "runs"))
    buffer, said = build.build_replay(config, ENVS, 0, device)
    assert type(buffer._store) is store
    assert said == f"replay of 1,000 {words}"
    no = np.zeros(2, bool)
    for t in range(20):
        buffer.add(np.full((2, 84, 84), t, np.uint8), np.zeros(2, int), np.zeros(2), no, no)
    buffer.save(tmp_path / "replay")
    drawn = torch.as_tensor(buffer.sample(8).obs)
    again, said = build.load_replay(tmp_path / "replay", config, ENVS, device)
    assert type(again._store) is store
    assert said == f"replay of 1,000 {words}"
    for other in ("ram", "lz4", "mmap", "device"):  # a run may resume with another store
        moved, _ = build.load_replay(tmp_path / "replay", config.replace(frame_store=other), ENVS, device)
        assert torch.equal(torch.as_tensor(moved.sample(8).obs), drawn)
    assert torch.equal(torch.as_tensor(again.sample(8).obs), drawn)
    assert os.listdir(tmp_path) == ["replay"]  # a file of frames has no name


def test_auto_takes_the_gpu_where_the_frames_leave_room_for_the_network(free):
    for gpu, expected in ((1_000 * FRAME * 10 // 6 + 10, True), (1_000 * FRAME * 10 // 6 - 10, False)):
        free.gpu = gpu
        buffer, said = build.build_replay(CONFIG, ENVS, 0, GPU)
        assert on_device(buffer) == expected
    assert said == "replay of 1,000 rows in 6.8 MiB of memory, the GPU having 11.2 MiB free"


def test_a_capacity_that_nobody_gave_adapts_to_the_memory_that_holds_the_frames(free):
    config = CONFIG.replace(capacity=None, frame_store="device")
    free.gpu = 800 * FRAME
    buffer, said = build.build_replay(config, ENVS, 0, GPU)
    assert buffer.settings["capacity"] == 480
    assert said.endswith("on the GPU (what memory allows)")
    free.host = 500 * BYTES_BESIDE_FRAME  # columns and tree lie on the host
    assert build.build_replay(config, ENVS, 0, GPU)[0].settings["capacity"] == 300


def test_on_a_gpu_more_rows_are_chosen_where_its_memory_and_the_disk_of_checkpoints_have_room(free, monkeypatch):
    monkeypatch.setattr(build, "DEFAULT_CAPACITY", 300)
    monkeypatch.setattr(build, "GPU_CAPACITY", 600)
    config = CONFIG.replace(capacity=None)

    def rows(device=GPU, **changes):
        return build.build_replay(config.replace(**changes), ENVS, 0, device)[0].settings["capacity"]

    assert (rows(), rows(frame_store="ram"), rows(CPU), rows(capacity=100)) == (600, 300, 300, 100)
    free.gpu = 450 * FRAME * 10 // 6 + 10
    assert rows() == 450
    free.gpu = 200 * FRAME * 10 // 6
    assert rows() == 300  # in memory
    free.gpu = 10**9
    monkeypatch.setattr(build, "free_disk_bytes", lambda path: 600 * ROW)
    assert (rows(), rows(checkpoint_replay=False)) == (300, 600)


@pytest.mark.parametrize(
    ("device", "changes", "host", "gpu", "message"),
    [
        (CPU, {}, 1000 * SMALL, 0, r"--capacity is 1,000, .*; give 131 or less; 900 would fit with --frame-store lz4$"),
        (CPU, {"frame_store": "ram"}, 1000 * ROW, 0,
         r"--capacity is 1,000, which takes .* [KM]iB free; give 900 or less; 1,000 would fit with --frame-store lz4$"),
        (CPU, {"frame_store": "lz4"}, 1000 * SMALL, 0, r"--capacity is 1,000, .* [KM]iB free; give 900 or less$"),
        (CPU, {"capacity": None}, 200 * SMALL, 0, r"too little .* --num-envs; 120 would fit with --frame-store lz4$"),
        (CPU, {"capacity": None}, 100 * SMALL, 0, r"too little .* --num-envs$"),
        (CPU, {"frame_store": "device"}, 1000 * ROW, 0, r"--capacity is 1,000, .* [KM]iB free; give 900 or less$"),
        (GPU, {"frame_store": "device"}, 10**9, 1000 * FRAME,
         r"--capacity is 1,000, .* [KM]iB free on the GPU; give 900 or less, or .* --frame-store ram$"),
        (GPU, {"frame_store": "device", "capacity": None}, 10**9, 100 * FRAME,
         r"689\.1 KiB of memory are free on the GPU, too little .* --frame-store ram$"),
        (GPU, {}, 1000 * ROW, 0,
         r"--capacity is 1,000, .* [KM]iB free; give 900 or less; 1,000 would fit with --frame-store lz4$"),
    ],
)  # fmt: skip
def test_too_large_a_replay_is_refused_with_a_remedy(free, device, changes, host, gpu, message):
    free.host, free.gpu = host, gpu
    with pytest.raises(ConfigError, match=message):
        build.build_replay(CONFIG.replace(**changes), ENVS, 0, device)


def test_a_file_of_frames_is_on_the_disk_of_the_run_or_above_where_that_will_be(tmp_path, monkeypatch):
    asked, config = [], CONFIG.replace(frame_store="mmap", runs_dir=str(tmp_path / "runs"))

    def store(*shape, path, **options):
        asked.append(path)
        return MmapStore(*shape, path=path, **options)

    monkeypatch.setattr(build, "MmapStore", store)
    build.build_replay(config, ENVS, 0, CPU)
    build.build_replay(config, ENVS, 0, CPU, run_folder=tmp_path / "runs" / "run")
    (tmp_path / "elsewhere").mkdir()
    build.build_replay(config, ENVS, 0, CPU, run_folder=tmp_path / "elsewhere")
    assert asked == [tmp_path, tmp_path, tmp_path / "elsewhere"]


def test_a_disk_without_room_for_the_file_of_frames_is_refused(tmp_path, monkeypatch):
    config, asked = CONFIG.replace(frame_store="mmap"), []

    def free_disk_bytes(path):
        asked.append(path)
        return 1_000 * FRAME

    monkeypatch.setattr(build, "free_disk_bytes", free_disk_bytes)
    with pytest.raises(ConfigError, match=r"--capacity is 1,000, .* free on the run's disk; give 900 or less"):
        build.build_replay(config, ENVS, 0, CPU, run_folder=tmp_path / "run")
    build.build_replay(config.replace(capacity=900), ENVS, 0, CPU, run_folder=tmp_path / "run")
    build.build_replay(CONFIG, ENVS, 0, CPU)  # asks no disk
    assert asked == [tmp_path, tmp_path]


def test_a_file_of_frames_that_cannot_be_made_is_no_damage_of_the_save(tmp_path, monkeypatch):
    PrioritizedReplayBuffer(capacity=1_000, **build._settings(CONFIG, ENVS)).save(tmp_path / "replay")
    config = CONFIG.replace(frame_store="mmap", runs_dir=str(tmp_path))

    def refuses(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuses)
    message = (
        rf"--frame-store is mmap, and {tmp_path} takes no file of 6.7 MiB \(No space left on device\); free some room "
        "or make it writable, or keep the frames in memory with --frame-store auto"
    )
    with pytest.raises(RunError, match=message):
        build.load_replay(tmp_path / "replay", config, ENVS, CPU)
    with pytest.raises(RunError, match=message):
        build.build_replay(config, ENVS, 0, CPU)


def test_a_saved_replay_that_does_not_fit_is_refused(free, tmp_path):
    PrioritizedReplayBuffer(capacity=1_000, **build._settings(CONFIG, ENVS)).save(tmp_path / "replay")
    free.gpu = 1000 * FRAME
    with pytest.raises(ConfigError, match=r"the capacity of .*replay is 1,000, which takes .*on the GPU"):
        build.load_replay(tmp_path / "replay", CONFIG.replace(frame_store="device"), ENVS, GPU)


@pytest.mark.parametrize("capacity", [None, 1_000])
def test_auto_compresses_on_a_cpu_where_plain_frames_do_not_fit_and_says_so(free, tmp_path, capacity):
    config, share = CONFIG.replace(capacity=capacity), 0.9 if capacity else 0.6
    rows = capacity or 1_250
    for host, store in ((rows * ROW, RamStore), (rows * ROW - 100, Lz4Store), (rows * SMALL, Lz4Store)):
        free.host = int(host / share) + 10
        buffer, said = build.build_replay(config, ENVS, 0, CPU)
        assert type(buffer._store) is store
        assert buffer.settings["capacity"] == rows
    assert said.startswith(f"replay of {rows:,} rows in up to {bytes_in_words(rows * SMALL)}, compressed by lz4")
    assert said.endswith(
        f" (plain frames would take {bytes_in_words(rows * ROW)}, and {bytes_in_words(free.host)} are free)"
    )
    buffer.save(tmp_path / "replay")
    assert build.load_replay(tmp_path / "replay", config, ENVS, CPU)[1] == said


def test_where_compressed_frames_do_not_all_fit_either_there_are_fewer_plain_ones(free):
    free.host, config = 1_000 * SMALL, CONFIG.replace(capacity=None, learn_start_steps=10)
    buffer, said = build.build_replay(config, ENVS, 0, CPU)
    assert type(buffer._store) is RamStore
    assert buffer.settings["capacity"] == 600 * SMALL // ROW
    assert said.endswith("(what memory allows; 600 would fit with --frame-store lz4)")
    buffer, said = build.build_replay(config.replace(frame_store="lz4"), ENVS, 0, CPU)
    assert buffer.settings["capacity"] == 600
    assert said == "replay of 600 rows in up to 604.7 KiB, compressed by lz4 (what memory allows)"


def test_without_lz4_there_are_fewer_frames_and_a_word_on_what_it_would_bring(free, monkeypatch):
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    free.host, config = 1_000 * ROW, CONFIG.replace(capacity=None)
    buffer, said = build.build_replay(config, ENVS, 0, CPU)
    assert type(buffer._store) is RamStore
    assert buffer.settings["capacity"] == 600
    assert said.endswith(
        f"(what memory allows; lz4 compresses most games' frames to a quarter or less: {install_command('lz4')})"
    )
    with pytest.raises(ConfigError, match=r"give 900 or less; lz4 compresses .*\[lz4\]'$"):
        build.build_replay(CONFIG, ENVS, 0, CPU)
    with pytest.raises(ImportError, match="needs the extra 'lz4'"):
        build.build_replay(CONFIG.replace(frame_store="lz4"), ENVS, 0, CPU)


@pytest.mark.parametrize(("game", "frame_skip", "least", "most"), [("breakout", 4, 350, 600), ("catch", 1, 50, 90)])
def test_what_compressed_frames_take_is_measured_on_the_game_itself(game, frame_skip, least, most):
    assert 2 * least < build.compressed_bytes(CONFIG.replace(game=game, frame_skip=frame_skip)) < 2 * most


def test_what_disk_checkpoints_need_is_said_and_asked_for(monkeypatch, tmp_path):
    config = CONFIG.replace(total_frames=400_000, checkpoint_every_frames=800)
    buffer, _ = build.build_replay(config.replace(capacity=1_000), ENVS, 0, CPU)
    asked = []

    def free_disk_bytes(path):
        asked.append(path)
        return free

    monkeypatch.setattr(build, "free_disk_bytes", free_disk_bytes)
    monkeypatch.setattr(build, "bytes_beside_replay", lambda config, envs: 1_000)
    monkeypatch.setattr(segments, "PIECE", FRAME)
    rows = 1_000 + 62 + 15 + 250  # what is held, a file of overwritten rows and a small one; and a clock's rows
    need = rows * FRAME + 2 * 1_000 * BYTES_BESIDE_FRAME + 6 * 1_000  # networks of three, best, timed and the next
    run = tmp_path / "run"
    free = need
    assert build.require_disk(config, ENVS, buffer, 0, run, None) == "; up to 9.0 MiB of disk for checkpoints with it"
    free = need - 1
    with pytest.raises(ConfigError, match=rf"{run} needs up to 9.0 MiB of disk .*, 9.0 MiB are free; free some"):
        build.require_disk(config, ENVS, buffer, 0, run, None)
    assert asked == [run, run]
    for name in ("000000000800", "damaged-000000001600"):
        (run / "checkpoints" / name / "replay").mkdir(parents=True)
    (run / "checkpoints" / "damaged-000000001600" / "replay" / "frames").write_bytes(b"x")
    with pytest.raises(ConfigError):
        build.require_disk(config, ENVS, buffer, 0, run, None)
    replay = run / "checkpoints" / "000000000800" / "replay"
    (replay / "frames").write_bytes(b"x")  # what lies there will give way
    build.require_disk(config, ENVS, buffer, 0, run, replay)
    with pytest.raises(ConfigError):  # of a single file nothing can be shared
        build.require_disk(config, ENVS, buffer, 0, run, replay / "frames")
    with monkeypatch.context() as m:  # nor on a file system where a file has one name
        m.setattr(build, "has_hard_links", lambda path: False)
        with pytest.raises(ConfigError):
            build.require_disk(config, ENVS, buffer, 0, run, replay)
    free = (200 + 12 + 200) * FRAME + 2 * 200 * BYTES_BESIDE_FRAME + 3 * 1_000
    build.require_disk(config, ENVS, buffer, config.total_steps - 160, run, None)  # no more rows come
    without = config.replace(checkpoint_replay=False)
    free = 6 * 1_000 - 2  # and two bytes lie there that will give way
    assert build.require_disk(without, ENVS, buffer, 0, run, None) == ""
    free -= 1
    with pytest.raises(ConfigError, match=r"needs up to 5.9 KiB of disk for checkpoints, 5.9 KiB are free; free some"):
        build.require_disk(without, ENVS, buffer, 0, run, None)
    (run / "checkpoints" / "000000000800" / "weights").write_bytes(b"x")  # so a resume needs no more than the run did
    build.require_disk(without, ENVS, buffer, 0, run, None)
