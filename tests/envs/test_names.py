"""Names of games in any spelling, what their ids stand for, and what to give in place of a name that is of no game."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("envpool")

from fastrl import evaluate, train
from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS
from fastrl.envs import names
from fastrl.envs.make import look_at
from fastrl.envs.names import differing_rules, game_name
from fastrl.envs.rules import Rules

SPELLINGS = ["", "NoFrameskip", "Deterministic"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder where Python finds modules, in a process that was given no callable as an object."""
    monkeypatch.setattr(names, "_given", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("my_module", "brekout"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


@pytest.mark.parametrize("version", [0, 4])
@pytest.mark.parametrize("kind", SPELLINGS)
def test_ids_of_gymnasium_name_the_game(kind, version):
    assert game_name(f"SpaceInvaders{kind}-v{version}") == "space_invaders"
    assert game_name(f"ALE/SpaceInvaders{kind}-v5") == "space_invaders"


@pytest.mark.parametrize(("name", "plain"), [
    ("Space Invaders", "space_invaders"), ("space-invaders", "space_invaders"), ("Q*bert", "qbert"),
    ("Up'n Down", "up_n_down"), ("CATCH", "catch"),
])  # fmt: skip
def test_names_as_people_write_them(name, plain):
    assert game_name(name) == plain


@pytest.mark.parametrize("name", ["CatchNoFrameskip-v4", "ALE/Catch-v5", "Breakout-v6", "Breakout-v45"])
def test_what_only_looks_like_such_an_id_is_none(name):
    with pytest.raises(ConfigError, match=f"game is '{name}', which EnvPool does not have"):
        game_name(name)


MACHADO = Rules(protocol="machado")


@pytest.mark.parametrize(
    ("name", "rules", "words"),
    [
        ("pong", Rules(), ""),
        ("Pong-v5", Rules(), ""),  # EnvPool's own
        ("PongNoFrameskip-v4", Rules(), ""),
        ("PongDeterministic-v4", Rules(), ""),
        ("PongNoFrameskip-v4", MACHADO, "sticky actions 0, here 0.25 (--repeat-action-probability 0)"),
        ("PongNoFrameskip-v0", Rules(), "sticky actions 0.25, here 0 (--repeat-action-probability 0.25)"),
        ("ALE/Pong-v5", Rules(), "sticky actions 0.25, here 0 (--repeat-action-probability 0.25)"),
        ("ALE/Pong-v5", MACHADO, ""),
        ("Pong-v4", Rules(), "a random frame skip of 2 to 4, here always 4"),
        ("Pong-v0", Rules(), "sticky actions 0.25, here 0 (--repeat-action-probability 0.25) and a random frame skip "
                             "of 2 to 4, here always 4"),
        ("my_module:make_env", Rules(), ""),
    ],
)  # fmt: skip
def test_rules_that_differ_from_those_of_an_id_are_told(name, rules, words):
    assert differing_rules(name, rules) == (f"{name} stands in Gymnasium for {words}" if words else "")


def test_the_command_tells_them_once_and_its_remedy_holds(monkeypatch, capsys):
    begun = []
    monkeypatch.setattr(train, "_dqn", lambda config, *rest: begun.append(config) or 0)
    monkeypatch.setattr(train, "_preset", lambda game, device: PRESETS["cpu"])
    assert train.main(["ALE/Breakout-v5"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("ALE/Breakout-v5 stands in Gymnasium for sticky actions 0.25, here 0 (")
    assert train.main(["ALE/Breakout-v5", *re.search(r"\((--.*)\)", said)[1].split()]) == 0
    assert train.main(["ALE/Breakout-v5", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert [config.repeat_action_probability for config in begun] == [0, 0.25, 0]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("my_module.make_env", "my_module:make_env"),
        ("a.package.make_env", "a.package:make_env"),
        ("my_module", "my_module:make_env"),
        ("my_module.py", "my_module:make_env"),
        ("package/inner.py", "package.inner:make_env"),
        ("package", "package:make_env"),
        ("brekout", "brekout:make_env"),  # there is a file of this name
        ("brekaut", "breakout"),
        ("ALE/SpaceInvader-v5", "space_invaders"),
    ],
)
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(name, meant, here):
    (here / "package").mkdir()
    for path in ("my_module.py", "brekout.py", "package/__init__.py", "package/inner.py"):
        (here / path).write_text("raise RuntimeError('a hint imports nothing')\n")
    with pytest.raises(ConfigError, match=rf"did you mean {re.escape(meant)}( or .*)?\?$"):
        train.main([name])


@pytest.mark.parametrize(
    ("name", "kept"), [("CartPole-v1", (4,)), ("cartpole-v1", (4,)), ("Breakout-ram-v4", (128,)), ("toy:Some-v3", None)]
)
def test_an_environment_of_gymnasium_is_answered_with_lines_that_work(name, kept, here):
    Path("toy.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Some-v3', CartPoleEnv)\n"
    )
    with pytest.raises(ConfigError) as refused:
        train.main([name])
    source, module, given = re.search(r"write `(.*)` into (\w+\.py), and give (\S+)$", str(refused.value)).groups()
    Path(module).write_text(source + "\n")
    assert look_at(given) == (kept or (4,), None)


def test_a_custom_environment_is_evaluated_by_its_run():
    with pytest.raises(ConfigError, match=r"give the folder of a run, and this name after --make-env$"):
        evaluate.main(["my_module:make_env"])


def test_a_name_that_is_nothing_is_answered_with_both_lists():
    with pytest.raises(ConfigError, match=r"game_names\(\) lists the games, and a custom .* as in my_module:make_env$"):
        game_name("xyzzyx")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_module:make_enw", r"did you mean my_module:make_env\?"),
        ("my_module:make_env()", r"did you mean my_module:make_env\?"),
        ("./my_module.py:make_env", r"did you mean my_module:make_env, in the folder .*\?"),
        (
            "my_modul:make_env",
            r"'my_modul'\); start in the folder that holds my_modul, or set PYTHONPATH to it, or name a",
        ),
        ("__main__:make_env", "it was defined in a notebook or by hand: put it into a module"),
    ],
)
def test_a_custom_environment_whose_name_is_nearly_right_is_answered_with_the_right_one(name, message, here):
    Path("my_module.py").write_text("def make_env():\n    pass\n")
    with pytest.raises(ConfigError, match=message):
        names.load(name)


def small(number):
    return number


def test_a_variable_that_held_another_callable_names_no_second_run():
    """A loop's variable: the run that recorded it would find the last callable in place of its own."""

    def build(kind):
        return lambda: kind()

    module = sys.modules[__name__]
    for makes in ([lambda: small(1), lambda: small(2)], [build(int), build(float)]):
        module.looped = makes[0]
        known = names.name_of(makes[0])
        assert known.endswith(":looped")
        assert names.name_of(makes[0]) == known
        module.looped = makes[1]
        with pytest.raises(
            ConfigError, match=r"looped' was another callable before .*; give each a function of its own"
        ):
            names.name_of(makes[1])
        del module.looped
        names._given.pop(known)


def test_the_same_cell_run_again_is_no_other_callable():
    module = sys.modules[__name__]

    def cell():
        return lambda: small(1)

    module.again = cell()
    known = names.name_of(module.again)
    module.again = cell()
    assert names.name_of(module.again) == known
    del module.again
    assert names._differ(functools.partial(int, 1), functools.partial(int, 2))
    assert not names._differ(functools.partial(int, 1), functools.partial(int, 1))
