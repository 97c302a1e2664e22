"""Collectors on Ray itself, in a network namespace with nothing but its loopback: Ray listens on all interfaces."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from untrained import make_run

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
ROOT = Path(__file__).parents[2]
CATCH = [
    "catch", "--collectors", "2", "--no-compile", "--no-films", "--final-episodes", "2", "--evaluate-every-frames",
    "1000000000", "--checkpoint-every-minutes", "0", "--device", "cpu",
]  # fmt: skip


PLAYS = "(play|go_on)"  # methods in which a player is while it plays its share


class Training:
    """A run of a command, in a namespace of its own."""

    def __init__(
        self, folder: Path, *arguments: str, module: str = "", command: str = "train", torchrun: Sequence[str] = ()
    ) -> None:
        self.folder = folder / "run"
        new = command == "train" and "--resume" not in arguments
        flags = ["--runs-dir", str(folder), "--name", "run"] if new else []
        script = 'ip link set lo up && exec "$@"'
        launcher = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
        program = [sys.executable, *launcher, "-m", f"fastrl.{command}", *arguments, *flags]
        words = [*UNSHARE, "sh", "-c", script, "sh", *program]
        self._log = folder / f"log-{time.monotonic_ns()}"
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "RAY_worker_niceness": "0",  # Ray's 15 starves on busy cores
            "HOME": str(folder),  # whose .ray may hold a token
        }
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
            environment.pop(name, None)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                words, cwd=module or folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

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

    def actors(self, method: str = "") -> list[int]:
        """Processes of collectors, of this run; those that are in a method, such as ``collect_as``."""
        return self.below(r"ray::Ray(Actor|Player)" + (rf"\.{method}\b" if method else ""))

    def below(self, pattern: str) -> list[int]:
        """Processes below this run's whose command begins like that."""
        names = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        lines = [line.split(None, 2) for line in names.splitlines()[1:]]
        parents = {int(pid): int(parent) for pid, parent, _ in lines}

        def ours(pid: int) -> bool:
            while pid in parents and pid != self.process.pid:
                pid = parents[pid]
            return pid == self.process.pid

        return [int(pid) for pid, _, words in lines if re.match(pattern, words) and ours(int(pid))]


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
    killed, _, spare = endless.until(lambda: len(endless.actors()) == 3 and endless.actors())  # in order of their start
    endless.until(lambda: "envpool" in Path(f"/proc/{spare}/maps").read_text())  # it has imported what it needs
    time.sleep(1)
    os.kill(killed, signal.SIGKILL)
    endless.until(lambda: last(endless, "collectors/restarted") == 1)
    assert last(endless, "collectors/lost") == 1
    assert "is gone" in endless.said
    assert killed not in endless.actors()
    endless.until(lambda: spare in endless.actors("collect_as"))  # which has stepped in
    assert re.findall(".*raylet.*", endless.said) == []  # Ray's own lines about dead workers stay out of the panel
    endless.process.send_signal(signal.SIGTERM)
    assert endless.wait() == 128 + signal.SIGTERM
    assert "resume with" in endless.said
    assert any((endless.folder / "checkpoints").iterdir())


def test_a_signal_to_the_whole_process_group_saves_the_run_too(endless):
    endless.until(lambda: len(endless.actors()) == 3)
    words = ["pgrep", "-a", "-g", str(endless.process.pid)]
    group = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(group) == 1, group  # none of Ray's, which would end at once, and the learner with it
    os.killpg(endless.process.pid, signal.SIGTERM)  # as torchrun and `timeout` do
    assert endless.wait() == 128 + signal.SIGTERM
    assert "resume with" in endless.said
    assert endless.actors() == []
    assert any((endless.folder / "checkpoints").iterdir())


def test_a_run_whose_ray_ends_it_says_how_to_go_on(endless):
    [raylet] = endless.below(r"\S*/raylet/raylet ")
    os.kill(raylet, signal.SIGKILL)
    assert endless.wait() == 1
    words = "the run's process was killed, or Ray ended it; if it has a checkpoint, resume with: "
    end = time.monotonic() + 10
    while words not in endless.said:  # another process says it
        assert time.monotonic() < end, endless.said
        time.sleep(0.05)


