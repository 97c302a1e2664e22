"""Many vector steps added in one call, and all rows read back in order."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from make import NO, filled, refused, small, snapshot, step

from fastrl.replay import ReplayBuffer
from fastrl.replay import buffer as buffer_module

ENDS = np.array([False, True])


def steps(begin=12, count=50, seed=0, **changes):
    """Vector steps in one: `step` with one more axis, and ends of episodes."""
    rng = np.random.default_rng(seed)
    rows = [step(t % 250) for t in range(begin, begin + count)]
    ends = {"terminated": rng.random((count, 2)) < 0.1, "truncated": rng.random((count, 2)) < 0.1}
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} | ends | changes


def one_by_one(buffer, rows):
    rows = {name: value for name, value in rows.items() if value is not None}
    env = {"env_id": rows.pop("env_id")} if "env_id" in rows else {}
    for t in range(len(rows["terminated"])):
        buffer.add(**{name: value[t] for name, value in rows.items()}, **env)


def assert_same(one, other):
    one, other = snapshot(one), snapshot(other)
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


FINALS = np.random.default_rng(1).integers(256, size=(50, 2, 3), dtype=np.uint8)


@pytest.mark.parametrize("autoreset", ["next_step", "same_step", "disabled"])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"first": np.random.default_rng(2).random((50, 2)) < 0.1},
        {"env_id": np.array([1, 0])},
        {"reward": np.ones((50, 2), np.float32)},
        {"action": np.ones((50, 2), np.int16)},
        {"obs": np.broadcast_to(np.arange(3, dtype=np.uint8), (50, 2, 3))},
        {"obs": FINALS.repeat(4, axis=0)[3::4]},
    ],
)
def test_many_steps_in_one_call_are_those_steps_one_by_one(kernels, stores, autoreset, n_step, changes):
    one, other = filled(autoreset=autoreset, n_step=n_step), filled(autoreset=autoreset, n_step=n_step)
    finals = {} if autoreset == "next_step" else {"final_obs": FINALS}
    rows = steps(**changes, **finals)
    one_by_one(one, rows)
    other.extend(**rows)
    assert_same(one, other)
    other.check()


def test_steps_that_match_take_one_call_and_so_do_those_that_are_converted(monkeypatch):
    plain, fast, converted = (filled(autoreset="same_step") for _ in range(3))
    one_by_one(plain, steps(final_obs=FINALS))
    with monkeypatch.context() as patch:
        patch.setattr(buffer_module, "check_many_rows", nobody)
        fast.extend(**steps(final_obs=FINALS))
    monkeypatch.setattr(type(plain), "_append", nobody)
    rows = steps(final_obs=list(FINALS))
    rows |= {"action": rows["action"].tolist(), "terminated": rows["terminated"].astype(int)}
    converted.extend(**rows)
    assert_same(plain, fast)
    assert_same(plain, converted)


def nobody(*_):
    raise AssertionError("this path was taken")


@pytest.mark.parametrize("piece", [1, 40, 1 << 24])
def test_a_store_of_another_kind_takes_them_in_pieces(monkeypatch, piece):
    pytest.importorskip("lz4.block")
    monkeypatch.setattr(buffer_module, "PIECE", piece)
    one, other = filled(store="lz4", autoreset="same_step"), filled(store="lz4", autoreset="same_step")
    one_by_one(one, steps(final_obs=FINALS))
    other.extend(**steps(final_obs=FINALS))
    assert_same(one, other)


def test_final_frames_come_step_by_step_as_add_takes_them(kernels):
    one, other = filled(autoreset="same_step"), filled(autoreset="same_step")
    rows = steps()
    ended = rows["terminated"] | rows["truncated"]
    each = [[FINALS[t, i] if ended[t, i] else None for i in range(2)] if ended[t].any() else None for t in range(50)]
    for t in range(50):
        one.add(**{name: value[t] for name, value in rows.items()}, final_obs=each[t])
    other.extend(**rows, final_obs=each)
    assert_same(one, other)


def test_no_step_and_no_environment_add_nothing():
    buffer, untouched = filled(), filled()
    buffer.extend(**steps(count=50) | {name: value[:0] for name, value in steps().items()})
    buffer.extend(**{name: value[:, :0] for name, value in steps().items()}, env_id=np.empty(0, np.int64))
    assert_same(buffer, untouched)


@pytest.mark.parametrize("behind", [0, 255])
def test_of_no_steps_no_row_is_read(behind):
    """Not even the first, which would lie behind the arrays."""
    buffer, untouched = filled(), filled()
    rows = steps(count=1)
    for value in rows.values():
        value.view(np.uint8)[...] = behind
    reward = np.full((1, 2), behind, np.float32)
    columns = (rows["obs"][:0], rows["action"][:0], reward[:0], rows["terminated"][:0], rows["truncated"][:0])
    assert buffer._appender.extend(*columns, None, None, None, buffer._new_weight) == 0
    assert_same(buffer, untouched)


def test_more_steps_than_a_ring_has_rows_leave_the_newest():
    one, other = filled(), filled()
    rows = steps(count=300)
    one_by_one(one, rows)
    other.extend(**rows)
    assert_same(one, other)
    assert len(other) == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminated": NO}, r"terminated is bool \(2,\); expected bool \(T, n\)"),
        ({"terminated": [[0], [0, 1]]}, "terminated is not an array"),
        ({"truncated": np.zeros((49, 2), bool)}, r"truncated is bool \(49, 2\); expected bool \(50, 2\)"),
        ({"truncated": np.full((50, 2), 2)}, r"truncated is int64 and holds 2; expected bool \(50, 2\)"),
        ({"obs": np.zeros((2, 50, 3), np.uint8)}, r"obs has shape \(2, 50, 3\); expected \(50, 2, 3\)"),
        ({"obs": np.zeros((50, 2, 3), np.int8)}, "obs is int8; expected uint8"),
        ({"reward": np.full((50, 2), np.nan)}, "reward holds nan"),
        ({"action": np.full((50, 2), 0.5)}, "action is float64; expected int64"),
        ({"first": np.zeros((50, 2), bool)}, None),
        ({"env_id": [0, 0]}, "env_id names an environment twice"),
        ({"env_id": np.array([0, 2])}, "env_id holds 2"),
        ({"final_obs": FINALS[:, :1]}, r"final_obs has shape \(50, 1, 3\); expected \(50, 2, 3\)"),
        ({"final_obs": None}, r"final_obs is None in row \d of step \d+, which was truncated"),
        ({"final_obs": [None] * 49}, "final_obs has 49 entries; expected 50"),
        ({"final_obs": [None] * 50}, r"final_obs is None in row \d of step \d+, which was truncated"),
        ({"final_obs": [FINALS[0].astype(int)] * 50}, "final_obs is int64; expected uint8"),
        ({"extra": {"a": 1}}, "extra is a dictionary of 'a'; leave it out"),
        ({"final_extra": [None] * 50}, "final_obs is of type ndarray; give a list with one entry for each step"),
    ],
)
def test_steps_of_which_one_does_not_fit_are_refused_before_any_is_added(kernels, changes, message):
    buffer = filled(autoreset="same_step")
    rows = steps(final_obs=FINALS) | changes
    if message is None:
        buffer.extend(**rows)
        buffer.check()
        return
    with refused(buffer, message):
        buffer.extend(**rows)


def test_final_frames_are_an_error_where_the_next_row_carries_them():
    buffer = filled()
    for finals in (FINALS, [FINALS[0], *[None] * 49]):
        with refused(buffer, "final_obs is given, but with autoreset='next_step'"):
            buffer.extend(**steps(final_obs=finals))


def test_a_game_that_continues_after_a_missing_frame_is_found_among_the_steps(kernels):
    buffer = filled(autoreset="same_step")
    rows = steps(terminated=np.stack([NO] * 20 + [ENDS] + [NO] * 29), truncated=np.zeros((50, 2), bool))
    first = np.zeros((50, 2), bool)
    with refused(buffer, "first is False after a done whose final_obs was None"):
        buffer.extend(**rows, first=first)
    with refused(buffer, "first is False after a done whose final_obs was None"):
        buffer.extend(**rows, first=first, final_obs=[None] * 50)
    first[21, 1] = True
    buffer.extend(**rows, first=first)
    buffer.add(**step(1, terminated=ENDS))
    with refused(buffer, "first is False after a done whose final_obs was None"):
        buffer.extend(**rows | {"terminated": rows["truncated"]}, first=np.zeros((50, 2), bool))


def test_steps_wait_for_a_batch_that_is_being_copied():
    buffer, untouched = filled(steps=40), filled(steps=40)
    buffer.prefetch(16)
    buffer.extend(**steps(count=100))
    wanted = untouched.sample(16)
    drawn = buffer.sample(16)
    assert np.array_equal(drawn.obs, wanted.obs)
    assert np.array_equal(drawn.next_obs, wanted.next_obs)


def test_steps_that_would_overwrite_what_a_save_needs_are_refused_if_no_thread_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # other tests leave threads behind
    buffer = filled(steps=20)
    save = buffer.begin_save(tmp_path / "save")
    with refused(buffer, r"call write\(\) or close\(\)", RuntimeError):
        buffer.extend(**steps(count=3))
    save.close()
    buffer.extend(**steps(count=3))


# --- rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_all_rows_come_environment_by_environment_the_oldest_first(kernels, stores, chunk):
    buffer = filled(steps=30)
    found = list(buffer.rows(chunk))
    assert max(len(rows.env) for rows in found) == min(chunk, 40)
    env, action = (np.concatenate([getattr(rows, name) for rows in found]) for name in ("env", "action"))
    assert env.tolist() == [0] * 20 + [1] * 20
    assert action.tolist() == [*range(10, 30), *range(-10, -30, -1)]
    obs = np.concatenate([rows.obs for rows in found])
    assert np.array_equal(obs, np.abs(action)[:, None].repeat(3, axis=1))
    assert sum(rows.drawable.sum() for rows in found) == buffer.drawable


def test_rows_give_a_buffer_back_that_draws_the_same():
    buffer = small(capacity=2000, n_step=3)
    buffer.extend(**steps(count=200))
    (rows,) = buffer.rows(1000)
    again = small(capacity=2000, n_step=3)
    halves = {
        name: np.stack(np.split(getattr(rows, name), 2), axis=1)
        for name in ("obs", "action", "reward", "terminated", "truncated")
    }
    again.extend(**halves)
    one, other = buffer.sample(64), again.sample(64)
    for name in ("obs", "action", "reward", "next_obs", "discount", "index"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_rows_of_an_empty_buffer_are_none():
    assert list(small().rows()) == []


def test_rows_added_meanwhile_do_not_come_and_those_overwritten_are_left_out():
    buffer = filled(steps=20)
    iterator = buffer.rows(5)
    assert next(iterator).action.tolist() == [0, 1, 2, 3, 4]
    for t in range(20, 28):  # rows 0 to 7 are gone
        buffer.add(**step(t))
    rest = np.concatenate([rows.action for rows in iterator])
    assert rest.tolist() == [*range(8, 20), *range(-8, -20, -1)]


def test_rows_read_while_another_thread_adds_are_whole_in_order_and_those_of_the_call(stores):
    buffer, stop, adding = filled(steps=30, capacity=400), threading.Event(), threading.Event()

    def add():
        t = 30
        while not stop.is_set():
            buffer.add(**step(t % 250, action=np.array([t, -t]), reward=np.array([t, 10.0 * t])))
            adding.set()
            t += 1

    thread = threading.Thread(target=add)
    thread.start()
    try:
        assert adding.wait(10)
        for _ in range(20):
            before = buffer._ring.count.max() - 1
            chunks = buffer.rows(7)
            after, last = buffer._ring.count.max(), np.full(2, -1)
            for rows in chunks:
                row = rows.index // 2
                assert np.array_equal(rows.index % 2, rows.env)
                assert np.array_equal(rows.action, np.where(rows.env == 0, row, -row))
                assert np.array_equal(rows.reward, np.where(rows.env == 0, row, 10 * row))
                assert np.array_equal(rows.obs, (row % 250)[:, None].repeat(3, axis=1))
                for env in np.unique(rows.env):
                    mine = row[rows.env == env]
                    assert mine[0] > last[env]
                    assert np.array_equal(mine, np.arange(mine[0], mine[0] + len(mine)))  # no gap inside a chunk
                    last[env] = mine[-1]
            assert last.max() < after
            if buffer._ring.oldest.max() <= before:  # the newest rows of the call were not overwritten before they came
                assert before - 1 <= last[0] == last[1]  # vector steps are whole
    finally:
        stop.set()
        thread.join()


def test_other_threads_may_add_between_two_chunks_but_not_within_one(monkeypatch):
    buffer, inside, added = filled(steps=20), threading.Event(), threading.Event()
    store = buffer._stores[0]
    iterator, gather = buffer.rows(5), type(store).gather

    def add():
        inside.wait(10)
        buffer.add(**step(20))
        added.set()

    def slow(self, *arguments):
        inside.set()
        assert not added.wait(0.2)
        gather(self, *arguments)

    monkeypatch.setattr(type(store), "gather", slow)
    thread = threading.Thread(target=add)
    thread.start()
    assert next(iterator).action.tolist() == [0, 1, 2, 3, 4]
    assert added.wait(10)
    thread.join()


def test_drawable_is_that_of_the_moment_at_which_a_chunk_is_read():
    buffer = filled(steps=12, n_step=3)
    iterator = buffer.rows(12)
    assert next(iterator).drawable.tolist() == [True] * 9 + [False] * 3
    buffer.add(**step(12))
    assert next(iterator).drawable.tolist() == [True] * 10 + [False] * 2


def test_an_iterator_from_before_the_buffer_was_closed_reads_no_more(tmp_path):
    buffer = filled(steps=20, store="mmap", folder=tmp_path / "replay")
    iterator = buffer.rows(5)
    next(iterator)
    buffer.close()
    with pytest.raises(RuntimeError, match="this buffer was closed; from_folder opens it again"):
        next(iterator)


def test_a_chunk_of_rows_has_arrays_of_its_own():
    first, second = list(filled().rows(12))
    assert not np.shares_memory(first.obs, second.obs)
    first.obs[:] = 0
    assert second.obs.any()


@pytest.mark.parametrize("chunk", [0, 2.5, None])
def test_a_chunk_that_is_no_number_of_rows_is_named_at_once(chunk):
    with pytest.raises(ValueError, match=r"chunk is .*; give an integer from 1 up"):
        filled().rows(chunk)


def test_rows_say_which_are_final_observations_and_which_open_a_game():
    buffer = ReplayBuffer(capacity=40, num_envs=1, obs_shape=(), autoreset="same_step")
    last = np.array([77], np.uint8)
    buffer.add(np.array([1], np.uint8), [1], [1.0], [False], [False])
    buffer.add(np.array([2], np.uint8), [2], [2.0], [False], [True], final_obs=last)
    buffer.add(np.array([3], np.uint8), [3], [3.0], [True], [True], final_obs=last)
    (rows,) = buffer.rows()
    assert rows.obs.tolist() == [1, 2, 77, 3, 77]
    assert rows.final.tolist() == [False, False, True, False, True]
    assert rows.first.tolist() == [True, False, False, True, False]
    assert rows.truncated.tolist() == [False, True, False, False, False]
    assert rows.terminated.tolist() == [False, False, False, True, False]
    assert rows.extra == {}
