"""Several learners: what they agree on, what each does by itself, and what becomes of them when one fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from by_torchrun import set_launch
from number_run import batches, rows
from rank_run import CONFIG, Job, error, learn, result
from torch.distributed import TCPStore
from untrained import write_settings

from fastrl.base.errors import ConfigError
from fastrl.base.stop import TWICE_SECONDS, Stop
from fastrl.config import PRESETS, with_agent
from fastrl.distributed import ranks
from fastrl.distributed.ranks import Ranks, joined
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.learner import Learner
from fastrl.dqn.peers import ALONE, Peers, Turn
from fastrl.dqn.run import experiment
from fastrl.dqn.run.loop import weigh_part
from fastrl.replay import PrioritizedReplayBuffer
from fastrl.runs.checkpoints import learners
from fastrl.runs.folder import RunFolder


def same(one, other, *, but=()):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one.keys() - set(but))


def seen(folder, rank):
    """Return what each update of a learner learned."""
    return batches(folder.with_name(f"{folder.name}-{rank}"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two learners that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert Job().run(learn, folder) == [0, 0]
    return folder


# --- what is equal and what is not ----------------------------------------------------------------------


def test_two_learners_have_equal_weights_to_the_bit_and_learn_from_games_of_their_own(whole):
    one, other = result(whole, 0), result(whole, 1)
    assert same(one, other)
    steps, updates, _, _, stopped = one["counts"]
    assert stopped == 0
    assert 1_200 <= steps < 1_200 + 2 * CONFIG.num_envs  # together
    assert updates > 80
    seen_by = [seen(whole, rank) for rank in range(2)]
    assert len(seen_by[0]) == len(seen_by[1]) == updates
    assert not set(seen_by[0].values()) & set(seen_by[1].values())


def test_samples_per_step_are_those_of_all_together(whole):
    steps, updates, *_ = result(whole, 0)["counts"]
    learning = steps - CONFIG.warm_up_steps
    assert updates * CONFIG.batch_size == pytest.approx(learning * CONFIG.samples_per_step, abs=400)


def test_the_first_learner_alone_writes_the_folder_and_the_checkpoint_holds_the_part_of_each(whole):
    frames = [int(line["frames"]) for line in rows(whole) if line["updates"]]  # without those of evaluations
    assert len(frames) == len(set(frames)) > 6
    assert frames == sorted(frames)
    assert len(list(whole.glob("events.*"))) == 1
    newest = sorted((whole / "checkpoints").glob("0*"))[-1]
    assert learners(newest) == 2
    assert {path.name for path in (newest / "rank-1").iterdir()} == {
        "SHA256SUMS", "games.safetensors", "learner.safetensors", "replay", "state.json",
    }  # fmt: skip
    assert (newest / "rank-1/learner.safetensors").stat().st_size < (newest / "learner.safetensors").stat().st_size / 2
    assert not list((whole / "checkpoints").rglob(".*"))
    older = sorted((whole / "checkpoints").glob("0*"))[:-1]
    assert older
    assert not [path for folder in older for path in folder.rglob("replay")]


@pytest.mark.slow
def test_two_jobs_of_one_seed_are_equal_to_the_bit(whole, tmp_path):
    assert Job().run(learn, tmp_path / "run") == [0, 0]
    for rank in range(2):
        assert same(result(tmp_path / "run", rank), result(whole, rank), but=["folder"])
        assert seen(tmp_path / "run", rank) == seen(whole, rank)
    assert rows(tmp_path / "run") == rows(whole)


class Pair(Peers):
    """Two learners in two threads."""

    count = 2

    def __init__(self, rank, barrier, shared):
        self.rank, self._barrier, self._shared = rank, barrier, shared

    @property
    def average(self):
        def mean(gradients):
            self._shared[self.rank] = gradients.clone()
            self._barrier.wait()
            gradients.copy_((self._shared[0] + self._shared[1]) / 2)
            self._barrier.wait()

        return mean

    def least(self, number):
        return min(number, self._shared)


def random_batch(rng, size):
    obs = rng.integers(0, 256, (2, size, 2, 36, 36), np.uint8)
    return SimpleNamespace(
        obs=obs[0], next_obs=obs[1], action=rng.integers(0, 3, size), reward=rng.normal(size=size).astype(np.float32),
        discount=np.full(size, 0.97, np.float32), weight=rng.uniform(0.2, 1, size).astype(np.float32),
        index=np.arange(size),
    )  # fmt: skip


def part_of(batch, rank):
    half = len(batch.index) // 2
    return SimpleNamespace(**{name: value[rank * half : (rank + 1) * half] for name, value in vars(batch).items()})


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_two_learners_of_half_a_batch_take_the_steps_of_one_with_the_whole(optimizer, kernels):
    config = with_agent(PRESETS["cpu"].config, "dueling").replace(
        compile=False, precision="float32", batch_size=64, optimizer=optimizer, num_envs=8, hidden=16, torch_threads=1,
        kernels=kernels, max_grad_norm=0.02, target_period_updates=2,
    )  # fmt: skip
    eps = 0.005 / 64 if optimizer == "adam" else None  # by the whole batch
    half = config.replace(batch_size=32, optimizer_eps=eps)
    barrier, shared = threading.Barrier(2), [None, None]

    def make(settings, peers=ALONE):
        return Learner(settings, (2, 36, 36), np.uint8, 3, torch.device("cpu"), 1, peers=peers)

    whole, parts = make(config), [make(half, Pair(rank, barrier, shared)) for rank in range(2)]
    rng = np.random.default_rng(0)
    for _ in range(5):
        batch = random_batch(rng, 64)
        _, errors = whole.learn(batch)
        found = [None, None]

        def work(rank, batch=batch, found=found):
            found[rank] = parts[rank].learn(part_of(batch, rank))[1]

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        np.testing.assert_allclose(np.concatenate(found), errors, rtol=2e-3, atol=1e-4)
    norms = [learner.metrics()["train/grad_norm"] for learner in (whole, *parts)]
    assert norms[1] == norms[2] == pytest.approx(norms[0], rel=1e-4)
    assert norms[0] > 0.02  # so that it was clipped, by the norm of the mean
    for one, other, expected in zip(parts[0]._params, parts[1]._params, whole._params, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected, rtol=2e-3, atol=2e-5)


def test_the_eps_of_adam_is_that_of_the_whole_batch():
    ranks = object.__new__(Ranks)
    ranks.count = 4
    part = ranks.part(CONFIG.replace(batch_size=64, capacity=4_000, total_frames=10_001))
    assert (part.batch_size, part.capacity, part.total_frames) == (16, 1_000, 2_501)
    assert part.optimizer_eps == 0.005 / 64
    assert ranks.part(CONFIG.replace(optimizer="rmsprop")).optimizer_eps is None
    for changes, words in (
        ({"batch_size": 66}, "--batch-size is 66, which 4 learners cannot share evenly; give 64 or 68"),
        ({"batch_size": 3}, "--batch-size is 3, .*; give 4"),
        ({"capacity": 1_001}, "--capacity is 1001, .*; give 1000 or 1004"),
    ):
        with pytest.raises(ConfigError, match=words):
            ranks.part(CONFIG.replace(**changes))


def filled(weights):
    """Return a replay whose rows have these priorities, in order, to the power of 1."""
    n = len(weights)
    buffer = PrioritizedReplayBuffer(
        capacity=n + 2, num_envs=1, obs_shape=(1,), stack=1, n_step=1, alpha=1.0, eps=1e-12
    )
    for i in range(n + 1):
        buffer.add(np.zeros((1, 1), np.uint8), [i], [0.0], [False], [False])
    index = np.sort(buffer.sample(200).index)
    index = np.unique(index)
    assert len(index) == n
    buffer.update_priorities(index, weights)
    return buffer, index


def test_importance_weights_have_the_scale_of_the_whole_batch():
    """By hand, beta 1: shards of weights (1, 3) and (1, 7), drawn whole.

    P is (1/4, 3/4) and (1/8, 7/8); half of each in the whole batch, least 1/16. So 1/P over the largest is 1/2, 1/6 and
    1, 1/7; each replay by itself gives 1, 1/3 and 1, 1/7.
    """
    expected = {1.0: ([1 / 2, 1 / 6], [1, 1 / 7]), 0.5: ([2**-0.5, 6**-0.5], [1, 7**-0.5]), 0.0: ([1, 1], [1, 1])}
    for beta, wanted in expected.items():
        shards = [filled([1.0, 3.0]), filled([1.0, 7.0])]
        least = [buffer.least_probability(index) for buffer, index in shards]
        assert least == pytest.approx([1 / 4, 1 / 8])
        for rank, (buffer, index) in enumerate(shards):
            batch = buffer.sample(100, beta)
            weight = np.array([batch.weight[batch.index == row][0] for row in index])
            weigh_part(weight, least[rank], beta, Pair(rank, None, min(least)))
            np.testing.assert_allclose(weight, wanted[rank], rtol=1e-5)
            assert weight.dtype == np.float32


# --- stops, failures, resumes ---------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stop_asked_of_one_learner_stops_all_at_one_step_and_resumes_to_the_bit(whole, tmp_path, rank):
    folder = tmp_path / "run"
    assert Job().run(learn, folder, signals={rank: (545, signal.SIGTERM)}) == [0, 0]
    for each in range(2):
        steps, _, _, _, stopped = result(folder, each)["counts"]
        assert 545 <= steps < 545 + 4 * CONFIG.num_envs
        assert steps == result(folder, 0)["counts"][0]
        assert stopped == signal.SIGTERM
    assert Job().run(learn, folder, resume=True) == [0, 0]
    for each in range(2):
        assert same(result(folder, each), result(whole, each), but=["folder"])
        assert seen(folder, each) == seen(whole, each)
    assert rows(folder) == rows(whole)


def test_a_killed_learner_ends_the_others_and_a_restart_resumes_from_what_all_had_committed(whole, tmp_path):
    folder, job = tmp_path / "run", Job()
    changes = {"checkpoint_every_frames": 300}
    began = time.monotonic()
    codes = job.run(learn, folder, changes=changes, signals={1: (1_000, signal.SIGKILL)})
    assert codes == [3, -signal.SIGKILL]
    assert time.monotonic() - began < 50
    assert error(folder, 0).startswith("PeerError: another learner is gone without a message")
    saved = sorted(path.name for path in (folder / "checkpoints").glob("0*"))
    assert 600 <= int(saved[-1]) < 1_000
    assert job.run(learn, folder, changes=changes) == [0, 0]  # as torchrun does: the same command again
    for each in range(2):
        assert same(result(folder, each), result(whole, each), but=["folder"])
        assert seen(folder, each) == seen(whole, each)
    assert rows(folder) == rows(whole)


class LeavesAChild(Callback):
    """Lets a process live on that has inherited the connections of this learner: they outlive it too."""

    def __init__(self, rank):
        self.rank = rank

    def on_start(self, run):
        if self.rank == 1 and os.fork() == 0:
            time.sleep(60)
            os._exit(0)


def test_a_killed_learner_whose_connections_stay_open_is_noticed_by_its_process(tmp_path):
    folder = tmp_path / "run"
    began = time.monotonic()
    codes = Job().run(learn, folder, hooks=[LeavesAChild], signals={1: (300, signal.SIGKILL)})
    assert codes == [3, -signal.SIGKILL]
    assert time.monotonic() - began < 50
    assert error(folder, 0).startswith(
        "PeerError: another learner is gone without a message (RuntimeError: the process of learner 1 has ended)"
    )


def learns_aloud(rank, folder, **options):
    """Learn, and keep what is printed."""
    with (
        folder.with_name(f"said-{rank}.txt").open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
    ):
        learn(rank, folder, quiet=False, **options)


def test_a_second_signal_leaves_a_learner_that_waits_for_one_that_hangs(tmp_path):
    folder, job = tmp_path / "run", Job()
    job.start(learns_aloud, folder, signals={1: (300, signal.SIGSTOP)})
    one, other = job.processes
    deadline = time.monotonic() + 120
    while Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _ in range(2):
        time.sleep(2 * (ranks.LOOK.total_seconds() + TWICE_SECONDS))
        os.kill(one.pid, signal.SIGINT)
    one.join(30)
    assert one.exitcode is not None
    assert other.is_alive()
    assert error(folder, 0) == f"KeyboardInterrupt: {int(signal.SIGINT)}"
    told = "stop heard; it comes after the step of another learner, which is late (a second signal leaves at once"
    assert (tmp_path / "said-0.txt").read_text(encoding="utf-8").count(told) == 1
    other.kill()


def names_threads(rank, folder, **options):
    """Learn, and write down which threads are there when the error that ended it is on its way out."""
    try:
        learn(rank, folder, **options)
    finally:
        names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
        folder.with_name(f"threads-{rank}.json").write_text(json.dumps(names))


@pytest.mark.skipif(sys.platform != "linux", reason="threads are found in /proc")
def test_no_thread_of_gloo_outlives_the_connections_and_aborts_the_process_at_its_exit(tmp_path):
    changes = {"total_frames": 300, "learn_start_steps": 60, "checkpoint_every_frames": 150}
    for number, options in enumerate(({}, {"signals": {1: (200, signal.SIGTERM)}}, {"hooks": [Fails]},
                                      {"signals": {1: (200, signal.SIGKILL)}})):  # fmt: skip
        folder = tmp_path / str(number) / "run"
        folder.parent.mkdir()
        Job().run(names_threads, folder, changes=changes | {"total_frames": 500 if number == 2 else 300}, **options)
        names = json.loads(folder.with_name("threads-0.json").read_text())
        assert [name for name in names if "gloo" in name] == [], number


IMPORTS_LATE = """
import os
from pathlib import Path

