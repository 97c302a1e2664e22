"""The whole run, small: on Catch in eager float32, on one thread."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from number_run import rows
from quick_run import QUICK, start

from fastrl import evaluate, train, watch
from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS, with_agent
from fastrl.dqn import checkpoint
from fastrl.dqn.agent import load_agent
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.run import build, evaluation, experiment, replay_plan
from fastrl.runs.folder import RunFolder


def test_any_number_of_runs_of_one_process_compile(tmp_path):
    import torch._dynamo

    torch._dynamo.reset()  # what other tests compiled
    config = QUICK.replace(compile=True, total_frames=600, final_episodes=1)
    with torch._dynamo.config.patch(recompile_limit=1):  # and a warning is an error
        kept = [start(config.replace(hidden=size), tmp_path, name=f"{size}") for size in (16, 24)]
    assert all(run.learner.updates for run in kept)


class Recorder(Callback):
    """Notes what is called, in order, and looks at what callbacks are promised."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.scores: list[float] = []
        self.count = 0

    def on_start(self, run):
        self.calls.append("start")

    def on_update(self, run, batch):
        self.calls.append("update")
        assert batch.obs.shape == (64, 1, 10, 5)
        assert run.learner.updates >= 1
        self.count += 1

    def on_game(self, run, score, length):
        self.scores.append(score)
        assert length == 9

    def on_log(self, run, metrics):
        metrics["mine/answer"] = 42.0

    def on_evaluation(self, run, games):
        self.calls.append("evaluation")
        assert games.film[0].shape[2] == 3

    def on_checkpoint(self, run, folder):
        self.calls.append("checkpoint")
        assert (folder / "state.json").exists()

    def on_end(self, run):
        self.calls.append("end")

    def state(self):
        return {"count": self.count}

    def load_state(self, state):
        self.count = state["count"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with its recorder."""
    recorder = Recorder()
    return start(QUICK, tmp_path_factory.mktemp("runs"), recorder), recorder


def test_dqn_solves_catch(tmp_path):
    config = PRESETS["catch"].config.replace(total_frames=20_000, compile=False)
    ended = start(config, tmp_path)
    assert ended.evaluation.last.mean >= 0.9


@pytest.mark.slow
def test_two_runs_of_one_seed_write_the_same_metrics_for_20_000_frames_of_breakout(tmp_path):
    from fastrl.config import preset_for

    config = with_agent(preset_for("breakout", "cpu").config, "dueling").replace(
        total_frames=20_000, log_every_frames=2_000, final_episodes=2, evaluate_every_frames=10_000,
        evaluate_episodes=2, num_envs=16, batch_size=64, checkpoint_replay=False, device="cpu",
    )  # fmt: skip
    first, second = (start(config, tmp_path, name=name) for name in "ab")
    assert first.learner.updates > 100
    assert rows(first.folder) == rows(second.folder)
    assert any(row["train/loss"] for row in rows(first.folder))


def test_a_run_leaves_config_versions_metrics_events_films_and_checkpoints(finished):
    path = finished[0].folder.path
    names = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    for name in ("config.json", "commands.txt", "versions.json", "metrics.csv"):
        assert name in names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert any(re.fullmatch(r"pictures/\d+\.gif", name) for name in names)
    assert len(RunFolder(path).numbered()) == QUICK.keep_checkpoints
    newest = RunFolder(path).find().name
    for (
        name
    ) in "state.json learner.safetensors weights.safetensors SHA256SUMS replay/index replay/frames-000001".split():
        assert f"checkpoints/{newest}/{name}" in names
    assert sum(name.endswith("/replay/index") for name in names) == 1  # only the newest holds one
    assert "checkpoints/best/weights.safetensors" in names
    assert not any(".partial" in name for name in names)


def test_metrics_hold_what_the_documents_promise(finished):
    columns = set(rows(finished[0].folder)[0])
    for name in """games/return_mean_100 games/length_mean_100 train/loss train/td_error train/q_mean train/q_max
        train/grad_norm train/param_norm train/update_norm train/update_ratio train/learning_rate actions/left
        explore/epsilon replay/beta replay/age_mean evaluation/return_mean mine/answer""".split():
        assert name in columns, name


def test_tensorboard_shows_the_same_and_the_film(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0].folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "time/frames_per_second", "games/return_mean_100"} <= set(tags["scalars"])
    assert {"actions", "replay/age", "replay/priority_weight"} <= set(tags["histograms"])
    assert [image.step for image in events.Images("agent")] == [2000, finished[0].frames]
    written = [float(row["train/loss"]) for row in rows(finished[0].folder) if row["train/loss"]]
    shown = [event.value for event in events.Scalars("train/loss")]
    np.testing.assert_allclose(shown, written, rtol=1e-6)


def test_callbacks_see_updates_games_evaluations_checkpoints_and_the_end(finished):
    ended, recorder = finished
    assert recorder.calls[0] == "start"
    assert recorder.calls.count("update") == ended.learner.updates
    # Steps after the warm-up, four samples each, in batches of 64.
    assert ended.learner.updates == pytest.approx((ended.steps - 400) * 4 / 64, abs=3)
    assert recorder.calls.count("evaluation") == 2
    assert recorder.calls.count("checkpoint") == 4
    assert recorder.calls.index("end") > recorder.calls.index("checkpoint")
    assert set(recorder.scores) == {-1.0, 1.0}
    assert len(recorder.scores) == pytest.approx(ended.steps / 9, rel=0.05)


def test_reset_rows_are_no_agent_steps(finished):
    ended = finished[0]
    # Games of Catch have nine steps and one reset row each: nine of ten rows count.
    held = len(ended.buffer)
    assert ended.steps / held == pytest.approx(0.9, abs=0.01)


def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path):
    recorder = Recorder()
    whole = start(QUICK.replace(total_frames=2_000), tmp_path, recorder)
    again = Recorder()
    longer = whole.config.replace(total_frames=4_000)
    resumed = experiment.train(longer, [again], resume=whole.folder, quiet=True)
    assert resumed.frames >= 4_000
    assert again.count > recorder.count  # its state was restored and went on
    assert len(resumed.buffer) > len(whole.buffer)
    frames = [int(row["frames"]) for row in rows(whole.folder) if row["steps"]]
    assert frames == sorted(set(frames))  # no gap is filled twice
    updates = [float(row["updates"]) for row in rows(whole.folder) if row["updates"]]
    assert updates == sorted(updates)
    assert updates[-1] == pytest.approx((resumed.steps - 200) * 4 / 64, abs=4)
    resumed.buffer.check()


def test_a_resumed_learner_is_the_saved_one(finished):
    saved = checkpoint.load_learner(RunFolder(finished[0].folder).find())
    weights, network = checkpoint.load_weights(RunFolder(finished[0].folder).find() / "weights.safetensors")
    online = finished[0].learner.online.state_dict()
    assert all(torch.equal(saved["online"][key], online[key]) for key in online)
    assert all(torch.equal(weights[key], online[key]) for key in online)
    assert network["num_actions"] == 3


def test_without_its_replay_a_resumed_run_warms_up_again(tmp_path):
    whole = start(QUICK.replace(total_frames=2_000, checkpoint_replay=False), tmp_path)
    assert not (whole.folder.find() / "replay").exists()
    resumed = experiment.train(whole.config.replace(total_frames=3_000), resume=whole.folder, quiet=True)
    assert resumed.learner.updates < whole.learner.updates + 1_000 * 4 / 64 - 10  # 300 steps of warm-up bring none


def test_uniform_replay_and_single_dqn_are_a_flag_away(tmp_path):
    ended = start(
        QUICK.replace(total_frames=1_500, prioritized=False, double=False, dueling=False, optimizer="rmsprop"), tmp_path
    )
    assert ended.buffer.max_priority == 1.0
    assert set(ended.buffer.weights(ended.buffer.sample(64).index)) == {1.0}
    assert ended.learner.updates > 0


def test_evaluate_prints_the_protocol_and_the_scores(finished, capsys):
    path = str(finished[0].folder)
    assert evaluate.main([path, "--episodes", "5", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "epsilon 0.01" in said
    for word in ("mean", "median", "std", "min", "max", "5 games"):
        assert word in said
    assert list((finished[0].folder / "pictures").glob("evaluation-*.gif"))
    figures = finished[0].folder / "figures.json"
    assert evaluate.main([path, "--episodes", "2", "--checkpoint", "best", "--json", str(figures)]) == 0
    assert len(json.loads(figures.read_text())["scores"]) == 2


@pytest.mark.parametrize("average_updates", [0, 100])
def test_evaluate_and_watch_say_whether_weights_are_averages(tmp_path, capsys, average_updates):
    ended = start(QUICK.replace(total_frames=1_500, average_updates=average_updates), tmp_path)
    figures = tmp_path / "figures.json"
    path = str(ended.folder)
    for name in ("newest", "best"):
        capsys.readouterr()
        evaluate.main([path, "--episodes", "1", "--checkpoint", name, "--json", str(figures)])
        assert ("averaged weights" in capsys.readouterr().out) == bool(average_updates)
        assert json.loads(figures.read_text())["averaged"] == bool(average_updates)
    watch.main([path, "--episodes", "1", "--no-window"])
    assert ("averaged weights" in capsys.readouterr().out) == bool(average_updates)


def test_evaluate_and_watch_play_by_the_last_weights_too(tmp_path, capsys):
    ended = start(QUICK.replace(total_frames=1_500, average_updates=100), tmp_path)
    path, figures = str(ended.folder), tmp_path / "figures.json"
    capsys.readouterr()
    evaluate.main([path, "--episodes", "1", "--last-weights", "--json", str(figures)])
    watch.main([path, "--episodes", "1", "--no-window", "--last-weights"])
    assert "averaged" not in capsys.readouterr().out
    assert json.loads(figures.read_text())["averaged"] is False
    online, network = ended.learner.online.state_dict(), load_agent(path, last_weights=True).network.state_dict()
    assert all(torch.equal(network[name], online[name].cpu()) for name in online)
    assert not all(torch.equal(load_agent(path).network.state_dict()[name], online[name].cpu()) for name in online)
    with pytest.raises(ConfigError, match="best holds the averaged weights alone; give --checkpoint newest"):
        load_agent(path, "best", last_weights=True)
    with pytest.raises(ConfigError, match="--last-weights is on, and breakout is no run folder; leave it out"):
        load_agent("breakout", last_weights=True)
    with pytest.raises(ConfigError, match=r"brekout is no run folder .*did you mean breakout"):
        load_agent("brekout", last_weights=True)


def test_damaged_last_weights_are_not_played(tmp_path):
    ended = start(QUICK.replace(total_frames=1_500, average_updates=100), tmp_path)
    file = sorted((ended.folder / "checkpoints").glob("0*"))[-1] / "learner.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert load_agent(str(ended.folder)).averaged
    with pytest.raises(ConfigError, match=r"learner\.safetensors cannot be read \(its checksum is wrong\)"):
        load_agent(str(ended.folder), last_weights=True)


def test_films_of_the_last_weights_lie_beside_those_of_the_average(tmp_path):
    ended = start(QUICK.replace(total_frames=1_500, average_updates=100), tmp_path)
    for flags in ([], ["--last-weights"]):
        evaluate.main([str(ended.folder), "--episodes", "1", *flags])
        watch.main([str(ended.folder), "--episodes", "1", "--no-window", *flags])
    films = [path.stem for path in (ended.folder / "pictures").glob("*-*.gif")]
    assert sorted(name.partition("-")[0] for name in films if not name.endswith("-last")) == ["evaluation", "watch"]
    assert sorted(name.partition("-")[0] for name in films if name.endswith("-last")) == ["evaluation", "watch"]


def test_a_run_saves_with_settings_of_numpys(tmp_path):
    ended = start(QUICK.replace(batch_size=np.int64(8), samples_per_step=np.float32(4), hidden=np.int32(16)), tmp_path)
    assert json.loads((sorted((ended.folder / "checkpoints").glob("0*"))[-1] / "state.json").read_text())["samples"] > 0


def test_last_weights_are_refused_where_there_are_no_others(finished):
    with pytest.raises(ConfigError, match=r"holds no average of weights: .*; leave it out"):
        load_agent(str(finished[0].folder), last_weights=True)


@pytest.mark.parametrize("changes", [{}, {"average_updates": 100}, {"optimizer": "rmsprop"}])
def test_the_networks_of_a_checkpoint_take_what_is_asked_of_the_disk_for_them(tmp_path, changes):
    ended = start(QUICK.replace(total_frames=1_000, hidden=512, **changes), tmp_path)
    [newest, *_] = sorted((ended.folder / "checkpoints").glob("0*"), reverse=True)
    taken = sum(path.stat().st_size for path in newest.iterdir() if path.is_file())
    asked = build.bytes_beside_replay(ended.config, ended.envs)
    assert asked - build.SMALL_FILES < taken < asked


def test_watch_refuses_a_protocol_for_other_games(finished):
    with pytest.raises(
        ConfigError, match=r"--protocol is 'machado', a rule of Atari games, and catch is not one; leave"
    ):
        watch.main([str(finished[0].folder), "--protocol", "machado", "--no-window"])


@pytest.mark.parametrize(("flag", "value"), [("--ray-address", "auto"), ("--collector-timeout", "5.0")])
def test_evaluate_refuses_flags_of_collectors_without_collectors(finished, flag, value):
    with pytest.raises(ConfigError) as refused:
        evaluate.main([str(finished[0].folder), flag, value])
    assert str(refused.value) == (
        f"{flag} is {value}, and --collectors 0 does not read it; give --collectors N, or leave it out"
    )


def test_evaluate_refuses_rules_of_atari_for_other_games(finished):
    with pytest.raises(
        ConfigError, match=r"--protocol is 'machado', a rule of Atari games, and catch is not one; leave"
    ):
        evaluate.main([str(finished[0].folder), "--protocol", "machado"])


def test_evaluate_refuses_ale_py_for_other_games(finished):
    with pytest.raises(
        ConfigError, match="--env is 'gymnasium', which plays only Atari games, and catch is not one; leave it out"
    ):
        evaluate.main([str(finished[0].folder), "--env", "gymnasium"])


def catch_command(tmp_path, *flags):
    return [sys.executable, "-m", "fastrl.train", "catch", "--runs-dir", str(tmp_path), "--name", "stopped",
            "--no-compile", *flags]  # fmt: skip


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        catch_command(tmp_path, "--total-frames", "10000000", "--log-every-frames", "500"),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "stopped" / "metrics.csv"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "--resume " + str(tmp_path / "stopped") in said
    saved = RunFolder(tmp_path / "stopped").find()
    frames = json.loads((saved / "state.json").read_text())["frames"]
    total = str(frames + 1_000)
    assert train.main(["--resume", str(tmp_path / "stopped"), "--total-frames", total, "--final-episodes", "2"]) == 0
    assert int(RunFolder(tmp_path / "stopped").find().name) >= frames + 1_000


def test_a_run_whose_reader_leaves_saves_and_says_on_stderr_how_to_go_on(tmp_path):
    with subprocess.Popen(
        catch_command(tmp_path, "--total-frames", "10000000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while "side by side" not in process.stdout.readline():  # the last line before play
            assert process.poll() is None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 128 + signal.SIGPIPE
    assert "BrokenPipeError ended the run; what was learned is saved; resume with: " in said
    assert "--resume " + str(tmp_path / "stopped") in said
    assert RunFolder(tmp_path / "stopped").find()


def test_cartpole_run_prints_how_many_learners_solve_it_and_films_one(tmp_path, capsys):
    flags = ["--learners", "16", "--episodes", "130", "--runs-dir", str(tmp_path), "--name", "sarsa"]
    assert train.main(["cartpole", *flags]) == 0
    said = capsys.readouterr().out
    assert re.search(r"CartPole-v0: 1\d of 16 learners solved it", said)
    assert "CartPole-v1:" in said
    assert "learner steps" in said
    for version in ("v0", "v1"):
        assert (tmp_path / "sarsa" / "pictures" / f"cartpole-{version}.gif").exists()
        with np.load(tmp_path / "sarsa" / "checkpoints" / f"sarsa-{version}.npz") as saved:
            assert saved["weights"].shape == (16, 2, 4)
    assert any("v0/sarsa/solved_share" in row for row in rows(tmp_path / "sarsa"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no game is given"),
        (["breakot"], "did you mean breakout"),
        (["breakout", "--gamma", "2"], "--gamma is 2"),
        (["breakout", "--capacity", "90000000000"], "--capacity is 90,000,000,000, which takes"),
        (["breakout", "--capacity", "1000"], "--capacity is 1,000; give"),
        (["--resume", "nowhere"], "nowhere is no run folder"),
        (["--resume", "README.md"], "README.md is no run folder"),
        (["catch", "--batch-size", "x"], "--batch-size"),
        (["catch", "--frame-skip", "4"], "--frame-skip is 4, which catch does not do; give 1"),
        (["catch", "--colour", "red"], "--colour"),
        (["catch", "--device", "tpu"], "--device is 'tpu'"),
        (["catch", "--num-envs", "200000"], "--num-envs is 200000; give between 1 and 10,000"),
        (["cartpole", "--learners", "0"], "--learners is 0"),
        (["catch", "--trunk", "nature"], "--trunk is 'nature'"),
        (["catch", "--name", "a/b"], "--name is 'a/b'"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(tmp_path, arguments, message):
    known = ["--runs-dir", str(tmp_path)] if arguments and arguments[0] != "--resume" else []
    result = subprocess.run(
        [sys.executable, "-m", "fastrl.train", *arguments, *known], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_cuda_device_that_is_not_there_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="--device is 'cuda'"):
        train.main(["breakout", "--device", "cuda", "--runs-dir", str(tmp_path)])


def test_an_existing_run_is_not_written_over(finished):
    with pytest.raises(ConfigError, match="exists already"):
        experiment.train(finished[0].config, quiet=True)


def test_another_network_does_not_go_on_with_these_weights(finished):
    with pytest.raises(ConfigError, match=r"--hidden 32 is given, and the network in .* was built with --hidden 64;"):
        experiment.train(finished[0].config.replace(hidden=32), resume=finished[0].folder, quiet=True)
    with pytest.raises(ConfigError, match=r"alpha 0.6, this run has 0.5"):
        experiment.train(finished[0].config.replace(alpha=0.5), resume=finished[0].folder, quiet=True)


def test_a_damaged_network_is_named_with_the_checkpoints_to_play_instead(tmp_path):
    ended = start(QUICK.replace(total_frames=1_000, checkpoint_every_frames=400), tmp_path)
    *others, last = ended.folder.numbered()
    assert others
    (last / "weights.safetensors").write_bytes(b"broken")
    names = ", ".join(path.name for path in others)
    with pytest.raises(ConfigError, match=rf"{last}.*; use another .* with --checkpoint NAME: there is also {names}$"):
        load_agent(ended.folder)
    load_agent(ended.folder, others[-1].name)
    for path in others:
        shutil.rmtree(path)
    with pytest.raises(ConfigError, match=rf"{last}.*; restore it from a copy$"):
        load_agent(ended.folder)


def test_a_damaged_checkpoint_is_named(tmp_path):
    ended = start(QUICK.replace(total_frames=1_000), tmp_path)
    (ended.folder.find() / "learner.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"learner.safetensors cannot be read \(its checksum is wrong\)"):
        experiment.train(ended.config, resume=ended.folder, quiet=True)  # it was the only one
    with pytest.raises(ConfigError, match=r"has no checkpoint 'other'; there is"):
        ended.folder.find("other")


def test_the_capacity_adapts_to_the_memory_and_says_so(tmp_path, monkeypatch, finished):
    envs, config = finished[0].envs, QUICK.replace(total_frames=1_000_000)
    row_bytes = 10 * 5 * 4 + replay_plan.BYTES_BESIDE_FRAME
    assert finished[0].buffer.settings["capacity"] == QUICK.total_frames * 5 // 4  # not more than the run can fill
    monkeypatch.setattr(build, "available_bytes", lambda: 10_000_000)
    buffer, words = build.build_replay(config, envs, 0, torch.device("cpu"))
    assert "what memory allows" in words
    assert buffer.settings["capacity"] == 6_000_000 // row_bytes
    assert buffer.nbytes <= 6_000_000
    monkeypatch.setattr(build, "available_bytes", lambda: 100_000)
    with pytest.raises(ConfigError, match="of memory are free, too little"):
        build.build_replay(config, envs, 0, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"the capacity of .*replay is 5,000, which takes"):
        experiment.train(finished[0].config, resume=finished[0].folder, quiet=True)


def test_a_small_ring_does_not_hold_up_learning(tmp_path):
    ended = start(QUICK.replace(total_frames=2_000, capacity=400, learn_start_steps=100), tmp_path)
    assert ended.learner.updates == pytest.approx((ended.steps - 100) * 4 / 64, abs=5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["warm-up", "evaluation"])
def test_a_signal_saves_and_leaves_in_any_phase(tmp_path, number, phase, monkeypatch):
    class Interrupt(Callback):
        def on_step(self, run, actions):
            if phase == "warm-up" and run.frames > 100:
                os.kill(os.getpid(), number)

    if phase == "evaluation":
        play = evaluation.play_games

        def interrupted(*args, **kwargs):
            os.kill(os.getpid(), number)
            return play(*args, **kwargs)

        monkeypatch.setattr(evaluation, "play_games", interrupted)
    ended = start(QUICK, tmp_path, Interrupt())
    assert ended.stop.signal == number
    assert ended.frames < QUICK.total_frames
    assert int(ended.folder.find().name) == ended.frames
    monkeypatch.undo()
    resumed = experiment.train(ended.config.replace(total_frames=ended.frames + 500), resume=ended.folder, quiet=True)
    assert resumed.evaluation.last is not None


def test_resume_restores_generator_priorities_and_what_is_due(tmp_path):
    ended = start(QUICK.replace(total_frames=2_000), tmp_path)
    again = experiment.Run(ended.config, [], ended.stop, resume=ended.folder, quiet=True)
    again.reporter.close()
    assert again.policy.rng.bit_generator.state == ended.policy.rng.bit_generator.state
    assert (again.pace.state(), again.steps) == (ended.pace.state(), ended.steps)
    assert again.pace.state()["warm"]
    assert np.array_equal(again.buffer.sample(64).index, ended.buffer.sample(64).index)
    assert again.buffer.max_priority == ended.buffer.max_priority
    assert again.evaluation.best == ended.evaluation.best
    again.close()
