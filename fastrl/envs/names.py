"""Names of games, of their actions and of custom environments."""

from __future__ import annotations

import difflib
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing import process
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, cast

from fastrl.base.errors import ConfigError, in_words
from fastrl.base.extras import extra
from fastrl.base.ranges import flag_of
from fastrl.envs.foreign import line_of, place, same_folder
from fastrl.envs.rules import PROTOCOLS, Rules


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
    """Return the plain name of a game in any spelling: ``Space Invaders`` and ``ALE/SpaceInvaders-v5`` are one.

    The ids of Gymnasium with other rules, such as ``SpaceInvadersNoFrameskip-v4``, are spellings too:
    `differing_rules` says what they stand for.

    Raises ConfigError if there is no such game; the message names the nearest ones, or says how custom environments are
    named.
    """
    spellings: dict[str, str] = {}
    for name, task in _tasks().items():
        spellings |= dict.fromkeys((name, task.split("-")[0].lower(), task.lower(), f"ale/{task}".lower()), name)
    if game.lower() in spellings:
        return spellings[game.lower()]
    if found := {spelling.replace("_", ""): name for spelling, name in spellings.items()}.get(_letters(game)):
        return found
    known = _GYMNASIUM_ATARI.fullmatch(game)
    if known and (plain := spellings.get(known["game"].lower(), "catch")) != "catch":
        if not known["ram"]:
            return plain
        pixels = f"ALE/{_tasks()[plain]}"
        raise ConfigError(
            f"game is {game!r}, which observes the memory of the console; give {plain}, which observes its screen, or "
            + _as_custom(f"{pixels!r}, obs_type='ram'", "gymnasium, ale_py")
        )
    raise ConfigError(f"game is {game!r}, which EnvPool does not have; {_remedy(game, spellings)}")


_GYMNASIUM_ATARI = re.compile(
    r"(?P<ale>ale/)?(?P<game>\w+?)(?P<ram>-ram)?(?P<kind>noframeskip|deterministic)?-v(?P<version>[045])", re.IGNORECASE
)


def _letters(game: str) -> str:
    """Return a name as people write it, without what differs: ``Q*bert`` and ``Space Invaders``."""
    return re.sub(r"[ _*'-]", "", game.lower())


def differing_rules(game: str, rules: Rules) -> str:
    """Return words on how rules differ from those of the id of Gymnasium that names a game; empty if they do not."""
    known = _GYMNASIUM_ATARI.fullmatch(game)
    if not known or (known["version"] == "5" and not known["ale"]):  # plain, or an id of EnvPool's
        return ""
    sticky = 0.0 if known["version"] == "4" else 0.25
    mine, differences = rules.repeat_action_probability, []
    if sticky != mine:
        differences.append(f"sticky actions {sticky:g}, here {mine:g} (--repeat-action-probability {sticky:g})")
    if not known["kind"] and known["version"] != "5":
        differences.append(f"a random frame skip of 2 to 4, here always {rules.frame_skip}")
    return f"{game} stands in Gymnasium for {' and '.join(differences)}" if differences else ""


def _remedy(game: str, spellings: dict[str, str]) -> str:
    """Return what to give in place of a name that is that of no game."""
    if is_custom(game):
        return "no network ships for a custom environment: give the folder of a run, and this name after --make-env"
    dotted = game.removesuffix(".py").replace("/", ".")
    if all(part.isidentifier() for part in dotted.split(".")):
        path, named = dotted.replace(".", "/"), ""
        folders = [Path(folder) for folder in (".", *sys.path)]
        if any((folder / f"{path}.py").exists() or (folder / path / "__init__.py").exists() for folder in folders):
            named = f"{dotted}:make_env"
        elif "." in game and "/" not in game:
            named = ":".join(dotted.rsplit(".", 1))
        if named:
            return f"a custom environment is named by module and callable: did you mean {named}?"
    with extra("train"):
        import gymnasium
    for known in gymnasium.registry:
        if known.lower() == game.lower():
            return f"it is an environment of Gymnasium: {_as_custom(repr(known), 'gymnasium')}"
    near = difflib.get_close_matches(game.lower().removeprefix("ale/"), spellings, n=6)
    names = list(dict.fromkeys(spellings[spelling] for spelling in near))[:3]
    if names:
        return f"did you mean {' or '.join(names)}?"
    return "fastrl.envs.names.game_names() lists the games, and a custom environment is named as in my_module:make_env"