import torch
from torch.distributed import TCPStore

from fastrl.base.launch import launched
from fastrl.base.stop import Stop
from fastrl.distributed.ranks import Ranks

store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
os.environ["MASTER_PORT"] = str(store.port)
ranks = Ranks(launched(), torch.device("cpu"), 0, Stop())
import torch._dynamo  # as a run does, which compiles

print("opened", [task for task in Path("/proc/self/task").iterdir() if "gloo" in (task / "comm").read_text()] != [])
ranks.close()
print("left", [name for task in Path("/proc/self/task").iterdir() if "gloo" in (name := (task / "comm").read_text())])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are found in /proc")
def test_what_is_imported_while_learners_are_connected_does_not_keep_their_connections():
    environment = {
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "GLOO_SOCKET_IFNAME": "lo", "RANK": "0", "LOCAL_RANK": "0",
        "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS_LATE], env=os.environ | environment, capture_output=True, text=True
    )
    assert run.stdout.splitlines() == ["opened True", "left []"], run.stderr


def test_a_restart_before_the_first_checkpoint_sets_the_run_aside_and_starts_anew(tmp_path):
    folder, job = tmp_path / "run", Job()
    changes = {"total_frames": 600}
    job.run(learn, folder, changes=changes, signals={0: (100, signal.SIGKILL)})
    assert job.run(learn, folder, changes=changes) == [0, 0]
    assert (tmp_path / "run-failed-1" / "config.json").exists()
    assert result(folder, 1)["counts"][0] >= 600


