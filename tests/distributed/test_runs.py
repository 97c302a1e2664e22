"""Whole runs whose games are played by collectors, on the fake engine."""

from __future__ import annotations

import csv
import os
import signal
from unittest.mock import patch

import numpy as np
import pytest
from fake_engine import PEACE, TROUBLE, FakeEngine
from number_run import CONFIG, batches, play, rows

from fastrl.base.errors import ConfigError
from fastrl.base.stop import Stop
from fastrl.distributed import engine
from fastrl.distributed.collectors import Collectors
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.run.experiment import Run

CONFIG = CONFIG.replace(collectors=3, num_envs=4, chunk_steps=4, weights_every_steps=150)


def play_on(folder, *, trouble=PEACE, plan=0, **options):
    made = []

    def fake(config, seed, frame_bytes):
        made.append(FakeEngine(config, seed, frame_bytes, trouble=trouble, plan=plan))
        return made[-1]

    clock = patch.object(engine, "Collectors", lambda *a, **k: Collectors(*a, clock=a[1].clock, **k))
    with patch.object(engine, "RayEngine", fake), clock:
        run = play(folder, **{"config": CONFIG} | options)
    assert made[0].closed
    return run


class Counts(Callback):
    """Agent steps and updates after each vector step."""

    def __init__(self):
        self.steps, self.updates = [], []

    def on_step(self, run, actions):
        self.steps.append(run.steps)
        self.updates.append(run.learner.updates)


def test_a_stop_while_collectors_start_ends_the_run_at_once_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeEngine, "open_games", lambda self, number: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt) as asked:
        play_on(tmp_path / "run")
    assert asked.value.args == (signal.SIGTERM,)
    assert not (tmp_path / "run").exists()


def test_in_order_two_runs_of_one_seed_are_equal_to_the_bit_whatever_the_delays(tmp_path):
    config = CONFIG.replace(collectors_in_order=True)
    first, second = (play_on(tmp_path / name, config=config, plan=plan) for plan, name in enumerate("ab"))
    assert rows(first.folder.path) == rows(second.folder.path)
    assert batches(tmp_path / "a") == batches(tmp_path / "b")
    assert len(batches(tmp_path / "a")) > 100
    for one, other in zip(first.learner.online.parameters(), second.learner.online.parameters(), strict=True):
        assert bool((one == other).all())


@pytest.mark.parametrize("trouble", [PEACE, TROUBLE])
def test_samples_per_step_are_exact_between_the_vector_steps_of_a_chunk(tmp_path, trouble):
    counts = Counts()
    config = CONFIG.replace(total_frames=6_000, samples_per_step=4.0)
    play_on(tmp_path / "run", config=config, hooks=[counts], trouble=trouble)
    steps, samples = np.array(counts.steps), 32 * np.array(counts.updates)
    learning = np.flatnonzero(samples)[0]
    ahead = samples[learning:] - 4.0 * (steps[learning:] - steps[learning])
    assert np.ptp(ahead) <= 32 + 4 * 4  # a batch, and what a vector step brings
    assert counts.updates[-1] > 500


def test_the_run_reports_its_collectors(tmp_path):
    run = play_on(tmp_path / "run", trouble=TROUBLE, plan=1)
    with (run.folder / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["collectors/alive"]][-1]
    assert 0 <= float(last["collectors/alive"]) <= 3
    assert float(last["collectors/lost"]) > 0
    assert float(last["collectors/staleness_updates"]) > 0
    assert float(last["time/collectors_rows_per_second_most"]) > 0


def test_every_collector_acts_with_the_weights_of_the_learner(tmp_path):
    seen = []

    class Look(Callback):
        def on_step(self, run, actions):
            for actor in run.collector._engine.actors.values():
                if actor._collector is not None and 0 < actor._network.updates == run.learner.updates:
                    own = actor._network._network.state_dict()
                    seen.append(all(bool((own[k] == v).all()) for k, v in run.learner.online.state_dict().items()))

    play_on(tmp_path / "run", hooks=[Look()], config=CONFIG.replace(samples_per_step=1.0, weights_every_steps=1))
    assert seen
    assert all(seen)


