"""Vector steps that are added in one call, and those that are not: the same rows either way."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from make import NO, filled, small

from fastrl.replay import ReplayBuffer
from fastrl.replay import buffer as buffer_module


def step(t=0, **changes):
    return {
        "obs": np.full((2, 3), t, np.uint8), "action": np.array([t, t + 1]), "reward": np.array([0.25, t]),
        "terminated": NO, "truncated": NO,
    } | changes  # fmt: skip


def everything(buffer):
    ring = {name: array.copy() for name, array in buffer._ring.state().items()}
    return ring | {"weights": buffer._tree.weights.copy(), "drawable": buffer.drawable, "frames": buffer._store.frames}


def assert_same(one, other):
    one, other = everything(one), everything(other)
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


JUST_SO = [
    {},
    {"reward": np.array([0.25, 3], np.float32)},
    {"first": np.array([True, False])},
    {"env_id": np.array([1, 0])},
    {"obs": np.ones((1, 3), np.uint8), "action": np.array([4]), "reward": np.array([9.0]), "terminated": NO[:1],
     "truncated": ~NO[:1], "env_id": np.array([1])},
    {"obs": np.ones((0, 3), np.uint8), "action": np.empty(0, int), "reward": np.empty(0), "terminated": NO[:0],
     "truncated": NO[:0], "env_id": np.empty(0, int)},
    {"terminated": np.array([True, True]), "truncated": np.array([False, True])},
    {"obs": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, -1]},  # the newest frames of stacks
    {"obs": np.arange(12, dtype=np.uint8).reshape(4, 3)[::-2]},
    {"obs": np.broadcast_to(np.arange(3, dtype=np.uint8), (2, 3))},
]  # fmt: skip


@pytest.mark.parametrize("changes", JUST_SO)
def test_usual_arrays_take_one_call_and_add_what_the_plain_path_adds(monkeypatch, changes):
    fast, plain = filled(), filled()
    plain._appender = None
    plain.add(**step(12, **changes))
    monkeypatch.setattr(buffer_module, "check_rows", nobody)
    fast.add(**step(12, **changes))
    assert_same(fast, plain)
    fast.check()


@pytest.mark.parametrize(
    "changes",
    [
        {"obs": np.full((2, 6), 12, np.uint8)[:, ::2]},
        {"obs": np.full((2, 3), 12, np.uint8).tolist()},
        {"reward": np.array([0.25, 12], ">f8")},
        {"reward": [0.25, 12]},
        {"action": np.array([12, 13], np.int32)},
        {"terminated": [0, 0]},
        {"terminated": np.zeros(2, np.int64)},
        {"truncated": (False, False)},
        {"env_id": np.array([0, 1], np.int32)},
        {"env_id": [0, 1]},
    ],
)
def test_other_arrays_of_the_same_values_add_the_same_rows(changes):
    if "obs" in changes and isinstance(changes["obs"], list):
        changes = {"obs": np.array(changes["obs"], np.uint8)}
    usual, other = filled(), filled()
    usual.add(**step(12))
    other.add(**step(12, **changes))
    assert_same(usual, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": np.array([0, 0])}, "twice"),
        ({"env_id": np.array([0, 2])}, "env_id holds 2"),
        ({"env_id": np.array([-1, 0])}, "env_id holds -1"),
        ({"reward": np.array([0, np.inf])}, "reward holds inf"),
        ({"reward": np.array([1e300, 0])}, r"reward holds 1e\+300, which float32 cannot hold"),
        ({"obs": np.zeros((3, 3), np.uint8)}, "obs has shape"),
        ({"obs": np.zeros((2, 1, 3), np.uint8)}, "obs has shape"),
        ({"obs": np.zeros((2, 3), np.int8)}, "obs is int8"),
        ({"terminated": np.array([2, 0], np.uint8).view(bool)}, None),
    ],
)
def test_a_step_that_is_refused_leaves_nothing_behind(changes, message):
    buffer, untouched = filled(), filled()
    if message is None:  # no error, but not to be trusted as an index of 0 and 1 either
        buffer.add(**step(12, **changes))
        assert set(buffer._ring.mark) <= {0, 2, 3}
        return
    with pytest.raises(ValueError, match=message):
        buffer.add(**step(12, **changes))
    assert_same(buffer, untouched)
    buffer.add(**step(12))
    untouched.add(**step(12))
    assert_same(buffer, untouched)


def nobody(*_):
    raise AssertionError("the plain path was taken")


def objects(*frames):
    array = np.empty(len(frames), object)
    for i, frame in enumerate(frames):
        array[i] = frame
    return array


FINAL = np.array([[7, 8, 9], [4, 5, 6]], np.uint8)
ONE, BOTH = np.array([False, True]), np.array([True, True])

ENDS = [  # with the row after a done that belongs to the next episode
    {"final_obs": FINAL},
    {"final_obs": FINAL, "first": NO},
    {"final_obs": FINAL.tolist(), "obs": FINAL},  # of another dtype
    {"final_obs": list(FINAL)},
    {"final_obs": np.repeat(FINAL[:, None], 4, axis=1)[:, -1]},
    {"final_obs": objects(None, None)},
    {"final_obs": [None, None]},
    {"final_obs": objects(None, "not read")},
    {"terminated": ONE},
    {"terminated": BOTH, "truncated": ONE},
    {"terminated": ONE, "final_obs": FINAL},
    {"truncated": ONE, "final_obs": FINAL},
    {"truncated": BOTH, "final_obs": list(FINAL), "first": BOTH},
    {"terminated": ONE, "truncated": BOTH, "final_obs": FINAL[::-1]},
    {"obs": FINAL[:1], "action": np.array([4]), "reward": np.array([9.0]), "terminated": NO[:1], "truncated": BOTH[:1],
     "env_id": np.array([1]), "final_obs": FINAL[1:]},
    {"terminated": ONE, "final_obs": objects(None, FINAL[0])},
    {"truncated": ONE, "final_obs": objects("not read", FINAL[0])},
    {"terminated": ONE, "final_obs": objects(None, None)},
    {"terminated": BOTH, "final_obs": objects(FINAL[0], None)},
    {"terminated": ONE, "final_obs": [None, FINAL[0]]},
    {"truncated": ONE, "final_obs": objects(None, FINAL.repeat(2, axis=1)[0, ::2])},
]  # fmt: skip
PLAIN = (2, 3, 6, 12, 19, 20)  # those that NumPy has to check


@pytest.mark.parametrize("autoreset", ["same_step", "disabled"])
@pytest.mark.parametrize("case", range(len(ENDS)))
def test_steps_with_final_frames_take_one_call_and_add_what_the_plain_path_adds(monkeypatch, autoreset, case):
    fast, plain = filled(autoreset=autoreset, n_step=2), filled(autoreset=autoreset, n_step=2)
    plain._appender = None
    if case == 2:
        with pytest.raises(ValueError, match="final_obs is int64"):
            fast.add(**step(12, **ENDS[case]))
        assert_same(fast, plain)
        return
    plain.add(**step(12, **ENDS[case]))
    with monkeypatch.context() as patch:
        if case not in PLAIN:
            patch.setattr(buffer_module, "check_rows", nobody)
        fast.add(**step(12, **ENDS[case]))
    assert_same(fast, plain)
    for t in range(13, 60):  # around the ring
        for buffer in (fast, plain):
            buffer.add(**step(t, **ENDS[case] if t % 9 == 0 else {}))
        assert_same(fast, plain)
    fast.check()


def test_steps_with_and_without_ends_in_any_order_add_what_the_plain_path_adds(monkeypatch):
    rng = np.random.default_rng(0)
    for autoreset in ("same_step", "disabled"):
        fast, plain = small(autoreset=autoreset, n_step=3), small(autoreset=autoreset, n_step=3)
        plain._appender = None
        steps = []
        for t in range(400):
            ends = {"terminated": rng.random(2) < 0.2, "truncated": rng.random(2) < 0.1}
            final = rng.integers(256, size=(2, 3), dtype=np.uint8)
            steps.append(step(t % 250, **ends, final_obs=final))
            if not (ends["truncated"] & ~ends["terminated"]).any() and rng.random() < 0.5:
                steps[-1]["final_obs"] = None
        for each in steps:
            plain.add(**each)
        with monkeypatch.context() as patch:
            patch.setattr(buffer_module, "check_rows", nobody)
            for each in steps:
                fast.add(**each)
                fast.check()
        assert_same(fast, plain)


def test_lists_that_become_such_arrays_take_one_call(monkeypatch):
    """As in a loop over one environment."""
    settings = {"capacity": 40, "num_envs": 1, "obs_shape": (3,), "autoreset": "disabled", "seed": 0}
    fast, plain = ReplayBuffer(**settings), ReplayBuffer(**settings)
    plain._appender = None
    for t in range(60):
        lists = {"action": [np.int64(t)], "reward": [float(t)], "terminated": [t % 7 == 0], "truncated": [t % 5 == 0],
                 "first": [t % 7 == 1 or t % 5 == 1], "env_id": [0]}  # fmt: skip
        for buffer in (fast, plain):
            with monkeypatch.context() as patch:
                if buffer is fast:
                    patch.setattr(buffer_module, "check_rows", nobody)
                buffer.add(FINAL[:1] + t, **lists, final_obs=FINAL[1:] + t)
        assert_same(fast, plain)
    fast.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_obs": FINAL[:, :2]}, r"final_obs has shape \(2, 2\)"),
        ({"final_obs": FINAL[:1]}, r"final_obs has shape \(1, 3\)"),
        ({"final_obs": FINAL.astype(np.int8)}, "final_obs is int8"),
        ({"final_obs": objects(None)}, "final_obs is an object array of shape"),
        ({"final_obs": objects(None, None)[None]}, "final_obs is an object array of shape"),
        ({"truncated": ONE}, "final_obs is None in row 1"),
        ({"truncated": ONE, "final_obs": objects(None, None)}, "final_obs is None in row 1"),
        ({"truncated": ONE, "final_obs": objects(None, FINAL)}, r"final_obs\[1\] is uint8 \(2, 3\)"),
        ({"terminated": ONE, "final_obs": objects(None, "read")}, r"final_obs\[1\] is"),
        ({"terminated": ONE, "final_obs": FINAL, "reward": np.array([0, np.nan])}, "reward holds nan"),
    ],
)
def test_final_frames_that_do_not_fit_are_refused_whether_or_not_an_episode_ended(changes, message):
    buffer, untouched = filled(autoreset="same_step"), filled(autoreset="same_step")
    with pytest.raises(ValueError, match=message):
        buffer.add(**step(12, **changes))
    assert_same(buffer, untouched)


def test_final_frames_are_an_error_where_the_next_row_carries_them():
    buffer = filled()
    with pytest.raises(ValueError, match="final_obs is given, but with autoreset='next_step'"):
        buffer.add(**step(12, final_obs=FINAL))


def test_a_game_that_continues_after_a_missing_frame_is_refused_after_one_call_too():
    buffer = filled(autoreset="same_step")
    buffer.add(**step(12, terminated=ONE))
    with pytest.raises(ValueError, match="first is False after a done whose final_obs was None"):
        buffer.add(**step(13, first=NO))
    buffer.add(**step(13, first=ONE))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_a_copy_goes_on_by_itself(copied):
    buffer, twin = filled(), filled()
    other = copied(buffer)
    for t in range(12, 40):
        other.add(**step(t))
        other.check()
    assert_same(buffer, twin)
    for t in range(12, 40):
        twin.add(**step(t))
    assert_same(other, twin)
    assert np.array_equal(other.sample(8).index, twin.sample(8).index)


def test_a_change_of_n_reaches_the_one_call():
    buffer = filled(n_step=1)
    buffer.set_n_step(4)
    for t in range(12, 40):
        buffer.add(**step(t))
        buffer.check()
    assert (buffer.sample(32).discount == np.float32(0.5**4)).all()


def test_frames_may_have_as_many_axes_as_arrays_may():
    shape = (1,) * 62
    buffer = small(obs_shape=shape, stack=1)
    for t in range(5):
        buffer.add(**step(t, obs=np.full((2, *shape), t, np.uint8)))
    assert sorted(buffer.sample(8).obs.reshape(-1)) == [0, 0, 1, 1, 2, 2, 3, 3]
