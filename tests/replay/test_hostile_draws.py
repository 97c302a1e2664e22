"""Draws and priorities that make no sense: the right result, or an error that leaves nothing behind."""

from __future__ import annotations

import array
from types import SimpleNamespace

import numpy as np
import pytest
from make import filled, go_on_alike, refused, small, step
from strange import Array, Index, misaligned, read_only

from fastrl.replay import Batch, SumTree

# --- sample -------------------------------------------------------------------------------------------


def own(size=4, **changes):
    arrays = {
        "obs": np.empty((size, 2, 3), np.uint8), "action": np.empty(size, np.int64),
        "reward": np.empty(size, np.float32), "next_obs": np.empty((size, 2, 3), np.uint8),
        "discount": np.empty(size, np.float32), "weight": np.empty(size, np.float32),
        "index": np.empty(size, np.int64),
    }  # fmt: skip
    return Batch(**arrays | changes)


SHARED = np.empty((8, 2, 3), np.uint8)
BAD_OUT = [
    ({"obs": SHARED[:4], "next_obs": SHARED[1:5]}, "two arrays of out share their memory"),
    ({"obs": SHARED[:4], "index": SHARED.reshape(-1)[:32].view(np.int64)}, None),  # misaligned or shared
    ({"obs": np.empty((8, 2, 3), np.uint8)[::2]}, "out.obs is read-only, misaligned or not contiguous"),
    ({"obs": np.empty((3, 2, 4), np.uint8).T}, "out.obs is read-only, misaligned or not contiguous"),
    ({"reward": np.frombuffer(bytearray(17), "f4", 4, offset=1)}, "out.reward is read-only, misaligned"),
    ({"action": read_only(np.zeros(4, np.int64))}, "out.action is read-only"),
    ({"index": np.empty(4, ">i8")}, r"out.index is >i8 \(4,\); give a NumPy array, int64 \(4,\)"),
    ({"weight": np.empty(4)}, "out.weight is float64"),
    ({"weight": [0.0] * 4}, "out.weight is list"),
    ({"weight": None}, "out.weight is NoneType"),
    ({"discount": np.empty((4, 1), np.float32)}, r"out.discount is float32 \(4, 1\)"),
]


def test_arrays_that_cannot_be_filled_are_named_and_nothing_is_drawn(stores):
    buffer, untouched = filled(), filled()
    for changes, message in BAD_OUT:
        with refused(buffer, message):
            buffer.sample(4, out=own(**changes))
    for foreign in ("out", 5, own().obs):
        with refused(buffer, "out.obs is NoneType; give a NumPy array"):
            buffer.sample(4, out=foreign)
    go_on_alike(buffer, untouched)


def test_arrays_side_by_side_in_one_piece_of_memory_are_filled():
    memory, buffer, twin = np.empty((8, 2, 3), np.uint8), filled(), filled()
    batch = buffer.sample(4, out=own(obs=memory[:4], next_obs=memory[4:]))
    expected = twin.sample(4)
    for name in Batch.__slots__:
        assert np.array_equal(getattr(batch, name), getattr(expected, name)), name


def test_axes_of_length_one_may_have_any_strides(stores):
    buffer, twin = filled(), filled()
    odd = np.lib.stride_tricks.as_strided(np.empty(6, np.uint8), (1, 2, 3), (10**6, 3, 1))
    assert np.array_equal(buffer.sample(1, out=own(1, obs=odd)).obs, twin.sample(1).obs)
    buffer, twin = (filled(obs_shape=(1,), obs_dtype=np.float32) for _ in range(2))
    odd = [np.lib.stride_tricks.as_strided(np.empty(8, np.float32), (4, 2, 1), (8, 4, 999)) for _ in range(2)]
    assert np.array_equal(buffer.sample(4, out=own(obs=odd[0], next_obs=odd[1])).obs, twin.sample(4).obs)


SIZES = [0, -1, True, 4.0, "4", None, Index(), [4], np.timedelta64(4), 2**63, pytest.param(10**5000, id="huge")]


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_size_that_is_none_draws_nothing(size):
    buffer, untouched = filled(), filled()
    for draw in (buffer.sample, buffer.prefetch):
        with refused(buffer, "batch_size is .*; give an integer from 1 up"):
            draw(size)
    go_on_alike(buffer, untouched)


BETAS = [-0.1, 1.5, np.nextafter(1, 2), np.nan, np.inf, "1", None, True, np.complex64(1), np.timedelta64(1)]


