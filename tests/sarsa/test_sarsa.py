"""Linear SARSA(lambda): the update in numbers worked out by hand, its rows, its result."""

import dataclasses

import numpy as np
import pytest

from fastrl.base.errors import ConfigError
from fastrl.config import SarsaConfig
from fastrl.sarsa import learners
from fastrl.sarsa.cartpole import SCALE, CartPoles
from fastrl.sarsa.learners import SarsaLearners, action_values, choose_actions, film, sarsa_update, solved_at
from fastrl.sarsa.run import evaluate

SMALL = SarsaConfig(version="v0", learners=8, episodes=20, seed=3)


def one(*numbers):
    """Features of a single learner, [F, 1]; trailing zeros left out."""
    return np.array([*numbers, *[0.0] * (4 - len(numbers))])[:, None]


class TestTheUpdate:
    """One learner, two features in use, discount 0.5, alpha 0.5, decay 0.5 x lambda 0.5 = 0.25."""

    @pytest.fixture
    def learn(self):
        self.weights, self.traces = np.zeros((2, 4, 1)), np.zeros((2, 4, 1))

        def learn(s, a, r, s2, a2, discount=0.5, decay=0.25, alpha=0.5):
            numbers = {"discount": discount, "alpha": alpha, "decay": decay}
            (td_error,) = sarsa_update(
                self.weights,
                self.traces,
                one(*s),
                np.array([a]),
                np.array([r]),
                action_values(self.weights, one(*s2))[a2],
                **{name: np.array([number]) for name, number in numbers.items()},
            )
            return td_error

        return learn

    def test_equals_four_updates_worked_out_by_hand_across_an_episode_end(self, learn):
        # delta = 1 + 0 - 0; trace of action 0 is (1, 2); w_0 = 0.5 (1, 2)
        assert learn((1, 2), 0, 1.0, (2, 0), 1, decay=0.0) == 1.0
        assert self.weights[:, :2, 0].tolist() == [[0.5, 1.0], [0.0, 0.0]]

        # Q(s, 1) = 0, Q(s', 0) = 0.5 x 1 + 1 x 1 = 1.5; delta = 0 + 0.5 x 1.5 - 0 = 0.75
        # traces: action 0 (0.25, 0.5), action 1 (2, 0); w += 0.375 times them
        assert learn((2, 0), 1, 0.0, (1, 1), 0) == 0.75
        assert self.traces[:, :2, 0].tolist() == [[0.25, 0.5], [2.0, 0.0]]
        assert self.weights[:, :2, 0].tolist() == [[0.59375, 1.1875], [0.75, 0.0]]

        # Failure: nothing beyond. Q(s, 0) = 0.59375 + 1.1875 = 1.78125; delta = -1 - 1.78125
        # traces: action 0 (1.0625, 1.125), action 1 (0.5, 0); w += -1.390625 times them
        assert learn((1, 1), 0, -1.0, (9, 9), 1, discount=0.0) == -2.78125
        assert self.weights[:, :2, 0].tolist() == [[-0.8837890625, -0.376953125], [0.0546875, 0.0]]

        # A new episode: decay 0 forgets the traces. Q(s, 1) = 0.109375, Q(s', 1) = 0.21875; delta = 0
        assert learn((2, 1), 1, 0.0, (4, 0), 1, decay=0.0) == 0.0
        assert self.traces[:, :2, 0].tolist() == [[0.0, 0.0], [2.0, 1.0]]

    def test_accumulates_traces_of_a_repeated_action(self, learn):
        learn((1, 0), 0, 0.0, (1, 0), 0, decay=0.0)
        learn((1, 0), 0, 0.0, (1, 0), 0, decay=0.25)
        assert self.traces[0, 0, 0] == 1.25

    def test_changes_no_weight_where_alpha_is_zero(self, learn):
        learn((1, 2), 0, 1.0, (2, 0), 1, alpha=0.0)
        assert not self.weights.any()

    def test_moves_each_learner_as_if_it_were_alone(self):
        rng = np.random.default_rng(0)
        weights, traces = rng.normal(size=(2, 2, 4, 5))
        features, action = rng.normal(size=(4, 5)), rng.integers(0, 2, 5)
        reward, next_value, discount, alpha, decay = rng.random((5, 5))
        expected = []
        for i in range(5):
            w, e = weights[..., i].copy(), traces[..., i].copy()
            value = w[action[i]] @ features[:, i]
            delta = reward[i] + discount[i] * next_value[i] - value
            e *= decay[i]
            e[action[i]] += features[:, i]
            expected.append(w + alpha[i] * delta * e)
        numbers = {"discount": discount, "alpha": alpha, "decay": decay}
        sarsa_update(weights, traces, features, action, reward, next_value, **numbers)
        np.testing.assert_allclose(np.moveaxis(weights, -1, 0), expected, rtol=1e-12)

    def test_leaves_the_neighbours_of_a_lost_learner_alone(self, recwarn):
        """Weights that overflow become NaN; those beside them learn as if nothing had happened."""
        weights, traces = np.full((2, 4, 2), 0.5), np.zeros((2, 4, 2))
        weights[..., 0] = [[np.inf], [-np.inf]]
        features, numbers = np.ones((4, 2)), {"discount": np.ones(2), "alpha": np.ones(2), "decay": np.zeros(2)}
        with np.errstate(invalid="ignore"):
            sarsa_update(weights, traces, features, np.zeros(2, int), np.zeros(2), np.ones(2), **numbers)
        assert np.isnan(weights[0, :, 0]).all()
        assert weights[:, :, 1].tolist() == [[-0.5] * 4, [0.5] * 4]  # delta = 0 + 1 - 4 x 0.5


