"""Returns whose length, and steps whose size, change over a run."""

import numpy as np
import pytest
from number_run import rows
from quick_run import QUICK, start

from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.dqn.run import experiment
from fastrl.replay import ReplayBuffer


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


def test_without_an_end_n_and_the_learning_rate_stay(tmp_path):
    ended = start(QUICK.replace(total_frames=1_500, n_step=2), tmp_path)
    known = {(row["replay/n_step"], row["train/learning_rate"]) for row in rows(ended.folder) if row["steps"]}
    assert known == {("2.0", str(QUICK.learning_rate))}


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
