"""Whole games: one per episode, scored whole, on both makers of games."""

from unittest.mock import patch

import numpy as np
import pytest

pytest.importorskip("envpool")
pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from fastrl.base.errors import ConfigError, Stopped
from fastrl.envs.atari import AtariEnvs
from fastrl.envs.rules import EvaluationRules
from fastrl.play import games as games_module
from fastrl.play.acting import Epsilon
from fastrl.play.games import Games, joined, play_games, shares

BACKENDS = ["envpool", "gymnasium"]


class Random:
    """An act function that draws its actions and remembers what it was shown."""

    def __init__(self, num_actions, seed=0):
        self.rng = np.random.default_rng(seed)
        self.num_actions = num_actions
        self.stacks = []

    def __call__(self, stacks):
        self.stacks.append(stacks.copy())
        return self.rng.integers(self.num_actions, size=len(stacks))


def noop(stacks):
    return np.zeros(len(stacks), np.int64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_episode_is_one_whole_game_of_all_its_lives(backend):
    act = Random(4)
    games = play_games("breakout", act, 3, seed=1, backend=backend, rules=EvaluationRules(epsilon=0))
    assert games.scores.shape == games.lengths.shape == (3,)
    # a life of Breakout lasts at least 20 steps of falling ball, a game has five
    assert games.lengths.min() >= 100
    assert games.lengths.max() < 1_000
    assert sum(len(stacks) for stacks in act.stacks) >= games.lengths.sum()


def test_scores_and_lengths_are_those_of_each_environments_first_game():
    seed, episodes, actions = 3, 2, [1, 3, 2, 4, 5, 0]
    envs = AtariEnvs("space_invaders", episodes, seed=seed, reward_clip=False)
    expected, lengths = np.zeros(episodes), np.zeros(episodes, int)
    done = np.zeros(episodes, bool)
    score, length = np.zeros(episodes), np.zeros(episodes, int)
    step = envs.reset()
    t = 0
    while not done.all():
        step = envs.step([actions[t % 6]] * episodes)
        t += 1
        score += step.reward
        length += ~step.reset
        new = step.game_over & ~done
        expected[new], lengths[new] = score[new], length[new]
        done |= new

    calls = iter(range(10**6))
    games = play_games(
        "space_invaders",
        lambda stacks: np.full(len(stacks), actions[next(calls) % 6]),
        episodes,
        seed=seed,
        rules=EvaluationRules(epsilon=0),
    )
    assert games.scores.tolist() == expected.tolist()
    assert games.lengths.tolist() == lengths.tolist()
    assert len(set(lengths.tolist())) > 1  # so that short games did wait for long ones
    assert games.max > 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_policy_that_never_fires_does_not_stall(backend):
    games = play_games("breakout", noop, 1, seed=1, backend=backend, rules=EvaluationRules(epsilon=0, max_steps=900))
    assert 100 <= games.lengths[0] < 500


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_cap_counts_the_steps_of_the_whole_game(backend):
    rules = EvaluationRules(epsilon=0, max_steps=60)  # more than a life of Breakout, less than a game
    act = Random(4)
    games = play_games("breakout", act, 2, seed=1, backend=backend, rules=rules)
    assert games.lengths.tolist() == [60, 60]
    assert games.cut_off == 2
    assert "of 60 steps on average, 2 cut off at 60 (" in games.summary()


@pytest.mark.parametrize("backend", BACKENDS)
def test_act_sees_stacks_that_start_with_the_games_first_frame(backend):
    act = Random(4)
    play_games("breakout", act, 1, seed=1, backend=backend, rules=EvaluationRules(max_steps=6), stack=3)
    stacks = np.concatenate(act.stacks)
    assert stacks.shape == (6, 3, 84, 84)
    assert stacks.dtype == np.uint8
    assert (stacks[0] == stacks[0, :1]).all()
    for t in range(1, 6):
        assert np.array_equal(stacks[t, :-1], stacks[t - 1, 1:])
    assert not np.array_equal(stacks[5, -1], stacks[0, -1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_plays_the_same_games(backend):
    first, second, other = (
        play_games(
            "breakout",
            noop,
            1,
            seed=seed,
            backend=backend,
            rules=EvaluationRules(epsilon=0.5, max_steps=50),
            film=True,
        )
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first.film, second.film)
    assert first.scores.tolist() == second.scores.tolist()
    assert not np.array_equal(first.film, other.film)


def test_both_backends_agree_on_a_random_players_breakout():
    means = {}
    for backend in BACKENDS:
        games = play_games("breakout", Random(4), 5, seed=2, backend=backend, rules=EvaluationRules(epsilon=1))
        means[backend] = (games.mean, games.std / 5**0.5)
        assert 100 < games.lengths.mean() < 400
    (a, sa), (b, sb) = means.values()
    assert abs(a - b) < 4 * np.hypot(sa, sb)
    assert a > 0


def test_epsilon_is_the_share_of_random_actions_in_each_game():
    # act always goes left; a game of Catch that ends elsewhere owes it to epsilon alone
    shown = []

    def left(stacks):
        shown.append(stacks[:, -1, 9].argmax(axis=1))  # the paddle's column
        return noop(stacks)

    def wanderers(epsilon):
        shown.clear()
        play_games("catch", left, 200, seed=1, rules=EvaluationRules(epsilon=epsilon), stack=1)
        return (shown[-1] > 0).mean()

    assert wanderers(0) == 0
    # at the last sight after 8 actions: off the left edge if more recent rights than lefts
    assert 0.02 < wanderers(0.3) < 0.5
    assert 0.4 < wanderers(1) < 0.9


def test_each_game_tosses_its_own_coin_whichever_others_still_run():
    everyone, some = np.arange(1_000), np.arange(0, 1_000, 3)
    actions = Epsilon(0.3, 50, 1_000, seed=1)(np.zeros(1_000, int), everyone)
    assert 0.25 < (actions > 0).mean() < 0.35
    assert len(set(actions.tolist())) == 50
    assert np.array_equal(Epsilon(0.3, 50, 1_000, seed=1)(np.zeros(len(some), int), some), actions[some])


def by_the_picture(stacks):
    """Act by the observation alone, whatever else is in the batch."""
    return stacks.astype(np.int64).sum(axis=(1, 2, 3)) % 3


@pytest.mark.parametrize(("game", "backend"), [("breakout", "envpool"), ("catch", "envpool")])
def test_shares_of_envpools_games_are_the_games_that_all_of_them_are(game, backend):
    options = {"seed": 4, "backend": backend, "rules": EvaluationRules(epsilon=0.3, max_steps=90), "stack": 2}
    with patch.object(games_module, "AT_ONCE", 16):
        whole = play_games(game, by_the_picture, 27, **options)
        parts = [play_games(game, by_the_picture, 27, share=share, **options) for share in shares(27)]
    assert [len(part.scores) for part in parts] == [8, 8, 8, 3]
    assert joined(parts).scores.tolist() == whole.scores.tolist()
    assert joined(parts).lengths.tolist() == whole.lengths.tolist()
    assert len(set(whole.scores.tolist())) > 1


def test_shares_of_other_games_repeat_themselves_and_not_each_other():
    options = {"seed": 4, "backend": "gymnasium", "rules": EvaluationRules(epsilon=0.5, max_steps=20)}

    def seen(share):
        act = Random(4)
        play_games("breakout", act, 4, share=share, **options)
        return np.concatenate(act.stacks)

    first, second, again = (seen(share) for share in (range(2), range(2, 4), range(2)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("share", [range(0), range(3, 6), range(-1, 2), range(0, 4, 2)])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match=r"share is range.*of 4 episodes; give one of `shares\(4\)`"):
        play_games("catch", noop, 4, seed=0, share=share)


def test_catch_can_be_won_and_filmed():
    def follow(stacks):
        ball = stacks[:, -1, :9].max(axis=1).argmax(axis=1)
        paddle = stacks[:, -1, 9].argmax(axis=1)
        return np.sign(ball - paddle) + 1

    games = play_games("catch", follow, 20, seed=1, rules=EvaluationRules(epsilon=0), stack=1, film=True)
    assert games.scores.tolist() == [1.0] * 20
    assert games.lengths.tolist() == [9] * 20
    assert len(games.film) == 10
    assert games.film[0].shape == (160, 80, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_film_has_a_picture_of_each_agent_step_of_the_first_game(backend):
    rules = EvaluationRules(epsilon=0, max_steps=50)

    def film(episodes=1, **options):
        moves = iter(([2] * 5 + [3] * 5) * 10)
        act = lambda stacks: np.full(len(stacks), next(moves))  # noqa: E731
        return play_games("breakout", act, episodes, seed=1, backend=backend, rules=rules, **options).film

    whole = film(2, film=True)
    assert len(whole) == 51
    assert whole[0].shape == (210, 160, 3)
    assert whole[0].dtype == np.uint8
    assert np.array_equal(film(film=True, film_every=4, film_steps=20), whole[:21:4])
    assert film() == []


def test_both_backends_show_the_agent_the_same_game_to_the_bit():
    actions = np.random.default_rng(0).choice([0, 2, 3], 30)

    def seen(backend, seed, noop_max):
        stacks_seen = []

        def act(stacks):
            stacks_seen.append(stacks[0].copy())
            return np.full(len(stacks), actions[len(stacks_seen) % 30])

        rules = EvaluationRules(epsilon=0, noop_max=noop_max, max_steps=22)  # the first ball is not lost yet
        play_games("breakout", act, 1, seed=seed, backend=backend, rules=rules)
        return np.array(stacks_seen)

    gymnasium = seen("gymnasium", 1, noop_max=1)  # one no-op, FIRE
    envpool = [seen("envpool", seed, noop_max=2) for seed in range(10)]  # none or one, FIRE
    assert len(gymnasium) == 22
    assert len(np.unique(gymnasium, axis=0)) == 22
    assert any(np.array_equal(stacks, gymnasium) for stacks in envpool)


def test_envpool_shows_each_agent_step_of_the_first_game_and_gymnasium_each_frame_of_all():
    def play(episodes, **options):
        shown, rules = [], EvaluationRules(epsilon=0, max_steps=20)
        right = lambda stacks: np.full(len(stacks), 2)  # noqa: E731
        games = play_games("breakout", right, episodes, seed=1, rules=rules, show=shown.append, **options)
        return shown, games.film

    shown, film = play(2, film=True)
    assert np.array_equal(shown, film)
    shown, film = play(1, film=True, backend="gymnasium")
    assert np.array_equal(shown[-1 - 4 * 20 :: 4], film)
    moved = [not np.array_equal(a, b) for a, b in zip(shown[-80:], shown[-79:], strict=False)]
    assert sum(moved) > 20  # within steps too
    assert len(play(2, backend="gymnasium")[0]) > len(shown) + 4 * 20
    shown = []
    games = play_games("catch", noop, 3, seed=1, stack=1, film=True, show=shown.append)
    assert np.array_equal(shown, games.film)


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_is_shown_the_games_may_end_them(backend):
    def show(picture):
        raise Stopped

    with pytest.raises(Stopped):
        play_games("breakout", noop, 1, seed=1, backend=backend, show=show)


def test_the_figures_are_those_of_the_scores():
    games = Games("pong", np.array([1.0, 2.0, 6.0]), np.array([10, 20, 30]), EvaluationRules(), "envpool")
    assert (games.mean, games.median, games.min, games.max) == (3.0, 2.0, 1.0, 6.0)
    assert games.std == pytest.approx((14 / 3) ** 0.5)
    assert games.figures() == {"mean": 3.0, "median": 2.0, "std": games.std, "min": 1.0, "max": 6.0}
    summary = games.summary()
    assert "\n" not in summary
    for part in ("pong", "mean 3.0", "median 2.0", "3 games", "20 steps", "envpool"):
        assert part in summary
    assert (games.cut_off, "cut off" in summary) == (0, False)


def test_a_protocol_says_what_it_is():
    text = EvaluationRules(repeat_action_probability=0.25).describe()
    for part in ("epsilon 0.01", "30 no-op", "sticky actions 0.25", "27,000 steps", "108,000 frames"):
        assert part in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EvaluationRules(epsilon=2), "epsilon is 2"),
        (lambda: EvaluationRules(max_steps=0), "--max-steps is 0; give between 1 and"),
        (lambda: play_games("breakout", noop, 0, seed=1), "episodes is 0"),
        (lambda: play_games("breakout", noop, 1, seed=-1), "seed is -1"),
        (lambda: play_games("breakout", noop, 1, seed=1, film_every=0), "film_every is 0"),
        (lambda: play_games("breakout", noop, 1, seed=1, backend="atari"), "backend is 'atari'"),
        (lambda: play_games("catch", noop, 1, seed=1, backend="gymnasium"), "give 'envpool'"),
        (lambda: play_games("braekout", noop, 1, seed=1), "did you mean breakout"),
    ],
)
def test_a_bad_setting_is_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def values(*q):
    return lambda stacks: np.tile(np.array(q), (len(stacks), 1))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda stacks: np.zeros(len(stacks) + 1, int), r"act returned int64 \(2,\)"),
        (lambda stacks: np.zeros(len(stacks)), r"act returned float64"),
        (lambda stacks: np.full(len(stacks), 9), r"actions are 0 to 2"),
        (
            values(0, np.nan, 2),
            r"Q-values \[0.0, nan, 2.0\] in game 0; return finite numbers, or -inf for some actions",
        ),
        (values(0, np.inf, 2), r"Q-values \[0.0, inf, 2.0\] in game 0"),
        (values(-np.inf, -np.inf, -np.inf), r"Q-values \[-inf, -inf, -inf\] in game 0"),
    ],
)
def test_a_bad_action_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        play_games("catch", act, 1, seed=1)


