"""Frames in a file: room that is reserved, files that are not as they were, copies that are refused."""

from __future__ import annotations

import copy
import errno
import gc
import mmap
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fastrl.replay import ReplayBuffer
from fastrl.replay.stores import mapped
from fastrl.replay.stores.mapped import MmapStore

UINT8 = np.dtype(np.uint8)


def store(path, count=5, shape=(3,), dtype=UINT8, make=True):
    return MmapStore(count, shape, dtype, path=path, make=make)


def test_frames_are_in_the_file(tmp_path):
    frames = np.arange(6, dtype=np.float32).reshape(2, 3)
    mapped = store(tmp_path / "frames", dtype=np.dtype(np.float32))
    mapped.write(np.array([4, 1]), frames)
    mapped.sync()
    there = np.fromfile(tmp_path / "frames", np.float32).reshape(5, 3)
    assert np.array_equal(there[[4, 1]], frames)
    assert not there[[0, 2, 3]].any()
    mapped.close()
    again = store(tmp_path / "frames", dtype=np.dtype(np.float32), make=False)
    out = again.empty((2, 2, 3))
    again.gather(np.array([[[4, -1], [1, 0]]]), out)
    assert np.array_equal(out, [[frames[0], np.zeros(3)], [frames[1], np.zeros(3)]])


def test_the_room_is_reserved_on_the_disk_at_once(tmp_path):
    store(tmp_path / "frames", count=1000, shape=(4096,))
    assert os.stat(tmp_path / "frames").st_blocks * 512 >= 4096 * 1000


@pytest.mark.parametrize("lacks", ["the call", "the file system"])
def test_where_the_system_cannot_reserve_room_zeros_are_written(tmp_path, monkeypatch, lacks):
    def refuses(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if lacks == "the call":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuses)
    monkeypatch.setattr("fastrl.replay.stores.mapped._PIECE", 4096)
    store(tmp_path / "frames", count=1000, shape=(10,))
    assert (tmp_path / "frames").read_bytes() == bytes(10_000)
    assert os.stat(tmp_path / "frames").st_blocks * 512 >= 10_000


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"1234"), lambda path: os.truncate(path, 16)])
def test_a_file_of_another_size_is_refused(tmp_path, change):
    store(tmp_path / "frames").close()
    change(tmp_path / "frames")
    found = os.stat(tmp_path / "frames").st_size
    with pytest.raises(OSError, match=rf"frames has {found} bytes instead of 15; put back the file that was there"):
        store(tmp_path / "frames", make=False)


def test_a_file_that_is_there_is_not_overwritten_and_one_that_is_missing_is_not_made(tmp_path):
    store(tmp_path / "frames").close()
    with pytest.raises(FileExistsError):
        store(tmp_path / "frames")
    with pytest.raises(FileNotFoundError):
        store(tmp_path / "others", make=False)
    assert os.listdir(tmp_path) == ["frames"]


@pytest.mark.parametrize("lacks", ["nothing", "O_TMPFILE"])
def test_a_file_without_a_name_is_in_no_folder_and_gives_its_room_back(tmp_path, monkeypatch, lacks):
    monkeypatch.setattr("tempfile._O_TMPFILE_WORKS", lacks == "nothing")
    gc.collect()  # what other tests have left behind
    opened = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    frames = np.arange(12_288, dtype=np.uint8).reshape(3, 4096)
    nameless = MmapStore(1000, (4096,), UINT8, path=tmp_path, named=False)
    assert os.listdir(tmp_path) == []
    assert os.fstat(nameless._file).st_blocks * 512 >= 4096 * 1000  # reserved at once, as for any
    assert os.fstat(nameless._file).st_nlink == 0
    nameless.write(np.array([999, 0, 5]), frames)
    out = nameless.empty((1, 4, 4096))
    nameless.gather(np.array([[[5, 999, -1, 0]]]), out[None])
    assert np.array_equal(out[0], [frames[2], frames[0], np.zeros(4096), frames[1]])
    file = nameless._file
    del nameless, out
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == opened


def test_a_folder_that_takes_no_file_is_refused_and_left_as_it_is(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuses)
    with pytest.raises(OSError, match="No space left"):
        MmapStore(1000, (4096,), UINT8, path=tmp_path, named=False)
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        MmapStore(1000, (4096,), UINT8, path=tmp_path / "missing", named=False)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_vanished_is_noticed_when_frames_should_be_on_the_disk(tmp_path, replaced):
    mapped = store(tmp_path / "frames")
    os.rename(tmp_path / "frames", tmp_path / "elsewhere")
    if replaced:
        (tmp_path / "frames").write_bytes(bytes(15))
    with pytest.raises(FileNotFoundError):
        mapped.sync()
    os.replace(tmp_path / "elsewhere", tmp_path / "frames")
    mapped.sync()


