"""Checkpoints are whole or not there, wherever a save is killed."""

import builtins
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from make import filled, go_on_alike, small, snapshot, step

from fastrl.base.background import Background
from fastrl.dqn import checkpoint
from fastrl.dqn.run.saver import Draft, RunSnapshot, Saver
from fastrl.replay import PrioritizedReplayBuffer
from fastrl.replay.saves import segments
from fastrl.runs.folder import RunFolder

WEIGHTS = {"w": torch.zeros(2)}


def draft(run, frames, buffer, earlier=None):
    run.mkdir(exist_ok=True)
    state = {"network": {}, "frames": frames}
    snapshot = RunSnapshot(state=state, weights=WEIGHTS, learner={"frames": frames}, replay=buffer)
    return Draft(RunFolder(run), f"{frames:012d}", snapshot, earlier)


def what_lies_there(run):
    """Go on from what a killed save left in a run's folder: return the frames played, and the replay."""
    RunFolder(run).recover()
    newest = RunFolder(run).find()
    frames = checkpoint.load_state(newest)["frames"]
    assert checkpoint.load_learner(newest) == {"frames": frames}
    checkpoint.load_weights(newest / "weights.safetensors")
    assert not list((run / "checkpoints").rglob(".*"))
    for older in RunFolder(run).numbered():  # what is there of them is whole too
        checkpoint.load_learner(older)
        if (older / "replay").exists():
            PrioritizedReplayBuffer.load(older / "replay")
    return frames, PrioritizedReplayBuffer.load(newest / "replay")


@pytest.fixture
def before_each_operation(monkeypatch):
    """Return a list of functions that are called before whatever changes a file or folder."""
    hooks = []

    def spy(module, name):
        real = getattr(module, name)

        def called(*args, **kwargs):
            waiting, hooks[:] = hooks[:], []  # what a hook does is not looked at
            for hook in waiting:
                hook()
            hooks[:] = waiting
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, called)

    for name in ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink"):
        spy(os, name)
    for module in (builtins, io):
        spy(module, "open")
    return hooks


@pytest.mark.parametrize("same_name", [False, True])
def test_a_save_killed_between_any_two_operations_leaves_the_former_or_the_new_state(
    tmp_path, monkeypatch, before_each_operation, same_name
):
    monkeypatch.setattr(segments, "PIECE", 12)
    run, buffer = tmp_path / "run", filled(20)
    first = draft(run, 100, buffer).finish()
    states = {100: snapshot(buffer)}
    for t in range(5):
        buffer.add(**step(t))
    pictures = []

    def take_picture():
        pictures.append(tmp_path / f"picture-{len(pictures)}")
        shutil.copytree(run, pictures[-1])

    before_each_operation.append(take_picture)
    frames = 100 if same_name else 200
    draft(run, frames, buffer, first / "replay").finish()
    RunFolder(run).prune(1)
    take_picture()
    before_each_operation.clear()
    states = {"former": states[100], "new": snapshot(buffer)}
    found = []
    for picture in pictures:
        _, loaded = what_lies_there(picture)
        now = snapshot(loaded)
        alike = [
            which for which, state in states.items() if all(np.array_equal(state[name], now[name]) for name in state)
        ]
        assert len(alike) == 1, picture
        found += alike
    assert len(pictures) > 30
    assert found == sorted(found)  # the former ones first
    assert set(found) == {"former", "new"}


def test_a_save_goes_on_after_a_kill_at_any_operation(tmp_path, monkeypatch, before_each_operation):
    """What was left behind does not get in the way of the run that goes on."""
    monkeypatch.setattr(segments, "PIECE", 12)
    run, buffer = tmp_path / "run", filled(20)
    first = draft(run, 100, buffer).finish()
    for t in range(5):
        buffer.add(**step(t))
    pictures = []

    def take_picture():
        pictures.append(tmp_path / f"picture-{len(pictures)}")
        shutil.copytree(run, pictures[-1])

    before_each_operation.append(take_picture)
    draft(run, 200, buffer, first / "replay").finish()
    before_each_operation.clear()
    for picture in pictures[::4]:
        frames, again = what_lies_there(picture)
        again.add(**step(7))
        draft(picture, frames + 100, again, picture / "checkpoints" / f"{frames:012d}" / "replay").finish()
        _, loaded = what_lies_there(picture)
        go_on_alike(loaded, again, steps=2)


