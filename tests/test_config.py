from __future__ import annotations

import json

import pytest

from fastrl import folder
from fastrl.config import PRESETS, ConfigError, DQNConfig, SarsaConfig, preset_for
from fastrl.machine import available_bytes
from fastrl.schedule import linear


def test_a_linear_schedule_goes_straight_and_then_stays():
    assert [linear(1.0, 0.0, 4, step) for step in (-1, 0, 1, 4, 9)] == [1.0, 1.0, 0.75, 0.0, 0.0]
    assert [linear(1.0, 0.2, 0, step) for step in (-1, 0)] == [0.2, 0.2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0; give at least 1"),
        ({"gamma": -0.1}, "--gamma is -0.1; give between 0 and 1"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan; give a finite number above 0"),
        ({"seed": -1}, "--seed is -1; give at least 0"),
        ({"name": ".."}, "--name is '..'"),
    ],
)
def test_a_setting_out_of_range_is_named_with_the_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        DQNConfig(**changes)


def test_presets_are_chosen_by_game_and_device():
    assert preset_for("pong", "cpu").config.game == "pong"
    assert preset_for("pong", "cpu").config.trunk != preset_for("pong", "cuda").config.trunk
    assert preset_for("catch", "cuda") is PRESETS["catch"]


def test_short_runs_shorten_warm_up_and_exploration():
    config = DQNConfig(total_frames=4_000)
    assert (config.total_steps, config.warm_up_steps, config.epsilon_decay_steps) == (1_000, 100, 500)


@pytest.mark.parametrize("config", [DQNConfig(game="pong", capacity=123_456), SarsaConfig(learners=7)])
def test_a_run_folder_gives_its_settings_back(tmp_path, config):
    config = type(config)(**{**vars(config), "runs_dir": str(tmp_path), "name": "x"})
    path = folder.path_for(config, "any")
    assert not path.exists()
    folder.open_run(path, config, new=True)
    assert folder.load_config(path) == config
    assert json.loads((path / "versions.json").read_text())["numpy"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"agent": "dqn", "colour": 1}', '{"agent": "x"}'])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        folder.load_config(tmp_path)


def test_available_memory_is_the_least_of_machine_and_groups(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    inner = groups / "outer" / "inner"
    inner.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  1000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    assert available_bytes(proc, groups) == 1_024_000
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    (groups / "outer" / "memory.max").write_text("900000\n")
    (groups / "outer" / "memory.current").write_text("500000\n")
    (groups / "outer" / "memory.stat").write_text("inactive_file 100000\nanon 3\n")
    assert available_bytes(proc, groups) == 500_000
    assert available_bytes(tmp_path / "none", groups) is None


def test_available_memory_under_the_first_version_of_groups(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "memory" / "job").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("4:memory:/job\n2:cpu:/\n")
    (groups / "memory" / "job" / "memory.limit_in_bytes").write_text("700\n")
    (groups / "memory" / "job" / "memory.usage_in_bytes").write_text("300\n")
    assert available_bytes(proc, groups) == 400
    (groups / "memory" / "job" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert available_bytes(proc, groups) is None