def test_after_a_wait_for_the_disk_it_is_asked_for_all_pages_of_a_gather_at_once(tmp_path, monkeypatch):
    waits, asked = iter([0, 0, 0, 5, 6, *[9] * 100]), []  # the first as it is made
    monkeypatch.setattr(mapped, "_waits_for_disk", lambda: next(waits))
    monkeypatch.setattr(mapped, "AHEAD", 3)
    monkeypatch.setattr(mmap, "PAGESIZE", 4096)
    frames = store(tmp_path / "frames", count=50, shape=(2049,))
    frames._memory = SimpleNamespace(madvise=lambda *span: asked.append(span[1:]))
    ids = np.array([[[3, 4], [3, -1]], [[20, 21], [5, 49]]])
    outs = [frames.empty((2, 2, 2049)) for _ in ids]
    spans = [(4096, 8198), (40960, 4118), (98304, 4146)]  # 3 to 5, 20 and 21, 49: from 6147, 40980 and 100401
    for times in (0, 0, 1, 2, 3, 3, 3):
        frames.gather(ids, *outs)
        assert asked == times * spans
    monkeypatch.setattr(frames, "_ahead", 1)
    frames.gather(np.array([[[-1, -1]]]), outs[0][:1])
    assert len(asked) == 9


def test_where_adding_has_waited_for_the_disk_it_is_asked_for_what_the_next_rows_overwrite(tmp_path, monkeypatch):
    waits, asked = [0], []
    monkeypatch.setattr(mapped, "_waits_for_disk", lambda: waits[0])
    monkeypatch.setattr(mapped, "AHEAD", 2)
    monkeypatch.setattr(mapped, "ROWS_AHEAD", 4)
    buffer = ReplayBuffer(
        capacity=30, obs_shape=(5000,), num_envs=3, stack=1, n_step=1, store="mmap", folder=tmp_path / "replay"
    )
    monkeypatch.setattr(buffer._store, "_ask_for", lambda ids: asked.append(ids.tolist()))

    def add():
        no = np.zeros(3, bool)
        buffer.add(np.zeros((3, 5000), np.uint8), np.zeros(3, int), np.zeros(3), no, no)

    for _ in range(12):
        add()
    assert asked == []  # nothing has waited
    waits[0] = 7
    add()  # the row of count 12; two rows have been written since it was last looked
    expected = [[env * 10 + row for row in (2, 3, 4, 5)] for env in range(3)]
    assert asked == [expected]
    add()
    assert asked == [expected]
    add()
    assert asked[1:] == [[[env * 10 + row for row in (4, 5, 6, 7)] for env in range(3)]]
    for _ in range(5):
        add()
    assert len(asked) == 2  # no wait since
    waits[0] = 8
    add()
    assert asked[2] == [[env * 10 + row for row in (0, 1, 2, 3)] for env in range(3)]


def test_rings_that_are_not_full_are_not_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(mapped, "_waits_for_disk", iter(range(1000)).__next__)
    frames = store(tmp_path / "frames", count=40)
    monkeypatch.setattr(frames, "_ask_for", lambda ids: asked.append(ids.tolist()))
    frames.will_overwrite(np.array([9, 10, 0, 25]), 10, 1)
    assert asked == [[[10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [35, 36, 37, 38, 39, 30, 31, 32, 33, 34]]]


@pytest.mark.skipif(sys.platform != "linux", reason="counts waits on Linux alone")
def test_reading_what_the_system_has_dropped_counts_as_a_wait(tmp_path):
    before = mapped._waits_for_disk()
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    with open(tmp_path / "file", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if "tmpfs" in subprocess.run(["stat", "-f", "-c%T", tmp_path], capture_output=True, text=True).stdout:
            pytest.skip("this file system is in memory")
        memory = mmap.mmap(file.fileno(), 1 << 20, prot=mmap.PROT_READ)
        assert sum(memory[:: mmap.PAGESIZE]) == 0
    assert mapped._waits_for_disk() > before


def test_elsewhere_waits_are_not_counted(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert mapped._waits_for_disk() == 0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_which_would_share_the_file_is_refused(tmp_path, copied):
    with pytest.raises(TypeError, match="a copy or pickle would share them; save the buffer, and load the save where"):
        copied(store(tmp_path / "frames"))
