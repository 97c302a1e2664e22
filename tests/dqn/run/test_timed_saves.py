"""Checkpoints by the time that has passed: the next one replaces them, and nothing of the run depends on them."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from number_run import CONFIG, batches, events, play, rows

from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.run import checkpointing
from fastrl.runs import checkpoints
from fastrl.runs.folder import RunFolder


@pytest.fixture
def minutes(monkeypatch):
    """A clock on which each look takes one second: a minute is about sixty vector steps."""
    now = iter(range(10**9))
    monkeypatch.setattr(checkpointing, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


class Kept(Callback):
    """Writes down which checkpoints there are, as each becomes whole."""

    def __init__(self) -> None:
        self.seen: list[dict[int, bool]] = []

    def on_step(self, run, actions):
        run.settle()  # so that nothing depends on how fast the disk is

    def on_checkpoint(self, run, folder):
        known = RunFolder(run.folder.path).numbered()
        self.seen.append({int(path.name): (path / checkpoints.TIMED).exists() for path in known})


def test_a_run_saves_by_the_minute_and_each_timed_save_replaces_the_one_before(tmp_path, minutes):
    kept = Kept()
    ended = play(tmp_path / "run", config=CONFIG.replace(checkpoint_every_minutes=0.5), hooks=[kept])
    timed = [sorted(frames for frames, by_time in seen.items() if by_time) for seen in kept.seen]
    assert sum(map(bool, timed)) >= 4
    assert all(len(frames) <= 1 for frames in timed)
    assert all(frames in ([], [max(seen)]) for frames, seen in zip(timed, kept.seen, strict=True))
    assert timed[-1] == []
    counted = {frames for seen in kept.seen for frames, by_time in seen.items() if not by_time}
    assert counted == set(kept.seen[-1]) == {1_000, ended.frames}


def test_timed_saves_do_not_count_towards_those_to_keep(tmp_path, minutes):
    kept = Kept()
    config = CONFIG.replace(checkpoint_every_minutes=0.1, checkpoint_every_frames=400, keep_checkpoints=2)
    ended = play(tmp_path / "run", config=config, hooks=[kept])
    assert sum(any(seen.values()) for seen in kept.seen) > 10
    for seen in kept.seen:
        counted = [frames for frames, by_time in seen.items() if not by_time]
        assert len(counted) == min(2, max(seen) // 400)
    assert max(kept.seen[-1]) == ended.frames
    assert len(kept.seen[-1]) == 2


def test_metrics_are_equal_to_the_bit_with_timed_saves_and_without(tmp_path, minutes):
    without = play(tmp_path / "without", config=CONFIG.replace(checkpoint_every_minutes=0))
    often = play(tmp_path / "often", config=CONFIG.replace(checkpoint_every_minutes=0.05))
    assert rows(without.folder) == rows(often.folder)
    assert batches(without.folder) == batches(often.folder)
    assert events(without.folder) == events(often.folder)


def test_a_killed_run_resumes_from_its_timed_save_as_if_nothing_had_happened(tmp_path, minutes):
    picture = tmp_path / "cut"

    class Picture(Callback):
        """Copies the folder at the third timed save, as a kill would leave it."""

        saves = 0

        def on_checkpoint(self, run, folder):
            self.saves += 1
            if self.saves == 3:
                assert (folder / checkpoints.TIMED).exists()
                shutil.copytree(run.folder, picture)

    config = CONFIG.replace(checkpoint_every_frames=10_000, checkpoint_every_minutes=0.5)
    whole = play(tmp_path / "whole", config=config, hooks=[Picture()])
    (found,) = RunFolder(picture).numbered()
    checkpoints.check(found)
    resumed = play(picture, config=config, resume=True, hooks=[Callback()])
    assert rows(whole.folder) == rows(resumed.folder)
    assert events(whole.folder) == events(resumed.folder)
    learned = batches(resumed.folder)
    assert min(learned) > 1
    assert learned == {number: seen for number, seen in batches(whole.folder).items() if number in learned}
    assert resumed.folder.numbered() == [resumed.folder.find()]


def test_no_time_is_a_setting_and_nonsense_is_refused(tmp_path, minutes):
    kept = Kept()
    play(tmp_path / "run", config=CONFIG.replace(checkpoint_every_minutes=0), hooks=[kept])
    assert not any(any(seen.values()) for seen in kept.seen)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--checkpoint-every-minutes is"):
            DQNConfig(checkpoint_every_minutes=wrong)
    assert DQNConfig().checkpoint_every_minutes == 5
