from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
from make import NO, filled, refused, small

from fastrl.replay import Batch, PrioritizedReplayBuffer, ReplayBuffer

pytestmark = pytest.mark.usefixtures("stores")


def test_constructor_arguments_are_keyword_only_and_named_as_promised():
    with pytest.raises(TypeError):
        ReplayBuffer(40, 2, (3,))
    promised = set("capacity num_envs obs_shape obs_dtype action_shape action_dtype stack stack_padding n_step gamma "
                   "autoreset seed store folder extra next_extra".split())  # fmt: skip
    assert set(inspect.signature(ReplayBuffer).parameters) == promised
    buffer = PrioritizedReplayBuffer(
        capacity=1000, num_envs=4, obs_shape=(84, 84), obs_dtype=np.uint8, action_shape=(), action_dtype=np.int64,
        stack=4, stack_padding="first", n_step=3, gamma=0.99, alpha=0.6, eps=1e-6, autoreset="next_step", seed=0,
    )  # fmt: skip
    assert (len(buffer), buffer.drawable) == (0, 0)


def test_a_batch_has_the_promised_shapes_and_dtypes(kernels):
    batch = filled(action_shape=(), action_dtype=np.int64).sample(6)
    shapes = {name: (getattr(batch, name).shape, getattr(batch, name).dtype.name) for name in Batch.__slots__}
    assert shapes == {
        "obs": ((6, 2, 3), "uint8"), "action": ((6,), "int64"), "reward": ((6,), "float32"),
        "next_obs": ((6, 2, 3), "uint8"), "discount": ((6,), "float32"), "weight": ((6,), "float32"),
        "index": ((6,), "int64"),
    }  # fmt: skip


def test_a_truncated_row_bootstraps_from_the_final_frame_and_a_terminated_one_does_not(kernels):
    buffer = small(n_step=3, stack=1)
    ends = np.array([True, False]), np.array([True, True])  # env 0 both: terminated wins
    for t, (terminated, truncated) in enumerate([(NO, NO), ends, (NO, NO), (NO, NO)]):
        buffer.add(np.full((2, 3), t, np.uint8), np.array([t, t]), np.array([1.0, 1.0]), terminated, truncated)
    batch = buffer.sample(4, beta=1.0)
    # Per env two rows; the third is the final frame, the fourth waits for its future.
    assert batch.obs[:, 0, 0].tolist() == [0, 1, 0, 1]
    assert batch.next_obs[:, 0, 0].tolist() == [2, 2, 2, 2]
    assert batch.reward.tolist() == [1.5, 1.0, 1.5, 1.0]
    assert batch.discount.tolist() == [0.0, 0.0, 0.25, 0.5]


def test_draw_frequencies_follow_the_priorities(kernels):
    buffer = filled(alpha=0.7, eps=0.01)
    rows = buffer.sample(2 * buffer.drawable)
    index = np.unique(rows.index)
    assert len(index) == buffer.drawable  # equal priorities: all are drawn
    priority = np.linspace(0, 3, len(index))
    buffer.update_priorities(index, priority)
    p = (priority + 0.01) ** 0.7
    p /= p.sum()
    counts = np.zeros(len(index))
    for _ in range(400):
        batch = buffer.sample(32, beta=0.5)
        position = np.searchsorted(index, batch.index)
        np.add.at(counts, position, 1)
        weights = (len(index) * p[position]) ** -0.5
        np.testing.assert_allclose(batch.weight, weights / weights.max(), rtol=1e-6)
    expected = p * 400 * 32
    assert (np.abs(counts - expected) <= 4 * np.sqrt(expected)).all()


def test_new_rows_get_the_highest_priority_seen(kernels):
    buffer = filled(alpha=1.0, eps=1e-9)
    assert buffer.max_priority == 1.0
    batch = buffer.sample(4)
    buffer.update_priorities(batch.index, [0.5, 7.0, 0.1, 0.2])
    assert buffer.max_priority == 7.0
    before = buffer.drawable
    buffer.add(np.full((2, 3), 12, np.uint8), np.array([12, -12]), np.zeros(2), NO, NO)
    assert buffer.drawable == before + 2
    weights = buffer._tree.weights
    assert np.isclose(weights, 7.0).sum() == 3  # the updated row and one new row for each environment


