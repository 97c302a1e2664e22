"""Precision, threads and kernels of a CPU: by a short measurement at the start, where the settings leave them open.

What is measured is the update that the run will make: its networks, batch and optimizer on random batches, without
torch.compile, which takes longer than all of this; compiled and eager updates rank the choices alike
(docs/benchmarks.md). Atari games play meanwhile, as many steps as the run plays for the samples of an update: an update
that is the fastest alone, with a thread on each core, waits for the cores that the games hold. A GPU keeps to its rule:
bfloat16 if it has it, and one thread.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch.utils.flop_counter import FlopCounterMode

from fastrl import __version__
from fastrl.base.cache import cached, keep
from fastrl.base.console import counted
from fastrl.base.errors import ConfigError
from fastrl.base.machine import busy_seconds, cpu_count, processor
from fastrl.config import DQNConfig
from fastrl.dqn.collector import build_envs
from fastrl.dqn.device.device import has_bfloat16, pick_precision
from fastrl.dqn.learner import Learner, pick_fast_kernels
from fastrl.dqn.network import build_network
from fastrl.dqn.race import Race
from fastrl.envs.frames import FrameDtype, FrameShape, per_array, select
from fastrl.envs.names import is_custom

CPU = torch.device("cpu")
SWITCH = "FASTRL_TUNE"
"""Environment variable: `cached` (the default), `always` (measure, and leave the cache alone) or `off` (the rule)."""
BUDGET_SECONDS = 3.0
"""All of the measurement, building included."""
PLANNED = 0.8
"""Share of the budget that is planned; the rest is for what takes longer than it did before."""
QUIET = 0.1
"""Share of the cores' time that other processes may take, or a measurement says little about other days."""
BUSY, UNEVEN = "on a busy machine", "in uneven turns"
"""Why a measurement says little about other days, in words that follow on it."""
ROUNDING = 0.03
"""Seconds by which the system's count of busy time may be off."""
UPDATE_SECONDS = 0.05
"""The longest update to measure: of a longer one, the same with fewer rows."""
EASY = 1e9
"""Arithmetic of an update that surely takes no longer than that: multiplications and additions."""
MOST_PROBES, MOST_GROWTH = 3, 8
"""Updates of few rows that are timed; how many times as many rows the next may have."""
MOST_PARAMETERS = 30_000_000
"""Larger networks are not built once more to be measured."""
GAMES = 8
"""Games that play beside an update: those of a run take seconds to open."""
MOST_PLAYED = 64
"""Steps that each of them plays in one piece of work, at most."""
MOST_UPDATES = 4
"""Updates in one piece of work, at most."""
OPEN = {"precision": "auto", "torch_threads": 0, "kernels": "auto"}
"""What leaves a setting open."""
DECISIVE = (
    "trunk", "width", "hidden", "dueling", "double", "head", "atoms", "quantiles", "munchausen", "noisy", "batch_size",
    "target_tau", "optimizer", "game", "frame_skip", "num_envs", "env_groups", "samples_per_step", "env_threads",
    "collectors", *OPEN,
)  # fmt: skip
"""Settings that the time of an update, and of the games beside it, depends on; part of the cache's key."""


@dataclass(frozen=True)
class Choice:
    """What is chosen."""

    precision: str
    torch_threads: int
    kernels: str


Build = Callable[[Choice], Callable[[], object]]
"""Makes the work of a choice."""


@dataclass(frozen=True)
class Measured:
    """What a measurement found, why that says little about other days ("" if it does not), and how long it took."""

    choice: Choice
    doubt: str
    seconds: float


@dataclass(frozen=True)
class Shapes:
    """Arguments of a `Learner` besides settings, device and seed."""

    obs_shape: FrameShape
    obs_dtype: FrameDtype
    num_actions: int


