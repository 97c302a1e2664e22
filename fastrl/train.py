"""Train an agent.

python -m fastrl.train breakout                         dueling double DQN on any Atari game
python -m fastrl.train breakout --total-frames 40000    a short look
python -m fastrl.train pong --protocol machado          by the rules of Machado et al. 2018
python -m fastrl.train space_invaders --seed 2 --name two --quiet
python -m fastrl.train --resume runs/NAME               go on after a stop
python -m fastrl.train --resume runs/NAME --total-frames 40000000
python -m fastrl.train my_module:make_env               DQN on a Gymnasium environment of your own
python -m fastrl.train catch --distributional           DQN on a tiny problem, with C51
python -m fastrl.train cartpole --learners 1000         linear SARSA on many CartPoles
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrl import folder, screen
from fastrl.command import examples, parse, program, run_command
from fastrl.config import ConfigError, DQNConfig, Preset, RunConfig, SarsaConfig, own_preset, preset_for
from fastrl.gymnasium_envs import GymnasiumEnvs, MakeEnv, is_own, name_of, same_game

if TYPE_CHECKING:
    from fastrl.dqn.callbacks import Callback
    from fastrl.dqn.run import Run

PROG = program("train")
ALWAYS = "--resume RUN goes on with a run from its newest checkpoint; --quiet prints nothing."


def dqn(
    make_env: MakeEnv,
    config: DQNConfig | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    resume: Path | None = None,
    quiet: bool = False,
) -> Run:
    """Train on a Gymnasium environment of your own; the rest is as of `fastrl.dqn.run.train`.

    Parameters
    ----------
    make_env : callable
        Returns a ``gymnasium.Env``, or a ``gymnasium.vector.VectorEnv``, with Discrete actions, and vectors or images
        as observations. Evaluations make more of them. The run remembers it as ``module:callable``.
    config : DQNConfig, optional
        Settings (default: ``config_for(make_env)``, or those of the run to resume); `make_env` takes the place of its
        game, and what it says of the emulator means nothing.

    Raises
    ------
    ConfigError
        If the environment does not fit, besides what `fastrl.dqn.run.train` raises; nothing was written then.
    """
    from fastrl.dqn.run import train

    if config is None:
        config = config_for(make_env) if resume is None else folder.load_dqn_config(resume)
    return train(config.replace(game=name_of(make_env)), callbacks, resume=resume, quiet=quiet)


def config_for(make_env: MakeEnv, device: str = "auto") -> DQNConfig:
    """Return settings to start from for a user's own environment; it is made once, to look at its observations."""
    return _own_preset(name_of(make_env), device).config


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    named = [arguments.pop(0)] if arguments and not arguments[0].startswith("-") else []
    early = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    early.add_argument("--resume", metavar="RUN", type=Path)
    early.add_argument("--game", default=named[0] if named else None)
    early.add_argument("--device")
    early.add_argument("--protocol")
    early.add_argument("--quiet", action="store_true")
    known, rest = early.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        known.resume, known.game = None, known.game or "breakout"
    if known.game is None and known.resume is None:
        raise ConfigError(f"no game is given first; try {PROG} breakout")
    default, about = _default(known.game, known.device, known.resume)
    for name in ("device", "protocol"):  # which decide the defaults of other flags
        if getattr(known, name) is not None:
            rest += [f"--{name}", getattr(known, name)]
    if isinstance(default, SarsaConfig):
        return _cartpole(default, known.resume, rest, known.quiet)
    assert isinstance(default, DQNConfig)
    if known.protocol is not None:
        default = default.replace(protocol=known.protocol)
    config = parse(
        DQNConfig, default, rest, prog=f"{PROG} GAME [--resume RUN] [--quiet]",
        description=f"Train an agent. {ALWAYS} Preset: {about}.", examples=examples(__doc__),
    )  # fmt: skip
    return _dqn(config, known.resume, about, known.quiet)


def _default(game: str | None, device: str | None, resume: Path | None) -> tuple[RunConfig, str]:
    """Return the settings that flags change: the run's own when it goes on, else the preset's."""
    from fastrl.atari import game_name

    plain = game if game is None or game == "cartpole" or is_own(game) else game_name(game)
    if resume is not None:
        config = folder.load_config(resume)
        its_game = getattr(config, "game", "cartpole")
        if plain is not None and not same_game(plain, its_game):
            raise ConfigError(f"{resume} plays {its_game}, not {game}; leave the game out, or start a new run")
        if isinstance(config, DQNConfig) and plain is not None:
            config = config.replace(game=plain)
        return config, f"the settings of {resume}"
    if plain is None or plain == "cartpole":
        return SarsaConfig(), ""
    from fastrl.dqn.device import pick_device

    device = "auto" if device is None else device
    preset = _own_preset(plain, device) if is_own(plain) else preset_for(plain, pick_device(device).type)
    return preset.config, preset.about


def _own_preset(game: str, device: str) -> Preset:
    from fastrl.dqn.device import pick_device

    where = pick_device(device).type
    envs = GymnasiumEnvs(game, 1, seed=0)
    images, num_envs = len(envs.frame_shape) > 1, envs.num_envs if envs.is_vector else None
    envs.close()
    return own_preset(game, where, images=images, num_envs=num_envs)


def _dqn(config: DQNConfig, resume: Path | None, about: str, quiet: bool) -> int:
    from fastrl.dqn import checkpoint
    from fastrl.dqn.run import train

    say = (lambda text: None) if quiet else screen.say
    say(f"{config.game}: {about}; Ctrl-C saves and says how to go on")
    run = train(config, resume=resume, quiet=quiet)
    say(f"checkpoint: {checkpoint.find(run.folder)}")
    if run.stop.signal is not None:
        say(f"stopped after {run.frames:,} frames; go on with: {folder.go_on(run.folder)}")
        return 128 + run.stop.signal
    say(f"look: tensorboard --logdir {config.runs_dir}; watch: {program('watch')} {run.folder}")
    return 0


def _cartpole(default: SarsaConfig, resume: Path | None, rest: list[str], quiet: bool) -> int:
    from fastrl.sarsa_run import train

    config = parse(
        SarsaConfig, default, rest, prog=f"{PROG} cartpole [--quiet]",
        description="Linear SARSA(lambda) on many CartPoles. --quiet prints nothing.", examples=examples(__doc__),
    )  # fmt: skip
    return train(config, resume=resume, quiet=quiet)


if __name__ == "__main__":
    run_command(main, PROG)
