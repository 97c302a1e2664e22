"""Hindsight replay, against a history of whole episodes and against numbers worked out by hand."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
from make import NO, snapshot
from oracle import Oracle

from fastrl.replay import Hindsight, HindsightBatch, Lz4Store, PrioritizedReplayBuffer, ReplayBuffer

STACKS = {"frame": 3, "achieved_goal": 1, "desired_goal": 2}
SHAPES = {"frame": (), "achieved_goal": (1,), "desired_goal": (1,)}
DTYPES = {"frame": np.int64, "achieved_goal": np.float64, "desired_goal": np.float64}


def reward(achieved, desired):
    """Another number for every pair of goals."""
    assert achieved.shape == desired.shape
    return np.sin(achieved[:, 0] * 0.37 + desired[:, 0] * 1.71)


def reached(achieved, desired):
    return (achieved[:, 0] + desired[:, 0]) % 5 < 1


def seen(frame):
    """What the environments show with frames that name themselves; 0 is a frame of zeros."""
    frame = np.asarray(frame)
    return {
        "frame": frame,
        "achieved_goal": np.where(frame == 0, 0, 1_000.0 + frame)[..., None],
        "desired_goal": np.where(frame == 0, 0, -1.0 - frame)[..., None],
    }


def goals_of(oracle, env, r, strategy):
    """The rows of the episode of row r whose goals may be taken."""
    rows = oracle.envs[env]
    episode = [q for q in range(oracle.oldest(env), len(rows)) if rows[q].episode == rows[r].episode]
    return {"future": [q for q in episode if q > r], "final": episode[-1:], "episode": episode}[strategy]


def expected(oracle, env, r, hindsight, coin, place):
    """The transition from row r as the history tells it, with its numbers of the generator."""
    found, rows, window = oracle.transition(env, r), oracle.envs[env], oracle.window(env, r)
    after = oracle.after(env, r)
    goal = None
    if coin < hindsight.share:
        choices = goals_of(oracle, env, r, hindsight.strategy)
        goal = seen(rows[choices[int(place * len(choices))]].frame)["achieved_goal"][None]
        total, taken = 0.0, 0
        for k, w in enumerate(window):
            achieved, taken = seen(rows[w + 1].frame)["achieved_goal"][None], taken + 1
            total += oracle.gamma**k * float(np.float32(reward(achieved, goal)[0]))
            if hindsight.terminated is not None and reached(achieved, goal)[0]:
                found["discount"], after = np.float32(0), w + 1
                break
        else:
            if hindsight.terminated is not None:
                found["discount"] = np.float32(oracle.gamma**taken)
        found["reward"] = np.float32(total)
    for name, row in (("obs", r), ("next_obs", after)):
        found[name] = {}
        for key, stack in STACKS.items():
            frames = np.array(oracle.observation(env, row, stack))
            found[name][key] = seen(frames)[key]
            if key == "desired_goal" and goal is not None:
                found[name][key] = np.where(frames[:, None] == 0, 0.0, goal)
    return found | {"relabelled": goal is not None}


def history(seed, autoreset="next_step", n_step=1, padding="first", rows=30, steps=110, num_envs=3, **settings):
    """A buffer and the history of the same steps, of which the ring keeps the newest."""
    oracle = Oracle(num_envs, rows, 3, padding, n_step, 0.9, autoreset)
    buffer = PrioritizedReplayBuffer(
        capacity=num_envs * rows, num_envs=num_envs, obs_shape=SHAPES, obs_dtype=DTYPES, stack=STACKS, gamma=0.9,
        n_step=n_step, autoreset=autoreset, stack_padding=padding, seed=seed, **settings,
    )  # fmt: skip
    rng, number = np.random.default_rng(seed), 0
    for _ in range(steps):
        env = np.sort(rng.permutation(num_envs)[: rng.integers(1, num_envs + 1)])
        frame = number + 1 + np.arange(len(env))
        final = frame + len(env)
        number = final[-1]
        ends = rng.random((2, len(env))) < 0.07
        first = None if rng.random() < 0.9 else rng.random(len(env)) < 0.5  # resets, and lives that are lost
        act, gain = rng.integers(100, size=len(env)), rng.random(len(env))
        finals = {} if autoreset == "next_step" else {"final_obs": seen(final)}
        buffer.add(seen(frame), act, gain, *ends, first=first, env_id=env, **finals)
        for i, e in enumerate(env):
            start, given = None if first is None else bool(first[i]), None if autoreset == "next_step" else final[i]
            oracle.add(e, frame[i], act[i], gain[i], *ends[:, i], start, given)
    return buffer, oracle


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
@pytest.mark.parametrize("autoreset", ["next_step", "same_step", "disabled"])
@pytest.mark.parametrize(
    ("n_step", "padding", "terminated"),
    [(1, "first", None), (3, "zero", None), (4, "first", reached), (2, "zero", reached)],
)
@pytest.mark.usefixtures("kernels")
def test_every_transition_is_what_the_history_of_its_episode_gives(strategy, autoreset, n_step, padding, terminated):
    for seed in range(2):
        buffer, oracle = history(seed, autoreset, n_step, padding)
        hindsight = Hindsight(reward, strategy, 0.7, terminated=terminated)
        twin = np.random.default_rng()
        for _ in range(2):
            twin.bit_generator.state = buffer._rng.bit_generator.state
            batch = buffer.sample_hindsight(24, hindsight)
            twin.random(24)
            coins, places = twin.random((2, 24))
            assert twin.bit_generator.state == buffer._rng.bit_generator.state
            for b, name in enumerate(batch.index.tolist()):
                r, env = divmod(name, 3)
                wanted = expected(oracle, env, r, hindsight, coins[b], places[b])
                for part in ("obs", "next_obs"):
                    for key in STACKS:
                        assert np.array_equal(getattr(batch, part)[key][b], wanted[part][key]), (part, key)
                for part in ("action", "reward", "discount", "relabelled"):
                    assert getattr(batch, part)[b] == wanted[part], part
            buffer.update_priorities(batch.index, coins)
        buffer.check()


def test_episodes_longer_than_a_turn_of_the_search_are_found_whole():
    buffer, oracle = history(0, rows=4_000, steps=1, num_envs=1)
    oracle.envs[0].clear()
    buffer, steps = PrioritizedReplayBuffer(**buffer.settings, seed=0), 3_000
    frames = np.arange(1, steps + 1)[:, None]
    ends = np.zeros((steps, 1), bool)
    ends[[5, 2_900]] = True
    buffer.extend(seen(frames), ends.astype(int), ends * 1.0, ends, ends & False)
    for strategy, least, most in (("final", 2_902, 2_902), ("episode", 8, 2_902)):
        batch = buffer.sample_hindsight(400, Hindsight(reward, strategy, 1.0))
        goals = batch.obs["desired_goal"][:, -1, 0] - 1_000
        inside = (batch.index >= 7) & (batch.index <= 2_900)
        assert inside.sum() > 300
        assert (goals[inside].min() < least + 60) & (goals[inside].max() > most - 60)
        assert ((goals[inside] >= least) & (goals[inside] <= most)).all()


def by_hand(**settings):
    """One environment that moves from 0 by 1, 2, 3, 4 to 10, where its episode ends."""
    buffer = ReplayBuffer(
        capacity=20, num_envs=1, obs_shape={"achieved_goal": (1,), "desired_goal": (1,)}, obs_dtype=np.float64,
        gamma=0.5, seed=0, autoreset="same_step", **settings,
    )  # fmt: skip
    place = 0.0
    for step in range(4):
        obs = {"achieved_goal": np.array([[place]]), "desired_goal": np.array([[99.0]])}
        place += step + 1
        final = {"achieved_goal": np.array([[place]]), "desired_goal": np.array([[99.0]])}
        buffer.add(obs, [step], [-7.0], [step == 3], [False], final_obs=final)
    return buffer


def distance(achieved, desired):
    return -np.abs(achieved - desired)[:, 0]


def test_the_rewards_of_all_steps_are_those_of_the_new_goal():
    batch = by_hand(n_step=2).sample_hindsight(4, Hindsight(distance, "final", 1.0))
    assert batch.action.tolist() == [0, 1, 2, 3]
    assert batch.relabelled.all()
    assert batch.obs["desired_goal"].tolist() == batch.next_obs["desired_goal"].tolist() == [[[10.0]]] * 4
    assert batch.obs["achieved_goal"][:, 0, 0].tolist() == [0, 1, 3, 6]
    assert batch.next_obs["achieved_goal"][:, 0, 0].tolist() == [3, 6, 10, 10]
    assert batch.reward.tolist() == [-9 - 7 / 2, -7 - 4 / 2, -4 - 0 / 2, 0]
    assert batch.discount.tolist() == [0.25, 0.25, 0, 0]  # it terminated, whatever the goal
    assert isinstance(batch, HindsightBatch)


def test_terminated_decides_alone_where_a_window_ends_under_the_new_goal():
    def never(achieved, desired):
        return np.zeros(len(achieved), bool)

    def past_two(achieved, desired):
        return achieved[:, 0] > 2

    batch = by_hand(n_step=3).sample_hindsight(4, Hindsight(distance, "final", 1.0, terminated=never))
    assert batch.discount.tolist() == [0.125, 0.125, 0.25, 0.5]
    assert batch.reward.tolist() == [-9 - 7 / 2 - 4 / 4, -7 - 4 / 2, -4, 0]
    batch = by_hand(n_step=3).sample_hindsight(4, Hindsight(distance, "final", 1.0, terminated=past_two))
    assert batch.discount.tolist() == [0] * 4
    assert batch.reward.tolist() == [-9 - 7 / 2, -7, -4, 0]
    assert batch.next_obs["achieved_goal"][:, 0, 0].tolist() == [3, 3, 6, 10]


def test_without_a_share_a_batch_is_what_sample_gives():
    buffer, _ = history(1, n_step=3)
    twin = copy.copy(buffer)
    batch, plain = buffer.sample_hindsight(16, Hindsight(reward, share=0), 0.7), twin.sample(16, 0.7)
    for name in ("action", "reward", "discount", "weight", "index"):
        assert np.array_equal(getattr(batch, name), getattr(plain, name)), name
    for key in STACKS:
        assert np.array_equal(batch.obs[key], plain.obs[key])
        assert np.array_equal(batch.next_obs[key], plain.next_obs[key])
    assert not batch.relabelled.any()


def test_rows_and_weights_are_drawn_by_priority_and_the_other_rows_keep_their_goals():
    buffer, _ = history(2)
    twin = copy.copy(buffer)
    index = buffer.sample(40).index
    for each in (buffer, twin):
        each.update_priorities(index, np.arange(40.0))
        each.reseed(3)
    batch, plain = buffer.sample_hindsight(32, Hindsight(reward), 0.6), twin.sample(32, 0.6)
    assert len(set(batch.weight.tolist())) > 3
    kept = ~batch.relabelled
    assert 0 < kept.sum() < 32
    for name in ("action", "weight", "index"):
        assert np.array_equal(getattr(batch, name), getattr(plain, name)), name
    for name in ("reward", "discount"):
        assert np.array_equal(getattr(batch, name)[kept], getattr(plain, name)[kept])
    assert np.array_equal(batch.obs["desired_goal"][kept], plain.obs["desired_goal"][kept])


def test_four_in_five_rows_get_a_goal_and_each_goal_of_an_episode_has_the_same_chance():
    buffer = by_hand()
    counts, goals, size = Counter(), 0, 4_000
    for _ in range(size // 4):
        batch = buffer.sample_hindsight(4, Hindsight(distance))
        goals += int(batch.relabelled.sum())
        for b in np.flatnonzero(batch.relabelled):
            counts[int(batch.action[b]), float(batch.obs["desired_goal"][b, 0, 0])] += 1
    assert abs(goals / size - 0.8) < 5 * (0.16 / size) ** 0.5
    places = [1.0, 3.0, 6.0, 10.0]
    assert set(counts) == {(k, place) for k in range(4) for place in places[k:]}
    for (k, _), count in counts.items():
        share, drawn = 1 / (4 - k), 0.8 * size / 4
        assert abs(count - share * drawn) <= 6 * (drawn * share) ** 0.5


def test_fields_of_ones_own_and_tuples_beside_the_goals_come_along():
    buffer = PrioritizedReplayBuffer(
        capacity=20, num_envs=1, seed=0, obs_dtype=np.float64, extra={"mask": ((2,), bool)}, next_extra=("mask",),
        obs_shape={"inner": ((2,), (3,)), "achieved_goal": (1,), "desired_goal": (1,)},
    )  # fmt: skip
    for t in range(9):
        goal = np.full((1, 1), float(t))
        obs = {
            "inner": (np.full((1, 2), t, float), np.full((1, 3), t, float)),
            "achieved_goal": goal,
            "desired_goal": -goal,
        }
        buffer.add(obs, [t], [0], NO[:1], NO[:1], extra={"mask": np.array([[t % 2, 1]], bool)})
    batch = buffer.sample_hindsight(6, Hindsight(distance, share=1))
    assert np.array_equal(batch.extra["mask"][:, 0], batch.action % 2 == 1)
    assert np.array_equal(batch.next_extra["mask"][:, 0], batch.action % 2 == 0)
    assert np.array_equal(batch.obs["inner"][1][:, 0, 0], batch.action)
    assert (batch.obs["desired_goal"][:, 0, 0] > batch.action).all()


def test_any_two_arrays_may_be_the_goals():
    buffer = PrioritizedReplayBuffer(
        capacity=20, num_envs=1, seed=0, obs_shape={"place": (1,), "target": (1,)}, obs_dtype=np.float64
    )
    for t in range(9):
        buffer.add({"place": [[float(t)]], "target": [[50.0]]}, [t], [0], NO[:1], NO[:1])
    batch = buffer.sample_hindsight(6, Hindsight(distance, "final", 1.0, achieved="place", desired="target"))
    assert (batch.obs["target"] == 8).all()
    assert batch.reward.tolist() == (batch.action + 1.0 - 8).tolist()


@pytest.mark.parametrize("store", ["ram", "lz4", "mmap"])
def test_a_loaded_buffer_draws_what_the_saved_one_would_have_drawn(store, tmp_path):
    if store == "lz4":
        pytest.importorskip("lz4.block")
    kept = {"store": "mmap", "folder": tmp_path / "home"} if store == "mmap" else {"store": store}
    buffer, _ = history(4, n_step=2, **kept)
    buffer.sample_hindsight(7, Hindsight(reward))
    buffer.save(tmp_path / "saved")
    loaded = PrioritizedReplayBuffer.load(tmp_path / "saved")
    for _ in range(3):
        one, other = (each.sample_hindsight(9, Hindsight(reward, "episode")) for each in (buffer, loaded))
        assert one.relabelled.any()
        for name in ("action", "reward", "discount", "weight", "index", "relabelled"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        for key in STACKS:
            assert np.array_equal(one.obs[key], other.obs[key])
            assert np.array_equal(one.next_obs[key], other.next_obs[key])


def test_rows_that_a_crash_lost_are_no_goals(tmp_path):
    folder = {"store": "mmap", "folder": tmp_path / "home"}
    buffer, _ = history(5, rows=40, **folder)
    buffer.flush()
    settings = buffer.settings
    for number in range(9_000, 9_030):
        buffer.add(seen(np.full(3, number)), np.zeros(3, int), np.zeros(3), *np.zeros((2, 3), bool))
    buffer._folder.close()  # as a killed process
    again = PrioritizedReplayBuffer(**settings, **folder)
    assert again.drawable
    for strategy in ("future", "final", "episode"):
        batch = again.sample_hindsight(60, Hindsight(reward, strategy, 1.0))
        goals = batch.obs["desired_goal"][:, -1]
        assert ((goals > 1_000) & (goals < 10_000)).all()  # neither zeros nor rows that were never flushed


def test_a_batch_that_is_held_is_not_overwritten_and_one_that_is_not_is_lent_again():
    buffer = by_hand()
    one = buffer.sample_hindsight(4, Hindsight(distance, share=1))
    copies, where = one.obs["desired_goal"].copy(), one.obs["desired_goal"].ctypes.data
    other = buffer.sample_hindsight(4, Hindsight(distance, share=1))
    assert np.array_equal(one.obs["desired_goal"], copies)
    assert other.obs["desired_goal"].ctypes.data != where
    del one
    assert buffer.sample_hindsight(4, Hindsight(distance)).obs["desired_goal"].ctypes.data == where


def test_a_batch_that_was_prefetched_is_still_the_one_of_its_draw():
    buffer, twin = by_hand(), by_hand()
    buffer.prefetch(4)
    expected = twin.sample(4)
    for each in (buffer, twin):
        each.sample_hindsight(4, Hindsight(distance))
    assert np.array_equal(buffer.sample(4).obs["desired_goal"], expected.obs["desired_goal"])
    assert np.array_equal(buffer.sample(4).index, twin.sample(4).index)


# --- hostile arguments --------------------------------------------------------------------------------


class BrokenError(Exception):
    pass


def raises(achieved, desired):
    raise BrokenError


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda a, d: a, r"reward returned shape \(\d+, 1\); return one number for each goal"),
        (lambda a, d: 0.0, r"reward returned shape \(\)"),
        (lambda a, d: ["x"] * len(a), "what reward returned is <U1"),
        (lambda a, d: [[0], [0, 1]], "what reward returned is not an array"),
        (lambda a, d: None, "what reward returned is object"),
        (lambda a, d: np.full(len(a), np.nan), "reward returned nan; return finite numbers"),
        (lambda a, d: np.full(len(a), 1e39), r"reward returned 1e\+39"),
        (lambda a, d: np.full(len(a), 1j), "what reward returned is complex128"),
    ],
)
def test_a_reward_that_does_not_fit_is_refused_and_changes_nothing(function, message):
    for buffer in (by_hand(), by_hand(n_step=2)):
        before = snapshot(buffer)
        with pytest.raises(ValueError, match=message):
            buffer.sample_hindsight(4, Hindsight(function, share=1))
        assert all(np.array_equal(value, snapshot(buffer)[name]) for name, value in before.items())


@pytest.mark.parametrize("value", [lambda a, d: a, lambda a, d: np.zeros(len(a)), lambda a, d: True])
def test_an_end_that_is_no_bool_is_refused_and_changes_nothing(value):
    buffer = by_hand()
    before = buffer._rng.bit_generator.state
    with pytest.raises(ValueError, match=r"terminated returned .*; return one bool for each goal"):
        buffer.sample_hindsight(4, Hindsight(distance, share=1, terminated=value))
    assert buffer._rng.bit_generator.state == before


def test_an_error_of_the_users_function_passes_through_and_the_draw_does_not_count():
    buffer, twin = by_hand(), by_hand()
    with pytest.raises(BrokenError):
        buffer.sample_hindsight(4, Hindsight(raises, share=1))
    one, other = (each.sample_hindsight(4, Hindsight(distance)) for each in (buffer, twin))
    assert np.array_equal(one.obs["desired_goal"], other.obs["desired_goal"])


def test_a_reward_that_writes_into_its_arguments_changes_no_batch_and_no_row():
    def spoils(achieved, desired):
        found = distance(achieved, desired)
        achieved[:], desired[:] = -5, -6
        return found

    def says(achieved, desired):
        return (achieved < 0)[:, 0]

    buffers = by_hand(n_step=2), by_hand(n_step=2)
    for _ in range(3):
        one = buffers[0].sample_hindsight(4, Hindsight(spoils, terminated=says))
        other = buffers[1].sample_hindsight(4, Hindsight(distance, terminated=says))
        assert np.array_equal(one.reward, other.reward)
        assert np.array_equal(one.discount, other.discount)
        assert np.array_equal(one.obs["desired_goal"], other.obs["desired_goal"])
    assert np.array_equal(buffers[0].sample(4).obs["achieved_goal"], buffers[1].sample(4).obs["achieved_goal"])


def test_a_store_that_makes_no_numpy_arrays_holds_achieved_goals_but_no_desired_ones():
    class Elsewhere(Lz4Store):
        def empty(self, shape):
            return memoryview(bytes(8))

    pytest.importorskip("lz4.block")
    settings = {"capacity": 20, "num_envs": 1, "obs_dtype": np.float64, "seed": 0}
    shapes = {"achieved_goal": (1,), "desired_goal": (1,)}
    buffer = ReplayBuffer(**settings, obs_shape=shapes, store={"achieved_goal": "ram", "desired_goal": Elsewhere})
    with pytest.raises(ValueError, match=r"the store of obs\['desired_goal'\] makes no NumPy arrays"):
        buffer.sample_hindsight(4, Hindsight(distance))


def test_of_stretches_fields_and_single_arrays_none_is_a_goal():
    buffer = ReplayBuffer(capacity=20, num_envs=1, obs_shape=(3,), seed=0)
    with pytest.raises(
        ValueError, match=r"achieved is 'achieved_goal', which is no array of the observations; build the"
    ):
        buffer.sample_hindsight(4, Hindsight(distance))
    nested = ReplayBuffer(capacity=20, num_envs=1, obs_shape={"a": {"b": (1,)}, "c": (1,)}, seed=0)
    with pytest.raises(ValueError, match=r"achieved is 'a', which is no array .* give one of 'c', or build"):
        nested.sample_hindsight(4, Hindsight(distance, achieved="a", desired="c"))