def test_a_run_without_a_name_that_starts_anew_keeps_the_one_it_was_given(tmp_path):
    folder, job = tmp_path / "run", Job()
    changes = {"total_frames": 600, "name": None}
    job.run(learn, folder, changes=changes, signals={0: (100, signal.SIGKILL)})
    [begun] = (path for path in tmp_path.iterdir() if path.is_dir())
    time.sleep(1.1)  # such names have seconds
    assert job.run(learn, folder, changes=changes) == [0, 0]
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {begun, Path(f"{begun}-failed-1")}
    assert str(result(folder, 0)["folder"]) == str(begun)


def test_a_job_of_one_process_resumes_after_a_restart_too(tmp_path):
    folder, job = tmp_path / "run", Job(1)
    assert job.run(learn, folder, signals={0: (1_000, signal.SIGKILL)}) == [-signal.SIGKILL]
    assert job.run(learn, folder) == [0]
    steps, updates, *_ = result(folder, 0)["counts"]
    assert steps >= 1_200
    assert sorted(seen(folder, 0)) == list(range(1, updates + 1))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]
    assert len((folder / "commands.txt").read_text().splitlines()) == 2


class Fails(Callback):
    """Raises in one learner."""

    def __init__(self, rank):
        self._rank = rank

    def on_step(self, run, actions):
        if self._rank == 1 and run.steps >= 400:
            raise ValueError("seen by learner 1 alone")