def test_only_the_newest_checkpoint_carries_the_replay_and_an_old_one_loses_it_whole(tmp_path):
    run, buffer = tmp_path, filled(20)
    draft(run, 100, buffer).finish()
    buffer.save(run / "checkpoints" / f"{100:012d}" / "file")
    shutil.rmtree(run / "checkpoints" / f"{100:012d}" / "replay")
    os.replace(run / "checkpoints" / f"{100:012d}" / "file", run / "checkpoints" / f"{100:012d}" / "replay")
    second = draft(run, 200, buffer, run / "checkpoints" / f"{100:012d}" / "replay").finish()  # a file, as it once was
    third = draft(run, 300, buffer, second / "replay").finish()
    assert [path.parent for path in sorted(run.rglob("replay"))] == [third]
    assert len(RunFolder(run).numbered()) == 3
    RunFolder(run).prune(1)
    assert RunFolder(run).numbered() == [third]


def test_the_only_saved_replay_outlives_a_newer_checkpoint_without_one(tmp_path):
    first, second = draft(tmp_path, 100, filled(20)).finish(), draft(tmp_path, 200, None).finish()
    RunFolder(tmp_path).prune(1)
    assert RunFolder(tmp_path).numbered() == [first, second]


def in_a_thread(draft):
    saving = Background(draft.finish, "fastrl-checkpoint")
    saving.start()
    return saving


def test_a_saver_finishes_a_checkpoint_in_a_thread_which_then_ends(tmp_path):
    told = []
    saver = Saver(RunFolder(tmp_path), 1, None, told.append)
    for frames in (100, 200):
        state = {"network": {}, "frames": frames}
        folder = saver.save(f"{frames:012d}", RunSnapshot(state=state, weights=WEIGHTS, replay=filled(20)))
        assert saver.in_progress
        saver.settle()
        assert not saver.in_progress
        assert told[-1] == folder == RunFolder(tmp_path).find()
    assert RunFolder(tmp_path).numbered() == [folder]  # the older one is pruned
    for thread in threading.enumerate():
        if thread.name == "fastrl-checkpoint":
            thread.join(60)
            assert not thread.is_alive()


def test_what_goes_wrong_in_the_thread_comes_out_where_it_is_waited_for(tmp_path):
    def full(*_):
        raise OSError("disk full")

    first, buffer = draft(tmp_path, 100, small()).finish(), filled(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="disk full"):
            in_a_thread(draft(tmp_path, 200, buffer)).result()
    assert list((tmp_path / "checkpoints").iterdir()) == [first]
    assert (first / "replay").exists()
    for t in range(50):
        buffer.add(**step(t))  # no row waits for a save that failed


def test_a_checkpoint_that_is_given_up_ends_soon_and_leaves_the_last_one(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "PIECE", 12)
    reached, may = threading.Event(), threading.Event()
    first, buffer = draft(tmp_path, 100, small()).finish(), filled(20)

    def wait(_):
        reached.set()
        assert may.wait(20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", wait)
        second = draft(tmp_path, 200, buffer)
        saving = in_a_thread(second)
        assert reached.wait(20)
        second.give_up()
        assert not saving.done
        may.set()
        with pytest.raises(RuntimeError, match="given up"):
            saving.result()
    assert list((tmp_path / "checkpoints").iterdir()) == [first]


def test_without_a_thread_to_be_had_a_checkpoint_is_finished_at_once(tmp_path, monkeypatch):
    buffer = filled(20)

    def none_left(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    saving = in_a_thread(draft(tmp_path, 200, buffer))
    assert saving.done
    assert saving.result() == RunFolder(tmp_path).find()
    buffer.add(**step())  # no row waits


KILLED = """
import sys, itertools
sys.path[:0] = {paths!r}
from pathlib import Path
import test_saver as t
run, buffer, earlier = Path({run!r}), t.filled(20, obs_shape=(3,)), None
t.segments.PIECE = 12
print("started", flush=True)
for n in itertools.count(1):
    buffer.add(**t.step(n % 250))
    earlier = t.draft(run, n, buffer, earlier).finish() / "replay"
    t.RunFolder(run).prune(2)
"""


@pytest.mark.slow
def test_a_process_killed_at_any_time_leaves_a_whole_checkpoint(tmp_path):
    paths = [path for path in sys.path if "tests" in path]
    for turn in range(3):
        run = tmp_path / str(turn)
        code = KILLED.format(paths=paths, run=str(run))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "started\n"
        deadline = time.monotonic() + 60
        while len(list((run / "checkpoints").glob("[0-9]*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01 * (turn + 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        frames, loaded = what_lies_there(run)
        assert loaded._ring.count.tolist() == [20 + frames, 20 + frames]
