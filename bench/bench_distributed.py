"""Collectors on Ray: rows taken in from synthetic collectors, CPU per step, a killed collector, samples per step.

Ray listens on all interfaces, so each measurement runs in a network namespace with nothing but its loopback.

pytest bench/bench_distributed.py
python bench/bench_distributed.py ingest 64 20       one by hand, in this namespace: collectors, seconds
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("ray", reason="Ray is not installed: the extra 'distributed' brings it")

from fastrl.base.stop import Stop
from fastrl.config import PRESETS, DQNConfig, preset_for, with_agent
from fastrl.distributed.chunk import Chunk, pack
from fastrl.distributed.collectors import Collectors, Request
from fastrl.distributed.engine import RayEngine
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.collector import Collector, build_group
from fastrl.dqn.policy import Policy
from fastrl.dqn.run import Run
from fastrl.replay import PrioritizedReplayBuffer

UNSHARE = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
PROCESSES = 2
"""That play the parts of all synthetic collectors."""
FRAMES_PER_STEP = 4
WINDOW_STEPS = 10_000


def in_namespace(*words: object) -> dict[str, float]:
    """Run a measurement of this file in a namespace of its own; return its figures."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("a network namespace needs unshare and ip")
    script = 'ip link set lo up && exec "$@"'
    command = [*UNSHARE, "sh", "-c", script, "sh", sys.executable, __file__, *map(str, words)]
    if subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user cannot make a network namespace")
    environment = os.environ | {"RAY_worker_niceness": "0", "FASTRL_TUNE": "off"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=900, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measured(benchmark: Any, *words: object) -> dict[str, float]:
    figures: dict[str, float] = benchmark.pedantic(in_namespace, args=words, rounds=1)
    benchmark.extra_info.update(figures)
    return figures


@pytest.mark.parametrize("collectors", [1, 8, 64, 256])
@pytest.mark.benchmark(group="distributed: rows from synthetic collectors into the replay")
def bench_ingest(benchmark, collectors):
    if benchmark.disabled and collectors != 8:
        pytest.skip("one size is enough where nothing is measured")
    figures = measured(benchmark, "ingest", collectors, 15 if benchmark.enabled else 0.5)
    assert figures["frames"] > 0


@pytest.mark.parametrize("collectors", [0, 1])
@pytest.mark.benchmark(group="distributed: CPU seconds of all processes per agent step of Breakout")
def bench_cpu_per_step(benchmark, collectors):
    if benchmark.disabled:
        pytest.skip("a ratio that is not measured says nothing")
    measured(benchmark, "cpu", collectors, 16_000)


@pytest.mark.benchmark(group="distributed: Catch with two collectors, one of them killed")
def bench_catch(benchmark):
    figures = measured(benchmark, "catch", 60_000 if benchmark.enabled else 3_000)
    assert figures["seconds_until_back"] > 0


# --- measurements, each in a process of its own -------------------------------------------------------


class SyntheticCollectors:
    """Answers for many collectors with one chunk of Breakout that was played before, under other numbers."""

    def __init__(self, config: DQNConfig) -> None:
        group = build_group(config.replace(collectors=0, env_threads=1), seed=0)
        played, collector = [], Collector([group])
        policy = Random(None, group.envs.num_actions, np.random.default_rng(0))  # type: ignore[arg-type]
        collector.start(policy)
        for _ in range(config.chunk_steps):
            collector.send(policy)
            played.append(collector.recv())
        collector.close()
        self._chunk = pack(played, number=0, born=0, seq=0, version=0)
        self._seq: dict[int, int] = {}

    def open_games(self) -> dict[str, Any]:
        return {}

    def collect(self, number: int) -> Chunk:
        self._seq[number] = self._seq.get(number, 0) + 1
        return dataclasses.replace(self._chunk, number=number, born=1 + number, seq=self._seq[number])

    def close(self) -> None:
        pass


class Random(Policy):
    """Acts at random, as before the first update."""

    version = 0


class SyntheticEngine(RayEngine):
    """A few processes that answer for all collectors."""

    def __init__(self, config: DQNConfig) -> None:
        super().__init__(config.replace(collectors=PROCESSES), 0, 84 * 84)
        kind = self._ray.remote(SyntheticCollectors).options(num_cpus=0)
        self._processes = [kind.remote(config) for _ in range(PROCESSES)]

    def start(self, number: int, *, again: bool = False) -> None:
        self._actors[number] = self._processes[number % PROCESSES]

    def collect(self, number: int, request: Request, weights: Any) -> Any:
        return self._actors[number].collect.remote(number)


class NoEnvs:
    def close(self) -> None:
        pass


def ingest(collectors: int, seconds: float) -> dict[str, float]:
    """Take rows in for some seconds; return frames per second of wall-clock and of this process's CPU time."""
    config = with_agent(PRESETS["cpu"].config, "dueling").replace(
        game="breakout", collectors=collectors, num_envs=64, dephase_steps=0
    )
    games = config.all_envs
    buffer = PrioritizedReplayBuffer(
        capacity=max(100_000, 12 * games), num_envs=games, obs_shape=(84, 84), stack=4, n_step=3, gamma=0.99, seed=0
    )
    source = Collectors(config, SyntheticEngine(config), NoEnvs(), {})  # type: ignore[arg-type]
    policy = Random(None, 4, np.random.default_rng(0))  # type: ignore[arg-type]
    source.start(policy)

    def take(until: float) -> int:
        rows = 0
        while time.perf_counter() < until:
            source.send(policy)
            found = source.recv()
            buffer.add(found.frame, found.action, found.reward, found.terminated, found.truncated, found.first,
                       found.final, found.env_id)  # fmt: skip
            rows += len(found.action)
        return rows

    take(time.perf_counter() + seconds / 4)
    began, cpu = time.perf_counter(), time.process_time()
    frames = FRAMES_PER_STEP * take(began + seconds)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    source.close()
    return {
        "frames": frames,
        "frames_per_second": frames / wall,
        "frames_per_cpu_second": frames / cpu,
        "cores_at_100_000_frames_per_second": 100_000 / (frames / cpu),
        "microseconds_per_row": cpu / frames * FRAMES_PER_STEP * 1e6,
    }


def cpu_seconds() -> np.ndarray[Any, Any]:
    """Return CPU seconds so far of this process and its living descendants: [of all; of Ray's services among them]."""
    ticks, parents, services = {}, {}, set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            words = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
        if pid != os.getpid() and not words.startswith(b"ray::RayActor"):
            services.add(pid)
    ours = [pid for pid in ticks if descends(pid, os.getpid(), parents)]
    spent = [sum(ticks[pid] for pid in ours), sum(ticks[pid] for pid in ours if pid in services)]
    return np.array(spent) / os.sysconf("SC_CLK_TCK")


def descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != root:
        pid = parents[pid]
    return pid == root


def cpu(collectors: int, steps: int) -> dict[str, float]:
    """Return the CPU seconds of all processes per agent step of Breakout, learning included."""
    with tempfile.TemporaryDirectory() as folder:
        config = with_agent(preset_for("breakout", "cpu").config, "dueling").replace(
            dephase_steps=0, runs_dir=folder, collectors=collectors, num_envs=32, env_groups=1, learn_start_steps=2_000,
            capacity=50_000, compile=False, torch_threads=1, env_threads=1, checkpoint_replay=False,
        )  # fmt: skip
        run = Run(config, [], Stop(), resume=None, quiet=True)
        try:
            with run.reporter:
                run.start()
                while run.learner.updates < 50:
                    run.step()
                before, spent, learned = run.steps, cpu_seconds(), run.learner.updates
                while run.steps < before + steps:
                    run.step()
                spent, played = cpu_seconds() - spent, run.steps - before
                samples = (run.learner.updates - learned) * config.batch_size
        finally:
            run.close()
    of_all, of_services = spent / played * 1e6
    return {
        "cpu_microseconds_per_step": of_all,
        "of_which_rays_services": of_services,
        "samples_per_step": samples / played,
    }


class Counts(Callback):
    """Agent steps and samples after each vector step; kills a collector once."""

    def __init__(self, kill_at: int) -> None:
        self.counts: list[tuple[int, int]] = []
        self._kill_at, self.back = kill_at, 0.0
        self._killed = 0.0

    def on_step(self, run: Any, actions: Any) -> None:
        self.counts.append((run.steps, run.learner.updates * run.config.batch_size))
        if not self._killed and run.steps >= self._kill_at:
            self._killed = time.perf_counter()
            os.kill(collectors_of(os.getpid())[0], signal.SIGKILL)
        if self._killed and not self.back and run.collector.restarted:
            self.back = time.perf_counter() - self._killed


def collectors_of(driver: int) -> list[int]:
    """Return the processes of collectors on this machine that began after a driver and belong to its Ray."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in listed.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, _ in lines}

    found = [int(pid) for pid, _, words in lines if words.startswith("ray::RayActor")]
    return [pid for pid in found if descends(pid, driver, parents)]


def catch(steps: int) -> dict[str, float]:
    """Play Catch with two collectors, kill one in the middle; return when it was back, and samples per step."""
    with tempfile.TemporaryDirectory() as folder:
        config = PRESETS["catch"].config.replace(
            collectors=2, runs_dir=folder, total_frames=10**9, compile=False, films=False, device="cpu",
            evaluate_every_frames=10**9, checkpoint_replay=False,
        )  # fmt: skip
        counts = Counts(kill_at=steps // 2)
        run = Run(config, [counts], Stop(), resume=None, quiet=True)
        try:
            with run.reporter:
                run.start()
                while run.steps < steps or not counts.back:
                    run.step()
        finally:
            run.close()
        step, samples = np.array(counts.counts).T
        began = int(np.flatnonzero(samples)[0])
        step, samples = step[began:], samples[began:]
        ends = np.searchsorted(step, step + WINDOW_STEPS)
        starts = np.flatnonzero(ends < len(step))
        ends = ends[starts]
        rates = (samples[ends] - samples[starts]) / (step[ends] - step[starts])
        off = np.abs(rates / config.samples_per_step - 1).max() if len(starts) else 0.0
    return {"seconds_until_back": counts.back, "windows": len(starts), "most_off_in_a_window": float(off)}


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    measure: Any = {"ingest": ingest, "cpu": cpu, "catch": catch}[name]
    print(json.dumps(measure(*(json.loads(word) for word in arguments))))