@pytest.mark.parametrize("beta", BETAS)
def test_a_beta_that_is_none_draws_nothing(beta):
    buffer, untouched = filled(), filled()
    for draw in (buffer.sample, buffer.prefetch):
        with refused(buffer, "beta is .*; give a number from 0 to 1"):
            draw(4, beta)
    go_on_alike(buffer, untouched)


@pytest.mark.parametrize("steps", [0, 1])
def test_nothing_is_drawn_where_nothing_can_be(kernels, steps):
    buffer = filled(steps)
    for draw in (buffer.sample, buffer.prefetch, lambda size: buffer.sample(size, out=own(size))):
        with refused(buffer, f"no row can be drawn yet: {2 * steps} rows held; add more before the first sample"):
            draw(4)


@pytest.mark.parametrize("n_step", [1, 3])
def test_the_smallest_ring_draws_what_it_can(kernels, n_step):
    buffer = small(capacity=2 * (2 + n_step + 1), n_step=n_step, gamma=1.0)
    for t in range(40):
        buffer.add(**step(t))
        buffer.check()
    batch = buffer.sample(8)
    assert {int(t) for t in batch.obs[:, 1, 0]} == {38 - n_step, 39 - n_step}
    assert (batch.next_obs[:, 1] == batch.obs[:, 1] + n_step).all()


# --- priorities and weights ---------------------------------------------------------------------------

BAD_INDEX = [2**40, 2**62, 2**63 - 1, -1, -(2**63), np.uint64(2**63), np.uint64(2**64 - 1)]


def test_names_of_no_row_are_refused():
    buffer, untouched = filled(), filled()
    for bad in BAD_INDEX:
        for method in (buffer.age, buffer.weights, lambda index: buffer.update_priorities(index, [1.0])):
            with refused(buffer, f"index holds {bad}[,;]"):
                method(np.array([bad]))
    for bad in ([True], ["0"], [None], [2**64], [[0], [1, 2]], 0, np.zeros(1, "m8[s]"), Array(5)):
        for method in (buffer.age, buffer.weights, lambda index: buffer.update_priorities(index, [1.0])):
            with refused(buffer, "index is .*give a batch's own index"):
                method(bad)
    go_on_alike(buffer, untouched)


BAD_PRIORITIES = [
    ([1.0, np.nan], "priority holds nan; give finite numbers from 0 up"),
    ([1.0, -np.inf], "priority holds -inf"),
    ([1.0, -1e-300], "priority holds -1e-300"),
    ([1.0, 1e308], r"priority holds 1e\+308"),
    (np.array([1, np.longdouble("1e4000")]), "priority holds inf"),
    ([1.0, 1j], "priority is complex128"),
    (["1", "2"], "priority is <U1"),
    ([None, 1.0], "priority is object"),
    ([[1.0], [1.0, 2.0]], "priority is not an array"),
    (np.zeros(2, "m8[s]"), "priority is timedelta64"),
    (1.0, r"priority has shape \(\); give one per index, shape \(2,\)"),
    ([1.0], r"priority has shape \(1,\)"),
    ([], r"priority has shape \(0,\)"),
    (np.ones((2, 1)), r"priority has shape \(2, 1\)"),
]


@pytest.mark.parametrize("alpha", [0.6, 2.0])
def test_bad_priorities_leave_nothing_behind(alpha):
    buffer, untouched = filled(alpha=alpha), filled(alpha=alpha)
    index = buffer.sample(2).index
    untouched.sample(2)
    for priority, message in BAD_PRIORITIES:
        if alpha < 1 and "308" in message:
            continue  # does not overflow
        with refused(buffer, message):
            buffer.update_priorities(index, priority)
    go_on_alike(buffer, untouched)


def test_strange_arrays_of_good_priorities_count_as_usual():
    strange = [
        read_only([3.0, 4.0]), np.array([3, 4], ">i2"), np.array([3.0, 0, 4.0])[::2], misaligned([3, 4], "f8"),
        np.array([3, 4], np.float16), Array(np.array([3.0, 4.0])), array.array("d", [3, 4]), (3, 4),
    ]  # fmt: skip
    for priority in strange:
        buffer, usual = filled(), filled()
        index = usual.sample(2).index
        usual.update_priorities(index, [3.0, 4.0])
        buffer.update_priorities(read_only(buffer.sample(2).index, ">i8"), priority)
        go_on_alike(usual, buffer, 3)


