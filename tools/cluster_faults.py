"""What breaks in a cluster, made to break: two nodes in network namespaces, Catch trained on their collectors.

python tools/cluster_faults.py                     all of it, and an hour of random kills
python tools/cluster_faults.py --minutes 2         the same, with two minutes of them
python tools/cluster_faults.py --only kill hang

Each node is a network namespace with a `ray start` in it, the learner runs on the first, and one cable connects them.
Nothing leaves these namespaces, and all their processes end with the script. Needs root, `unshare` and `ip`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HEAD, ADDRESSES = "10.77.0.1:6379", {"a": "10.77.0.1", "b": "10.77.0.2"}
COLLECTORS = 4
TIMEOUT_SECONDS = 10
PATIENCE_SECONDS = 240
RUN = [
    "catch", "--collectors", str(COLLECTORS), "--collector-timeout", str(TIMEOUT_SECONDS), "--ray-address", HEAD,
    "--no-compile", "--no-films", "--device", "cpu", "--total-frames", "1000000000", "--evaluate-every-frames",
    "1000000000", "--checkpoint-every-minutes", "0.2",
]  # fmt: skip


class FailedError(Exception):
    """A fault was not survived as it should be."""


class Cluster:
    """Two namespaces with a cable, a Ray in each, and a run of Catch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.run: subprocess.Popen[bytes] | None = None
        os.environ |= {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "FASTRL_TUNE": "off",
        }  # fmt: skip
        Path("/tmp/ray").mkdir(exist_ok=True)
        for path in ("/run", "/tmp/ray"):
            call("mount", "-t", "tmpfs", "tmpfs", path)
        for name in ADDRESSES:
            call("ip", "netns", "add", name)
        call("ip", "link", "add", "cable", "netns", "a", "type", "veth", "peer", "name", "cable", "netns", "b")
        for name, address in ADDRESSES.items():
            other = next(other for other in ADDRESSES.values() if other != address)
            inside = ["ip", "-n", name]
            call(*inside, "link", "set", "lo", "up")
            call(*inside, "addr", "add", f"{address}/24", "dev", "cable")
            call(*inside, "link", "set", "cable", "up")
            call(*inside, "route", "add", "default", "via", other)  # by which Ray finds its own address
        for name in ADDRESSES:
            self.start_node(name)

    def start_node(self, name: str) -> None:
        """Start Ray in a namespace, the head in the first; the second has a folder /tmp/ray of its own."""
        where = ["--head", "--port=6379", "--include-dashboard=false"] if name == "a" else [f"--address={HEAD}"]
        ray = Path(sys.executable).with_name("ray")
        start = [str(ray), "start", *where, f"--node-ip-address={ADDRESSES[name]}", "--num-cpus=2", "--block",
                 "--disable-usage-stats", f"--object-store-memory={256 << 20}"]  # fmt: skip
        script = 'mount -t tmpfs tmpfs /tmp/ray && exec "$@"' if name == "b" else 'exec "$@"'
        self.nodes[name] = self.inside(name, f"node-{name}", "sh", "-c", script, "sh", *start)
        if name == "a":
            probe = "import socket; socket.create_connection(('10.77.0.1', 6379), 1)"
            self.until(
                lambda: subprocess.run(["ip", "netns", "exec", "a", sys.executable, "-c", probe],
                                       capture_output=True).returncode == 0, "the head", run=False,
            )  # fmt: skip
            time.sleep(5)

    def stop_node(self, name: str) -> None:
        """Kill all processes of a node at once, as when its power fails."""
        kill_tree(self.nodes.pop(name).pid)

    def train(self, *arguments: str) -> None:
        """Start the run, or another one of the same folder, and wait until all collectors play."""
        flags = arguments or ("--runs-dir", str(self.folder), "--name", "run")
        kept = RUN[1:] if arguments else RUN
        self.run = self.inside("a", "train", sys.executable, "-m", "fastrl.train", *kept, *flags)
        seen = len(self.rows())
        self.until(lambda: len(self.rows()) > seen and self.last("collectors/alive") == COLLECTORS, "all collectors")

    def inside(self, name: str, log: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{log}.log").open("ab") as file:
            return subprocess.Popen(["ip", "netns", "exec", name, *words], stdout=file, stderr=subprocess.STDOUT)

    def rows(self) -> list[dict[str, str]]:
        path = self.folder / "run" / "metrics.csv"
        return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []

    def last(self, key: str) -> float:
        found = [row[key] for row in self.rows() if row.get(key)]
        return float(found[-1]) if found else 0.0

    def collectors(self, node: str | None = None) -> list[int]:
        """Processes of collectors, of one node or of both."""
        parents, words = processes()
        roots = [process.pid for name, process in self.nodes.items() if node in (None, name)]
        return [pid for pid, what in words.items() if what.startswith("ray::RayActor")
                and any(descends(pid, root, parents) for root in roots)]  # fmt: skip

    def until(
        self, what: Callable[[], object], name: str, seconds: float = PATIENCE_SECONDS, *, run: bool = True
    ) -> float:
        """Wait until something holds; return the seconds that it took."""
        began = time.monotonic()
        while not what():
            if time.monotonic() - began > seconds:
                raise FailedError(f"{name}: not within {seconds:g} seconds")
            if run and self.run is not None and self.run.poll() is not None:
                raise FailedError(f"{name}: the run ended with {self.run.returncode}:\n" + "\n".join(self.said()[-30:]))
            time.sleep(0.2)
        return time.monotonic() - began

    def said(self) -> list[str]:
        return (self.folder / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()

    def advances(self, seconds: float = PATIENCE_SECONDS) -> float:
        """Wait until the run has played more frames than now; return the seconds."""
        before = self.last("frames")
        return self.until(lambda: self.last("frames") > before, "frames", seconds)

    def all_play(self, restarted: float) -> float:
        """Wait until all collectors play again, and so many were started anew since the learner began."""
        return self.until(
            lambda: self.last("collectors/restarted") >= restarted and self.last("collectors/alive") == COLLECTORS,
            "all collectors again",
        )


# --- faults: each returns what to write into a table --------------------------------------------------


def kill(cluster: Cluster) -> str:
    before = cluster.last("collectors/restarted")
    os.kill(cluster.collectors()[0], signal.SIGKILL)
    return f"all play after {cluster.all_play(before + 1):.0f} s"


def hang(cluster: Cluster) -> str:
    before = cluster.last("collectors/restarted")
    os.kill(cluster.collectors()[0], signal.SIGSTOP)
    return f"timeout {TIMEOUT_SECONDS} s; all play after {cluster.all_play(before + 1):.0f} s"


def slow(cluster: Cluster) -> str:
    victim = cluster.collectors("b")[0]
    lost, end = cluster.last("collectors/lost"), time.monotonic() + 30
    while time.monotonic() < end:
        for number, seconds in ((signal.SIGSTOP, 0.9), (signal.SIGCONT, 0.1)):
            os.kill(victim, number)
            time.sleep(seconds)
    rates = [cluster.last(f"time/collectors_rows_per_second_{which}") for which in ("least", "median", "most")]
    if cluster.last("collectors/lost") != lost:
        raise FailedError("a slow collector was taken for a lost one")
    return "rows/s {:,.0f} least, {:,.0f} median, {:,.0f} most; none replaced".format(*rates)


def partition(seconds: float) -> Callable[[Cluster], str]:
    def cut(cluster: Cluster) -> str:
        lost, restarted = cluster.last("collectors/lost"), cluster.last("collectors/restarted")
        call("ip", "-n", "b", "link", "set", "cable", "down")
        try:
            goes_on = cluster.advances(seconds + PATIENCE_SECONDS)
            time.sleep(max(seconds - goes_on, 0))
        finally:
            call("ip", "-n", "b", "link", "set", "cable", "up")
            call("ip", "-n", "b", "route", "replace", "default", "via", ADDRESSES["a"])
        if cluster.nodes["b"].poll() is None and seconds < 30:
            back = cluster.until(lambda: cluster.last("collectors/alive") == COLLECTORS, "the far collectors")
            again = "the node stayed"
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                cluster.nodes["b"].wait(60)
            cluster.stop_node("b")
            cluster.start_node("b")
            back, again = cluster.all_play(restarted + 1), "the node was started again"
        now = cluster.last("collectors/lost") - lost
        return f"the near ones play on ({goes_on:.0f} s); all play {back:.0f} s after; {now:.0f} lost; {again}"

    return cut


def node_leaves(cluster: Cluster) -> str:
    before = cluster.last("collectors/restarted")
    cluster.stop_node("b")
    goes_on = cluster.advances()
    cluster.start_node("b")
    back = cluster.all_play(before + 1)
    return f"the run goes on (next line after {goes_on:.0f} s); all play {back:.0f} s after the node is back"


def learner(cluster: Cluster) -> str:
    cluster.until(lambda: any((cluster.folder / "run" / "checkpoints").iterdir()), "a checkpoint")
    frames = cluster.last("frames")
    assert cluster.run is not None
    kill_tree(cluster.run.pid)
    cluster.run.wait()
    cluster.run = None
    gone = cluster.until(lambda: not cluster.collectors(), "the end of its collectors")
    began = time.monotonic()
    cluster.train("--resume", str(cluster.folder / "run"))
    if cluster.last("frames") <= 0:
        raise FailedError("nothing was resumed")
    back = time.monotonic() - began
    return f"killed at {frames:,.0f} frames; collectors gone after {gone:.1f} s; resumed, all play after {back:.0f} s"


def random_kills(minutes: float) -> Callable[[Cluster], str]:
    def kills(cluster: Cluster) -> str:
        rng, end, count = random.Random(0), time.monotonic() + 60 * minutes, 0
        frames = cluster.last("frames")
        while time.monotonic() < end:
            if victims := cluster.collectors():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(victims), rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]))
                    count += 1
            time.sleep(rng.uniform(2, 20))
        back = cluster.until(lambda: cluster.last("collectors/alive") == COLLECTORS, "all collectors")
        cluster.advances()
        played = cluster.last("frames") - frames
        return f"{minutes:g} minutes, {count} faults, {played:,.0f} frames; all play {back:.0f} s after"

    return kills


