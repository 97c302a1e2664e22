"""Rows and settings that make no sense: the right result, or an error that leaves nothing behind."""

from __future__ import annotations

import array

import numpy as np
import pytest
from make import NO, filled, go_on_alike, refused, small, snapshot, step
from strange import Array, Index, Length, misaligned, misaligned_view, read_only

from fastrl.replay import Batch

STRANGE = {  # each the same as step()
    "read-only": {name: read_only(value) for name, value in step().items()},
    "backwards": {name: value[::-1].copy()[::-1] for name, value in step().items()},
    "columns first": {"obs": np.asfortranarray(step()["obs"])},
    "one row for all": {"obs": np.broadcast_to(np.uint8(12), (2, 3)), "terminated": np.broadcast_to(np.False_, 2)},
    "misaligned": {"reward": misaligned([12, 120], "f8"), "action": misaligned([12, -12], "i8")},
    "misaligned floats": {"reward": misaligned([12, 120], "f4"), "env_id": misaligned([0, 1], "i8")},
    "misaligned views": {"reward": misaligned_view([12, 120], "d"), "env_id": misaligned_view([0, 1], "l")},
    "big-endian": {"reward": np.array([12, 120], ">f4"), "action": np.array([12, -12], ">i8")},
    "big-endian names": {"env_id": np.array([0, 1], ">i4"), "truncated": np.zeros(2, ">i2")},
    "half floats": {"reward": np.array([12, 120], np.float16)},
    "long floats": {"reward": np.array([12, 120], np.longdouble)},
    "unsigned names": {"env_id": np.array([0, 1], np.uint64)},
    "array.array": {"reward": array.array("d", [12, 120]), "obs": np.full((2, 3), 12, np.uint8).data},
    "__array__": {name: Array(value) for name, value in step().items()},
}


@pytest.mark.parametrize("changes", STRANGE.values(), ids=STRANGE)
def test_strange_arrays_of_the_right_values_add_the_right_rows(stores, changes):
    usual, strange = filled(), filled()
    usual.add(**step())
    strange.add(**step(**changes))
    go_on_alike(usual, strange)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_buffer_may_hold_either_byte_order_and_take_either(kernels, order):
    usual = small(obs_dtype=np.int32, action_dtype=np.int16)
    other = small(obs_dtype=order + "i4", action_dtype=order + "i2")
    for t in range(30):
        for buffer, kind in ((usual, "="), (other, "<>"[t % 2])):
            obs, action = np.full((2, 3), 1000 * t, kind + "i4"), np.array([t, -t], kind + "i2")
            buffer.add(**step(t, obs=obs, action=action))
    other.check()
    for _ in range(3):
        first, second = usual.sample(9), other.sample(9)
        for name in Batch.__slots__:
            assert np.array_equal(getattr(first, name), getattr(second, name)), name


BAD_ROWS = [
    ({"obs": np.zeros((2, 3), np.int8)}, "obs is int8; expected uint8: convert it"),
    ({"obs": np.zeros((2, 3), ">u2")}, "obs is >u2; expected uint8"),
    ({"obs": np.zeros((3, 2), np.uint8).T[:, :2]}, r"obs has shape \(2, 2\); expected \(2, 3\)"),
    ({"obs": np.zeros((0, 3), np.uint8)}, r"obs has shape \(0, 3\); expected \(2, 3\)"),
    ({"obs": None}, r"obs has shape \(\); expected \(2, 3\)"),
    ({"obs": "abc"}, "obs has shape"),
    ({"obs": Array(5)}, "obs is not an array .*__array__"),
    ({"obs": Array(ValueError("not today"))}, "obs is not an array .not today."),
    ({"obs": Length(2)}, "obs has shape"),
    ({"obs": Length(-1)}, "obs (is not an array|has shape)"),
    (
        {"action": np.array([2**63, 0], np.uint64)},
        "action holds 9223372036854775808, which int64 cannot hold; build the buffer with action_dtype='uint64'",
    ),
    ({"action": [2**64, 0]}, "action is object"),
    ({"action": ["1", "2"]}, "action is <U1"),
    ({"action": [[1], [2, 3]]}, "action is not an array"),
    ({"reward": [0, np.nan]}, "reward holds nan; give finite"),
    ({"reward": misaligned([0, -np.inf], "f8")}, "reward holds -inf; give finite"),
    ({"reward": np.array([0, np.inf], np.float16)}, "reward holds inf; give finite"),
    ({"reward": np.array([0, np.longdouble("1e4000")])}, r"reward holds 1e\+4000, which float32 cannot hold; give"),
    ({"reward": [1e39, 0]}, r"reward holds 1e\+39, which float32 cannot hold; give numbers from -3.4\S+ to 3.4"),
    ({"reward": 1.0}, r"reward has shape \(\); expected \(2,\)"),
    ({"reward": np.array(["1", "2"])}, "reward is <U1"),
    ({"reward": [None, 1.0]}, "reward is object"),
    ({"reward": np.zeros(2, "m8[s]")}, "reward is timedelta64"),
    ({"terminated": [0, 2]}, r"terminated is int64 and holds 2; expected bool \(2,\)"),
    ({"truncated": [[0], [0, 1]]}, "truncated is not an array"),
    ({"first": np.array([None, True])}, "first is object"),
    ({"env_id": [0, 2**31]}, "env_id holds 2147483648; give 0 to 1"),
    ({"env_id": np.array([0, 2**63], np.uint64)}, "env_id holds 9223372036854775808"),
    ({"env_id": [0, 2**64]}, "env_id is object"),
    ({"env_id": np.array([0, -(2**63)])}, "env_id holds -9223372036854775808; give 0 to 1"),
    ({"env_id": [1, 1]}, "env_id names an environment twice"),
    ({"env_id": np.array([False, True])}, "env_id is bool"),
    ({"env_id": [0.0, 1.0]}, "env_id is float64"),
    ({"env_id": [[0, 1]]}, r"env_id is int64 \(1, 2\); give integers of shape"),
    ({"env_id": [[0], [1, 2]]}, "env_id is not an array"),
    ({"env_id": np.arange(3)}, "env_id holds 2"),
    ({"env_id": Array(RuntimeError("on another device"))}, "on another device"),
]


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_rows_that_do_not_fit_are_named_and_leave_nothing_behind(stores, autoreset):
    buffer, untouched = filled(autoreset=autoreset), filled(autoreset=autoreset)
    for changes, message in BAD_ROWS:
        with refused(buffer, message, (ValueError, RuntimeError)):
            buffer.add(**step(**changes))
    go_on_alike(buffer, untouched)


