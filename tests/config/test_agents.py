"""Agents by name: what each sets, and what wins over what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
from untrained import make_run

from fastrl.base.errors import ConfigError
from fastrl.config import AGENTS, PRESETS, AgentName, DQNConfig, custom_preset, with_agent

FIELDS = {field.name for field in dataclasses.fields(DQNConfig)}
ALGORITHM = (
    "head", "double", "dueling", "prioritized", "munchausen", "noisy", "n_step", "n_step_end", "optimizer",
    "average_updates",
)  # fmt: skip
CPU = PRESETS["cpu"].config
WHOLE = {  # what the papers say, by `ALGORITHM`
    "dqn2015": ("expected", False, False, False, False, False, 1, None, "rmsprop", 0),
    "double": ("expected", True, False, False, False, False, 1, None, "rmsprop", 0),
    "dueling": ("expected", True, True, True, False, False, 3, 1, "adam", 0),
    "rainbow": ("c51", True, True, True, False, True, 3, None, "adam", 0),
    "c51": ("c51", False, False, False, False, False, 1, None, "adam", 0),
    "qr-dqn": ("quantile", False, False, False, False, False, 1, None, "adam", 0),
    "iqn": ("iqn", False, False, False, False, False, 1, None, "adam", 0),
    "m-dqn": ("expected", False, False, False, True, False, 1, None, "adam", 0),
}
NUMBERS = {
    "dqn2015": {"trunk": "nature", "hidden": 512, "learning_rate": 2.5e-4, "learning_rate_end": None, "huber_delta": 1},
    "double": {"learning_rate": 2.5e-4, "learning_rate_end": None, "learning_rate_warmup_steps": 0},
    "rainbow": {"atoms": 51, "v_max": 10.0, "alpha": 0.5, "beta_start": 0.4, "beta_end": 1.0, "epsilon_start": 0.0,
                "epsilon_end": 0.0},
    "c51": {"atoms": 51, "v_max": 10.0},
    "iqn": {"quantiles": 64, "huber_delta": 1},
    "qr-dqn": {"quantiles": 200, "huber_delta": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_is_the_whole_algorithm_of_its_name(name):
    config = with_agent(CPU, name)
    assert tuple(getattr(config, field) for field in ALGORITHM) == WHOLE[name]
    for field, value in NUMBERS.get(name, {}).items():
        assert getattr(config, field) == value


@pytest.mark.parametrize("name", AGENTS)
def test_what_was_before_does_not_shine_through(name):
    others = [with_agent(CPU, other) for other in AGENTS]
    for field in set(ALGORITHM) - {"n_step", "n_step_end"}:
        assert len({getattr(with_agent(one, name), field) for one in [CPU, *others]}) == 1, field


def test_the_names_are_those_that_types_and_help_know():
    assert set(get_args(AgentName)) == set(AGENTS)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in ("cpu", "cuda")])
def test_dueling_is_what_every_preset_is_but_those_of_atari(preset):
    config = PRESETS[preset].config
    config = config if config.game == "catch" else config.replace(game="module:make_env")
    assert with_agent(config, "dueling") == config


@pytest.mark.parametrize("trunk", ["nature", "small", "minatar", "vector"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_dueling_is_what_custom_environments_have(device, trunk):
    config = custom_preset("my_module:make_env", device, trunk=trunk, frame_shape=(4, 10, 10)).config
    assert with_agent(config, "dueling") == config
    assert (config.head, config.double, config.munchausen) == ("expected", True, False)


@pytest.mark.parametrize("preset", ["cpu", "cuda"])
def test_dueling_takes_back_head_target_and_trunk_of_the_presets_of_atari(preset):
    config = PRESETS[preset].config
    before = {"head": "expected", "munchausen": False, "double": True, "trunk": "small", "hidden": 256,
              "average_updates": 0}  # fmt: skip
    assert with_agent(config, "dueling") == config.replace(**before)


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_sets_fields_leaves_the_pace_to_the_preset_and_names_its_source(name):
    agent = AGENTS[name]
    set_by_it = agent.settings.keys() | agent.atari.keys()
    assert set_by_it <= FIELDS
    kept = {"num_envs", "batch_size", "samples_per_step", "target_period_updates", "learn_start_steps", "total_frames",
            "epsilon_steps"}  # fmt: skip
    assert not set_by_it & kept
    if agent.settings["optimizer"] == "adam":
        assert with_agent(CPU, name).learning_rate == CPU.learning_rate
    assert any(character.isdigit() for character in agent.source)
    assert all(agent.deviations)


def test_a_trunk_of_atari_games_is_not_forced_on_other_frames():
    for game, preset in (("catch", "catch"), ("my_module:make_env", "cpu")):
        config = with_agent(PRESETS[preset].config.replace(game=game), "dqn2015")
        assert (config.trunk, config.hidden) == (PRESETS[preset].config.trunk, PRESETS[preset].config.hidden)
        assert config.optimizer == "rmsprop"
    assert with_agent(CPU.replace(game="pong"), "dqn2015").trunk == "nature"


def test_what_is_given_wins():
    config = with_agent(CPU, "dqn2015", given=dict.fromkeys(("double", "trunk", "learning_rate")))
    assert (config.double, config.trunk, config.learning_rate) == (CPU.double, CPU.trunk, CPU.learning_rate)
    assert not config.dueling
    assert with_agent(CPU, "qr-dqn", given={"distributional": True}).replace(distributional=True).head == "c51"


def test_a_schedule_of_the_preset_gives_way_to_an_agent_and_one_that_is_given_does_not():
    ten = ((0, 10), (1_000, 3))
    assert with_agent(CPU.replace(n_step_schedule=ten), "c51").n_step_schedule == ()
    assert with_agent(CPU.replace(learning_rate_schedule=((0, 0.1),)), "double").learning_rate_schedule == ()
    kept = CPU.replace(n_step_schedule=ten, gamma_schedule=((0, 0.9),), epsilon_schedule=((0, 0.5),))
    assert with_agent(kept, "dueling").n_step_schedule == ten
    assert with_agent(kept, "c51").gamma_schedule == ((0, 0.9),)
    config = with_agent(CPU, "c51", given={"n_step_schedule": ten}).replace(n_step_schedule=ten)
    assert (config.n_step_schedule, config.head) == (ten, "c51")
    both = with_agent(kept, "c51", given={"n_step_schedule": ten})  # instead of a schedule that is there
    assert (both.n_step_schedule, both.n_step) == (ten, CPU.n_step)
    config = with_agent(CPU, "c51", given={"n_step_schedule": ()}).replace(n_step_schedule=())
    assert (config.n_step, config.n_step_end) == (1, None)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("c52", "did you mean c51?"),
        ("qrdqn", "did you mean qr-dqn?"),
        ("x", "give one of dqn2015, double"),
        (3, "give"),
    ],
)
def test_an_unknown_name_is_answered_with_one_that_there_is(name, remedy):
    with pytest.raises(ConfigError) as error:
        with_agent(CPU, name)
    assert str(error.value).startswith(f"--agent is {name!r}; {remedy}")


def test_the_documents_table_has_every_agent():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    table = page.partition("| agent |")[2].partition("\n\n")[0]
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == list(AGENTS)


# --- through the commands -----------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch):
    """The settings that reached training."""
    pytest.importorskip("envpool")
    from fastrl.dqn import run

    class Trained(Exception):  # noqa: N818 - no error
        pass

    def train(config, *_, **__):
        raise Trained(config)

    monkeypatch.setattr(run, "train", train)

    def reach(call, *args, **kwargs):
        with pytest.raises(Trained) as reached:
            call(*args, **kwargs)
        return reached.value.args[0]

    return reach


def test_the_command_and_python_lay_preset_agent_and_flags_in_this_order(trained, capsys):
    from fastrl import config_for, train

    words = ["breakout", "--device", "cpu", "--n-step", "5", "--agent", "double", "--dueling"]
    config = trained(train.main, words)
    assert "breakout: agent double, 20,000,000 frames; Ctrl-C saves" in capsys.readouterr().out
    expected = with_agent(CPU, "double").replace(device="cpu", n_step=5, dueling=True)
    assert config == expected
    assert trained(train, "breakout", agent="double", device="cpu", n_step=5, dueling=True) == expected
    assert config_for("breakout", "cpu", agent="double", n_step=5, dueling=True) == expected
    assert trained(train, CPU, agent="double", n_step=5, dueling=True, device="cpu") == expected
    said = capsys.readouterr().out
    assert "human level" not in said
    trained(train.main, ["catch", "--agent", "dueling", "--device", "cpu"])
    assert "about a minute" in capsys.readouterr().out  # the preset's own words hold for what it is


def test_an_agent_is_shown_in_help_with_its_settings_as_defaults(capsys):
    pytest.importorskip("envpool")
    from fastrl import train

    with pytest.raises(SystemExit):
        train.main(["breakout", "--device", "cpu", "--agent", "dqn2015", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--agent {dqn2015,double,dueling," in said
    assert "flags win over it (default: dqn2015)" in said
    assert "`rmsprop` is the centred version of Mnih et al. 2015. (default: rmsprop)" in said


def test_cartpole_has_no_agents():
    from fastrl import train

    with pytest.raises(ConfigError, match="--agent is 'c51', and a cartpole run has one algorithm, SARSA; leave"):
        train.main(["cartpole", "--agent", "c51"])


def test_a_resume_refuses_an_agent_that_changes_what_is_saved_and_takes_any_other(tmp_path, trained):
    from fastrl import train

    make_run(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    message = (
        f"--agent c51 would change the network, the optimizer or the priorities of {tmp_path / 'run'} (dueling "
        "True to False, head 'expected' to 'c51', prioritized True to False); leave --agent out, or start a new run"
    )
    for call, args, kwargs in (
        (train.main, (["--resume", str(tmp_path / "run"), "--agent", "c51"],), {}),
        (train, (), {"resume": tmp_path / "run", "agent": "c51"}),
    ):
        with pytest.raises(ConfigError) as error:
            call(*args, **kwargs)
        assert str(error.value) == message
    assert sorted(tmp_path.rglob("*")) == before
    config = trained(train.main, ["--resume", str(tmp_path / "run"), "--agent", "m-dqn", "--dueling", "--prioritized"])
    assert (config.munchausen, config.dueling, config.prioritized) == (True, True, True)


@pytest.mark.parametrize("name", ["dqn2015", "qr-dqn", "iqn", "m-dqn", "dueling"])
def test_an_agent_keeps_its_head_where_c51_is_declined(name):
    from fastrl.train import config_for

    assert config_for("breakout", "cpu", agent=name, distributional=False).head == AGENTS[name].settings.get(
        "head", "expected"
    )
    with pytest.raises(ConfigError, match="--no-distributional is given, and --head is 'c51'; give --head alone"):
        config_for("breakout", "cpu", agent="c51", distributional=False)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_trains_and_resumes(name, tmp_path):
    pytest.importorskip("envpool")
    from fastrl import train

    settings = {
        "compile": False, "device": "cpu", "learn_start_steps": 200, "evaluate_every_frames": 10_000, "films": False,
        "final_episodes": 2, "runs_dir": str(tmp_path), "batch_size": 16, "quiet": True,
    }  # fmt: skip
    run = train("catch", agent=name, total_frames=600, **settings)
    assert run.samples > 0
    assert run.config.optimizer == AGENTS[name].settings["optimizer"]
    again = train(resume=run.folder, total_frames=800, quiet=True)
    assert again.samples > run.samples