def test_a_resumed_run_goes_on_and_counts_the_games_that_it_abandoned(tmp_path):
    config = CONFIG.replace(total_frames=1_500)
    first = play_on(tmp_path / "run", config=config)
    again = play_on(tmp_path / "run", config=config.replace(total_frames=2_500), resume=True)
    assert again.frames >= 2_500
    assert again.abandoned == 12
    assert len(again.buffer) > len(first.buffer)
    again.buffer.check()


def test_another_number_of_collectors_is_refused_with_the_number_to_give_or_goes_on_without_the_replay(tmp_path):
    play_on(tmp_path / "run", config=CONFIG.replace(total_frames=1_500))
    more = CONFIG.replace(total_frames=2_000, collectors=4)
    with pytest.raises(ConfigError, match=r"--collectors is 4, with 4 games .* give --collectors 3, or resume"):
        play_on(tmp_path / "run", config=more, resume=True)
    run = play_on(tmp_path / "run", config=more.replace(checkpoint_replay=False), resume=True)
    assert run.frames >= 2_000
    assert run.buffer.settings["num_envs"] == 16
    assert len(run.buffer) < 1_000


def test_a_run_without_the_collectors_it_had_says_how_many_games_to_give_or_goes_on_without_the_replay(tmp_path):
    play_on(tmp_path / "run", config=CONFIG.replace(total_frames=1_500))
    alone = CONFIG.replace(total_frames=2_000, collectors=0)
    with pytest.raises(ConfigError, match=r"--num-envs is 4, and .* of 12 games; give --num-envs 12, or the --coll"):
        Run(alone, [], Stop(), resume=tmp_path / "run", quiet=True)
    run = Run(alone.replace(checkpoint_replay=False), [], Stop(), resume=tmp_path / "run", quiet=True)
    assert run.buffer.settings["num_envs"] == 4
    assert len(run.buffer) == 0
    run.close()


def test_groups_are_refused():
    with pytest.raises(ConfigError, match=r"--env-groups is 2 and --collectors is 3; .* give --env-groups 1"):
        CONFIG.replace(env_groups=2)


def test_rings_too_short_to_draw_from_are_refused_and_short_ones_are_told(tmp_path, capsys):
    from fastrl.dqn.run.replay_plan import check_rings

    assert check_rings(CONFIG, 12 * 200) == []
    assert "only 199 for each game" in check_rings(CONFIG, 12 * 200 - 1)[0]
    with pytest.raises(ConfigError, match=r"5 for each game; give --capacity 72 or more, .* take 6"):
        check_rings(CONFIG, 71)
    play_on(tmp_path / "run", config=CONFIG.replace(total_frames=1_000, capacity=1_200), quiet=False)
    assert "share a replay of 1,200 rows, only 100 for each game" in capsys.readouterr().out


def test_the_replay_is_planned_for_the_games_of_all_collectors():
    from fastrl.dqn.run.replay_plan import least_capacity

    assert CONFIG.all_envs == 12
    assert least_capacity(CONFIG) == least_capacity(CONFIG.replace(collectors=0, num_envs=12))


def test_losses_are_told_on_the_screen(tmp_path, capsys):
    play_on(tmp_path / "run", trouble=TROUBLE, plan=1, quiet=False)
    assert "; a new one takes its place" in capsys.readouterr().out


def test_groups_of_a_preset_give_way_to_collectors_and_those_asked_for_do_not():
    from fastrl.config import PRESETS
    from fastrl.train import _changed

    assert PRESETS["cuda"].config.env_groups == 2
    assert _changed(PRESETS["cuda"].config, {"collectors": 8}).env_groups == 1
    with pytest.raises(ConfigError, match="give --env-groups 1"):
        _changed(PRESETS["cuda"].config, {"collectors": 8, "env_groups": 2})
