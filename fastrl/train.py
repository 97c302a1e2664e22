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
EXAMPLES = (__doc__ or "").partition("\n\n")[2]


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    named = [arguments.pop(0)] if arguments and not arguments[0].startswith("-") else []
    early = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    early.add_argument("--resume", metavar="RUN", type=Path)
    early.add_argument("--game", default=named[0] if named else None)
    early.add_argument("--device")
    known, rest = early.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        known.resume, known.game = None, known.game or "breakout"
    if known.game is None and known.resume is None:
        raise ConfigError(f"no game is given first; try {PROG} breakout")
    default, about = _default(known.game, known.device, known.resume)
    if isinstance(default, SarsaConfig):
        return _cartpole(default, known.resume, rest)
    assert isinstance(default, DQNConfig)
    if known.device is not None:
        rest += ["--device", known.device]
    config = parse(
        DQNConfig, default, rest, prog=f"{PROG} GAME [--resume RUN]",
        description=f"Train an agent. Preset: {about}.\n{EXAMPLES}",
    )  # fmt: skip
    return _dqn(config, known.resume, about)


def _default(game: str | None, device: str | None, resume: Path | None) -> tuple[RunConfig, str]:
    """Return the settings that flags change: the run's own when it goes on, else the preset's."""
    from fastrl.atari import game_name

    plain = game if game is None or game == "cartpole" else game_name(game)
    if resume is not None:
        config = folder.load_config(resume)
        its_game = getattr(config, "game", "cartpole")
        if plain not in (None, its_game):
            raise ConfigError(f"{resume} plays {its_game}, not {game}; leave the game out, or start a new run")
        return config, f"the settings of {resume}"
    if plain is None or plain == "cartpole":
        return SarsaConfig(), ""
    from fastrl.dqn.device import pick_device

    preset = preset_for(plain, pick_device("auto" if device is None else device).type)
    return preset.config, preset.about


def _dqn(config: DQNConfig, resume: Path | None, about: str) -> int:
    from fastrl.dqn import checkpoint
    from fastrl.dqn.run import train

    print(f"{config.game}: {about}; Ctrl-C saves and says how to go on", flush=True)
    run = train(config, resume=resume)
    print(f"checkpoint: {checkpoint.find(run.folder)}")
    if run.stop.signal is not None:
        print(f"stopped after {run.frames:,} frames; go on with: {folder.go_on(run.folder)}")
        return 128 + run.stop.signal
    print(f"look: tensorboard --logdir {config.runs_dir}; watch: python -m fastrl.watch {run.folder}")
    return 0


def _cartpole(default: SarsaConfig, resume: Path | None, rest: list[str]) -> int:
    from fastrl.sarsa_run import train

    config = parse(
        SarsaConfig, default, rest, prog=f"{PROG} cartpole", description="Linear SARSA(lambda) on many CartPoles."
    )
    return train(config, resume=resume)


if __name__ == "__main__":
    run_command(main, PROG)