def settle(
    config: DQNConfig,
    shapes: Shapes,
    device: torch.device,
    *,
    earlier: DQNConfig | None = None,
    notes: list[str] | None = None,
) -> tuple[DQNConfig, str]:
    """Return settings that leave nothing open on a CPU, and words on what they are; a GPU's stay as they are.

    Measured is what the settings leave open, unless the trunk is `vector`, whose updates take too little time to gain
    from it, or the environment variable `SWITCH` is ``off``. All else is by the rule: bfloat16 if the processor has it,
    a thread for each core, the package's own kernels where they fit.

    Parameters
    ----------
    config : DQNConfig
        The settings.
    shapes : Shapes
        Of the run's observations and actions.
    device : torch.device
        Where the run learns.
    earlier : DQNConfig, optional
        The settings of a run that is resumed, as recorded. What those leave open too, an older version settled by the
        rule, and so it stays. Recorded kernels that this machine lacks are left open.
    notes : list of str, optional
        Gets words on what was recorded and does not suit this machine.

    Raises
    ------
    ConfigError
        If the environment variable has another value.
    """
    mode = _mode()
    if earlier is not None and config.kernels == earlier.kernels == "fastrl" and not _fits(config, shapes, device):
        config = config.replace(kernels="auto")
    if device.type != "cpu":
        return config, ""
    is_open = [
        name for name, value in OPEN.items()
        if getattr(config, name) == value and (earlier is None or getattr(earlier, name) != value)
    ]  # fmt: skip
    choice, how = by_rule(config, shapes), ""
    if is_open and mode != "off" and config.trunk != "vector":
        choice, how = _chosen(config, shapes, choice, is_open, use_cache=mode == "cached")
    if earlier is not None and notes is not None:
        notes += _unsuited(choice)
    threads = counted(choice.torch_threads, "thread")
    kernels = "" if config.trunk == "vector" else f", {KERNELS[choice.kernels]} kernels"
    return config.replace(**dataclasses.asdict(choice)), f" in {choice.precision}, {threads}{kernels}{how}"


KERNELS = {"fastrl": "fastrl's", "torch": "PyTorch's"}


def _unsuited(choice: Choice) -> list[str]:
    """Return words on settings recorded on another machine that make this one slow."""
    words = []
    if choice.precision == "bfloat16" and not has_bfloat16(CPU):
        words.append("the run computes in bfloat16, which this processor only emulates; --precision auto chooses anew")
    if choice.torch_threads > cpu_count():
        words.append(
            f"the run has {choice.torch_threads} threads, and this process may use {cpu_count()} cores; "
            "--torch-threads 0 chooses anew"
        )
    return words


def by_rule(config: DQNConfig, shapes: Shapes) -> Choice:
    """Return what a CPU takes without a measurement: what the settings say, and the rule for what they leave open."""
    precision = pick_precision(config.precision, CPU)
    kernels = config.kernels
    if kernels == "auto":
        kernels = "fastrl" if _fits(config.replace(precision=precision), shapes) else "torch"
    return Choice(precision, config.torch_threads or cpu_count(), kernels)


def _fits(config: DQNConfig, shapes: Shapes, device: torch.device = CPU) -> bool:
    """Whether there are own kernels for a run in the precision that the settings say."""
    low = pick_precision(config.precision, device) == "bfloat16"
    return pick_fast_kernels(config, shapes.obs_dtype, device, low) is not None


def _chosen(
    config: DQNConfig, shapes: Shapes, rule: Choice, is_open: Sequence[str], *, use_cache: bool
) -> tuple[Choice, str]:
    """Return what is the fastest, from the cache or measured, and words on which."""
    threads = thread_counts(cpu_count()) if "torch_threads" in is_open else []
    others = _others(config, shapes, rule, is_open)
    if not threads and not others:
        return rule, ""
    key = _key(config, shapes)
    if use_cache and (known := _known(cached("tune", key), rule, others, threads)) is not None:
        return known, " (measured before)"
    measured = measure(config, shapes, rule, others, threads)
    if measured is None:
        return rule, ""
    if use_cache and not measured.doubt:
        keep("tune", key, dataclasses.asdict(measured.choice))
    return measured.choice, f" (measured for {measured.seconds:.1f} s{measured.doubt and ' '}{measured.doubt})"


def thread_counts(cores: int) -> list[int]:
    """Return the numbers of threads to try besides one for each core: the powers of two below, the largest first."""
    return [2**power for power in range(max(0, math.ceil(math.log2(cores)) - 1), -1, -1) if 2**power < cores]


