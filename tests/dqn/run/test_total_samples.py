"""A run whose length is told in samples."""

from __future__ import annotations

import signal

import pytest
from number_run import CONFIG, batches, play, rows

from fastrl.base.errors import ConfigError
from fastrl.dqn.callbacks import Callback

# A vector step learns 32 samples, which are one update; learning starts with step 200.
ENDS = CONFIG.replace(total_samples=3_000)


def test_it_ends_with_the_step_that_reaches_them_and_is_till_then_the_run_without_such_an_end(tmp_path):
    ended, whole = play(tmp_path / "ends", config=ENDS), play(tmp_path / "whole")
    assert ended.samples == 3_008
    assert ended.samples - CONFIG.batch_size < 3_000
    assert ended.over
    assert ended.frames < whole.frames
    there = batches(tmp_path / "whole")
    assert batches(tmp_path / "ends") == {number: there[number] for number in range(1, 95)}
    short = [row for row in rows(ended.folder) if int(row["frames"]) < ended.frames]
    assert len(short) > 5
    assert short == rows(whole.folder)[: len(short)]
    assert ended.beta == pytest.approx(0.4 + 0.6 * ended.steps / CONFIG.total_steps)  # on the course of all its frames


def test_it_ends_with_an_evaluation_and_one_checkpoint(tmp_path):
    ended = play(tmp_path / "ends", config=ENDS)
    assert rows(ended.folder)[-1]["frames"] == str(ended.frames)
    assert rows(ended.folder)[-1]["evaluation/return_mean"]
    assert int(ended.folder.find().name) == ended.frames
    counted = len(rows(ended.folder))
    again = play(tmp_path / "ends", config=ENDS, resume=True)
    assert (again.frames, len(rows(again.folder))) == (ended.frames, counted)


def test_where_its_end_meets_the_clocks_it_evaluates_and_saves_once(tmp_path):
    class Count(Callback):
        def __init__(self):
            self.evaluated, self.saved = [], []

        def on_evaluation(self, run, games):
            self.evaluated.append(run.frames)

        def on_checkpoint(self, run, folder):
            self.saved.append(folder.name)

    last, count = play(tmp_path / "ends", config=ENDS).frames, Count()
    clocks = {"evaluate_every_frames": last, "checkpoint_every_frames": last}
    play(tmp_path / "met", config=ENDS.replace(**clocks), hooks=[count])
    assert count.evaluated == [last]
    assert count.saved == [f"{last:012d}"]


def test_what_is_stopped_and_resumed_ends_as_the_unbroken_one(tmp_path):
    whole = play(tmp_path / "whole", config=ENDS)
    play(tmp_path / "cut", config=ENDS, at=500, number=signal.SIGTERM)
    again = play(tmp_path / "cut", config=ENDS, resume=True)
    assert (again.frames, again.samples) == (whole.frames, whole.samples)
    assert batches(tmp_path / "cut") == batches(tmp_path / "whole")
    assert rows(again.folder) == rows(whole.folder)


def test_one_that_has_ended_says_which_flag_makes_it_longer_and_goes_on_with_more(tmp_path, capsys):
    ended = play(tmp_path / "ends", config=ENDS)
    play(tmp_path / "ends", config=ENDS, resume=True, quiet=False)
    assert "a larger --total-samples makes it longer" in capsys.readouterr().out
    longer = play(tmp_path / "ends", config=ENDS.replace(total_samples=4_000), resume=True)
    assert ended.samples < 4_000 <= longer.samples < 4_000 + CONFIG.batch_size


def test_samples_of_another_batch_size_before_a_resume_count_as_they_were(tmp_path):
    before = play(tmp_path / "run", config=ENDS, at=500, number=signal.SIGTERM)
    learned = before.learner.updates * CONFIG.batch_size
    assert 0 < before.samples == learned < 3_000
    size = CONFIG.batch_size // 2
    again = play(tmp_path / "run", config=ENDS.replace(batch_size=size), resume=True)
    assert again.samples == learned + (again.learner.updates - before.learner.updates) * size
    assert 3_000 <= again.samples < 3_000 + CONFIG.batch_size


def test_none_and_one_are_the_limits():
    assert CONFIG.total_samples is None
    with pytest.raises(ConfigError, match="--total-samples is 0; give at least 1"):
        CONFIG.replace(total_samples=0)
