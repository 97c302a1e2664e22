"""Whole runs on observations of several arrays: what the replay holds, learning, evaluations, resumes, collectors."""

from __future__ import annotations

import signal
from unittest.mock import patch

import array_envs
import number_run
import numpy as np
import pytest
from array_envs import MAKERS, XorPairs, frames_of, image_of, make_pairs, make_xor, make_xor_pairs
from fake_engine import PEACE, TROUBLE, FakeEngine
from number_games import NumberGames
from number_run import CONFIG, batches, play, rows
from quick_run import Scores, config_of, played

pytest.importorskip("envpool")

from fastrl import evaluate, load_agent, play_games, train, watch
from fastrl.base.errors import ConfigError
from fastrl.base.stop import Stop
from fastrl.distributed import engine
from fastrl.distributed.chunk import pack
from fastrl.distributed.collectors import Collectors
from fastrl.dqn.agent import greedy
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.run import Run
from fastrl.dqn.run.faults import NotFiniteError
from fastrl.envs.frames import select
from fastrl.envs.names import name_of
from fastrl.runs.checkpoints import read

ONE_THREAD = {"precision": "float32", "torch_threads": 1, "kernels": "torch"}
QUICK = {"hidden": 8, "batch_size": 16, "stack": 2, "num_envs": 3, **ONE_THREAD}


def every_stack(batch):
    """Yield all stacks of a batch that count: frames [stack, *shape], by name."""
    for k in range(len(batch.action)):
        yield select(batch.obs, k)
        if batch.discount[k]:
            yield select(batch.next_obs, k)


# --- the replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("make_env", MAKERS)
def test_every_transition_has_the_arrays_of_one_place_in_all_its_frames(make_env, n_step, tmp_path):
    run = played(config_of(make_env, tmp_path, n_step=n_step, n_step_end=n_step, **QUICK), 60)
    assert run.learner.updates > 0
    batch, seen = run.buffer.sample(run.buffer.drawable), set()
    for k in range(len(batch.action)):
        now, after = batch.obs["at.where"][k, -1], batch.next_obs["at.where"][k, -1]
        if batch.discount[k]:
            assert after.tolist() == [*now[:2], now[2] + n_step] or n_step > 1
    for stack in every_stack(batch):
        for height, where in enumerate(stack["at.where"]):
            for name, expected in frames_of(where).items():
                np.testing.assert_array_equal(stack[name][height], expected)
            seen.add(tuple(where.tolist()))
    assert len(seen) > 5


# --- learning and evaluations -------------------------------------------------------------------------


LEARN = {
    "total_frames": 1_500, "learn_start_steps": 300, "epsilon_steps": 800, "hidden": 32, "learning_rate": 3e-3,
    "target_period_updates": 50, "evaluate_episodes": 2, "final_episodes": 12, "gamma": 0.1, "stack": 1,
    "num_envs": 8, "samples_per_step": 8, "learning_rate_end": None, **ONE_THREAD,
}  # fmt: skip


def learned(make_env, tmp_path, **settings):
    evaluated = Scores()
    run = train.dqn(make_env, config_of(make_env, tmp_path, **LEARN | settings), [evaluated], quiet=True)
    return run, evaluated.scores.mean()


@pytest.mark.parametrize("make_env", [make_xor, make_xor_pairs])
def test_what_image_and_vector_only_say_together_is_learned_played_and_filmed(make_env, tmp_path, capsys):
    run, mean = learned(make_env, tmp_path)
    assert mean > 7.5  # of 8
    assert next(run.folder.path.glob("pictures/*"))
    assert evaluate.main([str(run.folder), "--episodes", "20"]) == 0
    assert watch.main([str(run.folder), "--episodes", "1"]) == 0
    assert "over 20 games" in capsys.readouterr().out
    agent = load_agent(str(run.folder))
    again = play_games(name_of(make_env), greedy(agent.network), 6, seed=1, stack=1)
    assert again.mean > 7.5


