"""Runs with several learners, started as torchrun does, but from a process that has loaded all: they begin at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch._dynamo  # as what follows: what a run imports late
import torch.utils.tensorboard
from number_games import NumberGames
from number_run import CONFIG, Witness
from torch.distributed import TCPStore

from fastrl.dqn import collector
from fastrl.dqn.run import experiment
from fastrl.runs import panel

LATE = (torch._dynamo, torch.utils.tensorboard, panel)
CONFIG = CONFIG.replace(
    precision="float32", torch_threads=1, kernels="torch", films=False, total_frames=1_200, learn_start_steps=120,
    checkpoint_every_frames=600, n_step_steps=500, learning_rate_steps=500,
)  # fmt: skip


class Job:
    """What torchrun's agent does on a machine: it keeps the store, and starts all processes.

    Parameters
    ----------
    count : int
        Processes.
    """

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes: list[Any] = []

    def start(self, function: Any, *args: Any, **options: Any) -> None:
        """Start ``function(rank, *args, **options)`` in all processes."""
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rank_run"])
        environments = [self._environment(rank) for rank in range(self.count)]
        self.processes = [
            context.Process(target=_child, args=(environment, function, rank, args, options), daemon=True)
            for rank, environment in enumerate(environments)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 180) -> list[int]:
        """Wait for all processes and return their exit statuses."""
        for process in self.processes:
            process.join(seconds)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def run(self, function: Any, *args: Any, **options: Any) -> list[int]:
        """Start and wait."""
        self.start(function, *args, **options)
        return self.wait()

    def _environment(self, rank: int) -> dict[str, str]:
        return {
            "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "GLOO_SOCKET_IFNAME": "lo",
            "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.count), "LOCAL_WORLD_SIZE": str(self.count),
        }  # fmt: skip


def _child(environment: dict[str, str], function: Any, rank: int, args: Any, options: Any) -> None:
    os.environ.update(environment)
    os.environ["FASTRL_TUNE"] = "off"
    try:
        function(rank, *args, **options)
    except Exception as error:
        print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(3)


def learn(
    rank: int,
    folder: Path,
    *,
    changes: dict[str, Any] | None = None,
    resume: bool = False,
    hooks: Any = (),
    signals: dict[int, tuple[int, int]] | None = None,
    quiet: bool = True,
) -> None:
    """Train in a folder, on games in NumPy, and write down what came of it, also of an error.

    Parameters
    ----------
    rank : int
        Of this process.
    folder : Path
        The run's.
    changes : dict
        Settings other than `CONFIG`'s.
    resume : bool
        Whether to.
    hooks : sequence of callable
        Make callbacks, given the rank.
    signals : dict
        By rank: frames at which it gets a signal, and that.
    quiet : bool
        Whether it prints nothing.
    """
    config = CONFIG.replace(**{"runs_dir": str(folder.parent), "name": folder.name} | (changes or {}))
    at, number = (signals or {}).get(rank, (-1, 0))
    witness = Witness(folder.with_name(f"{folder.name}-{rank}.batches"), at=at, number=number)
    try:
        with patch.object(collector, "build_envs", lambda config, seed: NumberGames(config.group_size, seed)):
            callbacks = [witness, *(hook(rank) for hook in hooks)]
            run = experiment.train(config, callbacks, resume=folder if resume else None, quiet=quiet)
    except BaseException as error:
        ended(folder, rank).with_suffix(".txt").write_text(f"{type(error).__name__}: {error}")
        raise
    weights = {name: value.numpy() for name, value in run.learner.online.state_dict().items()}
    counts = [run.steps, run.learner.updates, len(run.buffer), run.buffer.settings["capacity"], run.stop.signal or 0]
    np.savez(ended(folder, rank), counts=counts, folder=str(run.folder), **weights)


def ended(folder: Path, rank: int) -> Path:
    """Return the file in which a learner wrote what it came to."""
    return folder.with_name(f"{folder.name}-{rank}.npz")


def result(folder: Path, rank: int) -> dict[str, np.ndarray]:
    """Return what a learner came to."""
    with np.load(ended(folder, rank)) as file:
        return dict(file)


def error(folder: Path, rank: int) -> str:
    """Return the error that ended a learner."""
    return ended(folder, rank).with_suffix(".txt").read_text()
