"""The record of a run's settings in its config.json: written in one format, read in each that there was."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS, DQNConfig, SarsaConfig, from_record, lift, read_record, to_record

HERE = Path("runs/x/config.json")


@pytest.mark.parametrize(
    ("config", "kind"),
    [(PRESETS["catch"].config, "dqn"), (DQNConfig(protocol="machado", noop_max=3), "dqn"), (SarsaConfig(), "sarsa")],
)
def test_a_record_says_format_and_kind_and_gives_the_settings_back(config, kind):
    record = json.loads(json.dumps(to_record(config)))
    assert list(record.items())[:2] == [("format", 2), ("kind", kind)]
    assert from_record(lift(record, HERE), HERE) == config


@pytest.mark.parametrize("config", [PRESETS["cpu"].config, SarsaConfig(learners=7)])
def test_a_record_of_format_1_is_lifted(config):
    newest = to_record(config)
    first = {"agent": newest["kind"]} | {name: newest[name] for name in newest if name not in ("format", "kind")}
    before = dict(first)
    assert lift(first, HERE) == newest
    assert first == before
    assert from_record(lift(first, HERE), HERE) == config


def test_settings_that_a_record_lacks_have_their_defaults():
    assert from_record(lift({"agent": "dqn", "seed": 3}, HERE), HERE) == DQNConfig(seed=3)


@pytest.mark.parametrize(("before", "head"), [(True, "c51"), (False, "expected")])
def test_a_record_of_before_heads_had_names_gets_one(before, head):
    record = {"format": 2, "kind": "dqn", "distributional": before}
    config = from_record(lift(record, HERE), HERE)
    assert config == DQNConfig(head=head)
    assert "distributional" not in to_record(config)
    assert from_record(to_record(config), HERE) == config


def test_a_newer_format_is_refused_with_file_format_and_remedy(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_record(DQNConfig()) | {"format": 3}))
    with pytest.raises(ConfigError) as refused:
        read_record(path)
    assert str(refused.value) == (
        f"{path} has format 3, and this version reads formats 1 to 2; install the version of fastrl that made the run, "
        "or a newer one"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "2"}, "its format is '2'"),
        ({"format": 0}, "its format is 0"),
        ({"format": True}, "its format is True"),
        ({"kind": "a2c"}, "its kind is 'a2c', not dqn or sarsa"),
        ({"kind": None}, "its kind is None, not dqn or sarsa"),
        ({"kind": ["dqn"]}, "its kind is ['dqn'], not dqn or sarsa"),
    ],
)
def test_what_no_version_wrote_is_named(changes, reason):
    with pytest.raises(ConfigError) as refused:
        from_record(lift(to_record(DQNConfig()) | changes, HERE), HERE)
    assert str(refused.value) == f"{HERE} is damaged ({reason}); restore it from a copy"


def test_settings_of_a_newer_version_are_named_with_the_remedy():
    with pytest.raises(ConfigError) as refused:
        from_record(lift(to_record(DQNConfig()) | {"hue": 1, "colour": 2}, HERE), HERE)
    assert str(refused.value) == (
        f"{HERE} has settings that this version does not know: colour, hue; install the version of fastrl that made "
        "the run, or a newer one, or restore the file from a copy"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch_size": "64"}, "--batch-size is '64'; give a whole number"),
        ({"batch_size": None}, "--batch-size is None; give a whole number"),
        ({"compile": "no"}, "--compile is 'no'; give True or False"),
        ({"fire_reset": 1}, "--fire-reset is 1; give True or False"),
        ({"runs_dir": 5}, "--runs-dir is 5; give text"),
        ({"game": ["catch"]}, "--game is ['catch']; give text"),
        ({"gamma": True}, "--gamma is True; give a number"),
        ({"optimizer": 3}, "--optimizer is 3; give adam or rmsprop"),
        ({"total_frames": 10**24}, f"--total-frames is {10**24}; give at most 9,223,372,036,854,775,807"),
    ],
)
def test_a_value_that_no_run_can_have_is_named_with_its_file(changes, reason):
    with pytest.raises(ConfigError) as refused:
        from_record(to_record(DQNConfig()) | changes, HERE)
    assert str(refused.value) == f"{HERE}: {reason}; correct it in the file, or restore the file from a copy"


def test_numbers_of_numpys_are_recorded_as_pythons():
    config = DQNConfig(num_envs=np.int64(8), gamma=np.float32(0.5), seed=np.uint8(3))
    record = json.loads(json.dumps(to_record(config)))
    assert (record["num_envs"], record["gamma"], record["seed"]) == (8, 0.5, 3)


def test_numbers_of_numpys_become_pythons_in_the_settings():
    config = DQNConfig(batch_size=np.int64(8), samples_per_step=np.float32(2), seed=np.int64(4))
    assert [type(value) for value in (config.batch_size, config.samples_per_step, config.seed)] == [int, float, int]
    assert config == DQNConfig(batch_size=8, samples_per_step=2.0, seed=4)
    config = SarsaConfig(seed=np.int64(4), episodes=np.int32(7))
    assert [type(value) for value in (config.seed, config.episodes)] == [int, int]


@pytest.mark.parametrize(
    "given",
    [
        {"compile": np.bool_(False), "total_frames": np.array(300), "gamma": np.longdouble("0.5")},
        {"compile": np.array(False), "total_frames": np.uint64(300), "gamma": Fraction(1, 2)},
    ],
)
def test_whatever_is_one_number_or_truth_value_becomes_pythons(given):
    config = DQNConfig(**given)
    assert config == DQNConfig(compile=False, total_frames=300, gamma=0.5)
    assert [type(getattr(config, name)) for name in given] == [bool, int, float]
    json.dumps(to_record(config))


def test_schedules_are_recorded_as_lists_and_read_back():
    config = DQNConfig(n_step_schedule=[(np.int64(0), 10), [5, 3]], gamma_schedule=((0, np.float32(0.5)),))
    assert config.n_step_schedule == ((0, 10), (5, 3))
    record = json.loads(json.dumps(to_record(config)))
    assert (record["n_step_schedule"], record["gamma_schedule"]) == ([[0, 10], [5, 3]], [[0, 0.5]])
    assert from_record(record, HERE) == config


def test_a_folder_inside_a_run_leads_to_the_run(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read_record(tmp_path / "checkpoints" / "best" / "config.json")
    assert str(refused.value).endswith(f"is no run folder: it has no config.json; it lies in one: give {tmp_path}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff\xfe"])
def test_a_file_without_a_record_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"config\.json is damaged \(.*\); restore it from a copy"):
        read_record(path)


def test_a_folder_without_the_file_is_no_run_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run folder: it has no config\.json; give one that a run made"):
        read_record(tmp_path / "config.json")


def test_format_1_may_hold_a_whole_number_as_a_float():
    lifted = lift({"agent": "dqn", "evaluate_every_frames": 1_000_000.0, "gamma": 1.0}, HERE)
    assert from_record(lifted, HERE) == DQNConfig(evaluate_every_frames=1_000_000, gamma=1.0)
    assert isinstance(lifted["gamma"], float)


@pytest.mark.parametrize("fields", [{"name": 5}, {"protocol": ["x"]}, {"seed": "1"}, {"gamma": None}])
def test_a_value_of_another_type_is_named(fields):
    with pytest.raises(ConfigError, match=rf"{next(iter(fields))}|config\.json is damaged"):
        from_record({"kind": "dqn", **fields}, HERE)
