"""A run says and records what it computes with, and a resume takes it from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from number_run import rows
from quick_run import QUICK, start

from fastrl import train
from fastrl.config import PRESETS, with_agent
from fastrl.dqn import tune
from fastrl.dqn.tune import Choice, Measured
from fastrl.runs.folder import RunFolder, load_dqn_config

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
IMAGES = with_agent(PRESETS["cpu"].config, "dueling").replace(
    game="image_env:make_env", device="cpu", compile=False, total_frames=300, frame_skip=1, num_envs=2, env_threads=1,
    hidden=4, stack=2, batch_size=8, capacity=100, learn_start_steps=20, dephase_steps=0, films=False,
    log_every_frames=50, evaluate_every_frames=100_000, checkpoint_every_frames=150, evaluate_episodes=1,
    final_episodes=1,
)  # fmt: skip
FOUND = Choice("float32", 1, "torch")


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Let runs measure, and return the list of the settings that were; what is found is `FOUND`."""
    seen = []

    def measure(config, *args):
        seen.append(config)
        return Measured(FOUND, "", 0.5)

    monkeypatch.setenv(tune.SWITCH, "cached")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.syspath_prepend(FIXTURES)
    return seen


def without_clock(folder):
    return [{name: value for name, value in row.items() if "time/" not in name} for row in rows(RunFolder(folder))]


def test_a_run_that_measures_is_the_run_that_was_given_what_it_found(tmp_path, measured, capsys):
    found = train(IMAGES.replace(runs_dir=str(tmp_path), name="found"))
    first = next(line for line in capsys.readouterr().out.splitlines() if "image_env" in line)
    assert " on cpu in float32, 1 thread, PyTorch's kernels (measured for 0.5 s), 2 games" in first
    assert len(measured) == 1
    record = json.loads((found.folder / "config.json").read_text())
    assert {name: record[name] for name in ("precision", "torch_threads", "kernels")} == vars(FOUND)
    assert found.config == load_dqn_config(found.folder)
    given = start(IMAGES.replace(**vars(FOUND)), tmp_path, name="given")
    assert len(measured) == 1
    assert given.learner.updates == found.learner.updates > 20
    assert without_clock(given.folder) == without_clock(found.folder)


def test_a_resume_takes_what_was_chosen_and_chooses_anew_only_where_it_is_asked_to(tmp_path, measured, capsys):
    run = start(IMAGES, tmp_path)
    train(resume=run.folder, total_frames=400)
    assert len(measured) == 1
    assert " in float32, 1 thread, PyTorch's kernels, 2 games" in capsys.readouterr().out
    assert train.main(["--resume", str(run.folder), "--total-frames", "500", "--precision", "auto", "--quiet"]) == 0
    assert len(measured) == 1 + (tune.has_bfloat16(tune.CPU))  # elsewhere there is nothing to choose from
    assert load_dqn_config(run.folder).precision == "float32"


def test_a_second_run_finds_what_the_first_measured(tmp_path, measured, capsys):
    for name in ("one", "two"):
        train(IMAGES.replace(runs_dir=str(tmp_path), name=name))
    assert len(measured) == 1
    assert "PyTorch's kernels (measured before), 2 games" in capsys.readouterr().out


def test_catch_measures_nothing(tmp_path, measured, capsys):
    run = train(QUICK.replace(precision="auto", total_frames=200, final_episodes=1, runs_dir=str(tmp_path), name="x"))
    assert not measured
    assert not (tmp_path / "caches").exists()
    assert f"catch on cpu in {run.learner.precision}, 1 thread, 16 games" in capsys.readouterr().out