def test_values_that_are_no_numbers_name_the_game_they_are_of():
    def act(stacks):
        q = np.zeros((len(stacks), 3), np.float32)
        q[2, 1] = np.nan
        return q

    with pytest.raises(ValueError, match=r"Q-values \[0.0, nan, 0.0\] in game 2"):
        play_games("catch", act, 5, seed=1)


def test_an_action_of_minus_infinity_is_never_taken():
    rules = EvaluationRules(epsilon=0)
    forbidden = play_games("catch", values(-np.inf, -5.0, -9.0), 20, seed=1, rules=rules)
    assert (
        forbidden.scores.tolist() == play_games("catch", values(0.0, 1.0, 0.0), 20, seed=1, rules=rules).scores.tolist()
    )


@pytest.mark.parametrize("act", [None, "runs/NAME", np.zeros(3)])
def test_what_is_no_function_is_refused_in_place_of_one(act):
    with pytest.raises(ConfigError, match=r"act is .*, which cannot be called; give a function of stacks"):
        play_games("catch", act, 1, seed=1)


def test_a_bare_network_is_refused_with_what_makes_a_function_of_it():
    torch = pytest.importorskip("torch")
    with pytest.raises(
        ConfigError, match=r"act is a network, of type Linear, which takes tensors; give greedy\(network"
    ):
        play_games("catch", torch.nn.Linear(3, 3), 1, seed=1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(50, 3))
    with torch.no_grad():
        games = play_games("catch", lambda s: network(torch.from_numpy(s.copy())).numpy(), 3, seed=1, stack=1)
    assert games.lengths.tolist() == [9] * 3