def head(cluster: Cluster) -> str:
    run = cluster.run
    assert run is not None
    cluster.stop_node("a")
    began = time.monotonic()
    while run.poll() is None and time.monotonic() - began < PATIENCE_SECONDS:
        time.sleep(0.5)
    if run.poll() is None:
        kill_tree(run.pid)
        ended = f"the run waited in vain for {PATIENCE_SECONDS} s and was killed"
    else:
        ended = f"the run ended with status {run.returncode} after {time.monotonic() - began:.0f} s"
    cluster.run = None
    if "b" in cluster.nodes:
        cluster.stop_node("b")
    for name in ADDRESSES:
        cluster.start_node(name)
    cluster.train("--resume", str(cluster.folder / "run"))
    return f"{ended}; a new head, --resume: all play"


def faults(minutes: float) -> dict[str, Callable[[Cluster], str]]:
    return {
        "kill": kill, "hang": hang, "slow": slow, "partition-8": partition(8), "partition-60": partition(60),
        "node": node_leaves, "learner": learner, "random": random_kills(minutes), "head": head,
    }  # fmt: skip


# --- processes ----------------------------------------------------------------------------------------


def call(*words: str) -> None:
    subprocess.run(words, check=True)


def processes() -> tuple[dict[int, int], dict[int, str]]:
    """Return the parents and the command lines of all processes of this namespace."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return {int(pid): int(parent) for pid, parent, _ in lines}, {int(pid): words for pid, _, words in lines}


def descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != root:
        pid = parents[pid]
    return pid == root


def kill_tree(root: int) -> None:
    """Kill a process and all that descend from it."""
    parents, _ = processes()
    for pid in parents:
        if descends(pid, root, parents):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def main(arguments: Sequence[str]) -> int:
    """Run the faults and print a table; return 1 if one was not survived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    names = list(faults(0))
    parser.add_argument("--minutes", type=float, default=60, help="of random kills (60)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="FAULT", help=", ".join(names))
    flags = parser.parse_args(arguments)
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "mount"))):
        print("skipped: network namespaces with a cable need root, and unshare, ip and mount")
        return 0
    own = ["unshare", "-n", "-m", "--pid", "--fork", "--mount-proc"]
    if "FASTRL_IN_NAMESPACE" not in os.environ:
        if subprocess.run([*own, "true"], check=False, capture_output=True).returncode:
            print("skipped: no network namespace can be made here")
            return 0
        os.environ["FASTRL_IN_NAMESPACE"] = "1"
        os.execvp(own[0], [*own, sys.executable, __file__, *arguments])
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder))
        cluster.train()
        print("| fault | what happened |\n| --- | --- |", flush=True)
        for name in flags.only:
            try:
                words = faults(flags.minutes)[name](cluster)
            except FailedError as error:
                words, failed = f"FAILED: {error}", 1
            print(f"| {name} | {words} |", flush=True)
        if failed:
            print(*cluster.said()[-20:], sep="\n")
        for process in [*cluster.nodes.values(), *([cluster.run] if cluster.run else [])]:
            kill_tree(process.pid)
            process.wait()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
