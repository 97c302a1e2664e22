"""Checkpoints of a run are finished in a thread while it goes on."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from quick_run import QUICK, start

from fastrl.base import stop
from fastrl.base.errors import ConfigError
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.run import build, experiment, saver
from fastrl.replay import PrioritizedReplayBuffer
from fastrl.replay.saves import segments
from fastrl.runs import checkpoints
from fastrl.runs.folder import RunFolder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failed_checkpoint_leaves_the_last_one_whole(tmp_path):
    ended = start(QUICK.replace(total_frames=1_000), tmp_path)
    before = contents(ended.folder.find())

    def full(*_):
        raise OSError("disk full")

    for module, name in (
        (checkpoints, "pack"),
        (checkpoints, "seal"),
        (os, "fsync"),
        (PrioritizedReplayBuffer, "begin_save"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match="disk full"):
                ended.save()
        assert contents(ended.folder.find()) == before
        assert not list((ended.folder / "checkpoints").glob(".*"))
    ended.save()  # and all is well again


def test_what_a_killed_save_left_behind_does_not_stop_the_next(tmp_path):
    ended = start(QUICK.replace(total_frames=1_000), tmp_path)
    for leftover in (".best.old", ".best.partial"):
        (ended.folder / "checkpoints" / leftover / "deep").mkdir(parents=True)
    ended.save("best")
    assert sorted(p.name for p in (ended.folder / "checkpoints").iterdir())[-1] == "best"
    assert not list((ended.folder / "checkpoints").glob(".*"))


class Watcher(Callback):
    """Notes when checkpoints are said to be whole, and calls ``then`` in every step."""

    def __init__(self, then=lambda run: None):
        self.then, self.whole = then, []

    def on_step(self, run, actions):
        self.then(run)

    def on_checkpoint(self, run, folder):
        assert run.folder.find() == folder
        self.whole.append((int(folder.name), run.frames))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "fastrl-checkpoint"]


def no_threads_left():
    for thread in threads():
        thread.join(60)
    return threads() == []


def test_the_run_goes_on_while_a_checkpoint_is_written_and_waits_for_the_last(tmp_path, monkeypatch):
    fsync, frames_meanwhile = os.fsync, []

    def slow(handle):
        deadline = time.monotonic() + 60
        if threads() and not frames_meanwhile:  # the first checkpoint waits for the run
            while watcher.run.frames < 1_100 and time.monotonic() < deadline:
                time.sleep(0.01)
            frames_meanwhile.append(watcher.run.frames)
        fsync(handle)

    watcher = Watcher(lambda run: setattr(watcher, "run", run))
    monkeypatch.setattr(os, "fsync", slow)
    ended = start(QUICK.replace(total_frames=1_500, evaluate_every_frames=10_000), tmp_path, watcher)
    assert frames_meanwhile[0] >= 1_100
    (first, then), (last, now) = watcher.whole
    assert 1_000 <= first < 1_100 <= then
    assert last == now == ended.frames
    assert no_threads_left()
    frames = ended.folder.find() / "replay" / "frames-000001"
    assert frames.stat().st_nlink == 1


def test_a_second_signal_leaves_at_once_and_the_last_whole_checkpoint_as_it_is(tmp_path, monkeypatch):
    reached, may, fsync = threading.Event(), threading.Event(), os.fsync

    def stuck(handle):
        if stopped.is_set() and threading.current_thread() in threads():
            reached.set()
            assert may.wait(60)
        fsync(handle)

    def interrupt(run):
        if run.frames > 1_500 and not run.saver.in_progress and not stopped.is_set():
            last.append(run.folder.find())
            stopped.set()
            os.kill(os.getpid(), signal.SIGINT)

    def again():
        assert reached.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    stopped, last = threading.Event(), []
    monkeypatch.setattr(segments, "PIECE", 100 * 200)  # a hundred frames: it is stuck before the others
    monkeypatch.setattr(stop, "TWICE_SECONDS", 0.0)
    monkeypatch.setattr(saver, "LEAVE_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", stuck)
    insisting = threading.Thread(target=again)
    insisting.start()
    with pytest.raises(KeyboardInterrupt):
        start(QUICK, tmp_path, Watcher(interrupt))
    may.set()
    insisting.join()
    assert no_threads_left()
    monkeypatch.undo()
    frames = int(last[0].name)
    assert RunFolder(tmp_path / "run").newest_whole() == (last[0], [])
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    resumed = experiment.train(QUICK.replace(total_frames=frames + 500), resume=tmp_path / "run", quiet=True)
    assert resumed.learner.updates > (frames - 400) * 4 / 64 + 20  # with its replay: no new warm-up


@pytest.mark.parametrize("once", ["folder", "file"])
def test_a_resumed_run_shares_what_was_saved_and_takes_the_single_file_of_before(tmp_path, monkeypatch, once):
    monkeypatch.setattr(segments, "PIECE", 100 * 200)  # a hundred frames
    ended = start(QUICK.replace(total_frames=2_000), tmp_path)
    replay = ended.folder.find() / "replay"
    if once == "file":
        PrioritizedReplayBuffer.load(replay).save(tmp_path / "replay")
        shutil.rmtree(replay)
        os.replace(tmp_path / "replay", replay)
    before = {path.stat().st_ino for path in replay.rglob("frames-*")}
    resumed = experiment.train(ended.config.replace(total_frames=2_500), resume=ended.folder, quiet=True)
    after = {path.stat().st_ino for path in (ended.folder.find() / "replay").glob("frames-*")}
    assert bool(before & after) == (once == "folder")
    assert not replay.exists()
    loaded = PrioritizedReplayBuffer.load(ended.folder.find() / "replay")
    assert np.array_equal(loaded.sample(64).obs, resumed.buffer.sample(64).obs)


def test_a_run_that_fails_waits_for_the_checkpoint_in_progress(tmp_path):
    def fail(run):
        if run.saver.in_progress:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start(QUICK, tmp_path, Watcher(fail))
    assert no_threads_left()
    assert 1_000 <= int(RunFolder(tmp_path / "run").find().name) < 1_100


def test_too_small_a_disk_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "free_disk_bytes", lambda path: 3_000_000)
    with pytest.raises(
        ConfigError, match=r"run needs up to 4.4 MiB of disk .* --runs-dir or a smaller --capacity, or .*--no-check"
    ):
        start(QUICK, tmp_path)
    without = QUICK.replace(total_frames=500, checkpoint_replay=False)
    monkeypatch.setattr(build, "free_disk_bytes", lambda path: 1_000)
    with pytest.raises(ConfigError, match=r"disk for checkpoints, 1.0 KiB are free; .* or start a run with a smaller"):
        start(without, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    start(without, tmp_path)
