"""What changes over a run: n, the discount, the rate, epsilon; on a line, or by a list of steps and values."""

import json

import numpy as np
import pytest
from number_run import rows
from quick_run import QUICK, start

from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.run import experiment
from fastrl.dqn.schedules import Schedules, along, discounts, ladder
from fastrl.replay import ReplayBuffer
from fastrl.train import config_for


def test_n_goes_from_its_start_to_its_end_on_a_straight_line(tmp_path):
    config = QUICK.replace(total_frames=3_000, learn_start_steps=200, n_step=4, n_step_end=1, n_step_steps=1_800)
    ended = start(config, tmp_path)
    by_steps = {float(row["steps"]): float(row["replay/n_step"]) for row in rows(ended.folder) if row["steps"]}
    assert by_steps[max(by_steps)] == 1.0
    for steps, n in by_steps.items():
        assert n == pytest.approx(max(1, min(4, 4 - 3 * (steps - 200) / 1_800)), abs=0.6)
    assert {1.0, 2.0, 3.0, 4.0} <= set(by_steps.values())
    ended.buffer.check()
    assert ended.buffer.sample(64).discount.min() in (0.0, pytest.approx(QUICK.gamma))


def test_the_period_of_target_copies_goes_from_its_start_to_its_end_on_a_straight_line(tmp_path):
    growing = {"target_period_updates": 10, "target_period_end": 40, "target_period_steps": 1_800}
    ended = start(QUICK.replace(total_frames=3_000, learn_start_steps=200, **growing), tmp_path)
    by_steps = {float(row["steps"]): float(row["train/target_period"]) for row in rows(ended.folder) if row["steps"]}
    assert by_steps[max(by_steps)] == 40
    assert len(set(by_steps.values())) >= 4
    for steps, period in by_steps.items():
        assert period == pytest.approx(10 + 30 * min(max(steps - 200, 0) / 1_800, 1), abs=1)


def test_the_learning_rate_goes_from_its_start_to_its_end_on_a_straight_line(tmp_path):
    rates = {"learning_rate": 4e-3, "learning_rate_end": 1e-3, "learning_rate_steps": 1_800}
    ended = start(QUICK.replace(total_frames=3_000, learn_start_steps=200, **rates), tmp_path)
    by_steps = {float(row["steps"]): float(row["train/learning_rate"]) for row in rows(ended.folder) if row["steps"]}
    assert by_steps[max(by_steps)] == 1e-3
    assert len(set(by_steps.values())) >= 5
    for steps, rate in by_steps.items():  # of the newest update
        assert rate == pytest.approx(4e-3 - 3e-3 * min(max(steps - 200, 0) / 1_800, 1), abs=2e-4)


@pytest.mark.parametrize("warm_up", [{"learning_rate_warmup_steps": 1_800}, {"learning_rate_warmup_updates": 225}])
def test_the_learning_rate_rises_from_zero_while_it_warms_up(tmp_path, warm_up):
    rates = {"learning_rate": 4e-3, "learning_rate_end": 1e-3, "learning_rate_steps": 1_800}
    config = QUICK.replace(total_frames=3_000, learn_start_steps=200, **rates, **warm_up, batch_size=32)
    by_steps = {
        float(row["steps"]): float(row["train/learning_rate"])
        for row in rows(start(config, tmp_path).folder)
        if row["steps"]
    }
    assert len({rate for steps, rate in by_steps.items() if steps <= 2_000}) >= 4
    for steps, rate in by_steps.items():  # of the newest update
        learned = max(steps - 200, 0)
        line = 4e-3 - 3e-3 * min(learned / 1_800, 1)
        assert rate == pytest.approx(line * min(learned / 1_800, 1), abs=3e-4)


def test_without_an_end_n_the_learning_rate_and_the_period_stay(tmp_path):
    ended = start(QUICK.replace(total_frames=1_500, n_step=2), tmp_path)
    known = {(row["replay/n_step"], row["train/learning_rate"]) for row in rows(ended.folder) if row["steps"]}
    assert known == {("2.0", str(QUICK.learning_rate))}
    assert ended.learner.target_period == QUICK.target_period_updates


def test_a_run_goes_on_with_another_n_and_its_replay(tmp_path):
    whole = start(QUICK.replace(total_frames=1_500), tmp_path)
    resumed = experiment.train(whole.config.replace(total_frames=2_000, n_step=3), resume=whole.folder, quiet=True)
    assert len(resumed.buffer) > len(whole.buffer)
    assert resumed.buffer.settings["n_step"] == 3
    resumed.buffer.check()