def _others(config: DQNConfig, shapes: Shapes, rule: Choice, is_open: Sequence[str]) -> list[Choice]:
    """Return the other pairs of precision and kernels to try, those first that leave one of the two as it is."""
    precisions, kernels = [rule.precision], [rule.kernels]
    if "precision" in is_open and rule.precision == "bfloat16":  # elsewhere it is emulated
        precisions.append("float32")
    if "kernels" in is_open:
        kernels += [name for name in KERNELS if name != rule.kernels]
    pairs = [(precision, name) for name in kernels for precision in precisions]
    return [
        dataclasses.replace(rule, precision=precision, kernels=name)
        for precision, name in pairs[1:]
        if name != "fastrl" or _fits(config.replace(precision=precision), shapes)
    ]


def measure(
    config: DQNConfig, shapes: Shapes, rule: Choice, others: Sequence[Choice], threads: Sequence[int]
) -> Measured | None:
    """Return the fastest choice, the rule unless another is clearly faster; None if an update is too large to measure.

    Games play beside the updates. First the numbers of threads race, from the largest down, then the other pairs of
    precision and kernels at the winner's number of threads; these stay where other processes are at work, whose noise
    must not change what is computed. All ends within `BUDGET_SECONDS`.
    """
    import torch._dynamo  # takes a second, and the run's own optimizer needs it in any case: no cost of choosing

    threads_before, start, watch = torch.get_num_threads(), time.perf_counter(), _Watch()
    try:
        rows = _rows(config, shapes, rule, start + BUDGET_SECONDS / 4)
        if rows is None:
            return None
        if time.perf_counter() > start + BUDGET_SECONDS / 3:  # a machine that starves this process
            return Measured(rule, BUSY, time.perf_counter() - start)
        with _games_beside(config, rows) as beside:
            race = Race(beside(_builder(config, shapes, rows)), start + PLANNED * BUDGET_SECONDS)
            counts = [dataclasses.replace(rule, torch_threads=count) for count in threads]
            best = race.winner(rule, counts, until=start + BUDGET_SECONDS / 2, falling=True)
            if others and not watch.is_busy():
                pairs = [dataclasses.replace(other, torch_threads=best.torch_threads) for other in others]
                found = race.winner(best, pairs)
                best = best if watch.is_busy() else found
    finally:
        torch.set_num_threads(threads_before)
        if time.perf_counter() < start + PLANNED * BUDGET_SECONDS:
            gc.collect()  # learners hold themselves; later Python finds them by itself
    doubt = BUSY if watch.is_busy() else "" if race.holds else UNEVEN
    return Measured(best, doubt, time.perf_counter() - start)


class _Watch:
    """What other processes do on the cores that this one may use, since it was made."""

    def __init__(self) -> None:
        self._before = time.perf_counter(), time.process_time(), busy_seconds()

    def is_busy(self) -> bool:
        """Whether they took more than `QUIET` of the cores' time; no if unknown."""
        start, own, cores = self._before
        now = busy_seconds()
        if now is None or cores is None:
            return False
        of_others = now - cores - (time.process_time() - own)
        return of_others > QUIET * (time.perf_counter() - start) * cpu_count() + ROUNDING


def _rows(config: DQNConfig, shapes: Shapes, rule: Choice, until: float = math.inf) -> int | None:
    """Return the rows of the batch to measure, at most those of the run; None if one row is too much.

    An update is three forwards and a backward, about five times the arithmetic of a forward. Where that does not make
    sure that it is short, updates of few rows are timed, and then of more, if time is left: half of a short one is
    not its rows.
    """
    with torch.device("meta"):
        network = build_network(config, shapes.obs_shape, shapes.num_actions)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.features(per_array(lambda shape: torch.zeros((1, *shape)), shapes.obs_shape))
    parameters = sum(p.numel() for p in network.parameters())
    arithmetic = 5 * (counter.get_total_flops() + 2 * parameters)
    rows = int(EASY / arithmetic)
    if parameters > MOST_PARAMETERS or rows < 1:
        return None
    for _ in range(MOST_PROBES):
        if rows >= config.batch_size or time.perf_counter() > until:
            break
        work = _builder(config, shapes, rows)(rule)
        work()
        start = time.perf_counter()
        work()
        share = (time.perf_counter() - start) / UPDATE_SECONDS
        rows = max(rows, int(rows * min(MOST_GROWTH, 1 / share)))
        if share > 0.5:
            break
    return min(config.batch_size, rows)


