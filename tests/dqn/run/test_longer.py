"""A run that is resumed with more frames: nothing that has ended starts again, and the replay grows."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest
from number_run import CONFIG, play, rows
from quick_run import QUICK, start

from fastrl.base.errors import ConfigError
from fastrl.dqn.run import experiment
from fastrl.runs import checkpoints
from fastrl.runs.folder import RunFolder

LOOK = QUICK.replace(total_frames=2_000, learn_start_steps=1_000, epsilon_steps=10_000, n_step=3, n_step_end=1)
ON_COURSE = ("explore/epsilon", "replay/n_step", "train/learning_rate")


def curve(run, name):
    """Return a metric by steps."""
    return {int(float(row["steps"])): float(row[name]) for row in rows(run.folder) if row["steps"] and row[name]}


def resumed(run, **changes):
    return experiment.train(run.config.replace(**changes), resume=run.folder, quiet=True)


def test_a_short_look_that_is_made_longer_keeps_what_has_ended_and_grows_its_replay(tmp_path, capsys):
    look = start(LOOK, tmp_path)
    held = len(look.buffer)
    assert (look.epsilon, look.beta) == (LOOK.epsilon_end, 1.0)
    assert look.buffer.settings["capacity"] == 2_500
    longer = experiment.train(look.config.replace(total_frames=4_000), resume=look.folder)
    said = capsys.readouterr().out
    assert "replay of 5,000" in said
    assert "2,500 before" in said
    assert "the run has 4,000 frames now; epsilon (0.01), n-step and learning rate stay" in said
    assert "beta goes" not in said  # it has arrived
    assert {value for steps, value in curve(longer, "explore/epsilon").items() if steps > 2_000} == {LOOK.epsilon_end}
    assert {value for steps, value in curve(longer, "replay/beta").items() if steps > 2_000} == {1.0}
    assert longer.buffer.settings["capacity"] == 5_000
    assert len(longer.buffer) > held + 1_900
    longer.buffer.check()
    again = resumed(longer, total_frames=4_100)
    assert again.schedules.warm_up_steps == look.schedules.warm_up_steps == 200


def test_beta_goes_from_where_it_stands_to_its_end_over_what_is_left(tmp_path):
    stopped = play(tmp_path / "run", at=1_000, number=signal.SIGTERM)  # of 2,000 frames
    assert stopped.beta == pytest.approx(0.7, abs=0.01)
    begun, value = stopped.steps, stopped.beta
    longer = play(
        tmp_path / "run", config=CONFIG.replace(total_frames=5_000), resume=True, at=3_000, number=signal.SIGTERM
    )
    found = {steps: beta for steps, beta in curve(longer, "replay/beta").items() if steps > begun}
    assert len(found) > 10
    for steps, beta in found.items():
        assert beta == pytest.approx(value + (1.0 - value) * (steps - begun) / (5_000 - begun))
    ended = play(tmp_path / "run", config=CONFIG.replace(total_frames=5_000), resume=True)  # and from there on
    for steps, beta in curve(ended, "replay/beta").items():
        if steps > begun:
            assert beta == pytest.approx(value + (1.0 - value) * min((steps - begun) / (5_000 - begun), 1))


def test_a_longer_run_stays_on_the_course_of_the_shorter_one_while_that_lasts(tmp_path):
    config = CONFIG.replace(epsilon_steps=5_000, epsilon_end=0.1)
    whole = play(tmp_path / "whole", config=config)
    play(tmp_path / "cut", config=config, at=1_000, number=signal.SIGTERM)
    longer = play(
        tmp_path / "cut", config=config.replace(total_frames=9_000), resume=True, at=2_000, number=signal.SIGTERM
    )
    for name in ON_COURSE:
        mine, its = curve(whole, name), curve(longer, name)
        common = {steps for steps in mine.keys() & its.keys() if steps < 2_000}
        assert len(common) > 10
        assert {steps: mine[steps] for steps in common} == {steps: its[steps] for steps in common}


def test_a_run_killed_before_the_longer_one_has_saved_grows_all_the_same(tmp_path):
    play(tmp_path / "run", at=1_000, number=signal.SIGTERM)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    config = CONFIG.replace(total_frames=5_000)
    one = play(tmp_path / "run", config=config, resume=True, at=3_000, number=signal.SIGTERM)
    record = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "copy" / "config.json").write_text(record)  # as after a kill: the new length, and the save before it
    other = play(tmp_path / "copy", config=config, resume=True, at=3_000, number=signal.SIGTERM)
    assert other.beta == one.beta
    assert other.schedules.state() == one.schedules.state()
    assert other.buffer.settings["capacity"] == one.buffer.settings["capacity"] > 2_500


def test_a_checkpoint_without_schedules_takes_the_length_from_the_settings_of_its_run(tmp_path):
    ended = start(LOOK.replace(checkpoint_replay=False), tmp_path)
    state = ended.folder.find() / "state.json"
    before = json.loads(state.read_text())
    del before["schedules"]
    state.write_text(json.dumps(before))
    checkpoints.seal(state.parent)
    longer = resumed(ended, total_frames=3_000)
    assert longer.schedules.state() == {"planned_frames": 2_000, "total_frames": 3_000, "beta_from": [2_000, 1.0]}


def test_a_run_of_the_same_length_keeps_its_capacity_whatever_memory_is_free_now(tmp_path):
    ended = start(LOOK, tmp_path)
    again = resumed(ended)
    assert again.buffer.settings["capacity"] == ended.buffer.settings["capacity"]


@pytest.mark.parametrize("capacity", [1_600, 6_400])
def test_another_capacity_at_a_resume_works_both_ways(tmp_path, capacity):
    ended = start(LOOK, tmp_path)
    held = len(ended.buffer)
    assert 1_600 < held < 6_400
    other = resumed(ended, capacity=capacity, total_frames=2_200)
    assert other.buffer.settings["capacity"] == capacity
    assert (other.buffer._ring.count > ended.buffer._ring.count).all()
    assert len(other.buffer) == 1_600 if capacity == 1_600 else len(other.buffer) > held
    other.buffer.check()
    other.buffer.sample(64)


def test_a_capacity_that_cannot_hold_the_warm_up_is_refused_and_the_save_kept(tmp_path):
    ended = start(LOOK, tmp_path)
    before = np.sort([path.name for path in ended.folder.find().rglob("*")])
    with pytest.raises(ConfigError, match=r"--capacity is 100; give [\d,]+ or more, so that it holds the warm-up"):
        resumed(ended, capacity=100)
    assert np.array_equal(before, np.sort([path.name for path in RunFolder(ended.folder).find().rglob("*")]))
