"""Faults at random moments: runs that are killed, stopped and damaged again and again, and what must hold after each.

A run that was killed and stopped any number of times ends as the one that was not, to the bit. One whose files were
damaged, or whose disk was full, goes on from what is whole. Beside them one run is left alone from beginning to end and
saves all the time: its memory, threads and open files must not grow. `tests/helpers/soak.sh` runs this for an hour.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from number_run import CONFIG, events, in_a_process, play, rows

from fastrl.dqn import checkpoint
from fastrl.runs.folder import RunFolder

# Checkpoints so often that a good part of all moments lies within one.
OFTEN = {"checkpoint_every_frames": 60, "total_frames": 3_000, "evaluate_every_frames": 1_100}
KILLS = 50  # of one run
# A ring that is full after a moment, so that nothing but a leak can grow.
STEADY = {
    "total_frames": 1_000_000_000, "capacity": 2_000, "checkpoint_every_frames": 1_000, "log_every_frames": 5_000,
    "evaluate_every_frames": 10_000,
}  # fmt: skip
SETTLED = 30_000  # frames, after which even an evaluation finds its memory there


class Steady:
    """A run that is left alone, and what it takes of the machine."""

    def __init__(self, folder: Path) -> None:
        self.path, self.process = folder / "steady", in_a_process(folder / "steady", config=STEADY)
        self.first: tuple[float, int, int] | None = None

    def measured(self) -> tuple[float, int, int]:
        """Return its resident memory in MB, its threads and its open files."""
        proc = Path("/proc") / str(self.process.pid)
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(list((proc / "fd").iterdir()))

    def look(self) -> str:
        """Return words on it; AssertionError if it ended, or takes more than a save under way could explain."""
        assert self.process.is_alive(), "the run that is left alone ended"
        now, frames = self.measured(), max((int(path.name) for path in RunFolder(self.path).numbered()), default=0)
        words = "{:.0f} MB, {} threads, {} open files".format(*now)
        if frames >= SETTLED:
            self.first = self.first or now
            grown = [now[0] > 1.25 * self.first[0], now[1] > self.first[1] + 4, now[2] > self.first[2] + 8]
            assert not any(grown), f"what a run takes has grown: {words}; before {self.first}"
        return f"left alone, {frames:,} frames: {words}"

    def end(self) -> None:
        """Stop it; its newest checkpoint must be whole."""
        os.kill(self.process.pid, signal.SIGTERM)
        self.process.join(120)
        assert not self.process.is_alive(), "a signal was not heard"
        assert RunFolder(self.path).newest_whole()[1] == []


class Soak:
    """Faults drawn by one generator, and how often each was survived."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.survived = folder, np.random.default_rng(seed), Counter()
        self.whole = play(folder / "whole", config=CONFIG.replace(**OFTEN))

    def start(self, path: Path, **options: Any) -> Any:
        resume = bool(RunFolder(path).numbered()) or bool(list((path / "checkpoints").glob(".*.old")))
        if not resume:
            shutil.rmtree(path, ignore_errors=True)
        return in_a_process(path, config=OFTEN, resume=resume, **options)

    def wait(self, process: Any) -> None:
        """Wait a moment, of any length from none to the time of a few checkpoints."""
        process.join(self.rng.random() ** 2 * 3)

    def ended(self, path: Path) -> bool:
        """Whether a run is over; its newest checkpoint must be whole in any case."""
        RunFolder(path).recover()
        if not RunFolder(path).numbered():
            return False
        found, words = RunFolder(path).newest_whole()
        assert not words, words
        return (
            int(found.name) >= OFTEN["total_frames"]
            and checkpoint.load_state(found)["callbacks"]["evaluation"]["best"] is not None
        )

    def kill(self, path: Path) -> None:
        """SIGKILL at any moment."""
        process = self.start(path)
        self.wait(process)
        process.kill()
        process.join()
        self.survived["SIGKILL"] += 1

    def stop(self, path: Path) -> None:
        """One signal, sometimes two, from the beginning of the process on."""
        process = self.start(path)
        number = int(self.rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
        twice = self.rng.random() < 0.3
        self.wait(process)
        for _ in range(1 + twice):
            if process.is_alive():
                os.kill(process.pid, number)
                time.sleep(0.6 * twice)
        process.join(120)
        assert not process.is_alive(), "a signal was not heard"
        self.survived[f"{signal.Signals(number).name}{' twice' if twice else ''}"] += 1

    def intrude(self, path: Path) -> None:
        """A second run in the folder of one that runs."""
        first = self.start(path)
        self.wait(first)
        if first.is_alive() and RunFolder(path).numbered() and (path / "lock").exists():
            second = in_a_process(path, config=OFTEN, resume=True)
            second.join(120)
            assert second.exitcode != 0 or not first.is_alive(), "two runs in one folder"
            self.survived["second run refused"] += 1
        first.kill()
        first.join()

    def exactly(self) -> None:
        """Kill, stop and intrude; the run that comes of it is the whole one."""
        path = self.folder / "cut"
        shutil.rmtree(path, ignore_errors=True)
        for _ in range(KILLS):
            [self.kill, self.kill, self.stop, self.intrude][self.rng.integers(4)](path)
            if self.ended(path):
                break
        finished = self.start(path)
        finished.join(600)
        assert finished.exitcode == 0, finished.exitcode
        assert rows(path) == rows(self.whole.folder), "other metrics"
        assert events(path) == events(self.whole.folder), "other events"
        one, other = (
            checkpoint.load_weights(RunFolder(p).find() / "weights.safetensors")[0] for p in (path, self.whole.folder)
        )
        assert all(one[name].equal(other[name]) for name in one), "other weights"
        self.survived["equal to the bit in the end"] += 1

    def harm(self) -> None:
        """Flip a bit of the newest checkpoint, or cut one of its files."""
        path = self.folder / "harmed"
        shutil.rmtree(path, ignore_errors=True)
        play(path, config=CONFIG.replace(**OFTEN | {"total_frames": 400}))
        newest = RunFolder(path).find()
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        file = files[self.rng.integers(len(files))]
        content = bytearray(file.read_bytes())
        where = int(self.rng.integers(len(content)))
        if self.rng.random() < 0.5:
            content = content[:where]
        else:
            content[where] ^= 1 << int(self.rng.integers(8))
        file.write_bytes(content)
        ended = play(path, config=CONFIG.replace(**OFTEN | {"total_frames": 800}), resume=True)
        assert ended.frames >= 800
        self.survived[f"damaged {file.name}"] += 1

    def fill(self) -> None:
        """A disk that is full at some moment, and then is not."""
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=False).returncode:
            self.survived["full disk: no file system can be mounted here"] += 1
            return
        try:
            process = self.start(disk / "run")
            self.wait(process)
            subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'filler'}"], check=False, stderr=subprocess.DEVNULL)
            process.join(120)
            assert not process.is_alive(), "a run hangs on a full disk"
            (disk / "filler").unlink()
            for _ in range(2):  # where there was room for a checkpoint without its replay, that goes on too
                again = self.start(disk / "run")
                again.join(600)
            assert self.ended(disk / "run")
            self.survived["full disk"] += 1
        finally:
            subprocess.run(["umount", disk], check=True)


def main(minutes: float, seed: int) -> int:
    """Draw faults until the time is up; return the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    started = time.monotonic()
    soak, steady = Soak(folder, seed), Steady(folder)
    try:
        while time.monotonic() - started < minutes * 60:
            for round_of in (soak.exactly, soak.harm, soak.fill):
                round_of()
                print(f"{(time.monotonic() - started) / 60:.1f} min, seed {seed}: {steady.look()}", flush=True)
            print(", ".join(f"{count} x {fault}" for fault, count in sorted(soak.survived.items())), flush=True)
        steady.end()
    finally:
        steady.process.kill()
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2])))
