"""Collectors on Ray itself, in a network namespace with nothing but its loopback: Ray listens on all interfaces."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed: the extra 'distributed' brings it")
UNSHARE = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]


def _namespaces() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not _namespaces(), reason="this user cannot make a network namespace, or `ip` is missing"),
]
CATCH = [
    "catch", "--collectors", "2", "--no-compile", "--no-films", "--final-episodes", "2", "--evaluate-every-frames",
    "1000000000", "--checkpoint-every-minutes", "0", "--device", "cpu",
]  # fmt: skip


class Training:
    """A run of the command, in a namespace of its own."""

    def __init__(self, folder: Path, *arguments: str, module: str = "") -> None:
        self.folder = folder / "run"
        flags = [] if "--resume" in arguments else ["--runs-dir", str(folder), "--name", "run"]
        script = 'ip link set lo up && exec "$@"'
        words = [*UNSHARE, "sh", "-c", script, "sh", sys.executable, "-m", "fastrl.train", *arguments, *flags]
        self._log = folder / f"log-{time.monotonic_ns()}"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
            environment.pop(name, None)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                words, cwd=module or folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait(self, seconds: float = 120) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()

    def rows(self) -> list[dict[str, str]]:
        path = self.folder / "metrics.csv"
        return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []

    def until(self, what, seconds: float = 90):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := what():
                return found
            assert self.process.poll() is None, self.said
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"in vain: {self.said}")

    def actors(self) -> list[int]:
        """Processes of collectors, of this run."""
        names = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        lines = [line.split(None, 2) for line in names.splitlines()[1:]]
        parents = {int(pid): int(parent) for pid, parent, _ in lines}

        def ours(pid: int) -> bool:
            while pid in parents and pid != self.process.pid:
                pid = parents[pid]
            return pid == self.process.pid

        return [int(pid) for pid, _, words in lines if words.startswith("ray::RayActor") and ours(int(pid))]


@pytest.fixture
def endless(tmp_path):
    """Start a run that does not end by itself."""
    run = Training(tmp_path, *CATCH, "--total-frames", "100000000", "--collector-timeout", "4")
    run.until(lambda: len(run.rows()) >= 2)
    yield run
    run.process.send_signal(signal.SIGTERM)
    run.wait()


def last(run, key):
    found = [row[key] for row in run.rows() if row.get(key)]
    return float(found[-1]) if found else 0.0


def test_a_run_starts_ray_and_leaves_nothing_behind_and_another_number_of_collectors_is_refused(tmp_path):
    run = Training(tmp_path, *CATCH, "--total-frames", "3000")
    assert run.wait() == 0, run.said
    assert last(run, "collectors/alive") == 2
    assert last(run, "collectors/lost") == 0
    assert run.actors() == []
    before = sorted((run.folder / "checkpoints").iterdir())
    refused = Training(tmp_path, "--resume", str(run.folder), "--collectors", "3", "--total-frames", "5000")
    assert refused.wait() == 2
    assert "give --collectors 2" in refused.said
    assert sorted((run.folder / "checkpoints").iterdir()) == before


def test_a_killed_collector_comes_back_and_sigterm_saves_the_run(endless):
    killed = endless.until(lambda: len(endless.actors()) == 2 and endless.actors())[0]
    os.kill(killed, signal.SIGKILL)
    endless.until(lambda: last(endless, "collectors/restarted") == 1)
    assert last(endless, "collectors/lost") == 1
    assert "is gone" in endless.said
    assert killed not in endless.actors()
    endless.process.send_signal(signal.SIGTERM)
    assert endless.wait() == 128 + signal.SIGTERM
    assert "resume with" in endless.said
    assert any((endless.folder / "checkpoints").iterdir())


def test_a_stopped_collector_is_replaced(endless):
    hung = endless.until(lambda: len(endless.actors()) == 2 and endless.actors())[0]
    os.kill(hung, signal.SIGSTOP)
    endless.until(lambda: last(endless, "collectors/restarted") == 1)
    assert "has not answered for 4 seconds; a new one takes its place" in endless.said


def test_an_address_that_nobody_answers_is_one_line_and_nothing_is_written(tmp_path):
    for address, words in (("127.0.0.1:1", "nothing answers there"), ("auto", "no Ray that runs is found"),
                           ("nowhere", "give auto, or host:port")):  # fmt: skip
        run = Training(tmp_path, *CATCH, "--ray-address", address)
        assert run.wait(60) == 2
        [line] = [line for line in run.said.splitlines() if "error" in line]
        assert re.search(f"--ray-address is '{address}'.*{words}", line)
        assert "Traceback" not in run.said
        assert not run.folder.exists()


def test_a_custom_environment_beside_the_command_travels_to_the_collectors(tmp_path):
    (tmp_path / "my_module.py").write_text(
        "import gymnasium\n\n\ndef make_env():\n    return gymnasium.make('CartPole-v1')\n"
    )
    flags = CATCH[1:]
    run = Training(tmp_path, "my_module:make_env", *flags, "--total-frames", "2000", module=str(tmp_path))
    assert run.wait() == 0, run.said
    assert last(run, "collectors/alive") == 2


def test_a_ray_that_was_running_is_joined_and_goes_on(tmp_path):
    ray = Path(sys.executable).with_name("ray")
    token = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=" + "a1" * 32
    head = f"{token} {ray} start --head --num-cpus=2 --include-dashboard=false --disable-usage-stats >/dev/null"
    after = f"{token} {ray} status >joined 2>&1; {token} {ray} stop --force >/dev/null 2>&1"
    train = [sys.executable, "-m", "fastrl.train", *CATCH, "--total-frames", "2000", "--ray-address", "auto",
             "--runs-dir", str(tmp_path), "--name", "run"]  # fmt: skip
    script = f'ip link set lo up && {head} && {token} "$@"; status=$?; {after}; exit $status'
    done = subprocess.run(
        [*UNSHARE, "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh", *train],
        cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2.0 CPU" in (tmp_path / "joined").read_text()  # it still runs once the training has left