class TestChoosingActions:
    def test_takes_the_best_action_where_there_is_one(self):
        values = np.array([[1.0, 0.0, -2.0], [0.0, 1.0, -1.0]])
        for seed in range(20):
            assert choose_actions(values, 0.0, np.random.default_rng(seed)).tolist() == [0, 1, 1]

    def test_breaks_ties_evenly(self):
        action = choose_actions(np.zeros((2, 20_000)), 0.0, np.random.default_rng(0))
        assert abs(action.mean() - 0.5) < 0.015  # four standard deviations

    @pytest.mark.parametrize("lost", [[np.nan, np.nan], [np.nan, 1.0], [1.0, np.nan]])
    def test_chooses_at_random_where_a_value_is_not_a_number(self, lost):
        action = choose_actions(np.repeat(np.array(lost)[:, None], 20_000, axis=1), 0.0, np.random.default_rng(0))
        assert abs(action.mean() - 0.5) < 0.015

    def test_tosses_a_coin_per_learner(self):
        values = np.repeat([[1.0], [0.0]], 20_000, axis=1)
        action = choose_actions(values, 0.3, np.random.default_rng(0))
        assert abs(action.mean() - 0.15) < 0.011


class TestSolved:
    @staticmethod
    def at(returns, threshold=10, window=3, played=None):
        returns = np.atleast_2d(returns)
        played = np.full(len(returns), returns.shape[1]) if played is None else np.array(played)
        episode, steps = solved_at(returns, played, threshold, window)
        return episode.tolist(), steps.tolist()

    def test_is_the_first_episode_of_the_first_window_that_qualifies(self):
        assert self.at([1, 2, 5, 10, 15, 12]) == ([2], [3])

    def test_counts_an_average_equal_to_the_threshold(self):
        assert self.at([10, 10, 10]) == ([0], [0])
        assert self.at([10, 10, 9]) == ([-1], [-1])

    def test_is_not_undone_by_a_later_decline(self):
        assert self.at([1, 10, 10, 10, 0, 0, 0]) == ([1], [1])

    def test_needs_a_whole_window_of_played_episodes(self):
        assert self.at([30, 30]) == ([-1], [-1])
        assert self.at([[9, 30, 30, 30], [9, 30, 30, 30]], played=[2, 4]) == ([-1, 0], [-1, 0])
        assert self.at([[0, 0, 30, 30]], played=[3]) == ([0], [0])

    def test_equals_a_plain_loop(self):
        rng = np.random.default_rng(1)
        returns, played = rng.integers(0, 20, (50, 30)), rng.integers(0, 31, 50)
        for i, (episode, steps) in enumerate(zip(*solved_at(returns, played, 12.5, 5), strict=True)):
            starts = range(max(played[i] - 4, 0))
            expected = next((k for k in starts if returns[i, k : k + 5].mean() >= 12.5), -1)
            assert episode == expected
            assert steps == (-1 if expected < 0 else returns[i, :expected].sum())