def test_an_action_too_large_for_its_dtype_is_named():
    buffer = small(action_dtype=np.float32)
    with refused(buffer, r"action holds 1e\+300, which float32 cannot hold; build the .* action_dtype='float64'"):
        buffer.add(**step(action=[1e300, 0.0]))
    buffer.add(**step(action=[0.1, -np.inf]))  # the nearest float32 of what was given
    assert buffer._ring.action[[0, 20]].tolist() == [np.float32(0.1), -np.inf]


FRAME = np.full(3, 9, np.uint8)


@pytest.mark.parametrize(
    ("final_obs", "message"),
    [
        ([FRAME, [1, 2, [3]]], "final_obs is not an array"),
        ([None, [1, 2, [3]]], r"final_obs\[1\] is not an array"),
        ([None, [1, 2, 3]], r"final_obs\[1\] is int64 \(3,\); expected uint8 \(3,\)"),
        ([None, Array(np.zeros(4, np.uint8), FRAME)], r"final_obs\[1\] is uint8 \(4,\); expected uint8 \(3,\)"),
        ([None, Array(ValueError("not today"))], r"final_obs\[1\] is not an array \(not today\)"),
        (Length(1), "final_obs"),
        ([FRAME], r"final_obs has shape \(1, 3\)"),
        ([None, FRAME, None], r"final_obs is an object array of shape \(3,\); expected \(2,\)"),
    ],
)
def test_final_frames_that_do_not_fit_are_named_and_leave_nothing_behind(final_obs, message):
    buffer, untouched = filled(autoreset="same_step"), filled(autoreset="same_step")
    with refused(buffer, message):
        buffer.add(**step(truncated=np.array([False, True]), final_obs=final_obs))
    go_on_alike(buffer, untouched)


def test_a_final_frame_is_read_once():
    """What was checked is what is written, though the object has another answer the second time."""
    buffer, twin = filled(autoreset="same_step"), filled(autoreset="same_step")
    ends = {"truncated": np.array([False, True])}
    buffer.add(**step(final_obs=[None, Array(FRAME, np.zeros(4, np.uint8))], **ends))
    twin.add(**step(final_obs=[None, FRAME], **ends))
    go_on_alike(buffer, twin)


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("empty", [[], np.zeros(0, int), np.zeros(0)])
def test_a_step_of_no_environment_changes_nothing(kernels, autoreset, empty):
    buffer = filled(autoreset=autoreset)
    before = snapshot(buffer)
    none = step(obs=np.zeros((0, 3), np.uint8), action=empty, reward=empty, terminated=NO[:0], truncated=NO[:0])
    buffer.add(**none | {"action": np.zeros(0, int)}, env_id=empty)
    for name, value in snapshot(buffer).items():
        assert np.array_equal(value, before[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 4}, "capacity is 4, which is 2 rows .*: give capacity=8 or more"),  # one stack each
        ({"capacity": 2**63}, r"capacity is above 2\*\*63 - 1"),
        ({"capacity": Index()}, "capacity is <"),
        ({"capacity": 2**62}, r"obs_shape is \(3,\); give .* capacity = 4611686018427387904 take fewer than 2\*\*63"),
        ({"num_envs": 2**40}, "capacity is 40, which is 0 rows"),
        ({"obs_shape": (2**31, 2**31)}, r"obs_shape is \(2147483648, 2147483648\); give"),
        ({"obs_shape": (1,) * 63}, "obs_shape is .*; give at most 62 axes"),
        ({"action_shape": (2**62,)}, r"action_shape is \(4611686018427387904,\); give"),
        ({"obs_shape": (-3,)}, "obs_shape is -3"),
        ({"obs_shape": (True,)}, "obs_shape is True"),
        ({"obs_dtype": "U3"}, "obs_dtype is <U3"),
        ({"obs_dtype": [("a", "u1")]}, "obs_dtype is "),
        ({"action_dtype": "M8[s]"}, "action_dtype is datetime64"),
        ({"gamma": np.complex64(0.5)}, "gamma is "),
        ({"alpha": 10**400}, "alpha is 1000"),
        ({"eps": np.nan}, "eps is nan"),
    ],
)
def test_settings_of_no_use_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
