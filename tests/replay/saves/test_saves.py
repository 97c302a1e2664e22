"""Saves that write only what is new, while rows are added: equal to the bit, and damage has a name."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from make import NO, altered, filled, go_on_alike, header_of, refused, small, snapshot, step

from fastrl.replay import PrioritizedReplayBuffer, RamStore, ReplayBuffer
from fastrl.replay.saves import save as save_module
from fastrl.replay.saves import segments
from fastrl.replay.saves.archive import INDEX
from fastrl.replay.saves.segments import split


@pytest.fixture
def tiny_pieces(monkeypatch):
    """Let frames be written four at a time, so that small rings take many pieces, and no disk be waited for."""
    monkeypatch.setattr(segments, "PIECE", 12)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def assert_equal(one, other):
    first, second = snapshot(one), snapshot(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name


def save(buffer, folder, earlier=None):
    buffer.begin_save(folder, earlier).write()
    return folder


def frame_files(folder):
    return sorted(path for path in folder.iterdir() if path.name != INDEX)


def many(buffer, steps, rng):
    """Add vector steps of some environments, with ends of all kinds."""
    finals = buffer.settings["autoreset"] != "next_step"
    for _ in range(steps):
        env = rng.permutation(2)[: rng.integers(1, 3)]
        n = len(env)
        buffer.add(
            rng.integers(256, size=(n, 3), dtype=np.uint8), rng.integers(9, size=n), rng.random(n), rng.random(n) < 0.1,
            rng.random(n) < 0.1, final_obs=rng.integers(256, size=(n, 3), dtype=np.uint8) if finals else None,
            env_id=env,
        )  # fmt: skip
        if buffer.drawable:
            buffer.update_priorities(buffer.sample(4).index, rng.random(4))


# --- equal to the bit ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("copies", "tiny_pieces")
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("seed", range(3))
def test_what_was_saved_bit_by_bit_while_rows_were_added_is_the_buffer_of_that_moment(tmp_path, autoreset, seed):
    rng = np.random.default_rng(seed)
    buffer, earlier = small(autoreset=autoreset, n_step=2), None
    for number in range(8):
        many(buffer, int(rng.integers(0, 30)), rng)
        if number == 6:
            buffer.set_n_step(1)
        then = copy.deepcopy(buffer)
        in_progress = buffer.begin_save(tmp_path / str(number), earlier)
        thread = threading.Thread(target=in_progress.write)
        thread.start()
        many(buffer, int(rng.integers(0, 40)), rng)
        thread.join()
        earlier = tmp_path / str(number)
        loaded = PrioritizedReplayBuffer.load(earlier)
        assert_equal(loaded, then)
        go_on_alike(loaded, then, steps=3) if autoreset == "next_step" else None
        if number % 4 == 3:  # a resumed run goes on from what it loaded
            buffer = PrioritizedReplayBuffer.load(earlier)
    assert buffer._save is None


def test_both_kinds_of_buffer_and_of_save_load_alike(tmp_path):
    uniform = ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,), seed=0)
    for buffer in (uniform, filled(30), small()):
        kind = type(buffer)
        folder = save(buffer, tmp_path / f"{kind.__name__}-{len(buffer)}")
        buffer.save(tmp_path / "file")
        assert_equal(kind.load(folder), kind.load(tmp_path / "file"))
        assert kind.saved_settings(folder) == kind.saved_settings(tmp_path / "file")


# --- only what is new ---------------------------------------------------------------------------------


class Counting(RamStore):
    """Counts the frames that are gathered, and the largest piece."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gathered, self.largest = 0, 0

    def gather(self, ids, *outs):
        self.gathered += ids.size
        self.largest = max(self.largest, ids.size)
        super().gather(ids, *outs)


@pytest.mark.usefixtures("tiny_pieces")
def test_a_save_writes_new_rows_alone_and_shares_the_files_of_others(tmp_path):
    buffer = filled(15, store=Counting)
    first = save(buffer, tmp_path / "first")
    assert (buffer._store.gathered, buffer._store.largest) == (30, 4)
    for t in range(2):
        buffer.add(**step(t))
    second = save(buffer, tmp_path / "second", first)
    # Four rows are new; the last file of before, smaller than a piece, is written again with them.
    shared = [path for path in frame_files(second) if path.stat().st_nlink == 2]
    assert [path.name for path in shared] == [path.name for path in frame_files(first)[:-1]]
    assert buffer._store.gathered == 30 + 4 + 2
    assert_equal(PrioritizedReplayBuffer.load(second), buffer)


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("change", [lambda buffer: buffer.set_gamma(0.75), lambda buffer: buffer.set_n_step(2)])
def test_a_save_shares_files_with_an_earlier_one_of_another_gamma_or_n(tmp_path, change):
    buffer = filled(15, store=Counting)
    first = save(buffer, tmp_path / "first")
    change(buffer)
    buffer.add(**step())
    second = save(buffer, tmp_path / "second", first)
    assert buffer._store.gathered == 30 + 2 + 2  # the last small file, and two new rows
    loaded = PrioritizedReplayBuffer.load(second)
    assert_equal(loaded, buffer)
    go_on_alike(loaded, buffer, steps=3)