class TestTheLearners:
    def test_solve_cartpole_v0(self):
        result = SarsaLearners(SarsaConfig(version="v0", learners=64, episodes=150, seed=1)).run()
        assert result.solved_share >= 0.9
        assert (result.played == 150).all()
        assert result.weights.shape == (64, 2, 4)
        solved = result.solved_at_episode >= 0
        assert (result.solved_at_step[solved] >= result.solved_at_episode[solved]).all()
        assert result.learner_steps >= result.returns.sum()

    def test_are_the_same_for_the_same_seed_and_others_for_another(self):
        first, again = (SarsaLearners(SMALL).run() for _ in range(2))
        other = SarsaLearners(dataclasses.replace(SMALL, seed=4)).run()
        assert first.returns.tolist() == again.returns.tolist()
        assert first.weights.tobytes() == again.weights.tobytes()
        assert first.weights.tobytes() != other.weights.tobytes()

    @pytest.mark.parametrize("steps", [1, 200, 201, 202, 777])
    def test_go_on_from_a_saved_state_to_the_last_bit(self, steps):
        config = dataclasses.replace(SMALL, epsilon=0.1)
        whole = SarsaLearners(config)
        for _ in range(steps):
            whole.step()
        resumed = SarsaLearners(dataclasses.replace(config, seed=99))
        resumed.load_state(whole.state())
        for _ in range(500):
            assert whole.step().tobytes() == resumed.step().tobytes()
        assert whole.weights.tobytes() == resumed.weights.tobytes()
        assert whole.returns.tolist() == resumed.returns.tolist()
        assert whole.learner_steps == resumed.learner_steps

    def test_refuse_a_state_of_another_shape(self):
        state = SarsaLearners(SMALL).state()
        with pytest.raises(ConfigError, match="give --learners 8"):
            SarsaLearners(dataclasses.replace(SMALL, learners=9)).load_state(state)
        with pytest.raises(ConfigError, match="give --episodes 20"):
            SarsaLearners(dataclasses.replace(SMALL, episodes=21)).load_state(state)

    @pytest.mark.parametrize("dynamics", ["gymnasium", "own"])
    @pytest.mark.parametrize("reward_kind", ["failure", "survival"])
    @pytest.mark.parametrize(("features", "alpha"), [("scaled", 0.1), ("raw", 0.01)])
    @pytest.mark.parametrize("epsilon", [0.0, 1.0])
    def test_equal_a_plain_loop_that_skips_the_reset_rows(self, epsilon, features, alpha, reward_kind, dynamics):
        """An independent account of 1,200 rows: transitions rebuilt from the rows, learned one by one."""
        config = SarsaConfig(
            version="v0", learners=3, epsilon=epsilon, seed=5, learning_rate=alpha,
            features=features, reward=reward_kind, dynamics=dynamics,
        )  # fmt: skip
        scale = SCALE if features == "scaled" else 1.0
        learners, cartpoles = SarsaLearners(config), CartPoles(3, "v0", 5)
        weights, traces = np.zeros((3, 2, 4)), np.zeros((3, 2, 4))
        ended, truncations, failures, steps = np.zeros(3, bool), 0, 0, 0
        for _ in range(1200):
            state, action = cartpoles.observation.T / scale, learners.action
            _, terminated, truncated = cartpoles.step(action)
            reward = -1.0 * terminated if reward_kind == "failure" else np.ones(3)
            learners.step()
            for i in range(3):
                if ended[i]:
                    traces[i] = 0
                    continue
                next_value = 0.0 if terminated[i] else weights[i, learners.action[i]] @ learners.features[:, i]
                delta = reward[i] + config.gamma * next_value - weights[i, action[i]] @ state[i]
                traces[i] *= config.gamma * config.lam
                traces[i, action[i]] += state[i]
                weights[i] += config.learning_rate * delta * traces[i]
                steps, failures = steps + 1, failures + int(terminated[i])
                truncations += int(truncated[i] and not terminated[i])
            ended = terminated | truncated
            np.testing.assert_allclose(np.moveaxis(learners.weights, -1, 0), weights, rtol=1e-9, atol=1e-12)
        assert learners.learner_steps == steps
        assert failures > 0
        assert truncations > 0 or (epsilon, features, reward_kind) != (0.0, "scaled", "failure")

    def test_note_the_length_of_each_episode_as_its_return(self):
        learners = SarsaLearners(dataclasses.replace(SMALL, version="v1", episodes=3))
        by_hand, length, live = [[] for _ in range(8)], np.zeros(8, int), np.ones(8, bool)
        while not learners.finished:
            learners.step()
            length += live
            for i in np.flatnonzero(learners.ended):
                by_hand[i].append(length[i])
                length[i] = 0
            live = ~learners.ended
        assert learners.returns.tolist() == [lengths[:3] for lengths in by_hand]
        assert learners.returns.max() <= 500

    def test_stop_at_max_steps(self):
        result = SarsaLearners(dataclasses.replace(SMALL, max_steps=50)).run()
        assert result.learner_steps <= 50 * 8
        assert (result.solved_at_episode == -1).all()

    def test_log_every_thousand_steps_and_at_the_end(self):
        seen = []
        learners = SarsaLearners(SMALL)
        learners.run(lambda values, steps: seen.append((steps, values)))
        assert [steps for steps, _ in seen][:2] == [1000, 2000]
        assert seen[-1][0] == learners.steps
        assert set(seen[0][1]) == {
            "games/return_mean_100",
            "games/episodes_least",
            "sarsa/solved_share",
            "sarsa/lost_share",
            "sarsa/td_error",
            "time/learner_steps_per_second",
        }
        assert seen[-1][1]["games/return_mean_100"] == pytest.approx(learners.returns.mean())

    def test_may_each_have_settings_of_their_own(self):
        learners = SarsaLearners(SMALL)
        learners.gamma, learners.lam, learners.epsilon = np.full(8, 0.95), np.full(8, 0.5), np.zeros(8)
        learners.learning_rate = np.repeat([0.1, 0.0], 4)
        for _ in range(100):
            learners.step()
        assert learners.weights.any(axis=(0, 1)).tolist() == [True] * 4 + [False] * 4

    def test_toss_coins_by_an_epsilon_of_their_own(self):
        values, epsilon = np.repeat([[1.0], [0.0]], 40_000, axis=1), np.repeat([0.0, 0.3], 20_000)
        action = choose_actions(values, epsilon, np.random.default_rng(0)).reshape(2, -1)
        assert not action[0].any()
        assert abs(action[1].mean() - 0.15) < 0.011

    def test_go_on_where_the_weights_of_some_grow_without_bound(self, recwarn):
        """Such a learner is an outcome, not an error: it plays at random, solves nothing, and is counted as lost."""
        learners, logged = SarsaLearners(SMALL), []
        learners.weights[0, 0, 2] = np.inf
        result = learners.run(lambda values, steps: logged.append(values))
        assert result.lost.tolist() == [False, False, True, False, False, False, False, False]
        assert np.isnan(result.weights[2]).all()
        assert result.returns[2].mean() < 50  # at random: about 22
        assert np.delete(result.returns, 2, axis=0).mean() > 150
        assert logged[-1]["sarsa/lost_share"] == 1 / 8
        assert np.isfinite(logged[-1]["sarsa/td_error"])
        assert not recwarn.list

    def test_play_to_the_end_where_all_weights_overflow(self, recwarn):
        config = SarsaConfig(version="v0", learners=4, episodes=30, learning_rate=1, gamma=1, lam=1, features="raw")
        learners, logged = SarsaLearners(config), []
        learners.weights[..., :3], learners.weights[..., 3] = 1e300, 2e307
        learners.learning_rate = np.array([1.0, 1.0, 1.0, 0.0])  # the last one's TD errors overflow in their sum
        result = learners.run(lambda values, steps: logged.append(values))
        assert result.lost.tolist() == [True, True, True, False]
        assert (result.played == 30).all()
        assert result.solved_share == 0.0
        assert np.isnan(logged[-1]["sarsa/td_error"])
        assert len(film(result.weights[0], config, seed=0)) > 1
        assert not recwarn.list

    def test_balance_the_pole_on_film_after_learning(self):
        weights = SarsaLearners(SarsaConfig(version="v0", learners=4, episodes=100, seed=2)).run().weights
        frames = learners.film(weights[0], SarsaConfig(version="v0"), seed=0)
        assert frames[0].shape == (400, 600, 3)
        assert frames[0].dtype == np.uint8
        assert len(frames) > 150