def test_an_error_of_one_learner_ends_the_others_with_its_message(tmp_path):
    folder = tmp_path / "run"
    assert Job().run(learn, folder, hooks=[Fails]) == [3, 3]
    assert error(folder, 1) == "ValueError: seen by learner 1 alone"
    assert error(folder, 0) == "PeerError: learner 1 ended the run (ValueError: seen by learner 1 alone)"


def test_a_batch_that_learners_cannot_share_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "run"
    assert Job().run(learn, folder, changes={"batch_size": 33}) == [3, 3]
    assert error(folder, 0).startswith("ConfigError: --batch-size is 33, which 2 learners cannot share evenly; give 32")
    assert error(folder, 1).startswith("PeerError")
    assert not folder.exists()


def test_what_one_learner_refuses_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "run"
    assert Job().run(refuses, folder) == [3, 3]
    assert error(folder, 1) == "ConfigError: no such kernel here"
    assert error(folder, 0) == "PeerError: learner 1 ended the run (ConfigError: no such kernel here)"
    assert not folder.exists()


def refuses(rank, folder):
    from fastrl.dqn.run import experiment

    if rank == 1:

        def refuse(*args, **kwargs):
            raise ConfigError("no such kernel here")

        experiment.Learner = refuse
    learn(rank, folder)