@pytest.mark.usefixtures("tiny_pieces")
def test_files_of_a_save_in_format_1_are_shared_too(tmp_path):
    buffer = filled(15)
    first = save(buffer, tmp_path / "first")
    altered(first / INDEX, lambda header, arrays: header.update(format=1, kind="PrioritizedReplayBuffer"))
    again = PrioritizedReplayBuffer.load(first)  # as a run does that an earlier version saved
    again.add(**step())
    second = save(again, tmp_path / "second", first)
    assert [path.name for path in frame_files(second) if path.stat().st_nlink == 2] == [
        path.name for path in frame_files(first)[:-1]
    ]
    assert header_of(second / INDEX)["kind"] == "prioritized"
    assert_equal(PrioritizedReplayBuffer.load(second), again)


@pytest.mark.usefixtures("tiny_pieces")
def test_files_whose_rows_are_overwritten_are_left_behind(tmp_path):
    buffer, earlier, names = filled(20, store=Counting), None, []
    for number in range(20):
        folder = save(buffer, tmp_path / str(number), earlier)
        names.append([path.name for path in frame_files(folder)])
        held = sum(path.stat().st_size for path in frame_files(folder)) // 3
        assert 40 <= held <= 44  # a file more than the rings hold
        for t in range(3):
            buffer.add(**step(t))
        earlier = folder
    assert not set(names[0]) & set(names[-1])
    assert buffer._store.gathered < 40 + 19 * (6 + 4)


@pytest.mark.usefixtures("tiny_pieces")
def test_environments_of_different_speed_do_not_keep_dead_frames_for_ever(tmp_path):
    buffer, earlier = filled(20), None
    for number in range(20):
        for _ in range(10):
            buffer.add(np.ones((1, 3), np.uint8), [1], [1.0], [False], [False], env_id=[0])
        buffer.add(**step(number))
        earlier = save(buffer, tmp_path / str(number), earlier)
        assert sum(path.stat().st_size for path in frame_files(earlier)) <= 3 * 40 * 1.5 + 3 * 12
    assert_equal(PrioritizedReplayBuffer.load(earlier), buffer)


def test_many_small_saves_leave_few_files():
    rows, frame = 2_000, 1 << 22
    kept, count = [], np.zeros(2, np.int64)
    most = 0
    for _ in range(200):
        count += 20
        oldest = np.maximum(count - rows, 0)
        kept, new = split(kept, oldest, count, rows, frame)
        segments.assert_complete(kept + new, oldest, count)
        kept += new
        most = max(most, len(kept))
    assert most < 90
    dead = sum(each.rows for each in kept) - 2 * rows
    assert 0 <= dead <= 2 * rows / 16


def test_memory_is_bounded_whatever_the_buffer_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "PIECE", 1 << 16)
    buffer = filled(1_000, capacity=2_000, obs_shape=(40, 100))  # 8 MB of frames
    in_progress = buffer.begin_save(tmp_path / "saved")
    tracemalloc.start()
    in_progress.write()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 19
    assert max(path.stat().st_size for path in frame_files(tmp_path / "saved")) <= 62 * 2 * 4_000


# --- rows wait ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_pieces")
def test_a_row_waits_where_it_would_overwrite_a_frame_that_is_not_saved(tmp_path, monkeypatch):
    may = threading.Semaphore(0)

    def wait(_):
        assert may.acquire(timeout=20)

    monkeypatch.setattr(os, "fsync", wait)  # after each piece
    buffer, plain = filled(20), filled(20)  # the rings are full: the next row overwrites
    in_progress = buffer.begin_save(tmp_path / "saved")
    threads = [
        threading.Thread(target=lambda: [buffer.add(**step(t)) for t in range(3)]),
        threading.Thread(target=in_progress.write),
    ]
    for thread, rows in zip(threads, (20, 22), strict=True):  # none is saved; then a piece is, two rows of each
        thread.start()
        threads[0].join(0.2)
        while buffer._ring.count[0] < rows:
            assert threads[0].is_alive()
        threads[0].join(0.2)
        assert threads[0].is_alive()
        assert buffer._ring.count.tolist() == [rows, rows]
    may.release(100)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert buffer._ring.count.tolist() == [23, 23]
    assert_equal(PrioritizedReplayBuffer.load(tmp_path / "saved"), plain)