def test_a_late_priority_for_an_overwritten_row_is_ignored(kernels):
    buffer = filled()
    batch = buffer.sample(8)
    for t in range(100, 130):
        buffer.add(np.full((2, 3), t, np.uint8), np.array([t, t]), np.zeros(2), NO, NO)
    weights = buffer._tree.weights.copy()
    buffer.update_priorities(batch.index, np.full(8, 99.0))
    assert np.array_equal(weights, buffer._tree.weights)
    assert buffer.max_priority == 1.0


def test_undrawable_rows_weigh_nothing_even_with_alpha_zero(kernels):
    buffer = filled(alpha=0.0)
    held = buffer._ring.drawable != 0
    assert buffer.drawable == held.sum() == 22
    assert np.array_equal(buffer._tree.weights, held.astype(float))


@pytest.mark.parametrize(
    ("priority", "message"),
    [(np.nan, "nan"), (np.inf, "inf"), (-0.1, "-0.1"), (1e200, "1e\\+200")],
)
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_bad_priorities_are_refused_before_anything_changes(kernels, priority, message, alpha):
    if priority == 1e200 and alpha == 0:
        pytest.skip("does not overflow")
    buffer = filled(alpha=alpha)
    index = buffer.sample(3).index
    weights = buffer._tree.weights.copy()
    with pytest.raises(ValueError, match=f"priority holds {message}"):
        buffer.update_priorities(index, [5.0, priority, 5.0])
    assert np.array_equal(weights, buffer._tree.weights)
    assert buffer.max_priority == 1.0


@pytest.mark.parametrize("index", [[-1], [10_000], [0.5], [[0]]])
def test_foreign_indices_are_refused(index):
    with pytest.raises(ValueError, match="index"):
        filled().update_priorities(index, np.ones(np.shape(index)))


def test_a_priority_per_index_is_asked_for():
    buffer = filled()
    with pytest.raises(ValueError, match="one per index"):
        buffer.update_priorities(buffer.sample(3).index, [1.0])


def test_the_same_seed_and_calls_give_the_same_batches():
    first, second, other = filled(seed=3), filled(seed=3), filled(seed=4)
    same = [np.array_equal(first.sample(16).index, second.sample(16).index) for _ in range(5)]
    assert all(same)
    assert not np.array_equal(first.sample(16).index, other.sample(16).index)


@pytest.mark.parametrize("name", Batch.__slots__)
@pytest.mark.parametrize("hold", [lambda a: a, lambda a: a[1:], memoryview], ids=["array", "view", "memoryview"])
def test_what_is_held_of_a_batch_is_never_overwritten(name, hold):
    buffer = filled()
    held = [hold(getattr(buffer.sample(4), name)) for _ in range(20)]
    copies = [np.array(part) for part in held]
    for _ in range(20):
        buffer.sample(4)
    assert all(np.array_equal(part, copy) for part, copy in zip(held, copies, strict=True))


def test_arrays_that_are_not_held_are_reused():
    buffer = filled()
    seen = set()
    for _ in range(20):
        for size in (4, 7):
            batch = buffer.sample(size)
            seen.add((size, batch.obs.ctypes.data))
            del batch
    assert len(seen) == 2


def test_out_takes_arrays_of_your_own():
    buffer, twin = filled(), filled()
    own = Batch(
        np.empty((4, 2, 3), np.uint8), np.empty(4, np.int64), np.empty(4, np.float32), np.empty((4, 2, 3), np.uint8),
        np.empty(4, np.float32), np.empty(4, np.float32), np.empty(4, np.int64),
    )  # fmt: skip
    assert buffer.sample(4, 0.4, own) is own
    expected = twin.sample(4)
    for name in Batch.__slots__:
        assert np.array_equal(getattr(own, name), getattr(expected, name)), name
    with pytest.raises(ValueError, match="share their memory"):
        buffer.sample(4, out=dataclasses.replace(own, next_obs=own.obs))
    own.weight.flags.writeable = False
    with pytest.raises(ValueError, match=r"out\.weight is read-only"):
        buffer.sample(4, out=own)
    for size, message in ((5, r"out.obs is uint8 \(4, 2, 3\)"), (3, "out.obs")):
        with pytest.raises(ValueError, match=message):
            buffer.sample(size, out=own)


def test_vector_observations_and_continuous_actions(kernels):
    buffer = PrioritizedReplayBuffer(
        capacity=20,
        num_envs=1,
        obs_shape=(2,),
        obs_dtype=np.float64,
        action_shape=(3,),
        action_dtype=np.float32,
        seed=0,
    )
    no = np.zeros(1, bool)
    for t in range(9):
        buffer.add(np.full((1, 2), t / 7), np.full((1, 3), t, np.float32), [0.0], no, no)
    batch = buffer.sample(8, beta=0.0)
    assert (batch.obs[:, 0, 0] == np.arange(8) / 7).all()
    assert (batch.action == np.arange(8)[:, None]).all()