def test_a_saved_buffer_keeps_the_n_that_it_was_set_to(tmp_path):
    buffer = ReplayBuffer(capacity=20, num_envs=1, obs_shape=(), n_step=1, gamma=0.5, seed=0)
    for reward in range(6):
        buffer.add(np.uint8([reward]), [0], [float(reward)], [False], [False])
    buffer.set_n_step(2)
    assert sorted(set(buffer.sample(64).reward)) == [0.5, 2.0, 3.5, 5.0]  # r + r' / 2
    buffer.save(tmp_path / "replay")
    assert sorted(set(ReplayBuffer.load(tmp_path / "replay").sample(64).reward)) == [0.5, 2.0, 3.5, 5.0]


@pytest.mark.parametrize("n_step", [0, 1.5, True, 19])
def test_an_n_that_does_not_fit_changes_nothing(n_step):
    buffer = ReplayBuffer(capacity=20, num_envs=1, obs_shape=())
    with pytest.raises(ValueError, match=r"n_step is|capacity is 20"):
        buffer.set_n_step(n_step)
    assert buffer.settings["n_step"] == 1
    buffer.check()


def test_a_bad_end_is_refused():
    with pytest.raises(ConfigError, match="--n-step-end is 0; give between 1 and 10,000"):
        DQNConfig(n_step_end=0)
    with pytest.raises(ConfigError, match=r"--learning-rate-end is 0.0; give a finite number above 0"):
        DQNConfig(learning_rate_end=0.0)


# --- lists of steps and values --------------------------------------------------------------------------


def test_a_list_goes_straight_from_value_to_value_and_then_stays():
    points = ((0, 10), (200, 3), (600, 1))
    at = {-5: 10, 0: 10, 100: 6.5, 199: 3.035, 200: 3, 400: 2, 600: 1, 601: 1, 10**9: 1}
    assert {step: along(points, step) for step in at} == pytest.approx(at, rel=1e-12)
    assert along(((0, 2.0), (0, 5.0)), 0) == 5.0  # of two values at one step the later holds


def test_a_discount_goes_straight_in_log_one_minus_gamma():
    # From 0.9 to 0.99 the distance to 1 falls from 0.1 to 0.01: half-way it is 10^-1.5, at a quarter 10^-1.25.
    at = {0: 0.9, 25: 1 - 10**-1.25, 50: 1 - 10**-1.5, 100: 0.99}
    assert {step: along(((0, 0.9), (100, 0.99)), step, discounts) for step in at} == pytest.approx(at, rel=1e-14)
    assert [along(((0, 0.9), (100, 0.99)), step, discounts) for step in (0, 100, 101)] == [0.9, 0.99, 0.99]
    assert along(((0, 0.97), (100, 0.97)), 33, discounts) == 0.97


def test_lists_count_agent_steps_from_where_learning_starts():
    config = DQNConfig(
        total_frames=400_000, learn_start_steps=1_000, n_step_schedule=[(0, 10), (200, 3), (600, 1)],
        gamma_schedule=[(0, 0.9), (100, 0.99)], epsilon_schedule=[(0, 1), (10, 0.5), (110, 0.1)],
        learning_rate_schedule=[(0, 4e-3), (100, 1e-3)], learning_rate_warmup_steps=200,
    )  # fmt: skip
    schedules = Schedules(config)
    assert [schedules.n_step(1_000 + s) for s in (-1_000, 0, 100, 150, 200, 400, 600)] == [10, 10, 6, 5, 3, 2, 1]
    assert [schedules.gamma(1_000 + s) for s in (-1, 50, 100)] == pytest.approx([0.9, 1 - 10**-1.5, 0.99], rel=1e-14)
    assert [schedules.epsilon(1_000 + s) for s in (-1, 5, 60, 111)] == pytest.approx([1, 0.75, 0.3, 0.1])
    # the warm-up multiplies: a quarter of 2.5e-3, half of 1e-3, all of 1e-3
    assert [schedules.learning_rate(1_000 + s) for s in (0, 50, 100, 300)] == pytest.approx([0, 6.25e-4, 5e-4, 1e-3])
    assert config.largest_n_step == 10


