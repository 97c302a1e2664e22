"""Train an agent.

python -m fastrl.train breakout                       any Atari game
python -m fastrl.train breakout --total-frames 40000  a short look
python -m fastrl.train pong --protocol machado        sticky actions
python -m fastrl.train space_invaders --seed 2 --name two --quiet
python -m fastrl.train --resume runs/NAME             resume a run
python -m fastrl.train --resume runs/NAME --total-frames 40000000
python -m fastrl.train my_module:make_env             a custom environment
python -m fastrl.train breakout --agent qr-dqn        another algorithm
python -m fastrl.train catch --head c51               a tiny problem, with C51
python -m fastrl.train cartpole --learners 1000       SARSA on many CartPoles
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take a moment: a signal is answered meanwhile
    from fastrl.__main__ import run_named

    run_named("train")

import dataclasses
import difflib
import inspect
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast, overload

from fastrl.base import console
from fastrl.base.commands import command_line, program
from fastrl.base.errors import ConfigError
from fastrl.base.launch import first_rank, launched
from fastrl.cli import read, refuse_others, show_help
from fastrl.config import (
    AgentName,
    Device,
    DQNConfig,
    Preset,
    RunConfig,
    SarsaConfig,
    custom_preset,
    preset_for,
    with_agent,
)
from fastrl.config.agents import SAVED
from fastrl.config.presets import CUSTOM_TRUNKS
from fastrl.envs.make import look_at
from fastrl.envs.names import MakeEnv, differing_rules, game_name, is_custom, name_of, same_game
from fastrl.runs import folder

if TYPE_CHECKING:
    from fastrl.dqn.callbacks import Callback
    from fastrl.dqn.run import Run
    from fastrl.sarsa.run import SarsaRun

__all__ = ["config_for", "dqn", "train"]
PROG = program("train")
Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to do besides the settings of the run."""

    resume: Path | None = None
    """Folder of a run to resume from its newest checkpoint (default: start a new run)."""
    agent: AgentName | None = None
    """Algorithm, by its name: sets what is learned and how, on top of the preset; flags win over it (default:
    what the preset says: `dueling`, but for Atari games)."""
    quiet: bool = False
    """Print nothing."""


