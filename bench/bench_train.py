"""Agent steps per second of whole training loops on Breakout, side by side: ``python bench/bench_train.py``.

Measured: acting, emulator, preprocessing, replay and learning together, once the replay is filled and learning is
under way, in rounds of a few seconds that the contestants play in turn (see ``side_by_side.py``):

* a loop in the manner of CleanRL (``cleanrl_style.py``) and Stable-Baselines3's DQN as RL Zoo sets it up: one game,
  a batch of 32 every 4 agent steps, which is 8 samples per agent step;
* the same Stable-Baselines3 with fastrl's replay in place of its own, drawing uniformly, and with priorities;
* fastrl with the same network (Nature, one dense layer of 512), plain deep Q-learning, uniform replay and 8 samples
  per agent step too, but its own way of working: 64 games side by side, batches of 256;
* fastrl's full algorithm (dueling, double, prioritized) on the same trunk at 8, 4 and 2 samples per agent step;
* fastrl's preset for this device as shipped, its smaller replay aside.

All are on a GPU where PyTorch finds one, else on the CPU with the threads that each library takes by itself. All play
the same rules (4 frames per step, no sticky actions, lost lives end episodes, clipped rewards) with 50,000 rows of
replay, 10,000 of them filled at random before, and epsilon at 0.01. Samples per agent step are counted, and a
contestant that is off its claim by more than 5 % fails the run.

Not measured: how well anyone learns; imports, compilation and the filling of the replay; logging, evaluation and
checkpoints, which are not due in the measured rounds for anyone. Equal samples are not equal updates: fastrl's batch of
256 means an eighth of the updates that batches of 32 make.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from side_by_side import Contestant, Result, quartiles, ratio, side_by_side
from timed_run import TimedRun

CAPACITY = 50_000
FILL_STEPS = 10_000
WARM_UPDATES = 20
EPSILON = 0.01
FRAMES_PER_STEP = 4
TOLERANCE = 0.05
QUIET_SHARE = 0.1  # of one core, for all that is not part of this
BATCH_SIZE, TRAIN_EVERY_STEPS = 32, 4  # of the loops with one game
ABOUT = (
    "samples_per_step batch_size num_envs trunk hidden n_step dueling double prioritized "
    "precision torch_threads kernels"
).split()

SAME = {"dueling": False, "double": False, "prioritized": False, "target_period_updates": 31}  # 1,000 agent steps
FULL = {"dueling": True, "double": True, "prioritized": True}
NATURE = {"trunk": "nature", "hidden": 512, "n_step": 1, "num_envs": 64, "batch_size": 256}


def contestants(device: str) -> dict[str, Contestant]:
    """Return who takes part, by the name that ``--only`` knows."""
    baseline = {
        "device": device, "capacity": CAPACITY, "fill_steps": FILL_STEPS,
        "warm_steps": WARM_UPDATES * TRAIN_EVERY_STEPS, "epsilon": EPSILON,
    }  # fmt: skip

    def fastrl(name: str, **settings: Any) -> Contestant:
        return Contestant(name, "bench_train:Fastrl", {"device": device, "settings": settings})

    def sb3(name: str, replay: str) -> Contestant:
        return Contestant(name, "bench_train:StableBaselines3", baseline | {"replay": replay})

    full = "fastrl, dueling double prioritized, at"
    return {
        "cleanrl": Contestant("CleanRL style", "cleanrl_style:CleanRLStyle", baseline),
        "sb3": Contestant("Stable-Baselines3", "bench_train:StableBaselines3", baseline),
        "sb3-uniform": sb3("Stable-Baselines3 on fastrl's replay, uniform", "uniform"),
        "sb3-prioritized": sb3("Stable-Baselines3 on fastrl's replay, prioritized", "prioritized"),
        "fastrl-same": fastrl("fastrl, same network, plain DQN", **NATURE, **SAME, samples_per_step=8.0),
        "fastrl-8": fastrl(f"{full} 8", **NATURE, **FULL, samples_per_step=8.0),
        "fastrl-4": fastrl(f"{full} 4", **NATURE, **FULL, samples_per_step=4.0),
        "fastrl-2": fastrl(f"{full} 2", **NATURE, **FULL, samples_per_step=2.0),
        "fastrl-preset": fastrl(f"fastrl, preset for {device}"),
    }


class Fastrl(TimedRun):
    """fastrl's Run with the preset for a device and some other settings; see `side_by_side.Loop`."""

    def __init__(self, device: str, settings: dict[str, Any]) -> None:
        from fastrl.config import preset_for, with_agent

        os.environ["FASTRL_TUNE"] = "off"  # precision, threads and kernels by the rule, the same in each round
        self._device = device
        preset = preset_for("breakout", device).config
        config = (with_agent(preset, "dueling") if settings else preset).replace(
            device=device, capacity=CAPACITY, learn_start_steps=FILL_STEPS, epsilon_start=EPSILON, epsilon_end=EPSILON,
            **settings,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # it could not compile: another program than the one meant
            super().__init__(config, WARM_UPDATES)
        self.about = {what: getattr(self._run.config, what) for what in ABOUT}
        self.about["bytes_per_row"] = self._run.buffer.nbytes / config.capacity

    def play(self, steps: int) -> None:
        """Play whole vector steps."""
        super().play(steps)
        _synchronize(self._device)


class StableBaselines3:
    """Stable-Baselines3's DQN with RL Zoo's settings for Atari, driven by its own `learn`; see `side_by_side.Loop`.

    Its replay is its ``own``, which holds each observation once (`optimize_memory_usage`), or fastrl's, ``uniform`` or
    ``prioritized``.
    """

    unit = TRAIN_EVERY_STEPS

    def __init__(
        self, device: str, capacity: int, fill_steps: int, warm_steps: int, epsilon: float, replay: str = "own"
    ) -> None:
        import ale_py
        import gymnasium
        from stable_baselines3 import DQN
        from stable_baselines3.common.env_util import make_atari_env
        from stable_baselines3.common.vec_env import VecFrameStack

        gymnasium.register_envs(ale_py)
        rules = {"frameskip": 1, "repeat_action_probability": 0.0}  # what NoFrameskip-v4 stands for
        self._device = device
        self._envs = VecFrameStack(make_atari_env("ALE/Breakout-v5", n_envs=1, seed=1, env_kwargs=rules), n_stack=4)
        agent, how, kwargs = DQN, {"optimize_memory_usage": True}, {"handle_timeout_termination": False}
        if replay != "own":
            from fastrl.integrations.sb3 import PrioritizedDQN, ReplayBuffer

            agent, how = (DQN, {"replay_buffer_class": ReplayBuffer}) if replay == "uniform" else (PrioritizedDQN, {})
            kwargs["stack"] = 4
        self._model = agent(
            "CnnPolicy", self._envs, learning_rate=1e-4, buffer_size=capacity, learning_starts=fill_steps,
            batch_size=BATCH_SIZE, train_freq=TRAIN_EVERY_STEPS, gradient_steps=1, target_update_interval=1_000,
            exploration_initial_eps=epsilon, exploration_final_eps=epsilon, replay_buffer_kwargs=kwargs, device=device,
            seed=1, **how,
        )  # fmt: skip
        buffer = self._model.replay_buffer
        nbytes = buffer.observations.nbytes if replay == "own" else buffer.replay.nbytes
        self.about = {
            "samples_per_step": BATCH_SIZE / TRAIN_EVERY_STEPS, "batch_size": BATCH_SIZE,
            "bytes_per_row": nbytes / capacity,
        }  # fmt: skip
        self.play(fill_steps + warm_steps)

    def play(self, steps: int) -> None:
        """Continue learning where the last call ended."""
        self._model.learn(steps, log_interval=None, reset_num_timesteps=False)
        _synchronize(self._device)

    def counts(self) -> dict[str, int]:
        """Return agent steps and samples learned so far; the counter of updates is the one that its log shows."""
        return {"steps": self._model.num_timesteps, "samples": self._model._n_updates * BATCH_SIZE}

    def close(self) -> None:
        """Free the emulator."""
        self._envs.close()


def _synchronize(device: str) -> None:
    """Wait for a GPU; not that of `loops`, since other people's loops must not import fastrl."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def counted(result: Result) -> float:
    """Return the samples learned per agent step, over all rounds."""
    return result.total("samples") / result.total("steps")


def problem(result: Result) -> str | None:
    """Return why a result must not be taken for one; None for a good one, or where a package is not installed."""
    if result.failure:
        return None if result.missing else f"{result.name} failed: {result.failure}"
    claimed, batch = result.about["samples_per_step"], result.about["batch_size"]
    # Beside the tolerance one batch: it may be due just before the first round or just after the last.
    if abs(counted(result) - claimed) <= TOLERANCE * claimed + batch / result.total("steps"):
        return None
    return f"{result.name} learned {counted(result):.2f} samples per agent step, not {claimed:g}: its rates are void"


def quietness(results: Sequence[Result]) -> str:
    """Return a sentence on what else ran during the rounds."""
    waiting, foreign = (
        [share for result in results for share in result.rates(f"{who}_cpu_seconds")] or [0.0]
        for who in ("waiting", "foreign")
    )
    warning = " The machine was not quiet: do not publish these figures." if max(foreign) > QUIET_SHARE else ""
    shares = f"{quartiles(foreign)[1]:.1%} in the median round, {max(foreign):.1%} in the worst"
    return f"Of one core, whoever waited took {max(waiting):.1%} at most; all else on the machine {shares}.{warning}"


def table(results: dict[str, Result]) -> list[str]:
    """Return the lines of a Markdown table."""
    columns = ["contestant", "samples per step: set, counted", "agent steps/s: median (quartiles)", "frames/s"]
    columns += ["samples learned/s", "replay: bytes a row", "ratio to Stable-Baselines3", "ratio to CleanRL style"]
    lines = [columns, ["---"] * len(columns)]
    for result in results.values():
        if result.failure:
            reason = f"{'unavailable' if result.missing else 'failed'}: {result.failure}"
            lines.append([result.name, "", " ".join(reason.replace("|", "/").split()), *[""] * 5])
            continue
        low, rate, high = quartiles(result.rates("steps"))
        ratios = [ratio(result, results[name], "steps") if name in results else None for name in ("sb3", "cleanrl")]
        lines.append([
            result.name, f"{result.about['samples_per_step']:g}, {counted(result):.2f}",
            f"{rate:,.0f} ({low:,.0f} to {high:,.0f})", f"{rate * FRAMES_PER_STEP:,.0f}",
            f"{quartiles(result.rates('samples'))[1]:,.0f}", f"{result.about['bytes_per_row']:,.0f}",
            *("" if r is None else f"{r:.2f}" for r in ratios),
        ])  # fmt: skip
    return [f"| {' | '.join(cells)} |" for cells in lines]


def parse(arguments: Sequence[str], names: Sequence[str]) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that each contestant plays (7)")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long a round takes (4)")
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there too")
    flags = parser.parse_args(arguments)
    if flags.rounds < 1 or flags.seconds <= 0:
        parser.error("give at least one round and more than 0 seconds")
    return flags


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status: 1 if a contestant failed or was off its claim."""
    flags = parse(arguments, list(contestants("cpu")))
    import torch
    from machine_card import machine_card

    everyone = contestants("cuda" if torch.cuda.is_available() else "cpu")
    here = shlex.quote(str(Path(__file__).parent))
    commit = subprocess.getoutput(f"git -C {here} describe --always --dirty 2>/dev/null || echo unknown")
    card, command = machine_card() | {"commit": commit}, shlex.join(["python", *sys.orig_argv[1:]])
    print(f"Machine: {', '.join(f'{name} {value}' for name, value in card.items())}.")
    print(f"Command: `{command}`.\n", flush=True)
    chosen = {name: everyone[name] for name in everyone if name in flags.only}
    played = side_by_side(list(chosen.values()), flags.rounds, flags.seconds, lambda line: print(line, file=sys.stderr))
    results = dict(zip(chosen, played, strict=True))
    print(*table(results), "", quietness(played), sep="\n")
    if flags.json:
        entries = {name: vars(result) for name, result in results.items()}
        flags.json.write_text(json.dumps({"machine": card, "command": command, "results": entries}, indent=2) + "\n")
    problems = [f"ERROR: {found}\n" for result in played if (found := problem(result))]
    sys.stderr.writelines(problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