@pytest.mark.usefixtures("tiny_pieces")
def test_rows_that_overwrite_nothing_unsaved_do_not_wait(tmp_path):
    buffer = filled(20)
    first = save(buffer, tmp_path / "first")
    for t in range(3):
        buffer.add(**step(t))
    in_progress, then = buffer.begin_save(tmp_path / "second", first), copy.deepcopy(buffer)
    for t in range(10):
        buffer.add(**step(t))
    in_progress.write()
    assert_equal(PrioritizedReplayBuffer.load(tmp_path / "second"), then)


def test_a_row_that_waited_for_one_save_waits_for_the_next_one_too(tmp_path):
    buffer, plain = filled(20), filled(20)
    first = buffer.begin_save(tmp_path / "first")
    adding = threading.Thread(target=buffer.add, kwargs=step())
    adding.start()
    adding.join(0.2)
    with buffer._lock:  # the row cannot be added in between
        first.close()
        second = buffer.begin_save(tmp_path / "second")
    adding.join(0.2)
    assert adding.is_alive()
    second.write()
    adding.join(20)
    assert not adding.is_alive()
    assert_equal(PrioritizedReplayBuffer.load(tmp_path / "second"), plain)
    first.close()  # once more does no harm to others
    assert buffer._ring.count.tolist() == [21, 21]


def test_closing_a_save_that_is_over_leaves_the_next_one_alone(tmp_path):
    buffer = filled(20)
    first = buffer.begin_save(tmp_path / "first")
    first.write()
    second = buffer.begin_save(tmp_path / "second")
    first.close()
    assert buffer._save is second
    second.write()
    assert buffer._save is None