def test_a_list_of_what_the_short_settings_say_gives_the_same_metrics_to_the_bit(tmp_path):
    short = QUICK.replace(
        total_frames=2_000, n_step=4, n_step_end=1, n_step_steps=900, epsilon_steps=700, learning_rate_end=1e-4,
        learning_rate_steps=800,
    )  # fmt: skip
    listed = QUICK.replace(
        total_frames=2_000, n_step_schedule=[(0, 4), (900, 1)], epsilon_schedule=[(0, 1.0), (700, 0.01)],
        learning_rate_schedule=[(0, QUICK.learning_rate), (800, 1e-4)],
    )  # fmt: skip
    one, other = (start(config, tmp_path, name=name) for config, name in ((short, "short"), (listed, "listed")))
    assert rows(one.folder) == rows(other.folder)
    assert "replay/gamma" not in rows(one.folder)[0]


def test_a_run_follows_its_lists_and_reports_their_values(tmp_path):
    config = QUICK.replace(
        total_frames=3_000, learn_start_steps=200, n_step_schedule=[(0, 4), (900, 4), (901, 2)],
        gamma_schedule=[(0, 0.9), (1_800, 0.99)],
    )  # fmt: skip
    ended = start(config, tmp_path)
    lines = [row for row in rows(ended.folder) if row["steps"]]
    steps = [float(row["steps"]) for row in lines]
    assert [float(row["replay/n_step"]) for row in lines] == [4 if s <= 1_100 else 2 for s in steps]
    for s, row in zip(steps, lines, strict=True):
        passed = min(max(s - 16 - 200, 0) / 1_800, 1)  # the line comes after the step of 16 games
        assert float(row["replay/gamma"]) == pytest.approx(1 - 10 ** -(1 + passed), rel=1e-12)
    assert ended.buffer.settings["gamma"] == 0.99
    assert set(ended.buffer.sample(64).discount) <= {0, np.float32(0.99), np.float32(0.99**2)}


def test_a_run_resumes_with_a_list_without_it_and_with_another(tmp_path):
    lists = {"n_step_schedule": [(0, 3)], "gamma_schedule": [(0, 0.9), (5_000, 0.99)]}
    run = start(QUICK.replace(total_frames=1_000, **lists), tmp_path)
    assert json.loads((run.folder / "config.json").read_text())["gamma_schedule"] == [[0, 0.9], [5_000, 0.99]]
    assert 0.9 < run.buffer.settings["gamma"] < 0.95
    for gamma, changes in {0.99: {"gamma_schedule": (), "n_step_schedule": ()}, 0.5: {"gamma": 0.5}}.items():
        total = run.config.total_frames + 500
        run = experiment.train(run.config.replace(total_frames=total, **changes), resume=run.folder, quiet=True)
        assert (run.buffer.settings["gamma"], run.buffer.settings["n_step"]) == (gamma, QUICK.n_step)
        assert len(run.buffer) > total - 500
    with pytest.raises(ConfigError, match=r"--gamma is 0.5, and --gamma-schedule 0:0.9 replaces it; leave it out, or"):
        experiment.train(run.config.replace(gamma=0.5, gamma_schedule=[(0, 0.9)]), resume=run.folder, quiet=True)


@pytest.mark.parametrize(
    ("name", "bad", "shown"),
    [
        ("n_step_schedule", [(1, 3)], "1:3"),
        ("n_step_schedule", [(0, 3), (5, 2), (5, 1)], "0:3 5:2 5:1"),
        ("n_step_schedule", [(0, 3), (9, 2), (5, 1)], "0:3 9:2 5:1"),
        ("n_step_schedule", [(0, 2.5)], "0:2.5"),
        ("n_step_schedule", [(0, 0)], "0:0"),
        ("n_step_schedule", [(0.0, 1)], "0.0:1"),
        ("n_step_schedule", [(0, True)], "0:True"),
        ("n_step_schedule", [(0, 1, 2)], "0:1:2"),
        ("n_step_schedule", [0, 1], "0 1"),
        ("n_step_schedule", "0:3", "'0:3'"),
        ("n_step_schedule", None, "None"),
        ("gamma_schedule", [(0, 1.0)], "0:1.0"),
        ("gamma_schedule", [(0, 0.5), (9, float("nan"))], "0:0.5 9:nan"),
        ("learning_rate_schedule", [(0, 1e-3), (9, 0.0)], "0:0.001 9:0.0"),
        ("learning_rate_schedule", [(0, float("inf"))], "0:inf"),
        ("epsilon_schedule", [(0, 1.5)], "0:1.5"),
    ],
)
def test_a_bad_list_is_refused(name, bad, shown):
    with pytest.raises(ConfigError) as refused:
        DQNConfig(**{name: bad})
    each = {
        "n_step_schedule": "a whole number between 1 and 10,000", "gamma_schedule": "between 0 and 0.999999",
        "learning_rate_schedule": "a finite number above 0", "epsilon_schedule": "between 0 and 1",
    }[name]  # fmt: skip
    assert str(refused.value) == (
        f"--{name.replace('_', '-')} is {shown}; give words STEP:VALUE, where steps ascend from 0 and each value is "
        f"{each}"
    )