def test_an_action_for_the_film_is_the_greedy_one():
    rng = np.random.default_rng(0)
    weights, observation = rng.normal(size=(2, 4)), rng.normal(size=4).astype(np.float32)
    values = action_values(weights[:, :, None], (observation / SCALE)[:, None])
    assert learners.act(weights, observation) == values[:, 0].argmax()


def test_an_action_on_raw_features_is_that_of_the_weights_as_they_are(monkeypatch):
    weights, observation = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0]]), np.array([0.2, 0, 0.1, 0], np.float32)
    assert learners.act(weights, observation, "raw") == 0  # 0.2 before 0.1
    assert learners.act(weights, observation, "scaled") == 1  # 0.2 / 10 behind 0.1 / 0.21
    monkeypatch.setattr("fastrl.sarsa.cartpole.film", lambda act, version, seed: [act(observation)])
    assert learners.film(weights, SarsaConfig(features="raw"), seed=0) == [0]
    assert learners.film(weights, SarsaConfig(features="scaled"), seed=0) == [1]


def test_an_evaluation_plays_by_the_features_that_were_learned_on():
    weights = np.zeros((20, 2, 4))
    weights[:, 1, 2:] = 1.0, 0.05  # balances in rad and rad/s; scaled, the angle counts ten times as much
    assert evaluate(weights, SarsaConfig(version="v0", features="raw")).mean() > 150
    assert evaluate(weights, SarsaConfig(version="v0", features="scaled")).mean() < 100


