"""What may go wrong with a run, and that nothing which it has is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from number_run import CONFIG, in_a_process, play, rows
from untrained import write_settings

from fastrl import train
from fastrl.base import stop
from fastrl.base.errors import ConfigError, RunError
from fastrl.dqn import checkpoint
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.learner import Learner
from fastrl.dqn.peers import Peers
from fastrl.dqn.run import evaluation, experiment
from fastrl.dqn.run.faults import NotFiniteError, not_finite
from fastrl.envs.custom import CustomEnvs
from fastrl.envs.foreign import EnvError
from fastrl.replay.saves import Save
from fastrl.runs import checkpoints
from fastrl.runs.folder import RunFolder

SMALL = CONFIG.replace(
    total_frames=600, learn_start_steps=50, log_every_frames=100, checkpoint_every_frames=200, final_episodes=1,
    evaluate_every_frames=350, evaluate_episodes=1,
)  # fmt: skip


class At(Callback):
    """Does something once, at a step or an update."""

    def __init__(self, frames: int, do, *, update: bool = False) -> None:
        self.frames, self.do, self.update, self.done = frames, do, update, False

    def on_step(self, run, actions):
        self._do(run, not self.update)

    def on_update(self, run, batch):
        self._do(run, self.update)

    def _do(self, run, now):
        if now and not self.done and run.frames >= self.frames:
            self.done = True
            self.do(run)


def whole(path: Path) -> Path:
    """Return a run's newest checkpoint, which must be whole, and of finite weights."""
    found, words = RunFolder(path).newest_whole()
    assert words == []
    learner = checkpoint.load_learner(found)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in learner["online"].values())
    return found


def ask(number: int, times: int):
    """Return what sends this process a signal so many times."""

    def send(*_):
        for _ in range(times):
            os.kill(os.getpid(), number)

    return send


