"""The command itself, started by torchrun on the loopback."""

from __future__ import annotations

import csv
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CATCH = ["catch", "--no-compile", "--no-films", "--device", "cpu", "--precision", "float32", "--torch-threads", "1",
         "--final-episodes", "2", "--evaluate-every-frames", "1000000000"]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Torchrun:
    """A job of two processes, or what one of two machines has of it."""

    def __init__(
        self, folder: Path, *arguments: str, flags: tuple[str, ...] = (), place: tuple[str, ...] | None = None
    ) -> None:
        alone = ("--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
        self.flags = [*(place or alone), *flags]
        words = [sys.executable, "-m", "torch.distributed.run", *self.flags, "-m", "fastrl.train", *arguments]
        self.log = folder / f"log-{time.monotonic_ns()}"
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 180) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()

    def until(self, what, seconds: float = 120):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if found := what():
                return found
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(f"in vain: {self.said}")

    def learner(self, rank: int) -> int:
        """Return the process of a learner."""
        found = self.find(rank)
        assert found is not None, "there is no such process"
        return found

    def find(self, rank: int) -> int | None:
        """Return the process of a learner; None if it is not here."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == self.process.pid and f"RANK={rank}".encode() in environment:
                return int(path.name)
        return None


def frames(folder: Path) -> list[int]:
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(row["frames"]) for row in csv.DictReader(lines) if row["updates"]]  # without those of evaluations


def test_sigterm_saves_all_learners_and_the_command_that_is_printed_resumes_them(tmp_path):
    folder = tmp_path / "run"
    arguments = [*CATCH, "--total-frames", "100000000", "--name", "run", "--runs-dir", str(tmp_path)]
    job = Torchrun(tmp_path, *arguments)
    job.until(lambda: len(frames(folder)) >= 2)
    job.process.send_signal(signal.SIGTERM)
    assert job.wait(40) != 0
    called = shlex.join(["python", "-m", "torch.distributed.run", *job.flags, "-m", "fastrl.train"])
    assert f"resume with: {called} --resume {folder}" in job.said
    assert (folder / "commands.txt").read_text() == f"{called} {shlex.join(arguments)}\n"
    assert job.said.count("stopped after") == 1  # one learner speaks
    newest = sorted((folder / "checkpoints").glob("0*"))[-1]
    assert (newest / "rank-1" / "replay").exists()
    stopped = int(newest.name)
    again = Torchrun(tmp_path, "--resume", str(folder), "--total-frames", str(stopped + 2_000))
    assert again.wait() == 0, again.said
    assert f"resuming after {stopped:,} frames" in again.said
    assert "with its replay" in again.said
    assert frames(folder) == sorted(set(frames(folder)))


def test_torchrun_restarts_a_job_whose_learner_was_killed_and_it_resumes(tmp_path):
    folder = tmp_path / "run"
    job = Torchrun(
        tmp_path, *CATCH, "--total-frames", "100000000", "--checkpoint-every-frames", "1000",
        "--log-every-frames", "500", "--name", "run", "--runs-dir", str(tmp_path), flags=("--max-restarts", "1"),
    )  # fmt: skip
    job.until(lambda: list((folder / "checkpoints").glob("0*")))
    os.kill(job.learner(1), signal.SIGKILL)
    [resumed] = job.until(lambda: re.findall(r"resuming after ([\d,]+) frames .* with its replay", job.said))
    job.until(lambda: max(frames(folder), default=0) >= int(resumed.replace(",", "")) + 2_000)
    job.process.send_signal(signal.SIGTERM)
    assert job.wait(40) != 0
    assert "another learner is gone without a message" in job.said
    assert re.search(r"is lost; unless torchrun starts it anew, resume with: .* --resume ", job.said)
    assert "stopped after" in job.said
    assert len((folder / "commands.txt").read_text().splitlines()) == 2
    assert frames(folder) == sorted(set(frames(folder)))


def test_two_machines_start_anew_together_though_only_one_of_them_lost_a_learner(tmp_path):
    folder, end = tmp_path / "run", f"127.0.0.1:{free_port()}"
    place = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two",
             "--rdzv-endpoint", end)  # fmt: skip
    arguments = [*CATCH, "--total-frames", "100000000", "--checkpoint-every-frames", "1000",
                 "--log-every-frames", "500", "--name", "run", "--runs-dir", str(tmp_path)]  # fmt: skip
    jobs = [Torchrun(tmp_path, *arguments, flags=("--max-restarts", "2"), place=place) for _ in range(2)]

    def said() -> str:
        return "".join(job.said for job in jobs)

    def saved() -> int:
        return max((int(path.name) for path in (folder / "checkpoints").glob("0*")), default=0)

    try:
        for restart in (1, 2):
            before = saved()
            jobs[0].until(lambda before=before: saved() > before)
            [(job, learner)] = [(job, pid) for job in jobs if (pid := job.find(1))]
            os.kill(learner, signal.SIGKILL)
            job.until(lambda times=restart: len(re.findall(r"resuming after [\d,]+ frames", said())) == times)
        resumed = int(re.findall(r"resuming after ([\d,]+) frames", said())[-1].replace(",", ""))
        jobs[0].until(lambda: max(frames(folder), default=0) >= resumed + 2_000)
    finally:
        for job in jobs:
            job.process.send_signal(signal.SIGTERM)
        assert 0 not in [job.wait(60) for job in jobs]
    assert "stopped after" in said()


def leaves_with_a_mistake(job, told):
    """Check that the first learner alone says a mistake, and that it is the cause that torchrun names."""
    assert job.wait() != 0
    [line] = [line for line in job.said.splitlines() if "error: " in line]
    assert line.endswith(told)
    found = re.findall(r"^  rank +: (\d) .*\n  exitcode +: (-?\d+)", job.said, re.MULTILINE)
    assert dict(found)["0"] == "2"
    assert found[-1][0] == "0"  # the root cause, which torchrun prints last
    # torchrun ends the other one as soon as it sees that, which may be amid its imports.
    assert dict(found)["1"] in {"2", str(128 + signal.SIGTERM), str(-signal.SIGTERM)}


def test_a_batch_that_learners_cannot_share_is_refused_in_one_line(tmp_path):
    job = Torchrun(tmp_path, *CATCH, "--batch-size", "33", "--runs-dir", str(tmp_path / "runs"))
    leaves_with_a_mistake(job, "--batch-size is 33, which 2 learners cannot share evenly; give 32 or 34")
    assert not (tmp_path / "runs").exists()


def test_a_mistyped_flag_is_said_once(tmp_path):
    job = Torchrun(tmp_path, *CATCH, "--bach-size", "32", "--runs-dir", str(tmp_path / "runs"))
    leaves_with_a_mistake(
        job,
        "--bach-size is no flag of this command; did you mean --batch-size? --help lists the flags and their values",
    )
    assert not (tmp_path / "runs").exists()
