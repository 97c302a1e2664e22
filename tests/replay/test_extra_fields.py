"""Fields of one's own: in rows, in batches, at the next state where asked for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from make import NO, refused, small, step

from fastrl.replay import Batch, ExtraBatch
from fastrl.replay import buffer as buffer_module

EXTRA = {"log_prob": ((), np.float32), "mask": ((3,), bool)}
ENDS = np.array([False, True])


def fields(t):
    """Fields of step t: of environment 0 as a mask the bits of t, of environment 1 those of t + 1."""
    return {"log_prob": np.array([-t, t], np.float32), "mask": (np.array([[t], [t + 1]]) >> np.arange(3) & 1) != 0}


def build(**changes):
    return small(**{"extra": EXTRA, "next_extra": ("mask",)} | changes)


def filled(steps=12, **changes):
    buffer = build(**changes)
    for t in range(steps):
        buffer.add(**step(t, extra=fields(t)))
    return buffer


def number(mask):
    return (mask << np.arange(3)).sum(axis=1)


def test_a_batch_holds_all_fields_at_its_states_and_those_asked_for_at_the_next(kernels, stores):
    batch = filled(n_step=2).sample(64)
    assert isinstance(batch, ExtraBatch)
    assert {name: (a.shape, a.dtype) for name, a in batch.extra.items()} == {
        "log_prob": ((64,), np.float32), "mask": ((64, 3), bool),
    }  # fmt: skip
    assert list(batch.next_extra) == ["mask"]
    env, t = batch.index % 2, np.abs(batch.action)
    assert np.array_equal(batch.extra["log_prob"], np.where(env == 0, -t, t))
    assert np.array_equal(number(batch.extra["mask"]), (t + env) % 8)
    assert np.array_equal(number(batch.next_extra["mask"]), (t + 2 + env) % 8)


def test_a_buffer_without_fields_gives_plain_batches_with_none_of_them():
    buffer = small()
    for t in range(9):
        buffer.add(**step(t))
    batch = buffer.sample(4)
    assert type(batch) is Batch
    assert (batch.extra, batch.next_extra) == ({}, {})


def test_the_field_of_a_row_after_a_done_is_that_of_the_final_state():
    buffer = build(autoreset="next_step", n_step=3)
    for t in range(12):
        buffer.add(**step(t, extra=fields(t), terminated=ENDS & (t == 6)))
    batch = buffer.sample(200)
    ended = batch.discount == 0
    assert set(batch.action[ended]) == {-4, -5, -6}
    assert set(number(batch.next_extra["mask"])[ended]) == {7 + 1 - 8}  # of row 7, which holds the final observation


@pytest.mark.parametrize("how", ["arrays", "one by one", "objects of a field"])
def test_final_fields_come_as_final_observations_do(how):
    buffer = build(autoreset="same_step")
    mask = np.array([[0, 0, 0], [1, 0, 1]], bool)
    given = {
        "arrays": {"mask": mask},
        "one by one": [None, {"mask": mask[1]}],
        "objects of a field": {"mask": [None, mask[1]]},
    }[how]
    for t in range(12):
        ends = {"truncated": ENDS, "final_obs": step(99)["obs"], "final_extra": given} if t == 6 else {}
        buffer.add(**step(t, extra=fields(t), **ends))
    batch = buffer.sample(200)
    ended = batch.action == -6
    assert ended.any()
    assert set(number(batch.next_extra["mask"])[ended]) == {5}
    buffer.check()


def test_a_terminated_row_may_omit_them_and_a_game_may_still_continue():
    buffer = build(autoreset="same_step")
    for t in range(12):
        ends = {"terminated": ENDS, "final_obs": step(99)["obs"]} if t == 6 else {}
        buffer.add(**step(t, extra=fields(t), first=np.array([t == 0] * 2), **ends))  # the stack has all its frames
    batch = buffer.sample(200)
    assert set(number(batch.next_extra["mask"])[batch.action == -6]) == {7}  # its own
    buffer.check()


def test_fields_take_the_one_call_and_the_plain_path_adds_the_same(monkeypatch):
    fast, plain = build(autoreset="same_step"), build(autoreset="same_step")
    plain._appender = None
    rng, steps = np.random.default_rng(0), []
    for t in range(60):
        ends = {"terminated": rng.random(2) < 0.1, "truncated": rng.random(2) < 0.1}
        ends |= {"final_obs": step(99)["obs"], "final_extra": {"mask": fields(t + 3)["mask"]}}
        steps.append(step(t, extra=fields(t), **ends))
    for each in steps:
        plain.add(**each)
    monkeypatch.setattr(buffer_module, "check_rows", nobody)
    for each in steps:
        fast.add(**each)
    one, other = fast.sample(32), plain.sample(32)
    for name in ("obs", "next_obs", "index", "reward"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    for name in ("extra", "next_extra"):
        for key, array in getattr(one, name).items():
            assert np.array_equal(array, getattr(other, name)[key])
    fast.check()


def nobody(*_):
    raise AssertionError("the plain path was taken")


def test_values_that_fit_are_converted():
    one, other = build(), build()
    for t in range(12):
        one.add(**step(t, extra=fields(t)))
        other.add(**step(t, extra={"log_prob": [-float(t), t], "mask": fields(t)["mask"].tolist()}))
    assert np.array_equal(one.sample(9).extra["log_prob"], other.sample(9).extra["log_prob"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "extra is None; give a dictionary of 'log_prob', 'mask'"),
        ({"extra": {"mask": fields(1)["mask"]}}, "extra is a dictionary of 'mask'; give a dictionary of 'log_prob'"),
        ({"extra": fields(1) | {"mask": NO}}, r"extra\['mask'\] has shape \(2,\); expected \(2, 3\)"),
        ({"extra": fields(1) | {"log_prob": [1e39, 0]}}, r"extra\['log_prob'\] holds 1e\+39, which float32 cannot"),
        ({"extra": fields(1) | {"log_prob": [1j, 0]}}, r"extra\['log_prob'\] is complex128; expected float32"),
        ({"extra": fields(1), "final_extra": {"mask": NO}}, "final_extra is given, but with autoreset='next_step'"),
    ],
)  # fmt: skip
def test_fields_that_do_not_fit_are_named_and_leave_nothing_behind(changes, message):
    buffer = filled()
    with refused(buffer, message):
        buffer.add(**step(**changes))


@pytest.mark.parametrize(
    ("final", "message"),
    [
        (None, r"final_extra\['mask'\] is None in row 1, which was truncated; give the value after"),
        ({"mask": [None, None]}, r"final_extra\['mask'\] is None in row 1"),
        ({"mask": np.zeros((2, 2), bool)}, r"final_extra\['mask'\] has shape \(2, 2\)"),
        ({"mask": [None, [1.5, 0, 0]]}, r"final_extra\['mask'\]\[1\] is float64 \(3,\); expected bool"),
        ({"log_prob": np.zeros(2)}, "final_extra is a dictionary of 'log_prob'; give a dictionary of 'mask'"),
        ([None, {"log_prob": 0.0}], r"final_extra\['mask'\]\[1\] is object \(\)"),
        (np.ones((2, 3), bool), "final_extra is of type ndarray; give a dictionary of 'mask'"),
    ],
)
def test_final_fields_that_do_not_fit_are_named_and_leave_nothing_behind(final, message):
    buffer = filled(autoreset="same_step")
    rows = {"truncated": ENDS, "final_obs": step(99)["obs"], "extra": fields(1)}
    with refused(buffer, message):
        buffer.add(**step(**rows, final_extra=final))


def test_final_fields_are_checked_as_rows_are_when_they_are_cast():
    buffer = small(extra={"own": ((1,), np.float32)}, next_extra=("own",), autoreset="same_step")
    rows = {"truncated": ENDS, "final_obs": step(99)["obs"], "extra": {"own": np.zeros((2, 1), np.float32)}}
    with refused(buffer, r"final_extra\['own'\]\[1\] holds 1e\+39, which float32 cannot hold"):
        buffer.add(**step(**rows, final_extra={"own": [None, np.array([1e39])]}))


def test_out_must_have_the_fields_too():
    buffer = filled()
    drawn = copy.deepcopy(buffer.sample(9))
    out = copy.deepcopy(drawn)
    assert buffer.sample(9, out=out) is out
    plain = Batch(**{name: getattr(out, name) for name in Batch.__slots__})
    with refused(buffer, "out.extra is a dictionary of nothing; give a dictionary of 'log_prob', 'mask'"):
        buffer.sample(9, out=plain)
    named = {name: getattr(out, name) for name in Batch.__slots__}
    extra = out.extra | {"mask": out.next_extra["mask"]}
    with refused(buffer, "two arrays of out share their memory"):
        buffer.sample(9, out=ExtraBatch(**named, extra=extra, next_extra=out.next_extra))


def test_fields_are_saved_and_read_back_in_order(tmp_path):
    buffer = filled(steps=30)
    buffer.save(tmp_path / "replay")
    loaded = type(buffer).load(tmp_path / "replay", capacity=20)
    found = [row for rows in loaded.rows(3) for row in zip(rows.env, rows.extra["log_prob"], strict=True)]
    assert found == [(0, -t) for t in range(20, 30)] + [(1, t) for t in range(20, 30)]
    assert loaded.settings["extra"] == {"log_prob": ((), "<f4"), "mask": ((3,), "|b1")}
    assert loaded.nbytes - small(capacity=20).nbytes == 20 * (4 + 3)