def test_uniform_replay_has_weights_of_one():
    buffer = ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,), seed=0)
    for t in range(5):
        buffer.add(np.full((2, 3), t, np.uint8), np.zeros(2, int), np.zeros(2), NO, NO)
    batch = buffer.sample(8)
    assert (batch.weight == 1).all()
    assert np.bincount(batch.obs[:, 0, 0]).tolist() == [2, 2, 2, 2]


def test_ages_and_weights_of_rows():
    buffer = filled(alpha=1.0, eps=0.5)
    batch = buffer.sample(8)
    ages = buffer.age(batch.index)
    assert (11 - ages == np.abs(batch.action)).all()  # the action of filled() is the time
    buffer.update_priorities(batch.index, np.full(8, 2.0))
    assert (buffer.weights(batch.index) == 2.5).all()
    for t in range(40):
        buffer.add(np.full((2, 3), t, np.uint8), np.array([t, t]), np.zeros(2), NO, NO)
    assert (buffer.weights(batch.index) == 0).all()
    assert (buffer.age(batch.index) == ages + 40).all()
    for method in (buffer.age, buffer.weights):
        with pytest.raises(ValueError, match="index"):
            method([10**6])
        with pytest.raises(ValueError, match="index"):
            method([0.9])


def test_the_game_must_not_go_on_through_a_frame_that_was_not_given(kernels):
    buffer = small(autoreset="same_step")
    frames = np.zeros((2, 3), np.uint8)
    ends = np.array([True, False])
    buffer.add(frames, np.zeros(2, int), np.zeros(2), ends, NO)
    with pytest.raises(ValueError, match="first is False after a done whose final_obs was None"):
        buffer.add(frames, np.zeros(2, int), np.zeros(2), NO, NO, first=NO)
    buffer.add(frames, np.zeros(2, int), np.zeros(2), NO, NO, first=ends)
    buffer.add(frames, np.zeros(2, int), np.zeros(2), ends, NO, final_obs=[frames[0], None])
    buffer.add(frames, np.zeros(2, int), np.zeros(2), NO, NO, first=NO)


@pytest.mark.parametrize("gamma", [0, 1, np.float32(0.5), 0.5])
def test_whole_and_foreign_numbers_serve_as_settings(gamma):
    buffer = filled(gamma=gamma, num_envs=np.uint8(2), stack=np.int8(2), n_step=np.int64(2))
    assert set(buffer.sample(8).discount) == {np.float32(float(gamma) ** 2)}