@overload
def train(
    what: SarsaConfig, *, resume: str | os.PathLike[str] | None = None, quiet: bool = False, **settings: Any
) -> SarsaRun: ...
@overload
def train(
    what: DQNConfig | MakeEnv,
    callbacks: Sequence[Callback] = (),
    *,
    agent: AgentName | None = None,
    resume: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run: ...
@overload
def train(  # "cartpole" gives a SarsaRun, every game a Run
    what: str | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    agent: AgentName | None = None,
    resume: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run | Any: ...
def train(
    what: DQNConfig | SarsaConfig | str | MakeEnv | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    agent: AgentName | None = None,
    resume: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run | SarsaRun:
    """Train an agent until its last frame, or until a signal such as Ctrl-C or a notebook's stop button.

    Parameters
    ----------
    what : DQNConfig, SarsaConfig, str or callable, optional
        All settings; or a game, ``"cartpole"``, or a custom environment as ``"module:callable"`` or the callable
        itself, with the settings of `config_for`. Default: the settings of the run to resume.
    callbacks : sequence of Callback
        Called before the run's own, in order. SARSA has none.
    agent : str, optional
        An algorithm by its name, one of `fastrl.config.AGENTS`; settings win over it.
    resume : path-like, optional
        Folder of a run to resume from its newest whole checkpoint.
    quiet : bool
        Print nothing.
    **settings
        Settings to change, by the names of their fields: ``total_frames=40_000``.

    Returns
    -------
    Run or SarsaRun
        The run: its ``folder``, its ``stop.signal`` if one ended it. A DQN run has ``evaluation.last`` and ``learner``.

    Raises
    ------
    ConfigError
        If a setting is unknown or does not fit, and for the reasons of `fastrl.dqn.run.train`. Nothing is written then.
    RunError
        As of `fastrl.dqn.run.train`.
    """
    config: RunConfig
    about, frames = "", settings.get("total_frames")
    if isinstance(what, RunConfig):
        config = _changed(_by_agent(what, agent, settings), settings)
    elif what is None and resume is None:
        raise ConfigError("nothing is given to train on; give a DQNConfig, a game such as 'breakout', or resume=RUN")
    else:
        game = None if what is None else _name(what)
        if game is not None and "game" in settings:
            raise ConfigError(f"game is {settings['game']!r}, and {game} is given first; give one game")
        earlier = None if resume is None else Path(resume)
        default, about = _default(game, settings.get("device"), earlier, frames if isinstance(frames, int) else None)
        config = _changed(_by_agent(default, agent, settings), settings)
        about = _about_agent(about, agent, default, config, earlier)
    if resume is not None and agent is not None:
        _keeps_what_is_saved(agent, config, resume)
    if isinstance(config, DQNConfig):
        from fastrl.dqn import run

        say = (lambda text: None) if quiet or not first_rank() else console.say
        if isinstance(what, str) and (differs := differing_rules(what, config)):
            say(differs)
        if about:
            say(f"{config.game}: {about}; Ctrl-C or a notebook's stop button saves the run")
        trained = run.train(config, callbacks, resume=resume, quiet=quiet)
        if trained.stop.signal is not None:
            again = f"train(resume={os.path.abspath(trained.folder)!r})"
            say(f"stopped after {trained.frames:,} frames; resume with: {again}")
        return trained
    from fastrl.sarsa import run as sarsa

    assert isinstance(config, SarsaConfig)
    _refuse_ranks()
    if callbacks:
        raise ConfigError("callbacks are given, and a cartpole run has none; leave them out")
    return sarsa.train(config, resume=resume, quiet=quiet)


def config_for(
    game: str | MakeEnv, device: Device = "auto", *, agent: AgentName | None = None, **settings: Any
) -> DQNConfig:
    """Return the settings that a game or a custom environment starts from, some of them changed.

    Parameters
    ----------
    game : str or callable
        A game in any spelling; or a custom environment as ``"module:callable"`` or the callable itself, which is made
        once, to look at its observations.
    device : {"auto", "cpu", "cuda"}
        Where the network learns, which decides on the preset.
    agent : str, optional
        An algorithm by its name, one of `fastrl.config.AGENTS`; settings win over it.
    **settings
        Settings to change, by the names of their fields: ``total_frames=40_000``.

    Raises
    ------
    ConfigError
        If there is no such game, device, agent or setting, or the environment does not fit.
    """
    name = _name(game)
    if name == "cartpole":
        raise ConfigError("game is 'cartpole', which SARSA learns; its settings are SarsaConfig()")
    config = _changed(_by_agent(_default(name, device, None)[0], agent, settings), {"device": device} | settings)
    assert isinstance(config, DQNConfig)
    return config


def _name(what: object) -> str:
    """Return the name of a game, or of a custom environment."""
    if isinstance(what, str | os.PathLike) and (Path(what) / "config.json").exists():
        raise ConfigError(f"{os.fspath(what)!r} is the folder of a run, no game; give resume={os.fspath(what)!r}")
    if isinstance(what, str):
        return what
    if isinstance(what, type) and issubclass(what, RunConfig):
        raise ConfigError(f"{what.__name__} is given, the class itself; give {what.__name__}(), or a game")
    if isinstance(what, Preset):
        raise ConfigError("a Preset is given; give its .config")
    if not callable(what) and not hasattr(what, "step"):  # of an environment, `name_of` has more to say
        raise ConfigError(
            f"{what!r} is given to train on, of type {type(what).__name__}; give a DQNConfig, a game such as "
            "'breakout', or a callable that makes an environment"
        )
    return name_of(cast(MakeEnv, what))


def _by_agent(config: Config, agent: str | None, given: Mapping[str, Any]) -> Config:
    """Return settings with an agent's laid over them, but for those that are given."""
    if agent is None:
        return config
    if not isinstance(config, DQNConfig):
        raise ConfigError(f"--agent is {agent!r}, and a cartpole run has one algorithm, SARSA; leave it out")
    return cast(Config, with_agent(config, agent, given))


def _about_agent(about: str, agent: str | None, default: RunConfig, config: RunConfig, resume: Path | None) -> str:
    """Return words on a new run's settings: what a preset expects of itself holds for no other agent."""
    if (
        agent is None
        or resume is not None
        or not isinstance(config, DQNConfig)
        or _by_agent(default, agent, {}) == default
    ):
        return about
    return f"agent {agent}, {config.total_frames:,} frames"


def _keeps_what_is_saved(agent: str, config: RunConfig, resume: str | os.PathLike[str]) -> None:
    """Raise ConfigError if an agent, with the flags beside it, would change what a checkpoint cannot."""
    known = folder.load_config(resume)
    found = [(name, getattr(known, name), getattr(config, name)) for name in SAVED]
    if changed := [f"{name} {before!r} to {after!r}" for name, before, after in found if before != after]:
        raise ConfigError(
            f"--agent {agent} would change the network, the optimizer or the priorities of {os.fspath(resume)} "
            f"({', '.join(changed)}); leave --agent out, or start a new run"
        )


def _changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return settings with other values in the fields named."""
    known = [field.name for field in dataclasses.fields(config)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            kind = type(config).__name__
            remedy = f"did you mean {near[0]}?" if near else f"help(fastrl.{kind}) lists them"
            raise ConfigError(f"{name} is no setting of {kind}; {remedy}")
    changed = config.replace(**_one_group(settings))
    if isinstance(changed, DQNConfig):
        changed.check_read(settings)
    return changed


def _one_group(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings given, with one group of games where collectors play: the groups of a preset are not for them."""
    return {"env_groups": 1} | dict(given) if given.get("collectors") else given


class _Callable(ModuleType):
    """This module and its function `train` in one: ``fastrl.train`` is both, whatever was imported first.

    The import system makes this module the attribute ``train`` of the package. A function of that name there would be
    replaced by whichever import of this module comes later.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return train(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(train)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return import_module, (__name__,)


def dqn(
    make_env: MakeEnv,
    config: DQNConfig | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    resume: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Run:
    """Train on a custom Gymnasium environment. Callbacks, `resume` and `quiet` are as in `fastrl.dqn.run.train`.

    Parameters
    ----------
    make_env : callable
        Returns a ``gymnasium.Env``, or a ``gymnasium.vector.VectorEnv``, with Discrete actions, and vectors or images
        as observations, or a Dict or Tuple of these. Evaluations call it again. The run records it as
        ``module:callable``.
    config : DQNConfig, optional
        Settings (default: ``config_for(make_env)``, or those of the run to resume). `make_env` replaces `game`, and
        the rules of the emulator have no effect.

    Raises
    ------
    ConfigError
        If the environment does not fit, and for the reasons of `fastrl.dqn.run.train`. Nothing is written then.
    """
    from fastrl.dqn import run

    if config is None:
        config = config_for(make_env) if resume is None else folder.load_dqn_config(resume)
    return run.train(config.replace(game=name_of(make_env)), callbacks, resume=resume, quiet=quiet)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    line = read(arguments, Arguments, DQNConfig, SarsaConfig)
    given = dict(line.given)  # settings alone, once the others are taken out
    resume, quiet, game = given.pop("resume", None), given.pop("quiet", False), given.pop("game", line.word)
    agent = given.pop("agent", None)
    if line.help:
        _show_help(game, given, resume, agent)
    if game is None and resume is None:
        raise ConfigError(f"no game is given first; try {PROG} breakout")
    default, about = _default(game, given.get("device"), resume, given.get("total_frames"))
    refuse_others(given, type(default), of=f"a run of {getattr(default, 'game', 'cartpole')}")
    if resume is not None and (moved := [name for name in ("runs_dir", "name") if name in given]):
        raise folder.RunFolder(resume).stays(moved[0], given[moved[0]])
    config = _changed(_by_agent(default, agent, given), given)
    about = _about_agent(about, agent, default, config, resume)
    if resume is not None and agent is not None:
        _keeps_what_is_saved(agent, config, resume)
    if isinstance(config, DQNConfig):
        if not quiet and first_rank() and (differs := differing_rules(game or "", config)):
            console.say(differs)
        return _dqn(config, resume, about, quiet)
    from fastrl.sarsa import run

    assert isinstance(config, SarsaConfig)
    _refuse_ranks()
    return run.train(config, resume=resume, quiet=quiet).status


def _refuse_ranks() -> None:
    """Raise ConfigError if torchrun has started several processes for a cartpole run."""
    launch = launched()
    if launch is not None and launch.count > 1:
        raise ConfigError(
            f"torchrun has started {launch.count} processes, and a cartpole run has one; leave torchrun out"
        )


def _show_help(game: str | None, given: dict[str, Any], resume: Path | None, agent: str | None) -> NoReturn:
    """Show the flags with the defaults that hold: of the run to resume, or of the game's preset and the protocol."""
    if resume is not None and os.path.exists(resume / "config.json"):
        default, about = _default(game, None, resume)
        word, about = command_line("--resume", str(resume)), f"Defaults: {about}."
    else:
        with warnings.catch_warnings():  # of a custom environment, which is made to look at it
            warnings.simplefilter("ignore")
            default, about = _default(game or "breakout", given.get("device"), None)
        sarsa = "Linear SARSA(lambda) on many CartPoles."
        word, about = ("GAME", f"Preset: {about}.") if about else ("cartpole", sarsa)
    default = _by_agent(default, agent, {})
    if "protocol" in given and isinstance(default, DQNConfig):
        default = default.replace(protocol=given["protocol"])
    others = Arguments(agent=cast(AgentName | None, agent))
    without = ("agent",) if isinstance(default, SarsaConfig) else ()
    show_help(f"{PROG} {word}", __doc__, others, default, about=about, without=without)


def _default(
    game: str | None, device: str | None, resume: Path | None, total_frames: int | None = None
) -> tuple[RunConfig, str]:
    """Return the settings that flags change, those of the run to resume or else the preset's, and words on them."""
    plain = game if game is None or game == "cartpole" or is_custom(game) else game_name(game)
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
    preset = _preset(plain, device or "auto")
    return preset.config, preset.describe(total_frames)


def _preset(game: str, device: str) -> Preset:
    """Return the preset of a game, or of a custom environment, which is made once to look at its observations."""
    from fastrl.dqn.device.device import pick_device
    from fastrl.dqn.network import trunk_for

    where = pick_device(device).type
    if not is_custom(game):
        return preset_for(game, where)
    frame_shape, num_envs = look_at(game)
    trunk = trunk_for(frame_shape, CUSTOM_TRUNKS[where])
    return custom_preset(game, where, trunk=trunk, frame_shape=frame_shape, num_envs=num_envs)


def _dqn(config: DQNConfig, resume: Path | None, about: str, quiet: bool) -> int:
    from fastrl.dqn import run as dqn_run

    say = (lambda text: None) if quiet or not first_rank() else console.say
    say(f"{config.game}: {about}; Ctrl-C saves the run and prints the command that resumes it")
    run = dqn_run.train(config, resume=resume, quiet=quiet)
    say(f"checkpoint: {run.folder.find()}")
    if run.stop.signal is not None:
        say(f"stopped after {run.frames:,} frames; {run.folder.how_to_resume}")
        return 128 + run.stop.signal
    look = command_line("tensorboard", "--logdir", Path(os.path.abspath(run.folder)).parent)
    say(f"look: {look}; watch: {command_line(program('watch'), run.folder)}")
    return 0


sys.modules[__name__].__class__ = _Callable