def test_a_stopped_collector_is_replaced(endless):
    hung = endless.until(lambda: len(endless.actors()) == 3 and endless.actors())[0]
    os.kill(hung, signal.SIGSTOP)
    endless.until(lambda: last(endless, "collectors/restarted") == 1)
    assert "has not answered for 4 seconds; a new one takes its place" in endless.said


def test_two_learners_with_a_collector_each_stop_in_time_and_resume(tmp_path):
    flags = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", "29511"]
    one = [*CATCH, "--collectors", "1", "--torch-threads", "1", "--precision", "float32"]
    job = Training(tmp_path, *one, "--total-frames", "100000000", torchrun=flags)
    job.until(lambda: last(job, "collectors/alive") == 1 and len(job.rows()) >= 2)
    assert len(job.actors()) == 2  # each learner has its own
    began = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    assert job.wait(40) != 0
    assert time.monotonic() - began < 30  # which torchrun grants before it kills
    assert job.said.count("stopped after") == 1, job.said
    assert job.actors() == []
    newest = sorted((job.folder / "checkpoints").glob("0*"))[-1]
    assert (newest / "rank-1" / "replay").exists()
    again = Training(
        tmp_path, "--resume", str(job.folder), "--total-frames", str(int(newest.name) + 1_000), torchrun=flags
    )
    assert again.wait() == 0, again.said
    assert f"resuming after {int(newest.name):,} frames" in again.said
    assert "with its replay" in again.said


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


def test_evaluations_are_the_same_for_any_number_of_collectors_and_whichever_are_killed(tmp_path):
    make_run(tmp_path / "run", "catch")
    (tmp_path / "own.py").write_text(
        "import gymnasium\n\n\ndef make_env():\n    return gymnasium.make('CartPole-v1')\n"
    )
    make_run(tmp_path / "cartpole", "own")
    flags = ["--epsilon", "0.3", "--seed", "5"]
    for name, more in (
        ("run", ["--episodes", "6000"]),
        ("cartpole", ["--episodes", "30", "--make-env", "own:make_env"]),
    ):
        found = []
        for count in ("2", "1"):
            path = tmp_path / f"{name}-{count}.json"
            play = Training(
                tmp_path, name, *flags, *more, "--collectors", count, "--json", str(path), command="evaluate"
            )
            if name == "run" and count == "2":
                killed = play.until(lambda play=play: len(found := play.actors(PLAYS)) == 2 and found)[0]
                os.kill(killed, signal.SIGKILL)
            assert play.wait() == 0, play.said
            if name == "run" and count == "2":
                assert "are played again" in play.said
            assert play.actors() == []
            found.append(json.loads(path.read_text()))
        assert found[0] == found[1]


def test_an_evaluation_whose_players_are_stopped_goes_on_with_others(tmp_path):
    (tmp_path / "own.py").write_text(
        "import time\n\nimport gymnasium\n\n\n"
        "class Slow(gymnasium.Wrapper):\n    def step(self, action):\n        time.sleep(0.03)\n"
        "        return self.env.step(action)\n\n\n"
        "def make_env():\n    return Slow(gymnasium.make('CartPole-v1'))\n"
    )
    make_run(tmp_path / "run", "own")
    flags = ["--episodes", "48", "--collectors", "2", "--collector-timeout", "4", "--json", "scores.json"]
    play = Training(tmp_path, "run", "--make-env", "own:make_env", *flags, command="evaluate")
    hung = play.until(lambda: len(found := play.actors("go_on")) == 2 and found)  # they have said that they play
    for process in hung:
        os.kill(process, signal.SIGSTOP)
    assert play.wait() == 0, play.said
    assert play.said.count("has not got further for 4 seconds; games ") == 2
    assert len(json.loads((tmp_path / "scores.json").read_text())["scores"]) == 48


