"""Groups of games that take turns, frames on a device, and the shares of time: the loop as a GPU runs it, on a CPU."""

import itertools

import numpy as np
import pytest
import torch
from number_run import rows
from quick_run import QUICK, played, start

from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS

TWO = QUICK.replace(env_groups=2, num_envs=16)


@pytest.mark.parametrize(
    ("frame_store", "groups"), [*itertools.product(["ram", "device"], [1, 2, 4]), ("lz4", 1), ("lz4", 2)]
)
def test_every_transition_is_one_that_catch_makes(tmp_path, groups, frame_store):
    """The ball falls straight, a row a step; the paddle moves by the action: a mixed-up row would not."""
    run = played(TWO.replace(env_groups=groups, frame_store=frame_store, runs_dir=str(tmp_path)), 200)
    assert run.learner.updates > 0
    batch = run.buffer.sample(512)
    obs, after = (torch.as_tensor(o).cpu().numpy()[:, 0] for o in (batch.obs, batch.next_obs))
    falling = batch.discount > 0
    assert falling.sum() > 300
    for board, action, then in zip(obs[falling], batch.action[falling], after[falling], strict=True):
        (ball_row, ball), paddle = np.argwhere(board[:-1])[0], np.flatnonzero(board[-1])[0]
        expected = np.zeros((10, 5), np.float32)
        expected[ball_row + 1, ball] = expected[9, np.clip(paddle + action - 1, 0, 4)] = 1
        np.testing.assert_array_equal(then, expected)
    caught = batch.reward[~falling]
    assert set(caught) == {-1.0, 1.0}


def test_every_game_of_every_group_lands_in_its_own_ring(tmp_path):
    run = played(TWO.replace(runs_dir=str(tmp_path)), 61)
    index = np.concatenate([run.buffer.sample(64).index for _ in range(40)])
    assert set(index % 16) == set(range(16))
    assert len(run.buffer) == 61 * 8  # a vector step is one group's
    first, second = run.collector._groups
    assert first.env_id.tolist() + second.env_id.tolist() in ([*range(16)], [*range(8, 16), *range(8)])


def test_two_groups_learn_catch_and_repeat_themselves(tmp_path):
    config = PRESETS["catch"].config.replace(total_frames=20_000, compile=False, env_groups=2, frame_store="device")
    first = start(config, tmp_path, name="a")
    assert first.evaluation.last.mean >= 0.9
    assert rows(first.folder) == rows(start(config, tmp_path, name="b").folder)


def test_a_run_of_groups_with_frames_on_the_device_goes_on(tmp_path):
    config = TWO.replace(frame_store="device")
    first = start(config, tmp_path)
    again = start(config.replace(total_frames=6_000), tmp_path, resume=first.folder)
    assert again.frames >= 6_000
    assert len(again.buffer) > len(first.buffer)
    assert again.buffer.drawable > 0


def test_groups_must_share_the_games_evenly():
    with pytest.raises(ConfigError, match="--env-groups is 3, which does not divide --num-envs 16"):
        TWO.replace(env_groups=3)


def test_the_metrics_say_where_the_time_goes(tmp_path):
    import csv

    ended = start(QUICK, tmp_path)
    with (ended.folder / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["time/update"]][-1]
    stages = ("act", "environments", "sample", "update", "priorities", "add", "callbacks")
    shares = [float(last[f"time/{stage}"]) for stage in stages]
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) == pytest.approx(1)