class OneAtATime(RamStore):
    """Bears no two threads at once; batches, of two arrays, are gathered when they may."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.inside, self.overlapped = threading.Lock(), False
        self.gathering, self.may = threading.Event(), threading.Event()

    def gather(self, ids, *outs):
        free = self.inside.acquire(blocking=False)
        self.overlapped |= not free
        if len(outs) == 2:
            self.gathering.set()
            assert self.may.wait(20)
        super().gather(ids, *outs)
        if free:
            self.inside.release()


def test_a_store_is_read_by_one_thread_at_a_time(tmp_path):
    buffer, plain = filled(20, store=OneAtATime), filled(20)
    in_progress = buffer.begin_save(tmp_path / "saved")
    buffer.prefetch(4)
    assert buffer._store.gathering.wait(20)
    writing = threading.Thread(target=in_progress.write)
    writing.start()
    writing.join(0.2)
    assert writing.is_alive()
    buffer._store.may.set()
    writing.join(20)
    assert not buffer._store.overlapped
    assert np.array_equal(buffer.sample(4).obs, plain.sample(4).obs)


@pytest.mark.parametrize("failing", ["store", "disk", "given up"])
def test_a_save_that_fails_lets_rows_go_on_and_the_next_one_succeeds(tmp_path, monkeypatch, failing):
    buffer, plain = filled(20), filled(20)
    in_progress = buffer.begin_save(tmp_path / "failed")

    def full(*_):
        raise OSError("disk full")

    with pytest.MonkeyPatch.context() as patch:
        if failing == "store":
            patch.setattr(buffer._store, "gather", full)
        elif failing == "disk":
            patch.setattr(os, "fsync", full)
        else:
            in_progress.close()
        with pytest.raises((OSError, RuntimeError), match=r"disk full|given up"):
            in_progress.write()
    assert not (tmp_path / "failed").exists()
    loaded = PrioritizedReplayBuffer.load(save(buffer, tmp_path / "next", tmp_path / "failed"))
    assert_equal(loaded, plain)
    go_on_alike(buffer, loaded)


def test_a_row_that_would_wait_for_ever_for_a_save_that_nobody_writes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # other tests leave threads behind
    buffer, plain = filled(20), filled(20)
    in_progress = buffer.begin_save(tmp_path / "saved")
    remedy = r"was begun and its write\(\) not called.*call write\(\) or close\(\) of what begin_save returned"
    with refused(buffer, f"{tmp_path / 'saved'} {remedy}", RuntimeError):
        buffer.add(**step())
    in_progress.write()
    buffer.add(**step())
    assert_equal(PrioritizedReplayBuffer.load(tmp_path / "saved"), plain)
    abandoned = buffer.begin_save(tmp_path / "abandoned")
    with refused(buffer, remedy, RuntimeError):
        buffer.add(**step())
    abandoned.close()
    buffer.add(**step())


def test_a_row_that_waits_long_for_a_save_says_so_while_another_thread_could_write_it(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "PATIENCE_SECONDS", 0.05)
    buffer, may = filled(20), threading.Event()
    in_progress = buffer.begin_save(tmp_path / "saved")
    late = threading.Thread(target=lambda: (may.wait(20), in_progress.write()))
    late.start()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "warn", lambda message, **_: (said.append(message), may.set()))
        said = []
        buffer.add(**step())
    late.join(20)
    assert f"{tmp_path / 'saved'} was begun and its write() not called" in said[0]
    assert buffer._ring.count.tolist() == [21, 21]


@pytest.mark.usefixtures("tiny_pieces")
def test_an_abandoned_save_leaves_no_folder_and_cannot_be_written(tmp_path):
    buffer = filled(15)
    first = save(buffer, tmp_path / "first")
    in_progress = buffer.begin_save(tmp_path / "second", first)
    assert frame_files(tmp_path / "second")  # links
    in_progress.close()
    with pytest.raises(RuntimeError, match="this save was given up; begin another"):
        in_progress.write()
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert_equal(PrioritizedReplayBuffer.load(first), buffer)
    in_progress = buffer.begin_save(tmp_path / "second", first)
    (tmp_path / "second" / "mine").touch()
    in_progress.close()
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["mine"]


def test_a_save_is_written_once(tmp_path):
    buffer = filled(15)
    in_progress = buffer.begin_save(tmp_path / "saved")
    in_progress.write()
    with pytest.raises(RuntimeError, match="write of this save was called before; begin another"):
        in_progress.write()
    in_progress.close()
    assert_equal(PrioritizedReplayBuffer.load(tmp_path / "saved"), buffer)


def test_a_folder_that_was_not_written_to_its_end_is_refused_with_what_completes_it(tmp_path):
    buffer = filled(15)
    in_progress = buffer.begin_save(tmp_path / "saved")
    for read in (PrioritizedReplayBuffer.load, PrioritizedReplayBuffer.saved_settings):
        with pytest.raises(ValueError, match=rf"{tmp_path / 'saved'} is a folder without an index.*write\(\)"):
            read(tmp_path / "saved")
    in_progress.write()
    assert_equal(PrioritizedReplayBuffer.load(tmp_path / "saved"), buffer)
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        PrioritizedReplayBuffer.load(tmp_path / "elsewhere")


def test_one_save_at_a_time_and_none_over_a_batch_that_was_prefetched(tmp_path):
    buffer = filled()
    buffer.prefetch(4)
    with pytest.raises(ValueError, match=r"call sample\(.*\) before you save"):
        buffer.begin_save(tmp_path / "saved")
    buffer.sample(4)
    in_progress = buffer.begin_save(tmp_path / "saved")
    with pytest.raises(ValueError, match="a save is in progress; write or close it"):
        buffer.begin_save(tmp_path / "other")
    buffer.prefetch(4)  # which the thread that writes waits for
    in_progress.write()
    in_progress.close()  # once more does no harm
    buffer.sample(4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]
    with pytest.raises(FileExistsError):
        buffer.begin_save(tmp_path / "saved")
    buffer.begin_save(tmp_path / "other").write()


def test_copies_know_nothing_of_a_save_in_progress(tmp_path):
    buffer = filled(20)
    in_progress = buffer.begin_save(tmp_path / "saved")
    for other in (copy.deepcopy(buffer), pickle.loads(pickle.dumps(buffer))):
        other.add(**step())  # or it would wait for ever
    in_progress.write()


def test_nothing_of_a_step_that_only_began_is_saved(tmp_path):
    buffer = filled(25)
    buffer.add(np.full((1, 3), 99, np.uint8), [1], [1.0], NO[:1], NO[:1], env_id=[1])
    loaded = PrioritizedReplayBuffer.load(save(buffer, tmp_path / "saved"), store="ram")
    assert loaded._ring.count.tolist() == [25, 26]
    assert_equal(loaded, buffer)