def _as_custom(arguments: str, modules: str) -> str:
    """Return how to train on what ``gymnasium.make`` makes."""
    return (
        f"write `import {modules}; make_env = lambda: gymnasium.make({arguments})` into my_module.py, and give "
        "my_module:make_env"
    )


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


def is_atari(game: str) -> bool:
    """Whether a plain name is that of an Atari game, which a protocol's rules apply to."""
    return game != "catch" and not is_custom(game)


def refuse_rules_of_atari(given: Mapping[str, Any], game: str) -> None:
    """Raise ConfigError where the game is no Atari game and a rule of Atari games is given, by name and not as None."""
    for name in () if is_atari(game) else ("protocol", *PROTOCOLS["deepmind"]):
        if given.get(name) is not None:
            raise ConfigError(
                f"{flag_of(name)} is {given[name]!r}, a rule of Atari games, and {game} is not one; leave it out"
            )


def same_game(one: str, other: str) -> bool:
    """Whether two names may stand for one game: a custom environment may have moved to another module."""
    return one == other or (is_custom(one) and is_custom(other))


def name_of(make_env: MakeEnv) -> str:
    """Return the ``module:callable`` that settings keep of a callable; in this process, `load` returns it.

    A callable without a name of its own, such as a lambda, a ``functools.partial`` or the method of an object, goes by
    the variable of the script or of its module that holds it. Without one, no other process can import it.

    Raises
    ------
    ConfigError
        If it cannot be called, or another callable without a name of its own has gone by that variable in this process:
        the run that recorded it would find this one in its place.
    """
    if not callable(make_env):
        raise _uncallable("make_env", make_env)
    module = getattr(make_env, "__module__", None) or "__main__"
    name = getattr(make_env, "__qualname__", "")
    owner = getattr(make_env, "__self__", None)
    of_object = owner is not None and not isinstance(owner, type | ModuleType)
    nameless = False
    if not name or "<" in name or of_object:
        variable = _variable(make_env, module)
        if not variable and of_object and (holder := _variable(owner, module)):
            variable = (holder[0], f"{holder[1]}.{name.rpartition('.')[2]}")
        module, name = variable or (module, name if "<" in name else f"<{name or type(make_env).__qualname__}>")
        nameless = variable is not None
    if module == "__main__":  # other processes know the script by the name of its file
        main = sys.modules["__main__"]
        module = main.__spec__.name if main.__spec__ else Path(getattr(main, "__file__", None) or module).stem
    game = f"{module}:{name}"
    if nameless and _differ(_given.get(game, make_env), make_env):
        raise ConfigError(
            f"environment {game!r} was another callable before in this process, and its run would find this one; give "
            f"each a function of its own, as in `def make_env(): return ...`"
        )
    _given[game] = make_env
    return game


def _differ(one: object, other: object) -> bool:
    """Whether two functions or partials do different things, as far as can be told; a cell run again makes new ones."""
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        same = one.args == other.args and one.keywords == other.keywords
        return not same or _differ(one.func, other.func)
    if not (isinstance(one, FunctionType) and isinstance(other, FunctionType)):
        return one is not other and FunctionType in (type(one), type(other))
    closures = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (one, other)]
    codes = [(f.__code__.co_code, f.__code__.co_names, f.__code__.co_consts) for f in (one, other)]
    return codes[0] != codes[1] or any(a is not b for a, b in zip(*closures, strict=False))