@pytest.mark.parametrize(("alpha", "eps"), [(1e9, 1.0), (1e308, 1e-6), (2.0, 1e200), (1.0, 1e308)])
def test_settings_by_which_new_rows_would_weigh_too_much_are_refused(alpha, eps):
    with pytest.raises(ValueError, match=r"alpha is .* and eps .*, so that .* overflows; give less"):
        small(alpha=alpha, eps=eps)


@pytest.mark.parametrize("alpha", [60.0, 1.0])
def test_weights_from_the_smallest_to_the_largest_are_drawn_and_stay_finite(kernels, alpha):
    buffer = filled(alpha=alpha, eps=1e-6)
    index = np.unique(buffer.sample(64).index)
    highest = buffer._tree.max_weight ** (1 / alpha) * 0.999
    priority = np.where(np.arange(len(index)) % 2, 0.0, highest)
    buffer.update_priorities(index, priority)
    buffer.check()
    assert np.isfinite(buffer._tree.total)
    for beta in (0.0, 0.5, 1.0):
        batch = buffer.sample(64, beta)
        assert set(batch.index) <= set(index[priority > 0])
        assert (batch.weight == 1).all()
    buffer.update_priorities(index[1:], np.zeros(len(index) - 1))
    buffer.update_priorities(index, np.zeros(len(index)))  # (1e-6)**60 is nothing
    assert set(buffer.sample(64).index) == set(index)
    with refused(buffer, r"priority holds 1.*e\+"):
        buffer.update_priorities(index[:1], [1e307])


def test_a_batch_of_weights_too_far_apart_for_their_ratio_weighs_zero_or_one(kernels):
    buffer = filled(alpha=1.0, eps=1e-300)
    index = np.unique(buffer.sample(64).index)
    buffer.update_priorities(index, np.where(index % 2, 1e300, 0.0))  # of the one environment, the other
    buffer._rng = SimpleNamespace(bit_generator=buffer._rng.bit_generator, random=np.zeros)  # luck finds a light one
    assert sorted(set(buffer.sample(8, 1.0).weight)) == [0.0, 1.0]


# --- SumTree ------------------------------------------------------------------------------------------


def test_a_tree_refuses_what_it_cannot_hold_and_stays_as_it_was():
    tree = SumTree(20)
    tree.set(read_only([3, 17, 19]), np.array([1, 2, 0.5], ">f8"))
    before, rng = tree._nodes.copy(), np.random.default_rng(0)
    state = rng.bit_generator.state
    for call, message in (
        (lambda: tree.set([20], [1.0]), "index holds 20; give 0 to 19"),
        (lambda: tree.set(np.array([2**63], np.uint64), [1.0]), "index holds 9223372036854775808"),
        (lambda: tree.set([0, 1], ["1", "2"]), "weight is <U1"),
        (lambda: tree.set([0], [1j]), "weight is complex128"),
        (lambda: tree.set([0, 1], [[1.0], [2.0, 3.0]]), "weight is not an array"),
        (lambda: tree.set([0], [tree.max_weight * 1.001]), "weight holds .*give weights from 0 to"),
        (lambda: tree.get([2**40]), "index holds 1099511627776"),
        (lambda: tree.find([[0.5]]), r"target has shape \(1, 1\); give real numbers of shape"),
        (lambda: tree.find(["0.5"]), "target is <U3"),
        (lambda: tree.find([np.nan]), "target holds nan"),
        (lambda: tree.find([-0.1]), "target holds -0.1"),
        (lambda: tree.sample(0, rng), "size is 0; give an integer from 1 up"),
        (lambda: tree.sample(2.5, rng), "size is 2.5"),
        (lambda: SumTree(5).sample(3, rng), "all weights are 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert np.array_equal(tree._nodes, before)
    assert rng.bit_generator.state == state
    with pytest.raises(ValueError, match="read-only"):
        tree.weights[3] = 5.0


@pytest.mark.parametrize("capacity", [1, 3, 24, 1000, 4097])
def test_the_heaviest_weights_have_a_finite_sum(kernels, capacity):
    tree = SumTree(capacity)
    tree.set(np.arange(capacity), np.full(capacity, tree.max_weight))
    assert np.isfinite(tree.total)
    found = tree.sample(3 * capacity, np.random.default_rng(0))
    assert set(found) == set(range(capacity))
    tree.check()
