from __future__ import annotations

import json

import pytest
from untrained import write_settings

from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS, DQNConfig, SarsaConfig, preset_for
from fastrl.dqn.pace import Pace
from fastrl.dqn.schedules import linear
from fastrl.runs import folder
from fastrl.runs.folder import RunFolder
from fastrl.train import config_for


def test_a_linear_schedule_goes_straight_and_then_stays():
    assert [linear(1.0, 0.0, 4, step) for step in (-1, 0, 1, 4, 9)] == [1.0, 1.0, 0.75, 0.0, 0.0]
    assert [linear(1.0, 0.2, 0, step) for step in (-1, 0)] == [0.2, 0.2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0; give between 1 and 16,384"),
        ({"gamma": -0.1}, "--gamma is -0.1; give between 0 and 1"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan; give a finite number above 0"),
        ({"seed": -1}, "--seed is -1; give at least 0"),
        ({"name": ".."}, "--name is '..'"),
        (
            {"learning_rate_warmup_steps": 7, "learning_rate_warmup_updates": 9},
            "--learning-rate-warmup-steps is 7 and --learning-rate-warmup-updates is 9; give 0 for one of them",
        ),
    ],
)
def test_a_setting_out_of_range_is_named_with_the_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        DQNConfig(**changes)


def test_distributional_is_another_name_of_a_head():
    assert DQNConfig(distributional=True) == DQNConfig(head="c51")
    assert DQNConfig(distributional=False) == DQNConfig()
    assert DQNConfig(head="c51", distributional=True).replace(head="quantile").head == "quantile"
    assert DQNConfig(head="quantile").replace(distributional=True).head == "c51"
    assert DQNConfig(head="quantile").replace(distributional=False).head == "quantile"


@pytest.mark.parametrize(("head", "distributional", "flag"), [
    ("quantile", True, "--distributional"), ("c51", False, "--no-distributional"),
])  # fmt: skip
def test_two_heads_at_once_are_refused(head, distributional, flag):
    with pytest.raises(ConfigError, match=f"^{flag} is given, and --head is '{head}'; give --head alone$"):
        DQNConfig(head=head, distributional=distributional)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"atoms": 101}, "--atoms is 101, and --head quantile does not read it; give --head c51, or leave it out"),
        ({"width": 2, "trunk": "vector"}, "--width is 2, and --trunk vector does not read it; give --trunk nature or "
         "small or pooled or residual or minatar or impala or impala-pooled or impala-strided, or leave it out"),
        ({"v_max": 20.0}, "--v-max is 20.0, and --head quantile does not read it; give --head c51, or leave it out"),
        ({"quantiles": 8, "head": "expected"},
         "--quantiles is 8, and --head expected does not read it; give --head quantile or iqn, or leave it out"),
        ({"alpha": 0.5, "prioritized": False},
         "--alpha is 0.5, and --no-prioritized does not read it; give --prioritized, or leave it out"),
        ({"head": "c51", "huber_delta": 0.1},
         "--huber-delta is 0.1, and --head c51 does not read it; give --head expected or quantile or iqn, or leave it "
         "out"),
        ({"priority_eps": 0.1, "prioritized": False},
         "--priority-eps is 0.1, and --no-prioritized does not read it; give --prioritized, or leave it out"),
        ({"double": True},
         "--double is given, and --munchausen does not read it; give --no-munchausen, or leave it out"),
        ({"double": False},
         "--no-double is given, and --munchausen does not read it; give --no-munchausen, or leave it out"),
        ({"chunk_steps": 8},
         "--chunk-steps is 8, and --collectors 0 does not read it; give --collectors N, or leave it out"),
        ({"collectors_in_order": True},
         "--collectors-in-order is given, and --collectors 0 does not read it; give --collectors N, or leave it out"),
        ({"ray_address": "auto", "collectors": 0},
         "--ray-address is auto, and --collectors 0 does not read it; give --collectors N, or leave it out"),
        ({"target_period_steps": 9, "target_period_end": None},
         "--target-period-steps is 9, and --target-period-end is not given; give --target-period-end N too, or leave "
         "it out"),
        ({"target_tau": 0.01, "target_period_end": 500},
         "--target-period-end is 500, and --target-tau 0.01 replaces it; leave it out, or give --target-tau 0"),
        ({"target_tau": 0.01, "target_period_updates": 50},
         "--target-period-updates is 50, and --target-tau 0.01 replaces it; leave it out, or give --target-tau 0"),
    ],
)  # fmt: skip
def test_a_flag_that_would_have_no_effect_is_refused(given, told):
    with pytest.raises(ConfigError) as error:
        config_for("breakout", "cpu", **given)
    assert str(error.value) == told


