"""Files of checkpoints, weights and replays from strangers: no code runs, no path leads away, no size is believed."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from untrained import small_checkpoint

from fastrl.base.errors import ConfigError
from fastrl.dqn import checkpoint
from fastrl.replay import PrioritizedReplayBuffer, ReplayBuffer
from fastrl.replay.saves.archive import INDEX
from fastrl.runs import checkpoints
from fastrl.runs.folder import RunFolder

TERABYTES = 1 << 42


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


READERS = {
    "learner.safetensors": lambda path: checkpoint.load_learner(path.parent),
    "games.safetensors": lambda path: checkpoint.load_games(path.parent),
    "arrays.safetensors": checkpoints.read,
    "weights.safetensors": checkpoint.load_network,
    "state.json": lambda path: checkpoint.load_state(path.parent),
    "replay": PrioritizedReplayBuffer.load,
    "index": lambda path: PrioritizedReplayBuffer.load(path.parent),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_place_of_a_file_runs_no_code(tmp_path, name):
    import torch

    mark = tmp_path / "it ran"
    for content in (pickle.dumps(Bomb(mark)), None):
        if content is None:
            torch.save(Bomb(mark), tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name if name != "index" else "is not a saved replay, or is damaged"):
            READERS[name](tmp_path / name)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # as it would have


def test_a_pickled_array_in_a_replay_runs_no_code(tmp_path):
    path, mark = tmp_path / "replay", tmp_path / "it ran"
    ReplayBuffer(capacity=8, num_envs=1, obs_shape=(2,)).save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith(".npy"))
    with zipfile.ZipFile(path, "w") as archive:
        for other, content in members.items():
            if other != name:
                archive.writestr(other, content)
        with archive.open(name, "w") as member:
            np.lib.format.write_array(member, np.array([Bomb(mark)], object), allow_pickle=True)
    with pytest.raises(ValueError, match="replay is not a saved replay, or is damaged"):
        ReplayBuffer.load(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["learner.safetensors", "games.safetensors", "weights.safetensors"])
def test_a_header_that_claims_terabytes_is_refused_before_memory_is_taken(tmp_path, name):
    header = {
        "__metadata__": {"state": "{}", "format": "2", "network": "{}"},
        "a": {"dtype": "U8", "shape": [TERABYTES], "data_offsets": [0, TERABYTES]},
    }
    text = json.dumps(header).encode()
    (tmp_path / name).write_bytes(struct.pack("<Q", len(text)) + text + bytes(100))
    with pytest.raises(ConfigError, match=f"{name} cannot be read"):
        READERS[name](tmp_path / name)
    (tmp_path / name).write_bytes(struct.pack("<Q", TERABYTES) + text)
    with pytest.raises(ConfigError, match=f"{name} cannot be read"):
        READERS[name](tmp_path / name)


def rewritten(path: Path, change) -> None:
    """Rewrite a saved replay after ``change(members)``."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("setting", ["capacity", "num_envs", "obs_shape", "obs_dtype", "stack", "n_step", "held"])
def test_a_replay_that_claims_terabytes_is_refused(tmp_path, setting, kind):
    path, buffer = tmp_path / "replay", ReplayBuffer(capacity=8, num_envs=1, obs_shape=(2,))
    buffer.add(np.zeros((1, 2), np.uint8), [0], [0.0], [False], [False])
    if kind == "file":
        buffer.save(path)
    else:
        buffer.begin_save(path).write()
    claims = {"obs_shape": [TERABYTES], "obs_dtype": f"V{2**31 - 1}"}

    def claim(members):
        header = json.loads(members["header.json"])
        (header if setting == "held" else header["settings"])[setting] = claims.get(setting, TERABYTES)
        members["header.json"] = json.dumps(header).encode()

    rewritten(path if kind == "file" else path / INDEX, claim)
    with pytest.raises((ValueError, MemoryError)):
        ReplayBuffer.load(path)


def test_a_file_of_frames_that_is_as_long_as_its_index_claims_is_compared_with_the_rows(tmp_path):
    path, buffer = tmp_path / "replay", ReplayBuffer(capacity=8, num_envs=1, obs_shape=(2,))
    buffer.add(np.zeros((1, 2), np.uint8), [0], [0.0], [False], [False])
    buffer.begin_save(path).write()

    def claim(members):
        header = json.loads(members["header.json"])
        header["segments"][0]["end"] = [TERABYTES // 2]
        members["header.json"] = json.dumps(header).encode()

    rewritten(path / INDEX, claim)
    os.truncate(path / "frames-000001", TERABYTES)  # of holes
    with pytest.raises(ValueError, match=r"damaged \(its files hold other frames than its rows need\)"):
        ReplayBuffer.load(path)


def test_a_compressed_member_is_refused(tmp_path):
    path = tmp_path / "replay"
    ReplayBuffer(capacity=8, num_envs=1, obs_shape=(2,)).save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"header.json cannot be so long"):
        ReplayBuffer.load(path)


def test_checksums_name_files_of_their_own_folder_alone(tmp_path):
    folder = small_checkpoint(tmp_path)
    checkpoints.check(folder)
    outside = tmp_path / "secret"
    outside.write_text("of nobody's business")
    for name in ("../../secret", str(outside), "..", ""):
        line = f"{checkpoints._sha256(outside)}  {name}\n"
        (folder / checkpoints.SUMS).write_text((folder / checkpoints.SUMS).read_text().splitlines(True)[0] + line)
        with pytest.raises(ConfigError, match="cannot be read"):
            checkpoints.check(folder)
        checkpoints.seal(folder)


@pytest.mark.parametrize("name", ["../..", "/etc", "a/b", ".."])
def test_a_checkpoint_is_found_in_the_runs_own_folder_alone(tmp_path, name):
    small_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="--checkpoint is"):
        RunFolder(tmp_path).find(name)


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {
        "arrays": {"scalar": np.array(2.5, np.float32), "turned": np.arange(6).reshape(2, 3).T, "no": np.zeros((0, 3))},
        "yes": np.array([True, False]), "text": "ä", "list": [1, 2.5, None], "empty": {}, "nan": float("inf"),
    }  # fmt: skip
    (tmp_path / "state").write_bytes(checkpoints.pack(state))
    again = checkpoints.read(tmp_path / "state")
    arrays = again.pop("arrays")
    for name, array in state.pop("arrays").items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(arrays[name], array)
    assert np.array_equal(again.pop("yes"), state.pop("yes"))
    assert again == state
