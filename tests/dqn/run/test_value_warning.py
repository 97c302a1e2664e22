"""A run says once that its values are close to the most that its rewards can pay."""

from __future__ import annotations

import pytest
from quick_run import QUICK

from fastrl.dqn.callbacks import Callback
from fastrl.dqn.run import train

SHORT = QUICK.replace(total_frames=2_000, evaluate_every_frames=10**6, final_episodes=1)


class Values(Callback):
    """Shows other values than the learner's."""

    def __init__(self, largest):
        self._largest = iter(largest)

    def on_log(self, run, metrics):
        if "train/q_max" in metrics:
            metrics["train/q_max"] = next(self._largest, 0.0)


def warnings_of(config, largest, tmp_path, capsys, **options):
    train(config.replace(runs_dir=str(tmp_path), name="run"), [Values(largest)], **options)
    return [line for line in capsys.readouterr().out.splitlines() if "warning: train/q_max" in line]


def test_it_warns_once_with_the_value_the_bound_and_a_remedy(tmp_path, capsys):
    (line,) = warnings_of(SHORT, [109.9, 115.0, 160.0], tmp_path, capsys)
    assert "train/q_max is 115 after " in line
    assert "worth more than 100 (1 / (1 - gamma), as rewards are clipped to 1)" in line
    assert line.endswith(f"start a run with --target-period-updates above {SHORT.target_period_updates}")


def test_the_remedy_is_that_of_how_the_target_moves(tmp_path, capsys):
    (line,) = warnings_of(SHORT.replace(target_tau=0.05), [115.0], tmp_path, capsys)
    assert line.endswith("start a run with --target-tau below 0.05")


@pytest.mark.parametrize("end", [None, 50, 5_000])
def test_the_remedy_is_larger_than_any_period_of_the_run(end, tmp_path, capsys):
    config = SHORT.replace(target_period_updates=70, target_period_end=end, target_period_steps=100)
    (line,) = warnings_of(config, [115.0], tmp_path, capsys)
    assert line.endswith(f"start a run with --target-period-end above {max(70, end or 0):,}")


@pytest.mark.parametrize(
    "settings",
    [
        {"reward_clip": False},
        {"gamma": 1.0},
        {"gamma": 0.999},
        {"gamma_schedule": ((0, 0.9), (10**6, 0.999))},
        {"gamma": 0.85},
    ],
    ids=["unclipped", "endless", "larger bound", "bound of the schedule's end", "bound near one reward"],
)
def test_it_says_nothing_where_rewards_could_pay_that(settings, tmp_path, capsys):
    assert not warnings_of(SHORT.replace(**settings), [150.0] * 9, tmp_path, capsys)


def test_values_of_a_sound_run_are_no_reason(tmp_path, capsys):
    train(SHORT.replace(runs_dir=str(tmp_path), name="run"))
    assert "warning" not in capsys.readouterr().out


def test_a_resumed_run_does_not_say_it_again(tmp_path, capsys):
    assert len(warnings_of(SHORT, [150.0] * 9, tmp_path, capsys)) == 1
    longer = SHORT.replace(total_frames=3_000)
    assert not warnings_of(longer, [150.0] * 9, tmp_path, capsys, resume=tmp_path / "run")