@pytest.mark.parametrize(("name", "value"), [
    ("protocol", "machado"), ("repeat_action_probability", 0.25), ("episodic_life", False), ("fire_reset", True),
    ("full_action_set", True), ("noop_max", 5),
])  # fmt: skip
def test_rules_of_atari_are_refused_for_other_games(name, value):
    with pytest.raises(ConfigError) as refused:
        config_for("catch", "cpu", **{name: value})
    flag = f"--{name.replace('_', '-')}"
    assert str(refused.value) == f"{flag} is {value!r}, a rule of Atari games, and catch is not one; leave it out"
    assert getattr(config_for("pong", "cpu", **{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [("env_threads", 3), ("dephase_steps", 99)])
def test_settings_of_envpool_are_refused_for_custom_environments(name, value):
    config = DQNConfig(game="image_env:make_env", **{name: value})
    with pytest.raises(ConfigError) as refused:
        config.check_read([name])
    flag = f"--{name.replace('_', '-')}"
    assert str(refused.value) == (
        f"{flag} is {value}, which only EnvPool's games read, and image_env:make_env is a custom environment; leave "
        "it out"
    )
    DQNConfig(game="catch", **{name: value}).check_read([name])


def test_settings_of_collectors_are_read_with_collectors():
    given = {"chunk_steps": 8, "weights_every_steps": 900, "collectors_in_order": True, "collector_timeout": 5.0}
    config = config_for("breakout", "cpu", collectors=2, **given)
    assert {name: getattr(config, name) for name in given} == given


def test_double_is_read_without_munchausen():
    assert config_for("breakout", "cpu", munchausen=False, double=True).double
    assert not config_for("catch", "cpu", double=False).double


@pytest.mark.parametrize(
    "given",
    [{"atoms": 101, "head": "c51"}, {"v_max": 20.0, "distributional": True}, {"quantiles": 8, "head": "iqn"},
     {"quantiles": 8}, {"alpha": 0.5}, {"n_step_steps": 9}, {"target_period_steps": 9, "target_period_end": 500},
     {"target_tau": 0.01}],
)  # fmt: skip
def test_a_flag_that_has_an_effect_is_taken(given):
    config = config_for("breakout", "cpu", **given)
    assert all(getattr(config, name) == value for name, value in given.items() if name != "distributional")


def test_presets_are_chosen_by_game_and_device():
    assert preset_for("pong", "cpu").config.game == "pong"
    assert preset_for("pong", "cpu").config.trunk != preset_for("pong", "cuda").config.trunk
    assert preset_for("catch", "cuda") is PRESETS["catch"]


def test_the_preset_of_a_gpu_makes_two_updates_for_each_step_of_a_group():
    config = PRESETS["cuda"].config
    pace = Pace(config.samples_per_step, config.batch_size, warm_up_rows=1)
    pace.added(0, drawable=1)
    for _ in range(3):
        pace.added(config.group_size, drawable=1)
        assert [pace.due() for _ in range(3)] == [True, True, False]


def test_a_warm_up_in_updates_lasts_as_long_as_they_take():
    cpu, gpu = PRESETS["cpu"].config, PRESETS["cuda"].config
    assert cpu.rate_warm_up_steps == 20_000
    assert cpu.replace(learning_rate_warmup_steps=0, learning_rate_warmup_updates=1_250).rate_warm_up_steps == 20_000
    assert gpu.rate_warm_up_steps == 1_250 * 128 / 4
    assert gpu.replace(batch_size=512, samples_per_step=8).rate_warm_up_steps == 1_250 * 512 / 8
    assert DQNConfig().rate_warm_up_steps == 0


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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"agent": "x"}'])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        folder.load_config(tmp_path)


def test_a_config_with_settings_of_another_version_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"agent": "dqn", "colour": 1}')
    with pytest.raises(ConfigError, match=r"config\.json has settings that this version does not know: colour; "):
        folder.load_config(tmp_path)