@pytest.mark.slow
def test_another_number_of_learners_is_refused_with_the_number_to_give_or_goes_on_without_the_replay(tmp_path):
    folder = tmp_path / "run"
    assert Job().run(learn, folder, changes={"total_frames": 500}) == [0, 0]
    before = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    for count, words in ((1, "1 learner now"), (3, "3 learners now")):
        codes = Job(count).run(learn, folder, changes={"total_frames": 1_000}, resume=True)  # 3 do not divide the batch
        assert set(codes) == {3}
        said = error(folder, 0)
        assert said.startswith("ConfigError")
        assert words in said
        assert "saved by 2 learners" in said
        assert "let torchrun start 2" in said
        assert sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock") == before
    changes = {"total_frames": 1_000, "batch_size": 30, "checkpoint_replay": False}
    assert Job(3).run(learn, folder, changes=changes, resume=True) == [0] * 3
    counts = [result(folder, rank)["counts"] for rank in range(3)]
    assert all(count[0] >= 1_000 for count in counts)
    assert len({int(count[1]) for count in counts}) == 1
    assert same(result(folder, 0), result(folder, 2), but=["counts"])


class AsksDuringTheEvaluation(Callback):
    """Lets learner 1 get a signal while learner 0 evaluates."""

    def __init__(self, rank):
        self._rank = rank

    def on_step(self, run, actions):
        if self._rank == 1 and run.steps >= 400 and not hasattr(self, "asked"):
            self.asked = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
            self.asked.daemon = True
            self.asked.start()


def test_a_stop_asked_of_a_learner_that_waits_for_an_evaluation_ends_it(tmp_path):
    folder = tmp_path / "run"
    changes = {"evaluate_every_frames": 400, "evaluate_episodes": 10_000}
    began = time.monotonic()
    assert Job().run(learn, folder, changes=changes, hooks=[AsksDuringTheEvaluation]) == [0, 0]
    assert time.monotonic() - began < 40
    counts = [result(folder, rank)["counts"] for rank in range(2)]
    assert np.array_equal(counts[0][[0, 1, 4]], counts[1][[0, 1, 4]])
    assert 400 <= counts[0][0] < 450
    assert counts[0][4] == signal.SIGTERM


@pytest.mark.slow
def test_timed_checkpoints_are_saved_by_the_clock_of_the_first_learner(whole, tmp_path):
    folder = tmp_path / "run"
    changes = {"checkpoint_every_frames": 10**9, "checkpoint_every_minutes": 0.2 / 60}
    assert Job().run(learn, folder, changes=changes, hooks=[CountsCheckpoints]) == [0, 0]
    counts = [int((tmp_path / f"checkpoints-{rank}").read_text()) for rank in range(2)]
    assert counts[0] == counts[1] >= 2
    assert same(result(folder, 1), result(whole, 1), but=["folder"])  # saving changes nothing


class CountsCheckpoints(Callback):
    def __init__(self, rank):
        self._rank, self._count = rank, 0

    def on_checkpoint(self, run, folder):
        assert (folder / "state.json").exists()
        assert (folder / "rank-1" / "state.json").exists()
        self._count += 1
        (run.folder.path.parent / f"checkpoints-{self._rank}").write_text(str(self._count))

    def state(self):
        return {}


