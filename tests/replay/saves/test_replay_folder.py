"""A buffer that lives in a folder: taken up again, by one process at a time, with what was there or a clear error."""

from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
import pickle
import re
import shutil
import sys
import threading
from collections import namedtuple
from contextlib import suppress

import numpy as np
import pytest
from make import NO, filled, frames_of, go_on_alike, small, step

from fastrl.replay import Batch, PrioritizedReplayBuffer, ReplayBuffer
from fastrl.replay.saves import folder as folders


@pytest.fixture(autouse=True)
def no_disk(monkeypatch):
    """A process that ends leaves its files as they are in memory: only a machine that stops needs the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def living_in(folder, steps=12, **changes):
    return filled(steps, store="mmap", folder=folder, **changes)


def crash(buffer):
    """Leave the folder as a killed process does: nothing is flushed."""
    buffer._folder.close()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("steps", [3, 12, 47])
@pytest.mark.parametrize("how", ["from_folder", "the class"])
def test_a_buffer_that_was_closed_goes_on_as_if_it_had_not_been(tmp_path, kernels, steps, how):
    twin, buffer = filled(steps), living_in(tmp_path / "replay", steps)
    for each in (twin, buffer):
        each.update_priorities(each.sample(5).index, np.arange(5.0))
    buffer.close()
    again = (
        PrioritizedReplayBuffer.from_folder(str(tmp_path / "replay"))
        if how == "from_folder"
        else small(store="mmap", folder=tmp_path / "replay")
    )
    assert len(again) == len(twin)
    assert again.max_priority == twin.max_priority
    assert again.settings == twin.settings
    go_on_alike(again, twin)


def test_steps_of_every_kind_are_in_the_files(tmp_path, kernels):
    settings = {"autoreset": "same_step", "obs_shape": (), "obs_dtype": np.float32, "stack": 3}
    twin, buffer = small(**settings), small(**settings, store="mmap", folder=tmp_path / "replay")
    rng = np.random.default_rng(0)
    for t in range(60):
        done, env = rng.random(2) < 0.2, rng.permutation(2)[: rng.integers(1, 3)]
        row = {
            "obs": rng.random(2, np.float32)[env], "action": rng.integers(0, 9, 2)[env], "reward": rng.random(2)[env],
            "terminated": done[env], "truncated": NO[env], "env_id": env, "final_obs": rng.random(2, np.float32)[env],
        }  # fmt: skip
        for each in (twin, buffer):
            each.add(**row)
        if t % 17 == 16:
            buffer.close()
            buffer = PrioritizedReplayBuffer.from_folder(tmp_path / "replay")
    for _ in range(5):
        first, second = twin.sample(8), buffer.sample(8)
        for name in Batch.__slots__:
            assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_a_uniform_buffer_lives_in_a_folder_too(tmp_path):
    settings = {"capacity": 20, "num_envs": 2, "obs_shape": (3,), "seed": 3}
    twin = ReplayBuffer(**settings)
    buffer = ReplayBuffer(**settings, store="mmap", folder=tmp_path / "replay")
    for each in (twin, buffer):
        each.add(**step(1))
        each.add(**step(2))
    buffer.set_n_step(2)
    buffer.set_gamma(0.25)
    buffer.close()
    again = ReplayBuffer.from_folder(tmp_path / "replay")
    assert again.settings == twin.settings | {"n_step": 2, "gamma": 0.25}
    with pytest.raises(ValueError, match=r"holds a replay of kind 'uniform'.* expected kind 'prioritized'"):
        PrioritizedReplayBuffer.from_folder(tmp_path / "replay")


NESTED = {
    "capacity": 80, "num_envs": 2, "obs_shape": {"image": (4, 4), "state": (3,)}, "stack": {"image": 3, "state": 1},
    "obs_dtype": {"image": np.uint8, "state": np.float32}, "n_step": 2, "seed": 0, "extra": {"number": ((), np.int64)},
}  # fmt: skip


def add_nested(buffer, begin, end):
    for t in range(begin, end):
        obs = {"image": np.full((2, 4, 4), t, np.uint8), "state": np.full((2, 3), t, np.float32)}
        buffer.add(obs, np.array([t, t]), np.ones(2), NO, NO, extra={"number": np.array([t, t])})


def test_observations_of_several_arrays_and_fields_of_ones_own_come_back_too(tmp_path):
    twin, buffer = PrioritizedReplayBuffer(**NESTED), PrioritizedReplayBuffer(**NESTED, store="mmap", folder=tmp_path)
    for each in (twin, buffer):
        add_nested(each, 0, 60)
    buffer.close()
    buffer = PrioritizedReplayBuffer(**NESTED, store="mmap", folder=tmp_path)
    first, second = twin.sample(50), buffer.sample(50)
    assert np.array_equal(first.obs["image"], second.obs["image"])
    assert np.array_equal(first.next_obs["state"], second.next_obs["state"])
    assert np.array_equal(first.extra["number"], second.extra["number"])
    add_nested(buffer, 60, 65)
    crash(buffer)
    batch = PrioritizedReplayBuffer.from_folder(tmp_path).sample(100)
    assert set(batch.action.tolist()) == set(range(27, 58))  # 20 to 24 were overwritten, two rows need 24
    for values in (batch.obs["image"][:, -1, 0, 0], batch.obs["state"][:, 0, 0], batch.extra["number"]):
        assert np.array_equal(values, batch.action)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("extra", r"extra is None, not \{'number': .*\}; give extra=\{'number': .*\}, or another folder"),
        ("stack", r"stack is .*; give stack=\{'image': 3, 'state': 1\}, or another folder"),
    ],
)
def test_a_nested_setting_that_is_left_out_is_named(tmp_path, without, message):
    PrioritizedReplayBuffer(**NESTED, store="mmap", folder=tmp_path).close()
    settings = {name: value for name, value in NESTED.items() if name != without}
    with pytest.raises(ValueError, match=message):
        PrioritizedReplayBuffer(**settings, store="mmap", folder=tmp_path)


# --- what a crash leaves ------------------------------------------------------------------------------


def test_after_a_crash_the_buffer_is_as_it_was_flushed_and_the_next_rows_open_games(tmp_path, kernels):
    buffer = living_in(tmp_path / "replay")
    buffer.flush()
    expected = set(buffer.sample(100).action.tolist())
    for t in range(12, 15):
        buffer.add(**step(t))
    crash(buffer)
    again = PrioritizedReplayBuffer.from_folder(tmp_path / "replay")
    again.check()
    assert set(again.sample(100).action.tolist()) == expected
    with pytest.raises(ValueError, match=r"first is False after .* rows lost in a crash"):
        again.add(**step(77), first=NO)
    for t in (77, 78, 79):
        again.add(**step(t))
    batch = again.sample(200)
    assert set(batch.action.tolist()) == expected | {77, -77, 78, -78}
    new = batch.action == 77
    assert (batch.obs[new] == 77).all()  # no frame of before the crash in its stack


def test_rows_that_were_overwritten_before_a_crash_are_gone_and_others_are_whole(tmp_path, kernels):
    # Rings of 20 rows, all full at the flush (rows 5 to 24), then 7 rows more.
    buffer = living_in(tmp_path / "replay", 25)
    buffer.flush()
    for t in range(25, 32):
        buffer.add(**step(t))
    crash(buffer)
    again = PrioritizedReplayBuffer.from_folder(tmp_path / "replay")
    again.check()
    batch = again.sample(200)
    # Rows 5 to 11 were overwritten. The stack of 12 reaches back to 11, and the window of 24 never closed.
    assert set(np.abs(batch.action).tolist()) == set(range(13, 24))
    assert (batch.obs[:, -1, 0] == np.abs(batch.action)).all()
    assert (batch.obs[:, 0, 0] == np.abs(batch.action) - 1).all()


def test_a_ring_that_was_overwritten_as_a_whole_is_empty_after_a_crash(tmp_path, kernels):
    buffer = living_in(tmp_path / "replay", 25)
    buffer.flush()
    for t in range(25, 60):
        buffer.add(**step(t))
    crash(buffer)
    again = PrioritizedReplayBuffer.from_folder(tmp_path / "replay")
    again.check()
    assert again.drawable == 0
    for t in range(60, 90):
        again.add(**step(t))
        again.check()
    assert set(np.abs(again.sample(200).action).tolist()) == set(range(71, 89))


def test_a_crash_after_a_crash_gives_up_no_more(tmp_path):
    buffer = living_in(tmp_path / "replay", 25)
    buffer.flush()
    for t in range(25, 28):
        buffer.add(**step(t))
    crash(buffer)
    lengths = []
    for _ in range(3):
        again = PrioritizedReplayBuffer.from_folder(tmp_path / "replay")
        lengths.append(again.drawable)
        again.add(**step(90))
        crash(again)
    assert lengths == [30] * 3  # rows 9 to 23 of each ring


def test_nothing_is_given_up_if_no_row_came_after_the_flush(tmp_path):
    buffer = living_in(tmp_path / "replay", 25)
    buffer.flush()
    drawable = buffer.drawable
    with pytest.raises(ValueError, match="reward"):
        buffer.add(**step(reward=[np.nan, 0]))
    buffer.flush()
    crash(buffer)
    assert PrioritizedReplayBuffer.from_folder(tmp_path / "replay").drawable == drawable


def test_few_steps_wait_for_the_disk(tmp_path, monkeypatch):
    buffer = small(capacity=2 * 640, store="mmap", folder=tmp_path / "replay")
    written = []
    monkeypatch.setattr(os, "fsync", written.append)
    for t in range(640):
        buffer.add(**step(t % 250))
    assert len(written) == 2  # a file and its folder
    for t in range(640):
        buffer.add(**step(t % 250))
    assert len(written) == 2 + 2 * 32  # for every twenty rows of a ring


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_a_row_is_reserved_on_the_disk_before_it_is_written(tmp_path, monkeypatch, autoreset):
    buffer = small(capacity=2 * 96, store="mmap", folder=tmp_path / "replay", autoreset=autoreset)
    done = np.array([True, False])
    for t in range(250):
        final = {"terminated": done, "final_obs": np.zeros((2, 3), np.uint8)} if autoreset == "same_step" else {}
        buffer.add(**step(t, **final))
        noted = np.array(json.loads((tmp_path / "replay" / "reserved.json").read_text())["rows"])
        assert (buffer._ring.count <= noted).all()
        if t % 50 == 40:
            buffer.flush()


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_many_steps_at_once_reserve_the_rows_that_they_add_and_no_others(tmp_path, autoreset):
    ring, steps, done = 320, 200, np.zeros((200, 1), bool)
    done[::20] = True
    buffer = small(capacity=2 * ring, store="mmap", folder=tmp_path / "replay", autoreset=autoreset)
    for t in range(ring):
        buffer.add(**step(t % 250))
    buffer.flush()
    rows = {
        "obs": np.zeros((steps, 1, 3), np.uint8), "action": np.zeros((steps, 1), int), "reward": np.zeros((steps, 1)),
        "terminated": done, "truncated": np.zeros_like(done), "env_id": np.array([0]),
    }  # fmt: skip
    for bad, message in (({"reward": np.full((steps, 1), np.nan)}, "reward holds nan"), ({"env_id": [2]}, "env_id")):
        with pytest.raises(ValueError, match=message):
            buffer.extend(**rows | bad)
    assert buffer._folder.reserved.tolist() == [ring, ring]  # refused steps reserve nothing
    buffer.extend(**rows)
    added = steps + 10 * (autoreset == "same_step")
    assert (buffer._ring.count - ring).tolist() == [added, 0]
    crash(buffer)
    again = PrioritizedReplayBuffer.from_folder(tmp_path / "replay")
    held = np.bincount(np.concatenate([piece.env for piece in again.rows()]))
    assert held.tolist() == [ring - added, ring - ring // 32]


def test_a_flush_waits_for_frames_and_state_before_the_move_that_shows_them(tmp_path, monkeypatch):
    buffer, did = living_in(tmp_path / "replay"), []
    sync, move = os.fsync, os.replace

    def fsync(file):
        did.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{file}"))))
        sync(file)

    def replace(source, target):
        did.append(("move", os.path.basename(target)))
        move(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    buffer.flush()
    assert did == [
        ("sync", "frames-0"), ("sync", "state.partial"), ("move", "state"), ("sync", "replay"),
        ("sync", "reserved.json.partial"), ("move", "reserved.json"), ("sync", "replay"),
    ]  # fmt: skip


def test_rows_may_be_added_while_another_thread_flushes(tmp_path, monkeypatch):
    buffer = living_in(tmp_path / "replay", 25)
    begun, added = threading.Event(), threading.Event()
    write = folders.write_state

    def slowly(*arguments):
        begun.set()
        assert added.wait(5)
        write(*arguments)

    monkeypatch.setattr(folders, "write_state", slowly)
    thread = threading.Thread(target=buffer.flush)
    thread.start()
    assert begun.wait(5)
    buffer.add(**step(25))
    added.set()
    thread.join()
    crash(buffer)
    batch = PrioritizedReplayBuffer.from_folder(tmp_path / "replay").sample(100)
    assert (batch.obs[:, -1, 0] == np.abs(batch.action)).all()
    assert set(np.abs(batch.action).tolist()) == set(range(7, 24))  # row 5 was overwritten, and 6 needs it


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 60}, "capacity is 60, not 40; give capacity=40"),
        ({"num_envs": 1}, "num_envs is 1, not 2; give num_envs=2"),
        ({"obs_shape": (3, 1)}, "obs_shape is (3, 1), not [3]; give obs_shape=[3]"),
        ({"obs_dtype": np.int8}, "obs_dtype is '|i1', not '|u1'; give obs_dtype='|u1'"),
        ({"stack": 3}, "stack is 3, not 2; give stack=2"),
        ({"n_step": 2, "gamma": 0.9}, "n_step is 2, not 1, gamma is 0.9, not 0.5; give n_step=1, gamma=0.5"),
        ({"alpha": 0.5}, "alpha is 0.5, not 0.6; give alpha=0.6"),
        ({"autoreset": "disabled"}, "autoreset is 'disabled', not 'next_step'; give autoreset='next_step'"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_as_it_is(tmp_path, changes, message):
    living_in(tmp_path / "replay").close()
    before = files(tmp_path / "replay")
    with pytest.raises(ValueError, match=re.escape(f"with other settings: {message}, or another folder")):
        small(store="mmap", folder=tmp_path / "replay", **changes)
    assert files(tmp_path / "replay") == before
    remedy = eval(f"dict({message.split('give ')[1]})")
    small(**{"store": "mmap", "folder": tmp_path / "replay"} | changes | remedy).check()


def use(folder, pipe):
    """Use the folder until told to stop."""
    buffer = living_in(folder)
    pipe.send(os.getpid())
    pipe.recv()
    buffer.close()


@pytest.mark.parametrize("ends", ["killed", "closed"])
def test_a_second_process_is_refused_as_long_as_the_first_is_there(tmp_path, ends):
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=use, args=(tmp_path / "replay", theirs))
    process.start()
    try:
        assert mine.poll(60)
        number = mine.recv()
        before = files(tmp_path / "replay")
        for take_up in (
            lambda: living_in(tmp_path / "replay"),
            lambda: PrioritizedReplayBuffer.from_folder(tmp_path / "replay"),
        ):
            with pytest.raises(
                BlockingIOError, match=rf"which process {number} on .* uses; close its buffer or end the"
            ):
                take_up()
        assert files(tmp_path / "replay") == before
        if ends == "closed":
            mine.send("stop")
            process.join(60)
    finally:
        process.kill()
        process.join(60)
    assert len(PrioritizedReplayBuffer.from_folder(tmp_path / "replay")) == (24 if ends == "closed" else 0)


def test_a_second_buffer_of_the_same_process_is_refused(tmp_path):
    buffer = living_in(tmp_path / "replay")
    with pytest.raises(BlockingIOError, match=f"which process {os.getpid()} on"):
        small(store="mmap", folder=tmp_path / "replay")
    buffer.close()
    small(store="mmap", folder=tmp_path / "replay")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_cannot_use_the_buffer_and_holds_no_lock(tmp_path):
    buffer = living_in(tmp_path / "replay")
    rows = buffer.rows(3)
    told, tell = os.pipe()
    wait, go = os.pipe()
    child = os.fork()
    if not child:
        try:
            for call in (lambda: buffer.add(**step()), lambda: buffer.sample(3), buffer.flush, lambda: next(rows)):
                with pytest.raises(RuntimeError, match="its parent goes on changing the files of this buffer; save"):
                    call()
            os.write(tell, b"y")
        except BaseException:
            os.write(tell, b"n")
        os.read(wait, 1)
        os._exit(0)
    assert os.read(told, 1) == b"y"
    for t in range(12, 20):
        buffer.add(**step(t))
    buffer.close()
    assert len(PrioritizedReplayBuffer.from_folder(tmp_path / "replay")) == 40  # the child is still there
    os.write(go, b".")
    os.waitpid(child, 0)
    for end in (told, tell, wait, go):
        os.close(end)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    free = namedtuple("usage", "total used free")(1 << 40, 0, 1 << 21)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"a disk with 0\.00195 GiB free, but capacity = 400000 needs 0\.0\d+; give less"):
        small(capacity=400_000, store="mmap", folder=tmp_path / "new" / "replay")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_meanwhile_leaves_no_buffer_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            OSError, match=r"and .*replay fails \(No space left on device\); make it whole, writable and"
        ):
            small(store="mmap", folder=tmp_path / "replay")
    assert os.listdir(tmp_path / "replay") == ["lock"]
    small(store="mmap", folder=tmp_path / "replay").check()


@pytest.mark.parametrize("name", ["state.partial", "reserved.json.partial", "frames-0"])
def test_a_flush_that_fails_leaves_the_one_before(tmp_path, monkeypatch, name):
    buffer = living_in(tmp_path / "replay")
    buffer.flush()
    buffer.add(**step())
    sync = os.fsync

    def fails(file):
        if os.readlink(f"/proc/self/fd/{file}").endswith(name):
            raise OSError(errno.EIO, "Input/output error")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match=r"Input/output error.*or give another folder"):
            buffer.flush()
    if name == "frames-0":  # the system may have forgotten which pages it could not write
        with pytest.raises(OSError, match=r"an earlier flush .* failed .*; save the buffer to another place"):
            buffer.flush()
        buffer.save(tmp_path / "saved")
        assert len(PrioritizedReplayBuffer.load(tmp_path / "saved")) == 26
    crash(buffer)
    again = PrioritizedReplayBuffer.from_folder(tmp_path / "replay")
    again.check()
    assert again.drawable == (24 if name.startswith("reserved") else 22)


def test_a_row_that_the_disk_cannot_take_note_of_is_not_added(tmp_path, monkeypatch):
    buffer = living_in(tmp_path / "replay", 25)
    buffer.flush()
    before = frames_of(buffer).copy()
    os.rename(tmp_path / "replay", tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=r"reserved\.json\.partial fails .*; make it whole"):
            buffer.add(**step())
    assert np.array_equal(frames_of(buffer), before)
    assert len(buffer) == 40
    with pytest.raises(FileNotFoundError, match="frames-0 fails"):
        buffer.flush()


@pytest.mark.parametrize("name", ["state", "frames-0", "reserved.json"])
def test_a_file_that_vanished_is_named_and_the_others_stay(tmp_path, name):
    living_in(tmp_path / "replay").close()
    os.rename(tmp_path / "replay" / name, tmp_path / "kept")
    before = files(tmp_path / "replay")
    for take_up in (PrioritizedReplayBuffer.from_folder, lambda folder: small(store="mmap", folder=folder)):
        with pytest.raises(FileNotFoundError, match=rf"{re.escape(name)} .*or give another folder"):
            take_up(tmp_path / "replay")
    assert files(tmp_path / "replay") == before
    os.rename(tmp_path / "kept", tmp_path / "replay" / name)
    assert len(PrioritizedReplayBuffer.from_folder(tmp_path / "replay")) == 24


@pytest.mark.parametrize("name", ["state", "reserved.json"])
def test_any_byte_of_the_cursors_that_is_not_as_written_is_noticed(tmp_path, name):
    living_in(tmp_path / "replay", 3).close()
    path = tmp_path / "replay" / name
    whole = path.read_bytes()
    before = files(tmp_path / "replay")
    for at in range(0, len(whole), max(1, len(whole) // 80)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        damaged = path.read_bytes()
        with suppress(ValueError):  # of a byte that says nothing, such as a date's, nothing is noticed
            buffer = PrioritizedReplayBuffer.from_folder(tmp_path / "replay")
            assert len(buffer) == 6
            crash(buffer)
        assert path.read_bytes() == damaged
    for cut in range(0, len(whole), max(1, len(whole) // 15)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"damaged.*or give another folder"):
            PrioritizedReplayBuffer.from_folder(tmp_path / "replay")
    path.write_bytes(whole)
    assert {name: data for name, data in files(tmp_path / "replay").items() if name != "lock"} == {
        name: data for name, data in before.items() if name != "lock"
    }
    assert len(PrioritizedReplayBuffer.from_folder(tmp_path / "replay")) == 6


def test_notes_of_other_rings_are_refused(tmp_path):
    living_in(tmp_path / "replay").close()
    (tmp_path / "replay" / "reserved.json").write_text(json.dumps({"rows": [12], "checksum": folders._checksum([12])}))
    with pytest.raises(ValueError, match=r"reserved\.json is damaged \(it is of other rings\); put back the file"):
        PrioritizedReplayBuffer.from_folder(tmp_path / "replay")


def test_a_folder_with_other_files_is_refused_and_gets_no_file(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds no replay, but 'thesis\.tex'; give a new or an empty one"):
        small(store="mmap", folder=tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis\.tex', which is no folder; give a new or an empty one"):
        small(store="mmap", folder=tmp_path / "thesis.tex")


def test_from_folder_makes_none(tmp_path):
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(ValueError, match="which holds no replay; give it to the class, with store='mmap', to make"):
            PrioritizedReplayBuffer.from_folder(folder)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    living_in(tmp_path / "replay").close()
    real = os.open

    def read_only(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(PermissionError, match=r"lock fails \(Permission denied\); make it whole, writable and"):
        PrioritizedReplayBuffer.from_folder(tmp_path / "replay")


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    def unlisted(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", unlisted)
    with pytest.raises(PermissionError, match=r"fails \(Permission denied\); make it whole, writable and"):
        small(store="mmap", folder=tmp_path)


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(OSError, match=r"No locks available.*or give another folder"):
            small(store="mmap", folder=tmp_path / "replay")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(OSError, match="needs file locks"):
        small(store="mmap", folder=tmp_path / "replay")


def test_a_folder_that_was_left_while_it_was_made_is_made_anew(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_state", killed)
        patch.setattr(folders.ReplayFolder, "abandon", folders.ReplayFolder.close)
        with pytest.raises(Killed):
            small(store="mmap", folder=tmp_path / "replay")
    assert {"unfinished", "frames-0"} <= set(os.listdir(tmp_path / "replay"))
    buffer = living_in(tmp_path / "replay")
    go_on_alike(buffer, filled())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": "mmap"}, "store is 'mmap', but folder is None; give the folder that holds its files"),
        ({"folder": "replay"}, "folder is given, but store is 'ram'; give store='mmap', or no folder"),
        ({"folder": "replay", "store": "lz4"}, "folder is given, but store is 'lz4'; give store='mmap', or no folder"),
    ],
)
def test_store_and_folder_go_together(tmp_path, monkeypatch, changes, message):
    filled().save(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        small(**changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        PrioritizedReplayBuffer.load("saved", **changes)
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.parametrize(
    "name", ["link", "link/new", "notes", "notes/new", "a\0b", "new/a\0b", "n" * 300, "new/" + "n" * 300, "half\ud800"]
)
def test_a_folder_that_cannot_be_is_refused_by_every_call_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.symlink("gone", "link")
    (tmp_path / "notes").touch()
    filled().save("saved")
    for call in (
        lambda: small(store="mmap", folder=name),
        lambda: PrioritizedReplayBuffer.from_folder(name),
        lambda: PrioritizedReplayBuffer.load("saved", "mmap", folder=name),
    ):
        with pytest.raises(ValueError, match=rf"^folder is {re.escape(repr(name))}, .*; (give|make) ") as caught:
            call()
        assert not isinstance(caught.value, UnicodeError)
    assert sorted(os.listdir(tmp_path)) == ["link", "notes", "saved"]


def test_a_folder_that_a_link_leads_to_is_made_and_taken_up(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to("home")
    for path in (tmp_path / "link", tmp_path / "link" / "deeper" / "replay"):
        small(store="mmap", folder=path).close()
        PrioritizedReplayBuffer.from_folder(path).close()


def test_alpha_that_overflows_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="overflows; give less"):
        small(store="mmap", folder=tmp_path / "replay", alpha=1e300)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["flush", "close"])
def test_a_buffer_without_a_folder_cannot_be_flushed(call):
    with pytest.raises(ValueError, match=rf"{call} is for a buffer with a folder \(store='mmap'\).*call save"):
        getattr(filled(), call)()


def test_a_buffer_that_was_closed_refuses_every_call_but_another_close(tmp_path):
    buffer = living_in(tmp_path / "replay")
    buffer.close()
    buffer.close()
    for call in (lambda: buffer.add(**step()), lambda: buffer.sample(3), buffer.check, buffer.flush):
        with pytest.raises(RuntimeError, match="this buffer was closed; from_folder opens it again"):
            call()


def test_a_buffer_with_work_in_progress_is_not_closed(tmp_path):
    buffer = living_in(tmp_path / "replay")
    buffer.prefetch(3)
    for call in (buffer.flush, buffer.close):
        with pytest.raises(ValueError, match="before you flush"):
            call()
    buffer.sample(3)
    save = buffer.begin_save(tmp_path / "saved")
    with pytest.raises(ValueError, match="a save is in progress; write or close it before you close the buffer"):
        buffer.close()
    save.write()
    buffer.close()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused_and_the_buffer_goes_on(tmp_path, copied):
    buffer = living_in(tmp_path / "replay")
    with pytest.raises(TypeError, match="a copy or pickle would share them"):
        copied(buffer)
    go_on_alike(buffer, filled())


# --- beside saves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "folder"])
def test_a_save_loads_into_memory_and_into_a_folder_of_another_capacity(tmp_path, how):
    buffer = living_in(tmp_path / "replay", 30)
    if how == "file":
        buffer.save(tmp_path / "saved")
    else:
        buffer.begin_save(tmp_path / "saved").write()
    loaded = PrioritizedReplayBuffer.load(tmp_path / "saved", "mmap", folder=tmp_path / "larger", capacity=60)
    crash(loaded)  # it is on the disk already
    taken_up = PrioritizedReplayBuffer.from_folder(tmp_path / "larger")
    go_on_alike(taken_up, PrioritizedReplayBuffer.load(tmp_path / "saved", capacity=60))
    go_on_alike(buffer, PrioritizedReplayBuffer.load(tmp_path / "saved"))


def test_a_save_is_not_loaded_over_a_buffer(tmp_path):
    buffer = living_in(tmp_path / "replay", 30)
    buffer.save(tmp_path / "saved")
    buffer.close()
    before = files(tmp_path / "replay")
    with pytest.raises(ValueError, match="replay', which holds a replay; give a new or an empty one"):
        PrioritizedReplayBuffer.load(tmp_path / "saved", "mmap", folder=tmp_path / "replay")
    assert files(tmp_path / "replay") == before


def test_a_damaged_save_leaves_no_buffer_in_the_folder(tmp_path):
    filled().save(tmp_path / "saved")
    data = bytearray((tmp_path / "saved").read_bytes())
    data[data.rindex(bytes([11, 11, 11])) + 1] ^= 1  # of a frame
    (tmp_path / "saved").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        PrioritizedReplayBuffer.load(tmp_path / "saved", "mmap", folder=tmp_path / "replay")
    assert os.listdir(tmp_path / "replay") == ["lock"]


def test_a_folder_that_a_buffer_lives_in_is_not_loaded_like_a_save(tmp_path):
    living_in(tmp_path / "replay").close()
    with pytest.raises(ValueError, match=r"the folder of a buffer with store='mmap', which from_folder takes"):
        PrioritizedReplayBuffer.load(tmp_path / "replay")
