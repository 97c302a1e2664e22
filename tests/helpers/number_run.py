"""A small run on games that can be saved, in this process or in one to be killed."""

from __future__ import annotations

import csv
import functools
import hashlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from number_games import NumberGames

from fastrl.config import PRESETS, DQNConfig
from fastrl.dqn import collector
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.learner import Learner
from fastrl.dqn.run import experiment
from fastrl.envs.frames import listed

# Nothing falls on the same step by design: clocks that are no multiples of each other.
CONFIG = PRESETS["catch"].config.replace(
    compile=False, device="cpu", total_frames=2_000, num_envs=8, batch_size=32, learn_start_steps=200, hidden=16,
    log_every_frames=130, evaluate_every_frames=700, evaluate_episodes=2, final_episodes=2, n_step=3, n_step_end=1,
    n_step_steps=900, learning_rate_end=5e-4, learning_rate_steps=900, target_period_updates=17, stack=2,
    checkpoint_every_frames=1_000,
)  # fmt: skip


class Witness(Callback):
    """Writes down what is learned, and may end the process or ask it to stop."""

    def __init__(self, path: Path, *, at: int = -1, number: int = signal.SIGKILL) -> None:
        self.path, self.at, self.number = path, at, number

    def on_update(self, run, batch):
        seen = hashlib.sha256()
        for name in ("obs", "action", "reward", "next_obs", "discount", "weight", "index"):
            for array in listed(getattr(batch, name)):
                seen.update(np.ascontiguousarray(array).tobytes())
        with self.path.open("a") as file:
            file.write(f"{run.learner.updates} {seen.hexdigest()}\n")

    def on_step(self, run, actions):
        if 0 <= self.at <= run.frames:
            self.at = -1
            os.kill(os.getpid(), self.number)


def play(
    folder: str | os.PathLike[str],
    *,
    config: DQNConfig = CONFIG,
    resume: bool = False,
    at: int = -1,
    number: int = signal.SIGKILL,
    fault: Any = None,
    hooks: Any = (),
    delayed: bool = False,
    quiet: bool = True,
) -> experiment.Run:
    """Train in a folder, on games in NumPy."""
    folder = Path(folder)
    config = config.replace(runs_dir=str(folder.parent), name=folder.name)
    witness = Witness(folder.with_name(folder.name + ".batches"), at=at, number=number)
    with (
        patch.object(collector, "build_envs", lambda config, seed: NumberGames(config.group_size, seed, fault)),
        patch.object(experiment, "Learner", functools.partial(Learner, delayed=True) if delayed else Learner),
    ):
        return experiment.train(config, [witness, *hooks], resume=folder if resume else None, quiet=quiet)


def batches(folder: str | os.PathLike[str]) -> dict[int, str]:
    """Return what each update learned; what was learned twice counts as it was the last time."""
    folder = Path(folder)
    lines = folder.with_name(folder.name + ".batches").read_text().splitlines()
    return {int(number): seen for number, seen in map(str.split, lines)}


def rows(folder: Path) -> list[dict[str, str]]:
    """Read metrics.csv without its time columns."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def events(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return TensorBoard's scalars by tag, and the steps of everything else, but for what depends on the clock."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = {"scalars": 0, "histograms": 0, "images": 0}
    read = EventAccumulator(str(folder), size_guidance=kinds).Reload()
    found = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    found |= {tag: [(e.step, e.histogram_value) for e in read.Histograms(tag)] for tag in read.Tags()["histograms"]}
    found |= {tag: [(e.step, e.encoded_image_string) for e in read.Images(tag)] for tag in read.Tags()["images"]}
    return {tag: values for tag, values in found.items() if not tag.startswith("time/")}


def in_a_process(folder: Path, *, config: dict[str, Any], **options: Any) -> Any:
    """Start a run in a process of its own, forked from one that has loaded all, and return that."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["number_run"])
    process = context.Process(target=play, args=(folder,), kwargs={"config": CONFIG.replace(**config), **options})
    process.start()
    return process