def _builder(config: DQNConfig, shapes: Shapes, rows: int) -> Build:
    """Return what makes the update of a choice, on batches of random numbers, which cost what games' do."""
    batch = random_batch(rows, shapes)

    def build(choice: Choice) -> Callable[[], object]:
        chosen = config.replace(compile=False, batch_size=rows, **dataclasses.asdict(choice))
        learner = Learner(chosen, shapes.obs_shape, shapes.obs_dtype, shapes.num_actions, CPU, 0)

        def work() -> None:
            torch.set_num_threads(choice.torch_threads)
            learner.learn(batch)

        return work

    return build


@contextmanager
def _games_beside(config: DQNConfig, rows: int) -> Iterator[Callable[[Build], Build]]:
    """Yield what lets games play beside updates of ``rows`` samples, by random actions, as many steps as the run plays.

    One piece of work is a vector step of the run and the updates that are due after it, at least one; so the games
    begin together with the first update and are over before the last, as in a run. Custom environments, whose start
    may take long or have effects of its own, do not play; nor do games that step in other processes.
    """
    if is_custom(config.game) or config.collectors:
        yield lambda build: build
        return
    updates = min(MOST_UPDATES, max(1, round(config.group_size * config.samples_per_step / rows)))
    steps = min(MOST_PLAYED, max(1, round(updates * rows / config.samples_per_step / GAMES)))
    settings = config.replace(num_envs=GAMES, env_groups=1, dephase_steps=0)
    with closing(build_envs(settings, seed=0)) as envs, ThreadPoolExecutor(1) as thread:
        envs.reset()
        actions = np.random.default_rng(0).integers(envs.num_actions, size=(steps, GAMES))

        def play() -> None:
            for chosen in actions:
                envs.send(chosen)
                envs.recv()

        def beside(build: Build) -> Build:
            def build_with_games(choice: Choice) -> Callable[[], object]:
                update = build(choice)

                def work() -> None:
                    games = thread.submit(play)
                    for _ in range(updates):
                        update()
                    games.result()

                return work

            return build_with_games

        yield beside


def random_batch(rows: int, shapes: Shapes) -> Any:
    """Return a batch for `Learner.learn`: B = `rows` transitions of random numbers."""
    rng = np.random.default_rng(0)

    def numbers(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        full = (2, rows, *shape)
        return rng.integers(0, 256, full, np.uint8) if np.dtype(dtype) == np.uint8 else rng.random(full, np.float32)

    both = per_array(numbers, shapes.obs_shape, shapes.obs_dtype)
    obs, next_obs = (select(both, k) for k in range(2))
    return SimpleNamespace(
        obs=obs, next_obs=next_obs, action=rng.integers(0, shapes.num_actions, rows),
        reward=rng.random(rows, np.float32), discount=np.full(rows, 0.97, np.float32),
        weight=np.ones(rows, np.float32), index=np.arange(rows),
    )  # fmt: skip


def _key(config: DQNConfig, shapes: Shapes) -> dict[str, Any]:
    """Return all that a choice depends on, for the cache."""
    return {
        "fastrl": __version__,
        "torch": torch.__version__,
        "processor": processor(),
        "kernels": [pick_fast_kernels(config, np.uint8, CPU, low) for low in (False, True)],
        "bfloat16": has_bfloat16(CPU),
        "cores": cpu_count(),
        "obs": [per_array(list, shapes.obs_shape), per_array(lambda dtype: np.dtype(dtype).name, shapes.obs_dtype)],
        "actions": shapes.num_actions,
        "settings": {name: getattr(config, name) for name in DECISIVE},
    }


def _known(found: Any, rule: Choice, others: Sequence[Choice], threads: Sequence[int]) -> Choice | None:
    """Return a cached choice if it is one of those that could be measured."""
    pairs = [rule, *others]
    counts = [rule.torch_threads, *threads]
    possible = [dataclasses.replace(pair, torch_threads=count) for pair in pairs for count in counts]
    return next((choice for choice in possible if dataclasses.asdict(choice) == found), None)


def _mode() -> str:
    mode = os.environ.get(SWITCH) or "cached"
    if mode not in ("cached", "always", "off"):
        raise ConfigError(f"{SWITCH} is {mode!r} in the environment; give cached, always or off, or unset it")
    return mode
