"""Linear SARSA(lambda): the update in numbers worked out by hand, its rows, its result."""

import dataclasses

import numpy as np
import pytest

from fastrl import sarsa
from fastrl.cartpole import SCALE, CartPoles
from fastrl.config import ConfigError, SarsaConfig
from fastrl.sarsa import SarsaLearners, action_values, choose_actions, sarsa_update, solved_at

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
                one(*s2),
                np.array([a2]),
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
        features, next_features = rng.normal(size=(2, 4, 5))
        action, next_action = rng.integers(0, 2, (2, 5))
        reward, discount, alpha, decay = rng.random((4, 5))
        expected = []
        for i in range(5):
            w, e = weights[..., i].copy(), traces[..., i].copy()
            value = w[action[i]] @ features[:, i]
            delta = reward[i] + discount[i] * (w[next_action[i]] @ next_features[:, i]) - value
            e *= decay[i]
            e[action[i]] += features[:, i]
            expected.append(w + alpha[i] * delta * e)
        numbers = {"discount": discount, "alpha": alpha, "decay": decay}
        sarsa_update(weights, traces, features, action, reward, next_features, next_action, **numbers)
        np.testing.assert_allclose(np.moveaxis(weights, -1, 0), expected, rtol=1e-12)


class TestChoosingActions:
    def test_takes_the_best_action_where_there_is_one(self):
        values = np.array([[1.0, 0.0, -2.0], [0.0, 1.0, -1.0]])
        for seed in range(20):
            assert choose_actions(values, 0.0, np.random.default_rng(seed)).tolist() == [0, 1, 1]

    def test_breaks_ties_evenly(self):
        action = choose_actions(np.zeros((2, 20_000)), 0.0, np.random.default_rng(0))
        assert abs(action.mean() - 0.5) < 0.015  # four standard deviations

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

    @pytest.mark.parametrize("epsilon", [0.0, 1.0])
    def test_equal_a_plain_loop_that_skips_the_reset_rows(self, epsilon):
        """An independent account of 1,200 rows: transitions rebuilt from the rows, learned one by one."""
        config = SarsaConfig(version="v0", learners=3, epsilon=epsilon, seed=5)
        learners, cartpoles = SarsaLearners(config), CartPoles(3, "v0", 5)
        weights, traces = np.zeros((3, 2, 4)), np.zeros((3, 2, 4))
        ended, truncations, failures, steps = np.zeros(3, bool), 0, 0, 0
        for _ in range(1200):
            state, action = cartpoles.observation.T / SCALE, learners.action
            reward, terminated, truncated = cartpoles.step(action)
            learners.step()
            for i in range(3):
                if ended[i]:
                    traces[i] = 0
                    continue
                next_value = 0.0 if terminated[i] else weights[i, learners.action[i]] @ learners.features[:, i]
                delta = reward[i] + config.gamma * next_value - weights[i, action[i]] @ state[i]
                traces[i] *= config.gamma * config.lam
                traces[i, action[i]] += state[i]
                weights[i] += config.alpha * delta * traces[i]
                steps, failures = steps + 1, failures + int(terminated[i])
                truncations += int(truncated[i] and not terminated[i])
            ended = terminated | truncated
            np.testing.assert_allclose(np.moveaxis(learners.weights, -1, 0), weights, rtol=1e-9, atol=1e-12)
        assert learners.learner_steps == steps
        assert failures > 0
        assert truncations > 0 or epsilon == 1.0

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
            "sarsa/td_error",
            "time/learner_steps_per_second",
        }
        assert seen[-1][1]["games/return_mean_100"] == pytest.approx(learners.returns.mean())

    def test_say_in_words_that_the_weights_grew_without_bound(self):
        learners = SarsaLearners(SMALL)
        learners.weights[0, 0, 2] = np.inf
        with pytest.raises(ConfigError, match=r"--alpha is 0\.1.*smaller --alpha or --lam"):
            learners.run()

    def test_balance_the_pole_on_film_after_learning(self):
        weights = SarsaLearners(SarsaConfig(version="v0", learners=4, episodes=100, seed=2)).run().weights
        frames = sarsa.film(weights[0], SarsaConfig(version="v0"), seed=0)
        assert frames[0].shape == (400, 600, 3)
        assert frames[0].dtype == np.uint8
        assert len(frames) > 150


def test_an_action_for_the_film_is_the_greedy_one():
    rng = np.random.default_rng(0)
    weights, observation = rng.normal(size=(2, 4)), rng.normal(size=4).astype(np.float32)
    values = action_values(weights[:, :, None], (observation / SCALE)[:, None])
    assert sarsa.act(weights, observation) == values[:, 0].argmax()
