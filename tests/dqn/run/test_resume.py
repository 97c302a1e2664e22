"""A run that was killed and resumed is the run that was not, to the bit."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from number_games import NumberGames
from number_run import CONFIG, batches, events, in_a_process, play, rows

from fastrl import train
from fastrl.base.errors import ConfigError
from fastrl.config import SarsaConfig
from fastrl.dqn import checkpoint
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.collector import Group
from fastrl.dqn.run import evaluation, experiment
from fastrl.envs.atari import Step
from fastrl.replay.saves import Save
from fastrl.replay.stores.mapped import MmapStore
from fastrl.runs import checkpoints, report
from fastrl.runs.folder import RunFolder
from fastrl.sarsa import learners
from fastrl.sarsa import run as sarsa_run


def killed(folder: Path, config: dict[str, Any] | None = None, **options: Any) -> int:
    """Run in a process of its own that ends itself; return how."""
    process = in_a_process(folder, config=config or {}, **options)
    process.join(600)
    return process.exitcode


def assert_equal(whole: experiment.Run, resumed: experiment.Run) -> None:
    assert (whole.steps, whole.frames) == (resumed.steps, resumed.frames)
    one, other = (checkpoint.load_learner(r.folder.find()) for r in (whole, resumed))
    for name in ("online", "target"):
        assert all(torch.equal(one[name][key], other[name][key]) for key in one[name]), name
    if one["average"] is not None:
        mine, its = (average.pop("weights") for average in (one["average"], other["average"]))
        assert one["average"] == other["average"]
        assert all(torch.equal(mine[key], its[key]) for key in mine)
    for i, moments in one["optimizer"]["moments"].items():
        assert all(torch.equal(moments[key], other["optimizer"]["moments"][i][key]) for key in moments)
    mine, its = whole.buffer._state(), resumed.buffer._state()
    for name, value in mine.items():
        assert np.array_equal(value, its[name]) if isinstance(value, np.ndarray) else value == its[name], name
    assert np.array_equal(whole.buffer._store.frames, resumed.buffer._store.frames)
    assert batches(whole.folder) == batches(resumed.folder)
    assert rows(whole.folder) == rows(resumed.folder)
    assert whole.policy.rng.bit_generator.state == resumed.policy.rng.bit_generator.state
    assert events(whole.folder) == events(resumed.folder)


def test_two_thousand_steps_are_one_thousand_killed_resumed_and_one_thousand_more(tmp_path):
    whole = play(tmp_path / "whole")
    assert len(rows(whole.folder)) > 15
    assert killed(tmp_path / "cut", at=1_345) == -signal.SIGKILL  # rows and updates after the checkpoint are undone
    (tmp_path / "cut.batches").write_text("")
    resumed = play(tmp_path / "cut", resume=True)
    learned = batches(resumed.folder)
    assert min(learned) == checkpoint.load_learner(whole.folder.numbered()[0])["updates"] + 1
    (tmp_path / "cut.batches").write_text("".join(f"{k} {v}\n" for k, v in (batches(whole.folder) | learned).items()))
    assert_equal(whole, resumed)


def test_a_run_with_its_frames_in_a_file_is_the_run_in_memory_killed_and_resumed_too(tmp_path):
    whole, in_a_file = play(tmp_path / "whole"), {"frame_store": "mmap"}
    assert killed(tmp_path / "cut", in_a_file, at=1_345) == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "whole.batches", "cut", "cut.batches"}
    left = {path.name for path in (tmp_path / "cut").iterdir() if "tfevents" not in path.name}
    assert left <= {path.name for path in whole.folder.path.iterdir()}  # nothing is left of the file
    resumed = play(tmp_path / "cut", config=CONFIG.replace(**in_a_file), resume=True)
    assert type(resumed.buffer._store) is MmapStore
    assert set(batches(resumed.folder)) == set(batches(whole.folder))
    assert_equal(whole, resumed)


def test_a_stop_in_an_evaluation_that_is_played_again_saves_too(tmp_path, monkeypatch):
    play_games = evaluation.play_games

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return play_games(*args, **kwargs)

    with monkeypatch.context() as every:
        every.setattr(evaluation, "play_games", interrupted)
        stopped = [play(tmp_path / "cut", resume=again) for again in (False, True)]
    assert [one.stop.signal for one in stopped] == [signal.SIGTERM] * 2
    whole, cut = play(tmp_path / "whole"), play(tmp_path / "cut", resume=True)
    assert cut.frames == whole.frames
    evaluations = ([row for row in rows(one.folder) if row["evaluation/return_mean"]] for one in (whole, cut))
    assert len(next(evaluations)) == len(next(evaluations))


def test_a_run_that_has_ended_ends_again_as_it_was_and_says_so(tmp_path, capsys):
    config = CONFIG.replace(total_frames=600)
    ended = play(tmp_path / "run", config=config)
    lines, seen = rows(ended.folder), events(ended.folder)
    assert play(tmp_path / "run", config=config, resume=True, quiet=False).frames == ended.frames
    assert "the run has ended: nothing is left to play; a larger --total-frames" in capsys.readouterr().out
    assert (rows(ended.folder), events(ended.folder)) == (lines, seen)
    longer = play(tmp_path / "run", config=config.replace(total_frames=800), resume=True)
    assert longer.evaluation.last is not None


def test_an_ended_run_keeps_the_settings_that_it_was_trained_with(tmp_path):
    config = CONFIG.replace(total_frames=600)
    play(tmp_path / "run", config=config)
    before = [(tmp_path / "run" / name).read_bytes() for name in ("config.json", "commands.txt")]
    with pytest.raises(ConfigError, match=r"has ended, so another --seed, --gamma would change .* larger --total-fr"):
        play(tmp_path / "run", config=config.replace(seed=9, gamma=0.5), resume=True)
    assert [(tmp_path / "run" / name).read_bytes() for name in ("config.json", "commands.txt")] == before
    play(tmp_path / "run", config=config.replace(final_episodes=2, torch_threads=1), resume=True)
    play(tmp_path / "run", config=config.replace(gamma=0.5, total_frames=700), resume=True)


def test_an_ended_run_of_sarsa_keeps_its_settings(tmp_path):
    config = SarsaConfig(runs_dir=str(tmp_path), name="run", learners=4, episodes=3, films=False, version="v0")
    sarsa_run.train(config, quiet=True)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"has ended, so another --seed would change .*, or start a new run"):
        sarsa_run.train(config.replace(seed=9), resume=tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    sarsa_run.train(config, resume=tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("full", "words"), [(True, "is True now: add --no-full-action-set"), (False, "is False now: add --full-action-set")]
)
def test_another_number_of_actions_is_named_with_its_cause(tmp_path, monkeypatch, full, words):
    config = CONFIG.replace(total_frames=600)
    play(tmp_path / "run", config=config)
    monkeypatch.setattr(NumberGames, "num_actions", 9)
    with pytest.raises(
        ConfigError, match=rf"the environment has 9 actions, and .* learned 3; --full-action-set {words}"
    ):
        play(tmp_path / "run", config=config.replace(full_action_set=full, total_frames=700), resume=True)


def test_a_run_is_not_resumed_with_fewer_frames_than_it_has_played(tmp_path):
    played = play(tmp_path / "run", config=CONFIG.replace(total_frames=600)).frames
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=rf"--total-frames is 100, and .* has played {played} already; give more, or"):
        play(tmp_path / "run", config=CONFIG.replace(total_frames=100), resume=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_returns_over_another_support_are_refused(tmp_path):
    """Nothing in the weights tells: all values would be stretched."""
    config = CONFIG.replace(head="c51", atoms=11, v_max=3.0, total_frames=600)
    play(tmp_path / "run", config=config)
    longer = config.replace(total_frames=700)
    with pytest.raises(ConfigError, match="--v-max is 6; the saved state needs 3"):
        play(tmp_path / "run", config=longer.replace(v_max=6.0), resume=True)
    assert play(tmp_path / "run", config=longer, resume=True).frames >= 700


def test_quantiles_of_another_number_are_refused_where_the_weights_would_take_them(tmp_path):
    config = CONFIG.replace(head="iqn", quantiles=5, total_frames=600)
    play(tmp_path / "run", config=config)
    longer = config.replace(total_frames=700)
    with pytest.raises(ConfigError, match=r"--quantiles 9 is given, .* was built with --quantiles 5; leave it out"):
        play(tmp_path / "run", config=longer.replace(quantiles=9), resume=True)
    record = tmp_path / "run" / "config.json"
    before = record.read_text()
    record.write_text(before.replace('"quantiles": 5', '"quantiles": 9'))
    with pytest.raises(ConfigError, match="--quantiles is 9; the saved state needs 5"):
        play(tmp_path / "run", config=longer.replace(quantiles=9), resume=True)
    record.write_text(before)
    assert play(tmp_path / "run", config=longer, resume=True).frames >= 700


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"frame_skip": 2},
            r"--frame-skip is 2, and .*000000000600 was played with 1; give --frame-skip 1, or start a new",
        ),
        ({"reward_clip": False}, r"--no-reward-clip is given, and the run has learned with --reward-clip: its values"),
        (
            {"prioritized": False},
            r"replay was made with --prioritized, and this run has --no-prioritized; give --prior",
        ),
        (
            {"trunk": "nature"},
            r"--trunk nature is given, and the network in .*000000000600 was built with --trunk \w+; leave it out, or",
        ),
        (
            {"dueling": False},
            r"--no-dueling is given, and the network in .* was built with --dueling; leave it out, or",
        ),
        ({"alpha": 0.5}, r"replay was made with alpha 0.6, this run has 0.5; give the settings that it was made with"),
    ],
)
def test_a_resume_refuses_what_would_count_or_learn_in_another_way_and_writes_nothing(tmp_path, changes, told):
    config = CONFIG.replace(total_frames=600, reward_clip=True)
    play(tmp_path / "run", config=config)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    longer = config.replace(total_frames=700)
    with pytest.raises(ConfigError, match=told):
        play(tmp_path / "run", config=longer.replace(**changes), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert play(tmp_path / "run", config=longer, resume=True).frames >= 700


def test_the_best_by_other_rules_gives_way_to_the_first_by_these(tmp_path):
    config = CONFIG.replace(total_frames=800)
    first = play(tmp_path / "run", config=config)
    first.evaluation.best = 1e9
    first.save(checkpoints.BEST)
    first.save()
    same = play(tmp_path / "run", config=config.replace(total_frames=1_500), resume=True)
    assert same.evaluation.best == 1e9
    other = play(tmp_path / "run", config=config.replace(total_frames=2_200, max_episode_steps=500), resume=True)
    assert other.evaluation.best < 1e9
    assert checkpoint.load_state(other.folder / "checkpoints" / "best")["frames"] > 1_500


def test_a_checkpoint_that_a_thread_finishes_late_holds_the_moment_when_it_was_asked_for(tmp_path, monkeypatch):
    whole, write, picture = tmp_path / "whole", Save.write, tmp_path / "cut"

    def late(self):
        if not picture.exists():
            assert reached.wait(60)
        write(self)

    class Killed(Callback):
        """Lets the thread go on late, and then takes a picture of the folder, as a kill would leave it."""

        def on_step(self, run, actions):
            if run.frames >= 1_350:  # after an evaluation and three lines of metrics
                reached.set()

        def on_checkpoint(self, run, folder):
            if not picture.exists():
                assert int(folder.name) < 1_010 < 1_350 <= run.frames
                shutil.copytree(run.folder, picture)

    reached = threading.Event()
    monkeypatch.setattr(Save, "write", late)
    ended = play(whole, hooks=[Killed()])
    saved_at = checkpoint.load_learner(RunFolder(picture).find())["updates"]
    resumed = play(picture, resume=True)
    assert min(batches(picture)) == saved_at + 1
    (tmp_path / "cut.batches").write_text("".join(f"{k} {v}\n" for k, v in (batches(whole) | batches(picture)).items()))
    assert_equal(ended, resumed)


@pytest.mark.parametrize(
    "options",
    [
        {"env_groups": 2, "prioritized": False, "samples_per_step": 0.5},
        {"optimizer": "rmsprop", "distributional": True},
        {"head": "quantile", "munchausen": True},
        {"head": "iqn", "quantiles": 5, "noisy": True, "average_updates": 40},
        {
            "n_step_schedule": ((0, 4), (700, 2), (800, 1)),
            "gamma_schedule": ((0, 0.9), (600, 0.99)),
            "learning_rate_schedule": ((0, 1e-3), (300, 4e-3), (900, 1e-4)),
            "epsilon_schedule": ((0, 1.0), (50, 0.5), (900, 0.1)),
            "target_period_updates": 7,
            "target_period_end": 30,
            "target_period_steps": 800,
        },
        {"env_groups": 2, "epsilon_ladder": (0.5, 0.01), "target_tau": 0.05},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=[
        "two groups, uniform",
        "rmsprop, distributional",
        "quantile, munchausen",
        "iqn, noisy, averaged",
        "schedules",
        "ladder, tau",
        "compiled",
    ],
)
@pytest.mark.parametrize("delayed", [False, True])
def test_a_stop_at_any_step_changes_nothing(tmp_path, options, delayed):
    config = CONFIG.replace(total_frames=1_000, **options)
    whole = play(tmp_path / "whole", config=config, delayed=delayed)
    for at in (5, 515, 700, 709):  # warm-up, right before a line, within the step of an evaluation, between two lines
        stopped = play(tmp_path / "cut", config=config, at=at, number=signal.SIGTERM, resume=at > 5, delayed=delayed)
        assert stopped.stop.signal == signal.SIGTERM
        assert at <= stopped.frames < at + 16
    assert_equal(whole, play(tmp_path / "cut", config=config, resume=True, delayed=delayed))


def test_a_group_of_games_goes_on_as_it_was_within_a_step_too():
    one, other = (Group(NumberGames(4, seed=seed), 0, stack=3) for seed in (1, 2))
    one.reset()
    for _ in range(20):
        other.load_state(copy.deepcopy(one.state()))
        seen = [group.observe().copy() for group in (one, other)]
        assert np.array_equal(*seen)
        actions = np.arange(4) % 3
        one.send(actions)
        other.load_state(copy.deepcopy(one.state()))  # with its step under way
        before, after = zip(*(group.recv()[::2] for group in (one, other)), strict=True)
        for pair in (before, after):
            for field in dataclasses.fields(Step):
                assert np.array_equal(*(getattr(step, field.name) for step in pair)), field.name


CARTPOLE = SarsaConfig(learners=6, episodes=12, max_steps=5_000, epsilon=0.05)


def cartpole(folder: Path, *, resume: bool = False, **changes: Any) -> int:
    config = dataclasses.replace(CARTPOLE, runs_dir=str(folder.parent), name=folder.name, **changes)
    return sarsa_run.train(config, resume=folder if resume else None, quiet=True).status


def test_cartpole_stopped_killed_and_resumed_is_cartpole_at_one_go(tmp_path, monkeypatch):
    monkeypatch.setattr(sarsa_run, "CHECKPOINT_EVERY_STEPS", 2_000)
    monkeypatch.setattr(learners, "LOG_EVERY_STEPS", 250)  # so that several lines stand at one number of episodes
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cartpole(whole) == 0

    def dies(*_):
        raise KeyError("killed, as it were")

    with monkeypatch.context() as patch:
        patch.setattr(sarsa_run, "evaluate", dies)  # after lines that no checkpoint knows of
        with pytest.raises(KeyError):
            cartpole(cut)
    written, write = [], report.Reporter.write

    def stops(self, values, at):
        written.append(at)
        if len(written) in (3, 9):
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, values, at)

    monkeypatch.setattr(report.Reporter, "write", stops)
    assert cartpole(cut, resume=True) == cartpole(cut, resume=True) == 128 + signal.SIGTERM
    assert cartpole(cut, resume=True) == 0
    assert rows(whole) == rows(cut)
    assert len(rows(whole)) > 12
    assert events(whole) == events(cut)
    for version in ("v0", "v1"):
        one, other = (np.load(path / "checkpoints" / f"sarsa-{version}.npz") for path in (whole, cut))
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert cartpole(cut, resume=True) == 0  # there is nothing left to do
    assert rows(whole) == rows(cut)
    for name, value in {"episodes": 13, "learners": 5, "version": "v1", "features": "raw"}.items():
        if name in ("version", "features"):
            with pytest.raises(ConfigError, match=f"--{name} is '{value}'"):
                cartpole(cut, resume=True, **{name: value})


def test_the_command_goes_on_with_cartpole(tmp_path, capsys):
    flags = ["--learners", "4", "--episodes", "3", "--version", "v0"]
    assert train.main(["cartpole", *flags, "--runs-dir", str(tmp_path), "--name", "run"]) == 0
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert f"resuming from {tmp_path / 'run' / 'checkpoints' / '001-000000000'}" in said
    assert "the run has ended: nothing is left to play" in said
    (state,) = (tmp_path / "run" / "checkpoints").glob("001-*/state.json")
    written = json.loads(state.read_text(encoding="utf-8"))
    for change, reason in (({"format": 9}, "has format 9, and this version reads format 1; install"), ({}, None)):
        state.write_text(json.dumps({k: v for k, v in written.items() if k != "format"} | change), encoding="utf-8")
        checkpoints.seal(state.parent)
        if reason is None:  # as versions before the format wrote it
            assert train.main(["--resume", str(tmp_path / "run")]) == 0
        else:
            with pytest.raises(ConfigError, match=reason):
                train.main(["--resume", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (40, 0, "the average of the weights is dropped: --average-updates is 0"),
        (0, 40, "the average of the weights begins here: the run has kept none (--average-updates)"),
    ],
)
def test_a_run_resumes_with_and_without_an_average_of_its_weights(tmp_path, capsys, before, after, said):
    config = CONFIG.replace(average_updates=before, total_frames=900)
    play(tmp_path / "run", config=config)
    changed = config.replace(average_updates=after, total_frames=1_400)
    run = play(tmp_path / "run", config=changed, resume=True, quiet=False)
    assert said in " ".join(capsys.readouterr().out.split())
    assert run.steps >= 1_400
    assert bool(run.learner.state()["average"]) == bool(after)
