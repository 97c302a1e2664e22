"""The folder of a run: its lock, and which of its checkpoints count."""

import json
import subprocess
import sys

import numpy as np
import pytest
from untrained import make_run, small_checkpoint

from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.runs import checkpoints
from fastrl.runs.folder import RunFolder, load_config


def test_a_new_folder_holds_settings_versions_and_the_command(tmp_path):
    config = DQNConfig(game="catch", runs_dir=str(tmp_path), name="a")
    folder = RunFolder.new(config, "catch")
    assert not (tmp_path / "a").exists()
    folder.open(config, new=True)
    try:
        assert load_config(folder) == config
        assert "numpy" in json.loads((folder / "versions.json").read_text())
        assert len((folder / "commands.txt").read_text().splitlines()) == 1
    finally:
        folder.close()
    with pytest.raises(
        ConfigError, match=r"exists already; give another --name, or delete .*, which has no checkpoint"
    ):
        RunFolder.new(config, "catch")


def test_another_process_is_kept_out_until_the_folder_is_closed(tmp_path):
    code = "import sys; from fastrl.runs.folder import RunFolder; RunFolder(sys.argv[1]).lock()"
    folder = RunFolder(tmp_path)
    folder.lock()
    try:
        held = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    finally:
        folder.close()
    assert held.returncode != 0
    assert "which is still running there" in held.stderr
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)


def test_newest_best_and_a_folders_own_name_are_found(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ConfigError, match="the run has none yet"):
        folder.find()
    first = small_checkpoint(tmp_path)
    second = checkpoints.write_checkpoint(tmp_path, "000000000002", {"frames": 2}, {"a": np.arange(3)})
    assert folder.numbered() == [first, second]
    assert folder.find() == second
    assert folder.find("000000000001") == first
    with pytest.raises(ConfigError, match="no checkpoint 'best'; there is 000000000001, 000000000002"):
        folder.find("best")
    best = checkpoints.write_checkpoint(tmp_path, "best", {"frames": 1}, {"a": np.arange(3)})
    assert folder.find("best") == best
    assert folder.numbered() == [first, second]
    folder.prune(1)
    assert folder.numbered() == [second]


@pytest.mark.parametrize("harm", ["truncated", "flipped", "gone"])
@pytest.mark.parametrize("name", ["state.json", "arrays.safetensors", checkpoints.SUMS])
def test_any_harm_to_a_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, name, harm):
    before = small_checkpoint(tmp_path)
    newest = checkpoints.write_checkpoint(tmp_path, "000000000002", {"frames": 2}, {"a": np.arange(3)})
    assert RunFolder(tmp_path).newest_whole() == (newest, [])
    content = bytearray((newest / name).read_bytes())
    if harm == "truncated":
        content = content[: len(content) // 2]
    content[len(content) // 3] ^= harm == "flipped"
    (newest / name).write_bytes(content)
    if harm == "gone":
        (newest / name).unlink()
    found, words = RunFolder(tmp_path).newest_whole()
    assert found == before
    if (name, harm) != ("state.json", "gone"):  # which makes it no checkpoint at all
        assert name in words[0] or name == checkpoints.SUMS  # which may blame another
        assert "resuming from the checkpoint before" in words[0]
        assert "damaged-000000000002" in RunFolder(tmp_path).set_aside(found)[0]
    (before / name).unlink()
    with pytest.raises(ConfigError):
        RunFolder(tmp_path).newest_whole()


def test_what_a_killed_save_left_is_put_in_order(tmp_path):
    folder = small_checkpoint(tmp_path)
    parent = folder.parent
    (parent / ".000000000009.partial").mkdir()
    (parent / ".best.old").mkdir()  # moved away for a new one that never came
    folder.rename(parent / ".000000000001.old")
    RunFolder(tmp_path).recover()
    assert sorted(path.name for path in parent.iterdir()) == ["000000000001", "best"]
    assert RunFolder(tmp_path).newest_whole() == (folder, [])


def test_tidying_up_a_run_that_is_whole_changes_nothing(tmp_path):
    make_run(tmp_path / "run")
    before = sorted((tmp_path / "run").rglob("*"))
    (tmp_path / "run" / ".metrics.csv.1.partial").touch()
    RunFolder(tmp_path / "run").recover()
    RunFolder(tmp_path / "no run").recover()
    assert not (tmp_path / "run" / ".metrics.csv.1.partial").exists()
    assert sorted((tmp_path / "run").rglob("*")) == before