@pytest.mark.parametrize("make_env", [array_envs.make_xor_without_image, array_envs.make_xor_without_vector])
def test_either_array_alone_teaches_nothing(make_env, tmp_path):
    _, mean = learned(make_env, tmp_path)
    assert mean < 6


def test_the_command_trains_resumes_and_says_which_trunk_each_array_has(tmp_path, capsys):
    said = ["--runs-dir", str(tmp_path), "--name", "run", "--no-compile", "--device", "cpu", "--torch-threads", "1"]
    said += ["--learn-start-steps", "64", "--final-episodes", "1", "--precision", "float32", "--kernels", "torch"]
    assert train.main(["array_envs:make_xor", "--total-frames", "192", *said]) == 0
    out = capsys.readouterr().out
    assert "a custom environment with the arrays image [10, 10], vector [2]" in out
    assert "frames image [10, 10], vector [2] stacked 4 high, trunk minatar of image, vector of vector" in out
    assert train.main(["--resume", str(tmp_path / "run"), "--total-frames", "384"]) == 0
    assert "with its replay" in capsys.readouterr().out


# --- resumes ------------------------------------------------------------------------------------------


class NamedNumbers(NumberGames):
    """Games that can be saved, whose frames are three arrays of one."""

    frame_shape = {"image": (8, 5), "last": (3,), "row": (5,)}  # noqa: RUF012
    frame_dtype = {"image": np.dtype(np.uint8), "last": np.dtype(np.float32), "row": np.dtype(np.float32)}  # noqa: RUF012

    def _step(self, *args):
        step = super()._step(*args)
        frame = step.frame
        image = (frame[:, :8] * 255).astype(np.uint8)
        step.frame = {"image": image, "last": frame[:, 9, :3].copy(), "row": frame[:, 0].copy()}
        return step