def interrupted(path: Path, phase: str, send, monkeypatch) -> experiment.Run:
    """Run until `send` is called in a phase."""

    def before(owner, name):
        function = getattr(owner, name)

        def both(*args, **kwargs):
            send()
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, both)

    hooks = [At(250, lambda run: run.settle())]  # the first checkpoint is whole from here on
    if phase in ("learning", "warm-up"):
        hooks.append(At(300, send, update=True) if phase == "learning" else At(10, send))
    if phase == "compilation":
        before(experiment.Learner, "_build_functions")
    elif phase == "evaluation":
        before(evaluation, "play_games")
    elif phase == "saving":
        before(checkpoints, "pack")
    elif phase == "finishing":  # a checkpoint, in its thread
        before(checkpoints, "seal")
    return play(path, config=SMALL, hooks=hooks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("phase", ["warm-up", "compilation", "learning", "evaluation", "saving", "finishing"])
def test_one_signal_saves_and_leaves(tmp_path, monkeypatch, phase, number):
    ended = interrupted(tmp_path / "run", phase, ask(number, 1), monkeypatch)
    assert ended.stop.signal == number
    assert int(whole(ended.folder).name) == ended.frames < SMALL.total_frames


@pytest.mark.parametrize("quiet", [False, True])
def test_a_stop_says_that_it_saves_before_that_takes_long(tmp_path, monkeypatch, capsys, quiet):
    said, pack = [], checkpoints.pack

    def long(*args):
        said.append(capsys.readouterr().out)  # before the checkpoint is on the disk
        return pack(*args)

    monkeypatch.setattr(checkpoints, "pack", long)
    play(tmp_path / "run", config=SMALL, hooks=[At(150, ask(signal.SIGINT, 1))], quiet=quiet)
    words = "stopping: saving a checkpoint (a second signal leaves at once, without it)"
    assert said[0].splitlines()[-1:] == ([] if quiet else [words])
    play(tmp_path / "other", config=SMALL, quiet=False)
    assert "stopping" not in capsys.readouterr().out


@pytest.mark.parametrize("phase", ["learning", "evaluation", "saving"])
def test_two_signals_leave_at_once_and_the_last_checkpoint_is_whole(tmp_path, monkeypatch, phase):
    monkeypatch.setattr(stop, "TWICE_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt) as left:
        interrupted(tmp_path / "run", phase, ask(signal.SIGTERM, 2), monkeypatch)
    assert left.value.args == (signal.SIGTERM,)
    if phase == "saving":  # the very first one
        assert RunFolder(tmp_path / "run").numbered() == []
        assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    else:
        assert whole(tmp_path / "run").name.startswith("0000000002")


@pytest.mark.parametrize(
    ("kind", "words"), [("compiled", "torch.compile"), ("eager", "the start of the run"), ("quiet", None)]
)
def test_a_stop_during_the_start_is_answered_at_once_with_what_it_waits_for(tmp_path, monkeypatch, capsys, kind, words):
    heard, build = [], Learner._build_functions

    def long(self):
        ask(signal.SIGINT, 1)()
        heard.append(capsys.readouterr().out)  # before the compiler is done
        build(self)

    monkeypatch.setattr(Learner, "_build_functions", long)
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    ended = play(tmp_path / "run", config=SMALL.replace(compile=kind == "compiled"), quiet=kind == "quiet")
    assert ended.stop.signal == signal.SIGINT
    (said,) = heard
    assert said.splitlines()[-1:] == (
        [f"stop heard; it comes after {words} (a second signal leaves at once, without saving)"] if words else []
    )
    assert "stop heard" not in capsys.readouterr().out


@pytest.mark.parametrize(("compiled", "words"), [(True, " and torch.compile"), (False, "")])
@pytest.mark.parametrize("part", ["settle", "find_replay", "resume"])
def test_a_stop_before_the_compiler_begins_names_that_too(tmp_path, monkeypatch, capsys, compiled, words, part):
    config = SMALL.replace(compile=compiled)
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    if part == "resume":
        play(tmp_path / "run", config=config.replace(total_frames=64, final_episodes=1), quiet=True)
    capsys.readouterr()
    heard, name = [], part if part == "settle" else "find_replay"
    work = getattr(experiment, name)

    def long(*args, **how):
        ask(signal.SIGINT, 1)()
        heard.append(capsys.readouterr().out.splitlines()[-1])
        return work(*args, **how)

    monkeypatch.setattr(experiment, name, long)
    play(tmp_path / "run", config=config, resume=part == "resume", quiet=False)
    start = "the loading of the replay" if part == "resume" else "the start of the run"
    assert heard == [f"stop heard; it comes after {start}{words} (a second signal leaves at once, without saving)"]


def test_a_stop_names_the_innermost_of_what_it_waits_for_and_nothing_outside(capsys):
    def said_to_a_signal(asked):
        asked.signal = None
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.signal == signal.SIGTERM
        return capsys.readouterr().out.partition(" (")[0]

    with stop.Stop() as asked:
        assert said_to_a_signal(asked) == ""
        with asked.after("outer"):
            with asked.after("inner"):
                assert said_to_a_signal(asked) == "stop heard; it comes after inner"
            assert said_to_a_signal(asked) == "stop heard; it comes after outer"
        assert said_to_a_signal(asked) == ""


def test_a_stop_in_the_middle_of_a_message_is_heard_all_the_same(monkeypatch):
    def busy(text):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    monkeypatch.setattr(stop, "say", busy)
    with stop.Stop() as asked, asked.after("the start of the run"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert asked.signal == signal.SIGTERM


def test_a_command_leaves_with_the_status_of_its_signal(tmp_path, monkeypatch, capsys):
    import fastrl.cli

    def main(arguments):
        raise KeyboardInterrupt(*arguments)

    for given, status in (([signal.SIGTERM], 143), ([], 130)):
        monkeypatch.setattr(sys, "argv", ["train", *given])
        with pytest.raises(SystemExit) as left:
            fastrl.cli.run_command(main, "train")
        assert left.value.code == status
    assert "what was saved before is whole" in capsys.readouterr().err


def test_a_hangup_that_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.Stop() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_while_saving_too_leaves_a_whole_checkpoint(tmp_path):
    rng, often = np.random.default_rng(1), {"checkpoint_every_frames": 10, "total_frames": 1_000_000}
    reached = -1
    for attempt in range(3):
        path = tmp_path / "run"
        process = in_a_process(path, config=often, resume=attempt > 0)
        deadline = time.monotonic() + 300
        while not (RunFolder(path).numbered() and int(RunFolder(path).numbered()[-1].name) > reached):
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.random())
        process.kill()
        process.join()
        RunFolder(path).recover()
        reached = int(whole(path).name)
    ended = play(path, config=SMALL.replace(total_frames=reached + 100), resume=True)
    assert ended.frames >= reached + 100  # nor does the lock of a dead process hold
    steps = [float(row["steps"]) for row in rows(path) if row["steps"]]
    assert steps == sorted(set(steps))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own
def test_a_full_disk_ends_a_run_with_what_to_do_and_costs_nothing_that_was_saved(small_disk):
    filler = small_disk / "filler"

    def fill(_):
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    return

    with pytest.raises(
        RunError, match=r"run cannot be written to \(No space left on device\); free some space, then resume"
    ):
        play(small_disk / "run", config=SMALL, hooks=[At(250, fill)])
    found = whole(small_disk / "run")
    filler.unlink()
    assert play(small_disk / "run", config=SMALL, resume=True).frames >= SMALL.total_frames
    assert int(whole(small_disk / "run").name) > int(found.name)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own
@pytest.mark.parametrize("deleted", [False, True])
def test_a_folder_that_is_moved_or_deleted_ends_the_run_with_one_line_and_does_not_come_back(tmp_path, deleted):
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def move(run):
        run.settle()  # a thread that writes would make again what is deleted
        shutil.rmtree(folder) if deleted else folder.rename(moved)

    with pytest.raises(RunError, match=f"{folder} is gone, moved or deleted, .* resumes with: .* --resume NEW_PLACE"):
        play(folder, config=SMALL, hooks=[At(450, move)])
    assert not folder.exists()
    if not deleted:
        assert play(moved, config=SMALL, resume=True).frames >= SMALL.total_frames


@pytest.mark.parametrize("first", ["the thread", "the loop", "a game"])
def test_a_thread_that_finds_the_disk_full_costs_the_replay_alone(tmp_path, monkeypatch, capsys, first):
    """Frames find no room, all else does, whether a step hears of that or an error ends the run before."""
    ended, full = threading.Event(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    errors = {"the loop": full, "a game": ZeroDivisionError("the emulator died")}

    def no_room(self):
        self.close()
        assert first == "the thread" or ended.wait(60)
        raise full

    def fail(run):
        monkeypatch.setattr(Save, "write", no_room)

    def end(run):
        assert run.saver.in_progress
        ended.set()
        raise errors[first]

    hooks = [At(250, fail), At(460, lambda run: first == "the thread" or end(run))]
    error = RunError if first != "a game" else ZeroDivisionError
    with pytest.raises(error, match="free some space, then resume with" if error is RunError else "emulator died"):
        play(tmp_path / "run", config=SMALL, hooks=hooks, quiet=False)
    assert "ended the run; what was learned is saved without its replay; resume with" in capsys.readouterr().out
    before, newest = RunFolder(tmp_path / "run").numbered()
    assert whole(tmp_path / "run") == newest
    assert int(newest.name) > 400
    assert [(before / "replay").exists(), (newest / "replay").exists()] == [True, False]
    assert not list(newest.parent.glob(".*"))
    monkeypatch.undo()
    assert len(play(tmp_path / "run", config=SMALL, resume=True).buffer)


def test_an_error_right_after_a_checkpoint_leaves_it_as_it_is(tmp_path):
    def end(run):
        assert run.saver.in_progress or run.folder.numbered()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="free some space"):
        play(tmp_path / "run", config=SMALL, hooks=[At(200, end, update=True)])
    newest = whole(tmp_path / "run")
    assert (newest / "replay").exists()
    assert checkpoint.load_games(newest) is not None


def test_a_folder_that_cannot_be_written_to_is_named(small_disk):
    play(small_disk / "run", config=SMALL.replace(total_frames=200))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(
        ConfigError, match=r"cannot be written to \(Read-only file system\); make it writable, or copy it"
    ):
        play(small_disk / "run", config=SMALL, resume=True)
    with pytest.raises(ConfigError, match=r"--runs-dir is .*where no folder can be made"):
        play(small_disk / "another", config=SMALL)


def harmed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(tmp_path, capsys):
    ended = play(tmp_path / "run", config=SMALL)
    *_, before, newest = ended.folder.numbered()
    harmed(newest / "learner.safetensors")
    again = play(ended.folder, config=SMALL, resume=True, quiet=False)
    said = capsys.readouterr().out
    assert (
        f"{newest / 'learner.safetensors'} cannot be read (its checksum is wrong); resuming from the checkpoint" in said
    )
    assert f"from {before}, without its replay" in said
    assert again.frames >= SMALL.total_frames
    assert (newest.parent / f"damaged-{newest.name}").exists()
    steps = [float(row["steps"]) for row in rows(ended.folder) if row["steps"]]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("name", ["index", "frames-000001"])
def test_a_damaged_replay_is_named_and_the_run_goes_on_with_an_empty_one(tmp_path, capsys, name):
    ended = play(tmp_path / "run", config=SMALL.replace(total_frames=400))
    harmed(ended.folder.find() / "replay" / name)
    again = play(ended.folder, config=SMALL, resume=True, quiet=False)
    said = capsys.readouterr().out
    assert "replay is not a saved replay, or is damaged" in said
    assert "resuming with an empty replay" in said
    assert len(again.buffer) < ended.steps
    assert again.learner.updates > ended.learner.updates


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_numbers_that_are_none_end_a_run_before_they_are_saved(tmp_path, monkeypatch, what):
    def spoil(run):
        with torch.no_grad():
            run.learner._params[0][0] = torch.nan

    # Just before a checkpoint, no update sees the weights any more.
    hook = At(300, spoil, update=True) if what == "loss" else At(400, spoil)
    put = checkpoints.put_in_place

    def late(*folders):  # the checkpoint before may still be in progress: it is the one to resume from all the same
        time.sleep(0.3)
        put(*folders)

    monkeypatch.setattr(checkpoints, "put_in_place", late)
    with pytest.raises(NotFiniteError, match=r"is not finite after \d+ updates; the batch is kept in") as ended:
        play(tmp_path / "run", config=SMALL, hooks=[hook])
    quarters = (SMALL.learning_rate / 4, SMALL.learning_rate_end / 4)
    smaller = "--learning-rate {:g} --learning-rate-end {:g}".format(*quarters)
    assert str(ended.value).endswith(f"{RunFolder(tmp_path / 'run').resume_command} {smaller}")
    assert int(whole(tmp_path / "run").name) < 220  # the checkpoint before, and finite
    (kept,) = (tmp_path / "run" / "faults").iterdir()
    found = checkpoints.read(kept)
    assert found["0"]["obs"].shape == (32, 2, 10, 5)
    if what == "loss":
        assert np.isnan(found["errors"]).any()
        assert np.array_equal(found["of"], found["0"]["index"])
    else:
        assert found["weights"] == ["online.trunk.0.weight"] or "online" in found["weights"][0]


def test_numbers_that_are_none_before_the_first_checkpoint_name_no_resume(tmp_path):
    def spoil(run):
        with torch.no_grad():
            run.learner._params[0][0] = torch.nan

    with pytest.raises(NotFiniteError, match=r"none is saved yet: start anew with another --name and") as ended:
        play(tmp_path / "run", config=SMALL, hooks=[At(100, spoil, update=True)])
    assert "--resume" not in str(ended.value)
    smaller = f"--learning-rate {SMALL.learning_rate / 4:g} --learning-rate-end {SMALL.learning_rate_end / 4:g}"
    assert str(ended.value).endswith(f"steps of a quarter: {smaller}")
    assert RunFolder(tmp_path / "run").numbered() == []


def test_a_gradient_that_is_not_finite_ends_the_run_though_the_errors_are(tmp_path):
    """The kernels of a CPU rectify NaN to 0, so no error shows it later."""

    def spoil(run):
        run.learner._tally.totals[3] = torch.inf

    with pytest.raises(NotFiniteError, match=r"the gradient is not finite after \d+ updates; the batch is kept in"):
        play(tmp_path / "run", config=SMALL, hooks=[At(100, spoil, update=True)])


def test_of_a_schedule_of_the_rate_a_quarter_is_advised(tmp_path):
    def spoil(run):
        with torch.no_grad():
            run.learner._params[0][0] = torch.nan

    config = SMALL.replace(learning_rate_schedule=((0, 4e-3), (900, 1e-3)))
    with pytest.raises(NotFiniteError, match=r"a quarter: --learning-rate-schedule 0:0.001 900:0.00025$"):
        play(tmp_path / "run", config=config, hooks=[At(100, spoil, update=True)])


def test_an_environment_that_raises_costs_nothing_that_was_learnt(tmp_path, capsys):
    calls = iter(range(50))

    def fault():
        if next(calls, None) is None:
            raise ZeroDivisionError("the emulator died")

    reached = []
    with pytest.raises(ZeroDivisionError, match="the emulator died"):
        play(tmp_path / "run", config=SMALL, fault=fault, quiet=False, hooks=[At(0, reached.append)])
    assert (
        f"ended the run; what was learned is saved; resume with: {RunFolder(tmp_path / 'run').resume_command}"
        in capsys.readouterr().out
    )
    (ended,) = reached
    found = whole(ended.folder)
    assert checkpoint.load_learner(found)["updates"] == ended.learner.updates > 0
    assert checkpoint.load_games(found) is None  # they stand in the middle of a step
    again = play(ended.folder, config=SMALL, resume=True)
    assert float(rows(ended.folder)[-2]["games/abandoned"]) == again.abandoned == SMALL.num_envs
    again.buffer.check()


def test_a_second_run_in_one_folder_is_refused_and_told_of_the_first(tmp_path):
    refused = []

    def again(first):
        with pytest.raises(
            ConfigError, match=f"belongs to process {os.getpid()} on .*, which is still running"
        ) as error:
            experiment.train(first.config, resume=first.folder, quiet=True)
        refused.append(error)

    ended = play(tmp_path / "run", config=SMALL, hooks=[At(250, again)])
    assert refused
    assert ended.frames >= SMALL.total_frames


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    now = time.time

    def set_back(_):
        monkeypatch.setattr(time, "time", lambda: now() - 86_400)

    usual = play(tmp_path / "usual", config=SMALL)
    ended = play(tmp_path / "run", config=SMALL, hooks=[At(250, set_back)])
    assert rows(ended.folder) == rows(usual.folder)
    assert 0 < ended.seconds < 3_600


def test_a_run_without_a_checkpoint_says_what_to_do(tmp_path):
    write_settings(tmp_path / "run", SMALL)
    with pytest.raises(ConfigError, match="has no checkpoint yet; start a run of another --name"):
        train.main(["--resume", str(tmp_path / "run")])


class Breaks(gymnasium.Env):
    """An environment of a user's own that raises in its third step."""

    observation_space, action_space = gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 1 / (3 - self.steps), False, False, {}


def make_vector_that_breaks():
    return gymnasium.vector.AsyncVectorEnv([Breaks, Breaks])


@pytest.mark.filterwarnings("ignore")  # Gymnasium's own words on what its workers met
def test_an_error_in_a_worker_of_ones_own_environment_is_the_one_that_is_heard():
    envs = CustomEnvs(f"{__name__}:make_vector_that_breaks", 2, seed=0)
    envs.reset()
    for _ in range(2):
        envs.step([0, 0])
    with pytest.raises(EnvError, match="ZeroDivisionError: division by zero") as heard:
        envs.step([0, 0])
    assert isinstance(heard.value.__cause__, ZeroDivisionError)
    envs.close()


def test_each_of_several_learners_keeps_a_file_of_its_own(tmp_path):
    for rank in range(2):
        peers = Peers()
        peers.rank, peers.count = rank, 2
        not_finite("the loss", RunFolder(tmp_path), 7, [], {"errors": np.full(3, rank)}, SMALL, peers)
    kept = sorted((tmp_path / "faults").iterdir())
    assert [path.name for path in kept] == [f"update-000000007-rank-{rank}.safetensors" for rank in range(2)]
    assert [int(checkpoints.read(path)["errors"][0]) for path in kept] == [0, 1]
    alone = not_finite("the loss", RunFolder(tmp_path), 7, [], {}, SMALL.replace(reward_clip=False))
    assert "update-000000007.safetensors" in str(alone)
    assert str(alone).endswith("; or start a new run with --reward-clip")
