"""Vector steps that are added in one call, and those that are not: the same rows either way."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from make import NO, filled, small

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

    def never(*_):
        raise AssertionError("the plain path was taken")

    monkeypatch.setattr(buffer_module, "check_rows", never)
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


def test_without_final_frames_inside_only_steps_without_a_done_take_one_call(monkeypatch):
    fast, plain = small(autoreset="same_step"), small(autoreset="same_step")
    plain._appender = None
    for t in range(30):
        ends = np.array([t % 5 == 0, t % 7 == 0])
        for buffer in (fast, plain):
            buffer.add(**step(t, terminated=ends))
        assert_same(fast, plain)
    fast.check()


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