class TestTheCartPoles:
    @pytest.mark.parametrize(("reward", "alive", "failed"), [("failure", 0.0, -1.0), ("survival", 1.0, 1.0)])
    @pytest.mark.parametrize("dynamics", ["gymnasium", "own"])
    def test_reward_each_step_as_set_and_a_reset_with_nothing(self, reward, alive, failed, dynamics):
        cartpoles, over, seen = CartPoles(4, "v0", 1, reward=reward, dynamics=dynamics), np.zeros(4, bool), set()
        for _ in range(100):  # always to the right: fails after about ten steps
            rewards, terminated, _ = cartpoles.step(np.ones(4, np.int64))
            expected = np.where(over, 0.0, np.where(terminated, failed, alive))
            assert rewards.tolist() == expected.tolist()
            seen |= set(expected.tolist())
            over = terminated
        assert seen == {0.0, alive, failed}

    def test_give_features_scaled_or_raw(self):
        scaled, raw = (CartPoles(5, "v1", 2, features=kind) for kind in ("scaled", "raw"))
        assert raw.features.tolist() == raw.observation.tolist()
        assert raw.features.dtype == np.float64
        np.testing.assert_array_equal(scaled.features, raw.features / SCALE[:, None])

    @pytest.mark.parametrize("reward", ["failure", "survival"])
    @pytest.mark.parametrize(("number", "version"), [(1, "v1"), (33, "v0"), (1000, "v0")])
    def test_of_our_own_equal_gymnasiums_to_the_bit(self, number, version, reward):
        """Half the carts are pushed at random, half are balanced up to the time limit."""
        theirs, ours = (CartPoles(number, version, 3, reward=reward, dynamics=kind) for kind in ("gymnasium", "own"))
        rng, ends = np.random.default_rng(0), np.zeros(2, int)
        assert ours.observation.tobytes() == theirs.observation.tobytes()
        for _ in range(1_100):
            x, x_dot, theta, theta_dot = theirs.observation
            balanced = (theta + 0.3 * theta_dot + 0.02 * x_dot + 0.01 * x > 0).astype(np.int64)
            action = np.where(np.arange(number) % 2 == 0, balanced, rng.integers(0, 2, number))
            for our, their in zip(ours.step(action), theirs.step(action), strict=True):
                assert (our.dtype, our.tobytes()) == (their.dtype, their.tobytes())
            assert ours.observation.tobytes() == theirs.observation.tobytes()
            ends += [np.count_nonzero(ended) for ended in theirs.step(action)[1:]]
            ours.step(action)
        our, their = ours.state(), theirs.state()
        assert our.keys() == their.keys()
        assert all(np.array_equal(our[name], their[name]) for name in our)
        assert ends[1] > 0
        assert ends[0] > 0 or number == 1

    def test_of_our_own_go_on_from_a_state_of_gymnasiums(self):
        theirs, ours = CartPoles(6, "v0", 1), CartPoles(6, "v0", 2, dynamics="own")
        action = np.ones(6, np.int64)
        for _ in range(7):
            theirs.step(action)
        ours.load_state(theirs.state())
        for _ in range(30):
            theirs.step(action)
            ours.step(action)
        assert ours.observation.tobytes() == theirs.observation.tobytes()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("features", "--features is 'x'; give scaled or raw"),
        ("reward", "--reward is 'x'; give failure or survival"),
        ("dynamics", "--dynamics is 'x'; give gymnasium or own"),
    ],
)
def test_an_unknown_kind_is_named_with_the_remedy(field, message):
    with pytest.raises(ConfigError, match=message):
        SarsaConfig(**{field: "x"})