def _variable(value: object, module: str) -> tuple[str, str] | None:
    """Return the module, the script or the one named, and the name of its variable that holds a value."""
    for holder in ("__main__", module):
        for name, held in list(vars(sys.modules.get(holder, object)).items()):
            if held is value:
                return holder, name
    return None


def load(game: str) -> MakeEnv:
    """Return the callable of a name; ConfigError if this process was not given it and an import does not find it.

    While its module is imported, no training may begin: see `refuse_while_loading`.
    """
    if game in _given:
        return _given[game]
    module, _, name = game.partition(":")
    found: Any = None
    try:
        with _loading_of(game), same_folder(game, "its import"):
            importlib.invalidate_caches()  # the file may have been written a moment ago
            found = importlib.import_module(module)
        value = functools.reduce(getattr, name.split("."), found)
    except (_TrainingRefusedError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: it would end this process without a word
        where = line_of(error)
        if not where:
            remedy = _near(game, module, name, found)
            if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
                remedy = f"start in the folder that holds {error.name}, or set PYTHONPATH to it, or {remedy}"
            raise ConfigError(f"environment {game!r} cannot be imported ({error}); {remedy}") from error
        remedy = f"put what a script does under {GUARD}" if isinstance(error, SystemExit) else "correct it there"
        raise ConfigError(
            f"environment {game!r} cannot be imported: {module} raised {in_words(error)} at {where}; {remedy}"
        ) from error
    if not callable(value):
        raise _uncallable(f"environment {game!r}", value)
    return cast(MakeEnv, value)


def _near(game: str, module: str, name: str, found: ModuleType | None) -> str:
    """Return what to give in place of a name that leads nowhere; `found` is its module, if there is one."""
    if found is not None and "<" not in name:
        if re.search(r"-v\d+$", name):
            return f"if it is an environment of Gymnasium, {_as_custom(repr(game), 'gymnasium')}"
        known = [known for known, value in vars(found).items() if callable(value)]
        if near := difflib.get_close_matches(name.partition("(")[0], known, n=1):
            return f"did you mean {module}:{near[0]}?"
    if module == "__main__":
        return f"it was defined in a notebook or by hand: put it into a module, then {REMEDY}"
    if "/" in module or module.endswith(".py"):
        path = Path(module.removesuffix(".py"))
        return f"did you mean {path.name}:{name or 'make_env'}, in the folder {path.parent.resolve()}?"
    return REMEDY


def _uncallable(what: str, value: object) -> ConfigError:
    if hasattr(value, "reset") and hasattr(value, "step"):
        return ConfigError(
            f"{what} is an environment itself, of type {type(value).__name__}; give a callable that makes a new one at "
            "each call, as in `def make_env(): return ...`"
        )
    return ConfigError(f"{what} is of type {type(value).__name__}, which cannot be called; {REMEDY}")


# --- no training while a module is loaded ---------------------------------------------------------------

GUARD = '`if __name__ == "__main__":`'
_loading: ContextVar[str] = ContextVar("loading")  # the environment whose module is being imported


class _TrainingRefusedError(ConfigError):
    pass


@contextmanager
def _loading_of(game: str) -> Iterator[None]:
    token, before = _loading.set(game), set(_given)
    try:
        yield
    except BaseException:
        for name in set(_given) - before:  # what a module gave that was not imported after all
            del _given[name]
        raise
    finally:
        _loading.reset(token)


def refuse_while_loading() -> None:
    """Raise ConfigError if a module is being loaded for its environment: its script shall not train once more.

    That is so while `load` imports it, and in a process that a vector environment spawns while that reads the script.
    """
    game = _loading.get(None)
    if game is None and not getattr(process.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        return
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    where = "" if frame is None else f" at {place(frame.f_code.co_filename, frame.f_lineno)}"
    for_whom = "a process of its vector environment" if game is None else f"its environment {game!r}"
    module = "the script" if game is None else game.partition(":")[0]
    raise _TrainingRefusedError(
        f"{module} trains{where} while it is imported for {for_whom}, and would train once more each time; put that "
        f"call under {GUARD}"
    )
