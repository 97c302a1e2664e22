"""The folder of a run: its lock, and which of its checkpoints count."""

import contextlib
import datetime
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from untrained import make_run, small_checkpoint

from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig, SarsaConfig
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


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 11, 26, 2, 30)

    monkeypatch.setattr(datetime, "datetime", Clock)
    config, names = DQNConfig(game="catch", runs_dir=str(tmp_path)), []
    for _ in range(3):
        with contextlib.closing(RunFolder.new(config, "catch")) as folder:
            folder.open(config, new=True)
            names.append(folder.path.name)
    assert names == [f"catch-s1-20261126-023000{number}" for number in ("", "-2", "-3")]


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


def test_the_name_of_a_run_that_is_going_on_names_its_process(tmp_path):
    config = DQNConfig(game="catch", runs_dir=str(tmp_path), name="a")
    with contextlib.closing(RunFolder.new(config, "catch")) as folder:
        folder.open(config, new=True)
        with pytest.raises(ConfigError, match=rf"a belongs to process {os.getpid()} .*, which is still running there"):
            RunFolder.new(config, "catch")
        with pytest.raises(ConfigError, match=r"a belongs to process"):
            RunFolder(tmp_path / "a").open(config, new=True)


def test_no_message_tells_to_delete_the_best_network(tmp_path):
    config = DQNConfig(game="catch", runs_dir=str(tmp_path), name="a")
    (tmp_path / "a").mkdir()
    checkpoints.write_checkpoint(tmp_path / "a", "best", {"frames": 1}, {"a": np.arange(3)})
    with pytest.raises(
        ConfigError, match=r"exists already; give another --name; it has no checkpoint to resume from, but"
    ):
        RunFolder.new(config, "catch")
    assert "delete" not in RunFolder(tmp_path / "a").how_to_resume


def test_newest_best_and_a_folders_own_name_are_found(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ConfigError, match="the run has none yet: wait for the first, or"):
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


# --- resuming -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that was started as ``--runs-dir TMP/runs --name a``."""
    config = DQNConfig(game="catch", runs_dir=str(tmp_path / "runs"), name="a")
    with contextlib.closing(RunFolder.new(config, "catch")) as folder:
        folder.open(config, new=True)
    return folder


def test_a_resume_is_advised_where_there_is_a_checkpoint(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    full, elsewhere = OSError(errno.ENOSPC, "full"), OSError(errno.EACCES, "no", "/elsewhere")
    assert folder.unwritable(elsewhere) is folder.unwritable(ValueError()) is None
    assert str(folder.unwritable(full)) == (
        f"{folder} cannot be written to (No space left on device); free some space, then start anew with another "
        f"--name, or delete {folder}: it has no checkpoint yet"
    )
    small_checkpoint(folder.path)
    assert str(folder.unwritable(full)).endswith(
        f"; free some space, then resume with: python -m fastrl.train --resume {folder}"
    )


def test_a_folder_that_was_moved_is_named_and_not_made_again(tmp_path):
    config = DQNConfig(game="catch", runs_dir=str(tmp_path / "runs"), name="a")
    with contextlib.closing(RunFolder.new(config, "catch")) as folder:
        assert not folder.gone
        folder.open(config, new=True)
        assert not folder.gone
        folder.path.rename(tmp_path / "moved")
        assert folder.gone
        error = FileNotFoundError(errno.ENOENT, "no such file", str(folder / "metrics.csv"))
        assert str(folder.unwritable(error)).startswith(f"{folder} is gone, moved or deleted, and with it what was")
        with pytest.raises(FileNotFoundError):
            small_checkpoint(folder.path)
        assert not folder.path.exists()


def test_the_command_that_resumes_is_quoted_absolute_and_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fastrl", "train"])
    assert RunFolder("my runs/a").resume_command == f"fastrl train --resume '{tmp_path}/my runs/a'"
    assert str(RunFolder("my runs/a")) == "my runs/a"  # where it is only mentioned


def test_a_damaged_run_says_that_no_checkpoint_is_whole(folder):
    one = small_checkpoint(folder.path)
    (one / "state.json").write_bytes(b"x")
    with pytest.raises(ConfigError) as refused:
        folder.newest_whole()
    assert str(refused.value) == (
        f"{folder} has no whole checkpoint: {one}/state.json cannot be read (its checksum is wrong); restore it from a "
        "copy, or start a run of another --name"
    )


def test_a_run_that_is_resumed_keeps_its_own_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = load_config(folder)
    own = [
        known,
        known.replace(runs_dir="runs", name=None),
        known.replace(runs_dir=str(tmp_path / "x" / ".." / "runs")),
    ]
    for config in own:
        with contextlib.closing(RunFolder(folder)) as again:
            assert again.reopen(config.replace(seed=7)) == known.replace(seed=7)
    folder.path.rename(tmp_path / "moved")
    for config in (*own[:2], known.replace(runs_dir=str(tmp_path), name="moved")):
        with contextlib.closing(RunFolder(tmp_path / "moved")) as moved:
            assert moved.reopen(config) == known


@pytest.mark.parametrize(("setting", "value"), [("name", "b"), ("runs_dir", "elsewhere")])
def test_settings_that_name_another_folder_are_refused_at_a_resume(folder, setting, value):
    with pytest.raises(ConfigError) as refused:
        RunFolder(folder).reopen(load_config(folder).replace(**{setting: value}))
    assert str(refused.value) == (
        f"--{setting.replace('_', '-')} is {value!r}, but a resumed run stays in its folder; leave it out, or copy "
        f"{folder} there and resume the copy"
    )
    assert load_config(folder).name == "a"


def test_only_the_folder_of_such_a_run_is_reopened_and_no_other_gets_a_lock(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (empty, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"is no run folder: it has no config\.json; give one that a run made"):
            RunFolder(path).reopen(DQNConfig())
    assert list(empty.iterdir()) == []
    (folder / "lock").unlink()
    with pytest.raises(ConfigError, match=r"is a run of DQNConfig; give settings of that type"):
        RunFolder(folder).reopen(SarsaConfig())
    assert not (folder / "lock").exists()


@pytest.mark.parametrize(
    ("runs_dir", "reason"), [("file", "Not a directory"), ("/proc/nowhere", "No such file"), ("x" * 256, "too long")]
)
def test_a_place_that_takes_no_folder_is_named_before_anything_is_made(tmp_path, monkeypatch, runs_dir, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"--runs-dir is '{runs_dir}', where no folder can be made \(.*{reason}"):
        RunFolder.new(DQNConfig(runs_dir=runs_dir, name="a"), "catch")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_command_of_bytes_that_are_no_text_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "fastrl.train", "catch", "--x", "\udcff ü"])
    config = DQNConfig(game="catch", runs_dir=str(tmp_path), name="ü 🎮")
    with contextlib.closing(RunFolder.new(config, "catch")) as folder:
        folder.open(config, new=True)
    assert b"'\xff \xc3\xbc'" in (folder / "commands.txt").read_bytes()
    assert load_config(folder) == config