def test_a_node_without_this_fastrl_is_named_and_not_asked_again(tmp_path):
    (tmp_path / "other.py").write_text(
        "import sys, types\n"
        "from fastrl.distributed import engine\n"
        "missing = sys.modules['missing'] = types.ModuleType('missing')\n"
        "exec('class Player:\\n    def __init__(self, *what): pass\\n    def ready(self): pass', missing.__dict__)\n"
        "missing.Player.__module__ = 'missing'\n"
        "players = engine.RayPlayers(1, None, 'catch')\n"
        "players._class = players._ray.remote(missing.Player).options(max_restarts=-1)\n"
        "players.start(0)\n"
        "ref = players.ready(0)\n"
        "players.wait([ref], 100)\n"
        "try:\n"
        "    players.get(0, ref)\n"
        "finally:\n"
        "    players.close()\n"
    )
    script = f"ip link set lo up && exec {sys.executable} other.py"
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | {"RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    why = "ModuleNotFoundError: No module named 'missing'"
    assert f"ConfigError: collector 0 cannot start on its node ({why}); install fastrl" in done.stderr


def test_a_ray_of_another_version_is_refused_and_goes_on(tmp_path):
    other = "import ray; ray.__version__ = '2.1.0'; from ray.scripts.scripts import main; main()"
    token = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=" + "a1" * 32
    head = f'{token} {sys.executable} -c "{other}" start --head --port=6379 {HEAD} >head 2>&1'
    done = beside(tmp_path, head, token, "train", *CATCH, "--ray-address", "127.0.0.1:6379")
    assert done.returncode == 2, done.stdout + done.stderr
    [line] = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "--ray-address is '127.0.0.1:6379', and the cluster runs Ray 2.1.0" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_ray_that_was_running_is_joined_and_goes_on_and_its_token_is_in_one_file_readable_by_its_user(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    token = f"HOME={home} RAY_AUTH_MODE=token"
    ray = Path(sys.executable).with_name("ray")
    generate = f"umask 077; {token} {ray} get-auth-token --generate >token 2>/dev/null"
    head = f"{generate} && {token} {ray} start --head {HEAD} >head 2>&1"
    make_run(tmp_path / "catch", "catch")
    after = (
        f"{token} {ray} status >joined 2>&1; {token} {sys.executable} -m fastrl.evaluate catch --episodes 20 "
        "--collectors 2 --ray-address 127.0.0.1:6379 --json scores.json >evaluated 2>&1; "
        "cp -rL /tmp/ray/session_latest/logs logs"
    )
    done = beside(
        tmp_path, head, token, "train", *CATCH, "--total-frames", "2000", "--ray-address", "auto", after=after
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2.0 CPU" in (tmp_path / "joined").read_text()  # it still runs once the training has left
    assert len(json.loads((tmp_path / "scores.json").read_text())["scores"]) == 20, (tmp_path / "evaluated").read_text()
    secret = (tmp_path / "token").read_text().strip()
    assert len(secret) >= 32
    holds = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert sorted(holds) == [home / ".ray" / "auth_token", tmp_path / "token"]  # neither the run nor a log of Ray's
    assert stat.S_IMODE((home / ".ray" / "auth_token").stat().st_mode) == 0o600
    assert secret not in done.stdout + done.stderr


HEAD = "--num-cpus=2 --include-dashboard=false --disable-usage-stats"


def beside(folder, head, token, command, *arguments, after="true"):
    """Run a command beside a Ray that was started before, in a namespace where both end."""
    ray = Path(sys.executable).with_name("ray")
    run = [sys.executable, "-m", f"fastrl.{command}", *arguments, "--runs-dir", str(folder), "--name", "run"]
    stop = f"{token} {ray} stop --force >/dev/null 2>&1"
    script = f'ip link set lo up && {head} && {token} "$@"; status=$?; {after}; {stop}; exit $status'
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    return subprocess.run(
        [*UNSHARE, "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh", *run],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