def test_lists_serve_as_rows_and_numbers_that_do_not_fit_are_refused():
    buffer = small(action_dtype=np.int8)
    frames = np.zeros((2, 3), np.uint8)
    buffer.add(frames, [1, 2], [0, 0], [0, 1], [False, False])
    with pytest.raises(ValueError, match="action holds 300, which int8 cannot hold"):
        buffer.add(frames, [300, 2], [0, 0], NO, NO)
    with pytest.raises(ValueError, match=r"reward holds 1e\+39, which float32 cannot hold"):
        buffer.add(frames, [1, 2], [1e39, 0], NO, NO)
    with pytest.raises(ValueError, match="reward is complex128"):
        buffer.add(frames, [1, 2], [1j, 0], NO, NO)
    with pytest.raises(ValueError, match="first is int64"):
        buffer.add(frames, [1, 2], [0, 0], NO, NO, first=[-1, 0])
    with pytest.raises(ValueError, match="obs is not an array"):
        buffer.add([[1, 2, 3], [4]], [1, 2], [0, 0], NO, NO)
    assert len(buffer) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 7}, r"capacity is 7, which is 3 rows .* stack \+ n_step \+ 1 = 4 .* give capacity=8"),
        ({"capacity": 0}, "capacity is 0"),
        ({"capacity": 1.5}, "capacity is 1.5"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"stack": 0}, "stack is 0"),
        ({"n_step": -1}, "n_step is -1"),
        ({"gamma": 1.1}, "gamma is 1.1"),
        ({"alpha": -1}, "alpha is -1"),
        ({"eps": 0}, "eps is 0"),
        ({"autoreset": "sometimes"}, "autoreset is 'sometimes'"),
        ({"stack_padding": "last"}, "stack_padding is 'last'"),
        ({"obs_dtype": object}, "obs_dtype is object"),
        ({"obs_shape": (0,)}, "obs_shape is 0"),
        ({"obs_shape": 84}, "obs_shape is 84"),
        ({"obs_shape": (3.9,)}, r"obs_shape is 3\.9"),
        ({"obs_dtype": "foo"}, "obs_dtype is 'foo'"),
        ({"gamma": None}, "gamma is None"),
        ({"gamma": float("nan")}, "gamma is nan"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": np.zeros((2, 4), np.uint8)}, r"obs has shape \(2, 4\); expected \(2, 3\)"),
        ({"obs": np.zeros((2, 3))}, "obs is float64; expected uint8"),
        ({"action": np.zeros(2)}, "action is float64; expected int64"),
        ({"action": np.zeros(3, int)}, "action has shape"),
        ({"reward": np.array([0, np.nan])}, "reward holds nan"),
        ({"terminated": np.zeros(2)}, "terminated is float64"),
        ({"truncated": np.zeros(1, bool)}, "truncated is bool"),
        ({"first": np.zeros(3, bool)}, "first is bool"),
        ({"env_id": [0, 0]}, "twice"),
        ({"env_id": [0, 2]}, "env_id holds 2; give 0 to 1"),
        ({"final_obs": np.zeros((2, 3), np.uint8)}, "final_obs is given"),
    ],
)
def test_rows_that_do_not_fit_are_named_and_nothing_changes(changes, message):
    buffer = filled()
    state = {name: array.copy() for name, array in buffer._ring.state().items()}
    row = {
        "obs": np.zeros((2, 3), np.uint8), "action": np.zeros(2, int), "reward": np.zeros(2),
        "terminated": NO, "truncated": NO,
    } | changes  # fmt: skip
    with pytest.raises(ValueError, match=message):
        buffer.add(**row)
    assert all(np.array_equal(array, state[name]) for name, array in buffer._ring.state().items())


@pytest.mark.parametrize(
    ("final_obs", "message"),
    [
        (None, "final_obs is None in row 1, which was truncated"),
        (np.array([None, None]), "final_obs is None in row 1"),
        (np.array([None, np.zeros(4, np.uint8)], object), r"final_obs\[1\] is uint8 \(4,\)"),
        (np.zeros((2, 4), np.uint8), "final_obs has shape"),
    ],
)
def test_a_truncated_row_needs_its_final_frame(final_obs, message):
    buffer = small(autoreset="same_step")
    ends = np.array([False, True])
    with pytest.raises(ValueError, match=message):
        buffer.add(np.zeros((2, 3), np.uint8), np.zeros(2, int), np.zeros(2), NO, ends, final_obs=final_obs)
    assert len(buffer) == 0


def test_draws_out_of_range_are_refused():
    buffer = filled()
    for arguments, message in (
        (((0,), {}), "batch_size is 0"), (((4.0,), {}), r"batch_size is 4\.0"), (((3,), {"beta": -1}), "beta is -1"),
        (((3,), {"beta": "x"}), "beta is 'x'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            buffer.sample(*arguments[0], **arguments[1])


def test_gamma_may_change_between_two_draws():
    buffer = small(capacity=8, num_envs=1, obs_shape=(), stack=1, n_step=2)
    for reward, ends in [(1.0, False), (2.0, False), (4.0, True), (0.0, False)]:
        buffer.add(np.uint8([reward]), [0], [reward], [ends], [False])
    for gamma, returns, discounts in [(0.5, [2, 4, 4], [0.25, 0, 0]), (0.25, [1.5, 3, 4], [0.0625, 0, 0])]:
        buffer.set_gamma(gamma)  # r + gamma r', then gamma^2 of the state two steps later; the last two have an end
        batch = buffer.sample(3)
        assert (batch.reward.tolist(), batch.discount.tolist()) == (returns, discounts)
    buffer.prefetch(3)
    buffer.set_gamma(0)
    assert buffer.sample(3).reward.tolist() == [1.5, 3, 4]  # drawn before
    assert buffer.sample(3).reward.tolist() == [1, 2, 4]


@pytest.mark.parametrize("gamma", [1.1, -0.1, None, True, float("nan"), "0.9"])
def test_a_gamma_out_of_range_changes_nothing(gamma):
    buffer = filled()
    with refused(buffer, "gamma is .*; give a number from 0 to 1"):
        buffer.set_gamma(gamma)
    assert buffer.sample(4).discount.tolist() == [0.5] * 4
