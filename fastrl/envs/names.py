"""Names of games, of their actions and of custom environments."""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from fastrl.base.errors import ConfigError
from fastrl.base.extras import extra


@functools.cache
def _tasks() -> dict[str, str]:
    """Return EnvPool's ids by plain name; its registry says which ids are Atari (other suites use -v5 too)."""
    with extra("train"):  # here, not above: EnvPool takes a second to import, and most callers look at a name alone
        from envpool.registration import registry
    atari = {
        options["task"]: task for task, (module, _, options) in registry.specs.items() if module == "envpool.atari"
    }
    return {**dict(sorted(atari.items())), "catch": "Catch-v0"}


def game_names() -> list[str]:
    """Return the plain names of all games, such as ``space_invaders``; ``catch`` comes last."""
    return list(_tasks())


def game_name(game: str) -> str:
    """Return the plain name of a game in any spelling: ``ALE/SpaceInvaders-v5`` gives ``space_invaders``.

    Raises ConfigError if there is no such game; the message names the nearest ones.
    """
    spellings: dict[str, str] = {}
    for name, task in _tasks().items():
        spellings |= dict.fromkeys((name, task.split("-")[0].lower(), task.lower(), f"ale/{task}".lower()), name)
    if game.lower() in spellings:
        return spellings[game.lower()]
    near = difflib.get_close_matches(game.lower().removeprefix("ale/"), spellings, n=6)
    names = list(dict.fromkeys(spellings[spelling] for spelling in near))[:3]
    remedy = f"did you mean {' or '.join(names)}?" if names else "fastrl.envs.names.game_names() lists the games"
    raise ConfigError(f"game is {game!r}, which EnvPool does not have; {remedy}")


def task_id(game: str) -> str:
    """Return EnvPool's id of a game in any spelling: ``breakout`` gives ``Breakout-v5``; errors as `game_name`."""
    return _tasks()[game_name(game)]


@functools.cache  # ale_py takes 0.2 s to load a game
def action_names(name: str, full: bool = False) -> tuple[str, ...]:
    """Return the names of a game's actions (`full`: all of the console) in order; an empty tuple without ale_py."""
    if name == "catch":
        return ("LEFT", "STAY", "RIGHT")
    try:
        import ale_py
    except ImportError:
        return ()
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(str(ale_py.roms.get_rom_path(name)))
    return tuple(action.name for action in (ale.getLegalActionSet() if full else ale.getMinimalActionSet()))


MakeEnv = Callable[[], Any]
"""Makes a ``gymnasium.Env``, or a ``gymnasium.vector.VectorEnv`` of them."""
REMEDY = (
    "name a callable that can be imported, as in my_module:make_env: train takes it in place of a game, evaluate and "
    "watch after --make-env"
)
_given: dict[str, MakeEnv] = {}  # by name, the callables that this process was given as objects


def is_custom(game: str) -> bool:
    """Whether the name of a game is that of a custom environment."""
    return ":" in game


def same_game(one: str, other: str) -> bool:
    """Whether two names may stand for one game: a custom environment may have moved to another module."""
    return one == other or (is_custom(one) and is_custom(other))


def name_of(make_env: MakeEnv) -> str:
    """Return the ``module:callable`` that settings keep of a callable; in this process, `load` returns it."""
    module = getattr(make_env, "__module__", None) or "__main__"
    if module == "__main__":  # other processes know the script by the name of its file
        main = sys.modules["__main__"]
        module = main.__spec__.name if main.__spec__ else Path(getattr(main, "__file__", None) or module).stem
    name = f"{module}:{getattr(make_env, '__qualname__', type(make_env).__qualname__)}"
    _given[name] = make_env
    return name


def load(game: str) -> MakeEnv:
    """Return the callable of a name; ConfigError if this process was not given it and an import does not find it."""
    if game in _given:
        return _given[game]
    module, _, name = game.partition(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"environment {game!r} cannot be imported ({error}); {REMEDY}") from error
    if not callable(found):
        raise ConfigError(f"environment {game!r} is of type {type(found).__name__}, which cannot be called; {REMEDY}")
    return cast(MakeEnv, found)