@pytest.mark.parametrize(
    ("groups", "settings"),
    [(1, {"trunk": "minatar"}), (2, {"trunk": "minatar", "munchausen": True, "head": "iqn", "quantiles": 4})],
)
def test_a_run_that_was_stopped_and_resumed_is_the_unbroken_one_to_the_bit(groups, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(number_run, "NumberGames", NamedNumbers)
    config = CONFIG.replace(
        env_groups=groups, evaluate_every_frames=10**6, final_episodes=1, total_frames=1_200, **settings
    )
    with patch("fastrl.dqn.run.evaluation.Evaluation.on_end"):  # of Catch, which is another game
        whole = play(tmp_path / "whole", config=config)
        stopped = play(tmp_path / "cut", config=config, at=717, number=signal.SIGTERM)
        assert 0 < stopped.learner.updates < whole.learner.updates
        resumed = play(tmp_path / "cut", config=config, resume=True)
    for name, weight in whole.learner.online.state_dict().items():
        assert weight.equal(resumed.learner.online.state_dict()[name]), name
    assert batches(whole.folder) == batches(resumed.folder)
    assert rows(whole.folder) == rows(resumed.folder)
    one, other = (run.buffer.sample(256) for run in (whole, resumed))
    for name in NamedNumbers.frame_shape:
        np.testing.assert_array_equal(one.obs[name], other.obs[name])
        np.testing.assert_array_equal(one.next_obs[name], other.next_obs[name])


@pytest.mark.parametrize("store", ["lz4", "device"])
def test_a_run_is_the_same_to_the_bit_whatever_holds_its_frames(store, tmp_path):
    config = config_of(make_pairs, tmp_path, total_frames=300, **QUICK)
    runs = [train.dqn(make_pairs, config.replace(name=name, frame_store=name), quiet=True) for name in ("ram", store)]
    here, there = (run.learner.online.state_dict() for run in runs)
    assert runs[0].learner.updates > 0
    assert all(here[name].equal(there[name]) for name in here)
    assert rows(runs[0].folder.path) == rows(runs[1].folder.path)
    again = train.dqn(make_pairs, runs[1].config.replace(total_frames=400), resume=runs[1].folder, quiet=True)
    assert again.learner.updates > runs[1].learner.updates


def test_a_run_whose_arrays_have_changed_is_refused_with_a_remedy(tmp_path, monkeypatch):
    run = train.dqn(make_xor_pairs, config_of(make_xor_pairs, tmp_path, total_frames=300, **QUICK), quiet=True)
    monkeypatch.setattr(XorPairs, "observation_space", array_envs.Xor.observation_space)
    monkeypatch.setattr(XorPairs, "see", array_envs.Xor.see)
    before = sorted(run.folder.path.rglob("*"))
    with pytest.raises(ConfigError, match=r"was made with obs_shape \{'0': .*, this run has \{'image': .* new run of"):
        train.dqn(make_xor_pairs, run.config.replace(total_frames=600), resume=run.folder, quiet=True)
    assert sorted(run.folder.path.rglob("*")) == before
    with pytest.raises(ConfigError, match=r"shape \{'image': .*, and the network was trained on \{'0': .*; give"):
        evaluate.main([str(run.folder), "--episodes", "1"])


# --- faults and collectors ----------------------------------------------------------------------------


def test_a_batch_that_is_kept_after_a_fault_has_all_arrays(tmp_path):
    class Spoils(Callback):
        def on_update(self, run, batch):
            if run.learner.updates == 3:
                for weight in run.learner.online.parameters():
                    weight.data.fill_(np.nan)

    with pytest.raises(NotFiniteError) as error:
        train.dqn(make_pairs, config_of(make_pairs, tmp_path, **QUICK), [Spoils()], quiet=True)
    kept = read(next(tmp_path.glob("*/faults/*")))
    assert "the batch is kept in" in str(error.value)
    assert kept["0"]["obs"]["0"].shape == (16, 2, 3, 10, 12)
    assert kept["0"]["next_obs"]["1"].shape == (16, 2, 3)


def test_chunks_carry_all_arrays(tmp_path):
    run = Run(config_of(make_pairs, tmp_path, **QUICK), [], Stop(), resume=None, quiet=True)
    received, finals = [], 0
    with run.reporter:
        run.start()
        for _ in range(45):
            run.collector.send(run.policy)
            received.append(run.collector.recv())
    run.close()
    chunk = pack(received, number=0, born=1, seq=1, version=0)
    for step, row in enumerate(received):
        again = chunk.rows(step, row.env_id)
        assert (again.final is None) == (row.final is None)
        for mine, its in ((again.frame, row.frame), (again.final, row.final)):
            for name in its or ():
                finals += its is row.final
                np.testing.assert_array_equal(mine[name], its[name])
                assert mine[name].dtype == its[name].dtype
    assert finals


class Looks(Callback):
    """Draws every row of the replay at the end, and compares its arrays."""

    key = "looks"

    def on_end(self, run):
        self.seen = 0
        for stack in every_stack(run.buffer.sample(run.buffer.drawable)):
            for image, where in zip(stack["0"], stack["1"], strict=True):
                np.testing.assert_array_equal(image, np.moveaxis(image_of(where), -1, 0))
                self.seen += 1


@pytest.mark.parametrize("trouble", [PEACE, TROUBLE], ids=["peace", "trouble"])
def test_collectors_play_and_send_several_arrays(trouble, tmp_path):
    looks = Looks()
    config = config_of(make_pairs, tmp_path, collectors=2, chunk_steps=4, weights_every_steps=60, **QUICK)
    clock = patch.object(engine, "Collectors", lambda *a, **k: Collectors(*a, clock=a[1].clock, **k))
    fake = patch.object(engine, "RayEngine", lambda config, seed, size: FakeEngine(config, seed, size, trouble=trouble))
    with fake, clock:
        run = train.dqn(make_pairs, config, [looks], quiet=True)
    assert looks.seen > 200
    assert run.learner.updates > 0
    assert run.policy.version > 0