# --- one process ----------------------------------------------------------------------------------------


def test_without_torchrun_a_learner_is_alone_and_agrees_with_itself(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    stop, turn = Stop(), Turn(3, 5, True)
    with joined("cpu", stop) as peers:
        assert peers is ALONE
        assert peers.leads
        assert not peers.several
        assert peers.average is None
        assert peers.agreed(stop) is stop
        assert peers.turn(turn, stop) is turn
        assert peers.part(CONFIG) is CONFIG
        assert peers.shared(lambda: 7) == 7
        assert peers.remembered() is None
    assert not torch.distributed.is_initialized()


# --- how they come together -----------------------------------------------------------------------------


def one_comes(rank, folder):
    if rank == 0:
        sys.exit(3)
    learn(rank, folder)


def test_a_start_in_which_a_learner_never_came_leaves_nothing_that_the_next_one_takes_for_its_own(tmp_path):
    folder, job, words = tmp_path / "run", Job(), {b""}
    for _ in range(2):
        job.start(one_comes, folder)
        missing, waits = job.processes
        missing.join(60)
        end = time.monotonic() + 60
        while not job.store.check(["fastrl/0/word 1"]) or job.store.get("fastrl/0/word 1") in words:
            assert time.monotonic() < end
            time.sleep(0.05)
        words.add(job.store.get("fastrl/0/word 1"))
        waits.terminate()
        waits.join(60)
        assert (missing.exitcode, waits.exitcode) == (3, 1)
    assert job.run(learn, folder, changes={"total_frames": 600}) == [0, 0]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]


def late(rank, folder):
    ranks.JOIN = timedelta(seconds=5 * (1 + rank))
    if rank != 1:
        learn(rank, folder)


def test_learners_that_do_not_come_are_named(tmp_path):
    assert Job(3).run(late, tmp_path / "run") == [3, 0, 3]
    assert error(tmp_path / "run", 2) == "PeerError: another learner did not come; learner 0 says which"
    assert error(tmp_path / "run", 0) == (
        "RunError: learner 1 did not come within 5 seconds; see what torchrun says on all machines, and unless it "
        "does so itself, start it anew"
    )


def test_a_signal_ends_the_wait_for_the_others(second_of_two, monkeypatch):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    stop = Stop()
    threading.Timer(0.3, lambda: setattr(stop, "signal", signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt) as interrupt:
        joined("cpu", stop).__enter__()
    assert interrupt.value.args == (signal.SIGTERM,)


# --- what cannot be joined, and what does not answer ----------------------------------------------------


def impatient(rank, folder):
    ranks.PATIENCE = timedelta(seconds=5)
    learn(rank, folder, changes={"total_frames": 1_000_000}, signals={1: (300, signal.SIGSTOP)})


def test_a_learner_that_hangs_ends_the_others_after_their_patience(tmp_path):
    job = Job()
    job.start(impatient, tmp_path / "run")
    one, other = job.processes
    one.join(120)
    assert (one.exitcode, other.is_alive()) == (3, True)
    assert "PeerError: another learner is gone without a message (" in error(tmp_path / "run", 0)
    other.kill()


@pytest.fixture
def second_of_two(monkeypatch):
    """Let this process be what torchrun starts second, where nothing keeps its store."""
    set_launch(monkeypatch, rank=1, count=2, local_rank=1, local_count=2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    return port


@pytest.mark.usefixtures("second_of_two")
def test_more_learners_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="is 2, and this machine has 1 GPUs; give --nproc-per-node 1, or --device"):
        joined("auto", Stop()).__enter__()


def test_a_store_that_does_not_answer_is_named(second_of_two, monkeypatch):
    monkeypatch.setattr(ranks, "JOIN", timedelta(seconds=1))
    with pytest.raises(ConfigError, match=f"nothing answers at 127.0.0.1:{second_of_two}, .*; give torchrun --master"):
        joined("cpu", Stop()).__enter__()


def test_a_folder_that_another_machine_does_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "SEEN_SECONDS", 0.2)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"run is not there on .*; give a --runs-dir that all machines share"):
        experiment._must_see(folder)
    write_settings(folder.path, CONFIG)
    experiment._must_see(folder)