def test_a_setting_that_a_list_replaces_is_refused_beside_it():
    told = r"--n-step is 2, and --n-step-schedule 0:3 9:1 replaces it; leave it out, or give --n-step-schedule without"
    with pytest.raises(ConfigError, match=told):
        config_for("catch", "cpu", n_step=2, n_step_schedule=[(0, 3), (9, 1)])
    listed = config_for("catch", "cpu", n_step_schedule=np.array([(0, 3), (9, 1)]).tolist())
    with pytest.raises(ConfigError, match="--n-step-end is 5, and"):
        listed.replace(n_step_end=5)
    assert listed.replace(n_step=2, n_step_schedule=()).n_step_points[0] == (0, 2)


# --- an epsilon for each game ---------------------------------------------------------------------------


def test_a_ladder_falls_by_one_factor_from_game_to_game():
    np.testing.assert_allclose(ladder((0.4, 0.0004), 4), [0.4, 0.04, 0.004, 0.0004])
    horgan = [0.4 ** (1 + 7 * i / 15) for i in range(16)]
    np.testing.assert_allclose(ladder((0.4, 0.4**8), 16), horgan)
    assert ladder((0.4, 0.01), 1) == [0.01]
    assert (ladder((0.4, 0.01), 64)[[0, -1]] == [0.4, 0.01]).all()


@pytest.mark.parametrize(("games", "scored"), [(1, 1), (2, 1), (4, 1), (5, 2), (8, 2), (64, 16)])
def test_the_quarter_of_the_games_with_the_lowest_epsilon_is_scored(games, scored):
    config = DQNConfig(num_envs=games, epsilon_ladder=(0.4, 0.01))
    assert games - config.first_scored_env == scored
    schedules = Schedules(config)
    assert schedules.epsilon(10**6) == pytest.approx(np.sort(schedules.epsilons(0))[:scored].mean())
    assert DQNConfig(num_envs=games).first_scored_env == 0


def test_scores_are_those_of_the_games_with_the_lowest_epsilon(tmp_path):
    class Seen(Callback):
        def __init__(self):
            self.games = []

        def on_game(self, run, score, length):
            self.games.append((run.game_env, score))

    seen = Seen()
    config = QUICK.replace(total_frames=6_000, learn_start_steps=200, epsilon_ladder=(1.0, 0.01), env_groups=2)
    ended = start(config, tmp_path, seen)
    (*_, last) = (row for row in rows(ended.folder) if row["steps"])
    scores = [score for env, score in seen.games if env >= 12]  # of 16
    assert {env for env, _ in seen.games} == set(range(16))
    assert float(last["games/finished"]) == len(seen.games) > 4 * 50
    assert float(last["games/return_mean_100"]) == pytest.approx(np.mean(scores[-100:]))
    assert np.mean(scores) > np.mean([score for env, score in seen.games if env < 4])
    # factors of 0.01^(1/15): games 12 to 15
    assert float(last["explore/epsilon"]) == pytest.approx(np.mean([0.01 ** (i / 15) for i in range(12, 16)]))


@pytest.mark.parametrize(
    "bad", [(0.4,), (0.01, 0.4), (0.4, 0.0), (1.1, 0.1), (0.4, 0.1, 0.01), (float("nan"), 0.1), (True, 0.1), "0.4", 0.4]
)
def test_a_bad_ladder_is_refused(bad):
    with pytest.raises(ConfigError, match="give two numbers, the first at most 1, the second at most the first and"):
        DQNConfig(epsilon_ladder=bad)


def test_a_ladder_is_refused_beside_what_it_replaces():
    with pytest.raises(ConfigError, match=r"--epsilon-end is 0.1, and --epsilon-ladder 0.4 0.01 replaces it; leave"):
        config_for("catch", "cpu", epsilon_end=0.1, epsilon_ladder=(0.4, 0.01))
    with pytest.raises(ConfigError, match=r"--epsilon-ladder is 0.4 0.01 and --epsilon-schedule is 0:0.1; give one"):
        DQNConfig(epsilon_ladder=(0.4, 0.01), epsilon_schedule=((0, 0.1),))
