"""Loading with another capacity: which rows are held, what they keep, and what is refused."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from make import NO, altered, filled, frames_of, header_of, small, snapshot, step
from test_saves import Counting, assert_equal, frame_files, many, save, tiny_pieces  # noqa: F401 - a fixture

from fastrl.replay import PrioritizedReplayBuffer, ReplayBuffer
from fastrl.replay.saves.archive import INDEX


def saved(buffer, path, form):
    buffer.begin_save(path).write() if form == "folder" else buffer.save(path)
    return path


def rows_of(buffer):
    """Return what a buffer holds of each row, by the row's index."""
    env, row = buffer._ring.held_rows()
    slots, frames = env * buffer._ring.rows + row % buffer._ring.rows, frames_of(buffer)
    columns = (getattr(buffer._ring, name)[slots] for name in ("reward", "mark", "first", "action"))
    rows = zip(*(column.tolist() for column in (row * 2 + env, *columns, frames[slots])), strict=True)
    return {index: tuple(rest) for index, *rest in rows}


def weights_of(buffer):
    env, row = buffer._ring.held_rows()
    index = row * 2 + env
    return dict(zip(index.tolist(), buffer.weights(index).tolist(), strict=True))


@pytest.mark.usefixtures("stores", "tiny_pieces")
@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("capacity", [12, 25, 39, 40, 41, 60, 1_000])
def test_the_newest_rows_keep_all_they_had(tmp_path, kernels, form, autoreset, capacity):
    buffer = small(autoreset=autoreset, n_step=2)
    many(buffer, 70, np.random.default_rng(capacity))
    again = PrioritizedReplayBuffer.load(saved(buffer, tmp_path / "saved", form), capacity=capacity)
    again.check()
    assert again.settings == buffer.settings | {"capacity": capacity}
    assert again.max_priority == buffer.max_priority
    assert again._rng.bit_generator.state == buffer._rng.bit_generator.state
    before, after = rows_of(buffer), rows_of(again)
    assert after.items() <= before.items()
    for env in range(2):
        newest = sorted(index for index in before if index % 2 == env)[-(capacity // 2) :]
        assert sorted(index for index in after if index % 2 == env) == newest
    weights, kept = weights_of(buffer), weights_of(again)
    cut = [index for index in kept if kept[index] != weights[index]]
    assert all(kept[index] == 0 for index in cut)
    assert len(cut) <= (2 if capacity < 40 else 0)  # the oldest row of each environment, whose stack begins before it
    assert again.drawable == sum(weight > 0 for weight in kept.values())


def test_a_row_whose_stack_reaches_back_to_a_row_left_behind_cannot_be_drawn(tmp_path):
    buffer = filled(12, stack=3)  # rows 0 to 11 of each environment; the newest waits for the next
    buffer.save(tmp_path / "saved")
    again = PrioritizedReplayBuffer.load(tmp_path / "saved", capacity=14)  # rows 5 to 11
    assert [index // 2 for index, weight in weights_of(again).items() if weight][::2] == [7, 8, 9, 10]
    grown = PrioritizedReplayBuffer.load(save(again, tmp_path / "small"), capacity=40)
    assert (len(grown), grown.drawable) == (14, 8)
    for t in range(12, 25):  # room for 20 rows
        grown.add(**step(t))
        grown.check()
        oldest = max(5, t + 1 - 20)
        assert len(grown) == 2 * (t + 1 - oldest)
        assert grown.drawable == 2 * (t + 1 - oldest - 3)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_with_the_capacity_that_was_saved_nothing_changes(tmp_path, form):
    for number, buffer in enumerate((filled(5), filled(31), small())):
        path = saved(buffer, tmp_path / str(number), form)
        assert PrioritizedReplayBuffer.saved_settings(path)["capacity"] == 40
        again = PrioritizedReplayBuffer.load(path, capacity=40)
        assert_equal(again, buffer)
        assert_equal(PrioritizedReplayBuffer.load(path), buffer)


def test_the_format_is_the_same_where_no_row_is_missing(tmp_path):
    def arrays(path):
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist())

    buffer = filled(31)
    buffer.save(tmp_path / "before")
    small_one = PrioritizedReplayBuffer.load(tmp_path / "before", capacity=20)
    small_one.save(tmp_path / "small")
    grown = PrioritizedReplayBuffer.load(tmp_path / "small", capacity=40)
    grown.save(tmp_path / "grown")
    names = arrays(tmp_path / "before")
    assert arrays(tmp_path / "small") == names
    assert arrays(tmp_path / "grown") == sorted([*names, "ring.lost.npy"])
    assert_equal(PrioritizedReplayBuffer.load(tmp_path / "grown"), grown)
    for t in range(31, 60):
        for each in (buffer, grown):
            each.add(**step(t))
    grown.save(tmp_path / "full")
    assert arrays(tmp_path / "full") == names
    again, wanted = snapshot(PrioritizedReplayBuffer.load(tmp_path / "full")), snapshot(buffer)
    assert all(np.array_equal(again[name], wanted[name]) for name in wanted)


def test_n_may_exceed_the_rows_that_a_grown_ring_held(tmp_path):
    buffer = filled(30, capacity=10, stack=2)  # the newest 5 rows of each environment: 25 to 29
    grown = PrioritizedReplayBuffer.load(save(buffer, tmp_path / "saved"), capacity=100)
    grown.set_n_step(8)
    grown._ring.pending -= 1
    with pytest.raises(AssertionError, match="a window is open before a stack that is cut"):
        grown.check()
    grown._ring.pending += 1
    for t in range(30, 60):
        grown.add(**step(t))
        grown.check()
        waiting_or_cut = 8 + 1
        assert grown.drawable == 2 * max(0, t + 1 - 25 - waiting_or_cut)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_uniform_replays_change_size_too(tmp_path, form):
    buffer = ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,), seed=0)
    for t in range(30):
        buffer.add(**step(t))
    path = saved(buffer, tmp_path / "saved", form)
    for capacity, oldest in ((10, 25), (100, 10)):
        again = ReplayBuffer.load(path, capacity=capacity)
        drawn = again.sample(500)
        assert sorted(set(drawn.index // 2)) == list(range(oldest, 29))
        assert np.array_equal(drawn.obs[:, 0, 0], drawn.index // 2)


# --- saving again -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("capacity", [24, 80])
def test_the_next_save_shares_the_files_of_the_save_that_was_loaded(tmp_path, capacity):
    first = save(filled(30), tmp_path / "first")
    again = PrioritizedReplayBuffer.load(first, store=Counting, capacity=capacity)
    again.add(**step())
    second = save(again, tmp_path / "second", first)
    shared = {path.name for path in frame_files(second) if path.stat().st_nlink == 2}
    assert shared
    assert shared <= {path.name for path in frame_files(first)}
    assert again._store.gathered < 10
    assert_equal(PrioritizedReplayBuffer.load(second), again)


@pytest.mark.usefixtures("tiny_pieces")
def test_the_files_of_a_ring_that_grew_hold_no_empty_slots(tmp_path):
    first = save(filled(1_000), tmp_path / "first")
    grown = PrioritizedReplayBuffer.load(first, capacity=2_000)
    second = save(grown, tmp_path / "second")
    assert sum(path.stat().st_size for path in frame_files(second)) == 40 * 3
    assert_equal(PrioritizedReplayBuffer.load(second), grown)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("capacity", [0, -1, 7, True, 2.5, "40", 10**24, 2**62, 2**55])
def test_a_capacity_is_refused_with_the_words_of_the_constructor(tmp_path, form, capacity):
    path = saved(filled(), tmp_path / "saved", form)
    with pytest.raises((ValueError, MemoryError), match="capacity") as wanted:
        small(capacity=capacity)
    with pytest.raises(wanted.type) as found:
        PrioritizedReplayBuffer.load(path, capacity=capacity)
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("capacity", [20, 40, 80])
@pytest.mark.parametrize(
    "change",
    [
        lambda h, a: a["ring.count"].__isub__(100),
        lambda h, a: a["ring.count"].__iadd__(1),
        lambda h, a: a["ring.count"].fill(2**63 - 1),
        lambda h, a: a["ring.drawable"].fill(1),
        lambda h, a: a["ring.pending"].__iadd__(1),
        lambda h, a: a.update({"ring.count": a["ring.count"].astype(np.int32)}),
        lambda h, a: a.update({"ring.first": a["ring.first"][0]}),
        lambda h, a: a.update({"ring.lost": np.array([-1, 0])}),
        lambda h, a: a.update({"ring.lost": np.array([0, 99])}),
        lambda h, a: a.update({"ring.lost": np.array([3, 3])}),  # rows before it could be drawn
        lambda h, a: a.update({"weights": a["weights"][:1]}),
        lambda h, a: a["weights"].fill(np.nan),
        lambda h, a: a["weights"].fill(1.0),
        lambda h, a: a.pop("weights"),
        lambda h, a: h.update(held=11),
        lambda h, a: h["settings"].pop("stack"),
        lambda h, a: h["settings"].update(capacity=0),
        lambda h, a: h["settings"].update(capacity="many"),
    ],
    ids=lambda change: None,
)
def test_a_save_that_contradicts_itself_is_refused_by_name(tmp_path, form, capacity, change):
    path = saved(filled(12), tmp_path / "saved", form)
    altered(path / INDEX if form == "folder" else path, change)
    with pytest.raises(ValueError, match=f"{path} is not a saved replay, or is damaged"):
        PrioritizedReplayBuffer.load(path, capacity=capacity)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_damage_to_rows_that_are_left_behind_is_found_too(tmp_path, form):
    path = saved(filled(20, obs_shape=(50,)), tmp_path / "saved", form)
    file = frame_files(path)[0] if form == "folder" else path
    data = bytearray(file.read_bytes())
    data[data.index(bytes([3] * 50)) + 20] ^= 1  # the frame of row 3
    file.write_bytes(data)
    with pytest.raises(ValueError, match=str(path)):
        PrioritizedReplayBuffer.load(path, capacity=10)
    assert header_of(path / INDEX if form == "folder" else path)["held"] == 20


@pytest.mark.parametrize("capacity", [12, 400])
def test_an_episode_that_was_open_when_it_was_saved_goes_on(tmp_path, capacity):
    buffer = filled(12, n_step=3)
    buffer.save(tmp_path / "saved")
    again = PrioritizedReplayBuffer.load(tmp_path / "saved", capacity=capacity)
    again.add(**step(12, terminated=~NO))
    assert (again.sample(100).index // 2).max() == 9
    again.add(**step(13))  # the final observation
    batch = again.sample(100)
    assert set(batch.discount[batch.index // 2 >= 10]) == {0}
    assert (batch.index // 2).max() == 12
    again.check()
