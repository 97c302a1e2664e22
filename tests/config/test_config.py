from __future__ import annotations

import json

import pytest
from untrained import write_settings

from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS, DQNConfig, SarsaConfig, preset_for
from fastrl.dqn.schedules import linear
from fastrl.runs import folder
from fastrl.runs.folder import RunFolder


def test_a_linear_schedule_goes_straight_and_then_stays():
    assert [linear(1.0, 0.0, 4, step) for step in (-1, 0, 1, 4, 9)] == [1.0, 1.0, 0.75, 0.0, 0.0]
    assert [linear(1.0, 0.2, 0, step) for step in (-1, 0)] == [0.2, 0.2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0; give between 1 and 65,536"),
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
    path = RunFolder.new(config, "any")
    assert not path.path.exists()
    write_settings(path, config)
    assert folder.load_config(path) == config
    assert json.loads((path / "versions.json").read_text())["numpy"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"agent": "dqn", "colour": 1}', '{"agent": "x"}'])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        folder.load_config(tmp_path)
