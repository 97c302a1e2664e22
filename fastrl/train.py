"""Train an agent.

python -m fastrl.train breakout                       dueling double DQN on any Atari game
python -m fastrl.train breakout --total-frames 40000  a short look
python -m fastrl.train --resume runs/NAME             go on after a stop
python -m fastrl.train catch                          DQN on a tiny problem
python -m fastrl.train cartpole                       linear SARSA on many CartPoles
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastrl import folder
from fastrl.command import parse, run_command
from fastrl.config import ConfigError, DQNConfig, RunConfig, SarsaConfig, preset_for

PROG = "python -m fastrl.train"


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    game = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--resume", metavar="RUN", type=Path)
    early.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    known, rest = early.parse_known_args(arguments)
    asks_help = bool({"-h", "--help"} & set(rest))
    if game is None and known.resume is None and not asks_help:
        raise ConfigError(f"no game is given; try {PROG} breakout")
    if game == "cartpole":
        return _cartpole(known.resume, rest)
    default, about = _default(game or "breakout", known.device, None if asks_help else known.resume)
    if not isinstance(default, DQNConfig):
        return _cartpole(known.resume, rest)
    config = parse(
        DQNConfig, default, [*rest, "--device", known.device] if "--device" in arguments else rest,
        prog=f"{PROG} GAME [--resume RUN]", description=f"{__doc__}\nPreset: {about}.",
    )  # fmt: skip
    return _dqn(config, known.resume, about)


def _default(game: str, device: str, resume: Path | None) -> tuple[RunConfig, str]:
    """Return the settings that flags change: the run's own when it goes on, else the preset's."""
    if resume is not None:
        return folder.load_config(resume), f"the settings of {resume}"
    if game == "cartpole":
        return SarsaConfig(), ""
    from fastrl.atari import game_name
    from fastrl.dqn.learner import pick_device

    preset = preset_for(game_name(game), pick_device(device).type)
    return preset.config, preset.about


def _dqn(config: DQNConfig, resume: Path | None, about: str) -> int:
    from fastrl.atari import game_name
    from fastrl.dqn import checkpoint
    from fastrl.dqn.run import train

    config = config.replace(game=game_name(config.game))
    if resume is None:
        path = folder.new_run(config, config.game)
        print(f"{config.game}: {about}; Ctrl-C saves and says how to go on", flush=True)
    else:
        path = resume
        checkpoint.find(path)  # nothing is written over unless there is something to go on from
    run = train(config, path, resume=resume is not None)
    if resume is not None:
        folder.save_config(path, config)
    print(f"checkpoint: {checkpoint.find(path)}")
    if run.stop.signal is not None:
        print(f"stopped after {run.frames:,} frames; go on with: {PROG} --resume {path}")
        return 128 + run.stop.signal
    print(f"look: tensorboard --logdir {config.runs_dir}; play: python -m fastrl.evaluate {path}")
    return 0


def _cartpole(resume: Path | None, rest: list[str]) -> int:
    from fastrl.sarsa_run import train

    if resume is not None:
        raise ConfigError("--resume is for DQN runs; a cartpole run takes a minute: start it anew")
    config = parse(
        SarsaConfig, SarsaConfig(), rest, prog=f"{PROG} cartpole", description="Linear SARSA(lambda) on many CartPoles."
    )
    path = folder.new_run(config, "cartpole")
    return train(config, path)


if __name__ == "__main__":
    run_command(main, PROG)
