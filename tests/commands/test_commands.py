"""The command line: one name in front of four commands, help that teaches, and flags that mean one thing."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from untrained import make_run, write_settings

pytest.importorskip("envpool")

import itertools
from types import ModuleType, NoneType, SimpleNamespace

from fastrl import __main__ as front
from fastrl import cli, evaluate, plot, train, watch
from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS, DQNConfig, RunConfig, SarsaConfig
from fastrl.envs.rules import Rules
from fastrl.runs import folder

MODULES = {"train": train, "evaluate": evaluate, "watch": watch, "plot": plot}
ROOT = Path(__file__).parents[2]
PARSED = [train.Arguments, DQNConfig, SarsaConfig, evaluate.Arguments, watch.Arguments, plot.Arguments]


def test_the_command_refuses_a_flag_that_would_have_no_effect():
    with pytest.raises(ConfigError, match=r"^--atoms is 99, and --head expected does not read it; give --head c51"):
        train.main(["catch", "--atoms", "99"])


def examples_of(module):
    """Return the words of each example in a module's docstring, without what explains it."""
    lines = module.__doc__.partition("\n\n")[2].splitlines()
    return [shlex.split(re.split(r"\s{2,}", line)[0]) for line in lines]


EXAMPLES = [pytest.param(words, id=" ".join(words)) for name in MODULES for words in examples_of(MODULES[name])]


MY_MODULE = "import gymnasium as gym\n\ndef make_env():\n    return gym.make('CartPole-v1')\n"


CASTING = """
import gymnasium as gym, numpy as np

class Casting(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 1, (3,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3), {}

    def step(self, action):
        return np.zeros(3), 0.0, False, False, {}

def make_env():
    return Casting()
"""


@pytest.fixture
def reached(monkeypatch, tmp_path):
    """What was parsed: nothing is done with it. The current folder holds a run of catch, runs/NAME, and my_module."""
    reached = []

    def note(*arguments, **_):
        reached.append(arguments)
        return 0

    monkeypatch.chdir(tmp_path)
    write_settings(Path("runs/NAME"), PRESETS["catch"].config)
    Path("my_module.py").write_text(MY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", ModuleType("imageio_ffmpeg"))
    monkeypatch.setattr(train, "_dqn", note)
    monkeypatch.setattr("fastrl.sarsa.run.train", lambda *given, **_: SimpleNamespace(status=note(*given)))
    monkeypatch.setattr("fastrl.dqn.agent.load_agent", lambda *_, **__: None)
    monkeypatch.setattr(evaluate, "evaluate", note)
    monkeypatch.setattr(watch, "watch", note)
    monkeypatch.setattr(plot, "plot", lambda *arguments: reached.append(arguments) or [])
    return reached


@pytest.mark.parametrize("words", EXAMPLES)
def test_every_example_of_a_help_text_parses(reached, words):
    python, m, module, *arguments = words
    assert (python, m) == ("python", "-m")
    assert MODULES[module.removeprefix("fastrl.")].main(arguments) == 0
    assert len(reached) == 1


@pytest.mark.parametrize("words", [pytest.param(w, id=" ".join(w)) for w in examples_of(front)])
def test_every_example_of_the_command_in_front_reaches_its_command(reached, words, monkeypatch):
    assert words[0] == "fastrl"
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as leaving:
        front.main()
    assert leaving.value.code == 0
    assert len(reached) == 1


@pytest.mark.parametrize("arguments", [["train"], ["train", "cartpole"], ["evaluate"], ["watch"], ["plot"]])
def test_help_lists_the_flags_and_ends_with_examples(arguments, capsys):
    name, *rest = arguments
    with pytest.raises(SystemExit) as leaving:
        MODULES[name].main([*rest, "--help"])
    assert leaving.value.code == 0
    flags, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert "--seed" in flags or name == "plot"
    assert examples.count("\n") == len(examples_of(MODULES[name]))
    assert all(line.startswith("  python -m fastrl.") for line in examples.splitlines())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["catch"], ["Preset: 40k steps of Catch", "--hidden N Width of the dense layer", "(default: 64)", "--resume"]),
        (["--game", "pong", "--device", "cpu"], ["Preset: 20M frames on a CPU", "(default: pong)", "(default: auto)"]),
        (["pong", "--protocol", "machado"], ["of each life. (default: 1)", "(default: 0.25)"]),
        (["--resume", "runs/NOWHERE"], ["--game TEXT", "(default: breakout)"]),
        (["cartpole"], ["Linear SARSA(lambda) on many CartPoles.", "--learners N", "(default: 256)", "--quiet"]),
        (["my_module:make_env"], ["custom environment with vector observations", "(default: my_module:make_env)"]),
    ],
)
def test_help_shows_the_preset_of_the_game_that_is_named(reached, arguments, shown, capsys):
    with pytest.raises(SystemExit) as leaving:
        train.main([*arguments, "--help"])
    assert leaving.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert [words for words in shown if words not in said] == []
    assert reached == []


def test_the_command_in_front_names_four_commands_and_imports_nothing_heavy():
    code = "import sys; sys.argv = ['fastrl', '--help']; from fastrl.__main__ import main\n"
    code += "try: main()\nexcept SystemExit as e: print(e.code, *sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *said, last = result.stdout.splitlines()
    status, *loaded = last.split()
    assert status == "0"
    assert not {"torch", "numpy", "matplotlib", "rich", "fastrl.train"} & set(loaded)
    assert [line.split()[0] for line in said if re.match(r"  \w+ {2,}\w", line)][:4] == list(MODULES)


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["-h"], 0), (["play"], 2)])
def test_the_command_in_front_says_what_there_is(monkeypatch, capsys, arguments, status):
    monkeypatch.setattr(sys, "argv", ["fastrl", *arguments])
    with pytest.raises(SystemExit) as leaving:
        front.main()
    assert leaving.value.code == status
    said = capsys.readouterr()
    if arguments == ["play"]:
        assert said.err == "fastrl: error: command is 'play'; give train, evaluate, watch, plot, or --help\n"
    else:
        assert "usage: fastrl COMMAND" in said.out


def test_a_reader_that_leaves_early_is_no_error():
    command = subprocess.Popen(
        [sys.executable, "-m", "fastrl", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    command.stdout.close()
    assert command.stderr.read() == ""
    command.stderr.close()
    assert command.wait() == 128 + signal.SIGPIPE


def test_the_command_in_front_finds_modules_of_the_current_folder(tmp_path):
    (tmp_path / "my_module.py").write_text(MY_MODULE)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "fastrl"  # which Python looks beside, not in the current folder
    script.write_text("from fastrl.__main__ import main\nmain()\n")
    flags = "--total-frames 300 --no-compile --hidden 8 --device cpu --name x --final-episodes 1".split()
    command = [sys.executable, str(script), "train", "my_module:make_env", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert folder.load_config(tmp_path / "runs" / "x").game == "my_module:make_env"
    assert (tmp_path / "runs" / "x" / "commands.txt").read_text().startswith("fastrl train my_module:make_env ")


def test_hints_are_worded_as_the_command_was_called(monkeypatch):
    doc = "Purpose.\n\npython -m fastrl.plot RUN   what\n"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fastrl", "plot"])
    assert cli.program("plot") == "fastrl plot"
    assert cli.examples(doc) == "fastrl plot RUN   what\n"
    monkeypatch.setattr(sys, "argv", ["/somewhere/fastrl/plot.py"])
    assert cli.program("plot") == "python -m fastrl.plot"
    assert cli.examples(doc) == "python -m fastrl.plot RUN   what\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/usr/bin/python3", "/somewhere/bin/fastrl", "train", "a b"], "fastrl train 'a b'"),
        (["/usr/bin/python3", "-m", "fastrl.train", "catch"], "NAME -m fastrl.train catch"),
    ],
)
def test_a_run_remembers_its_command_without_folders_of_the_machine(monkeypatch, tmp_path, argv, line):
    monkeypatch.setattr(sys, "orig_argv", argv)
    write_settings(tmp_path / "run", PRESETS["catch"].config)
    expected = line.replace("NAME", Path(sys.executable).name) + "\n"
    assert (tmp_path / "run" / "commands.txt").read_text() == expected


# --- flags ----------------------------------------------------------------------------------------------


def flags_of(kind):
    """Return the help of each flag of a dataclass, inherited ones included."""
    tree = ast.parse(inspect.getsource(kind)).body[0].body
    pairs = itertools.pairwise(tree)
    own = {a.target.id: ast.literal_eval(b.value) for a, b in pairs if isinstance(a, ast.AnnAssign)}
    inherited = [flags_of(base) for base in (RunConfig, Rules) if issubclass(kind, base) and kind is not base]
    return {name: text for flags in [*inherited, own] for name, text in flags.items()}


def without_none(hint):
    """Return the types of a union but None, or the one type."""
    return {kind for kind in get_args(hint) if kind is not NoneType} if NoneType in get_args(hint) else {hint}


SAME = {  # flags of several commands, and words that each help has: a new one wants a look at the others
    "seed": "Seeds",
    "episodes": "to play|that count",  # of CartPole, whose games are its episodes
    "last_weights": "last weights of a run that is judged by their average",
    "checkpoint": "Checkpoint of a run: `newest`, `best`",
    "epsilon": "Share of random actions",
    "make_env": "Factory for a custom environment",
    "protocol": "Sets the five flags below unless given explicitly|Rules to play by",
    "repeat_action_probability": "Sticky actions: the chance per emulator frame that the last action is repeated",
    "episodic_life": "life",
    "fire_reset": "FIRE is pressed for the player",
    "noop_max": "At most N no-ops at the start of a game",
    "max_episode_steps": "A game is cut off after N agent steps",
    "learning_rate": "Step size",
    "gamma": "Discount",
    "out": "File for the film|Where the pictures",
    "q_values": "Draw the values of all actions",
    "game": "(g|G)ame",
    "runs_dir": "Folder that holds",
    "name": "Name of the run's folder",
    "films": "Film one game of each evaluation",
    "collectors": "Processes that play",
    "ray_address": "Ray cluster on which the collectors run",
    "collector_timeout": "Seconds .* after which a collector .*is replaced",
}


def test_a_flag_means_the_same_in_every_command():
    flags = {kind: flags_of(kind) for kind in PARSED}
    shared = {name for kind in PARSED for name in flags[kind] if sum(name in f for f in flags.values()) > 1}
    assert shared == set(SAME)
    for name, words in SAME.items():
        kinds = [kind for kind in PARSED if name in flags[kind]]
        for kind in kinds:
            assert re.search(words, flags[kind][name]), (kind, name)
        hints = [get_type_hints(kind)[name] for kind in kinds]
        assert all(without_none(hint) == without_none(hints[0]) for hint in hints), (name, hints)


def test_the_script_that_is_installed_is_the_command_in_front():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"fastrl": f"{front.__name__}:{front.main.__name__}"}


# --- what is printed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [*MODULES.values(), front])
def test_examples_fit_a_terminal_of_80_columns(module):
    assert [line for line in module.__doc__.partition("\n\n")[2].splitlines() if len("  " + line) > 80] == []


def test_help_for_a_custom_environment_says_nothing_of_what_it_observes(reached, capsys, recwarn):
    Path("casting.py").write_text(CASTING)
    with pytest.raises(SystemExit):
        train.main(["casting:make_env", "--help"])
    assert not recwarn
    assert "usage: python -m fastrl.train" in capsys.readouterr().out


def test_help_for_cartpole_has_no_agents(reached, capsys):
    with pytest.raises(SystemExit):
        train.main(["cartpole", "--help"])
    assert not re.search(r"^ +--agent ", capsys.readouterr().out, re.MULTILINE)


def test_help_for_a_resume_shows_the_settings_of_that_run(reached, capsys):
    with pytest.raises(SystemExit):
        train.main(["--resume", "runs/NAME", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "usage: python -m fastrl.train --resume runs/NAME [flags]" in said
    assert "Defaults: the settings of runs/NAME." in said
    assert "--game TEXT" in said
    assert "(default: catch)" in said
    assert "(default: 40000)" in said


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["pong", "--device", "cpu"], "20M frames on a CPU: one to two hours on two recent cores"),
        (["pong", "--device", "cpu", "--total-frames", "8000"], "8,000 frames on a CPU"),
        (["catch", "--total-frames", "40000"], "40k steps of Catch: about a minute"),
        (["catch", "--total-frames", "300"], "300 frames of Catch"),
        (["my_module:make_env", "--total-frames", "7"], "7 frames of a custom environment with vector observations"),
        (["--resume", "runs/NAME", "--total-frames", "7"], "the settings of runs/NAME"),
    ],
)
def test_what_a_preset_promises_is_said_of_its_own_length_alone(reached, arguments, about):
    assert train.main(arguments) == 0
    assert reached[0][2].startswith(about)


FLAGS = (
    "--device cpu --no-compile --total-frames 300 --final-episodes 1 --evaluate-episodes 1 --num-envs 4 --hidden 8 "
    "--env-threads 1"
).split()


def test_what_a_run_prints_last_can_be_typed_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fastrl", "train"])
    assert train.main(["catch", *FLAGS, "--runs-dir", "my runs", "--name", "it's ü"]) == 0
    look, watching = capsys.readouterr().out.splitlines()[-1].split("; watch: ")
    assert shlex.split(look) == ["look:", "tensorboard", "--logdir", f"{tmp_path}/my runs"]
    assert shlex.split(watching) == ["fastrl", "watch", f"{tmp_path}/my runs/it's ü"]
    monkeypatch.chdir("/")
    run = shlex.split(watching)[-1]
    monkeypatch.setattr("fastrl.dqn.run.experiment.Run.play", lambda run: setattr(run.stop, "signal", signal.SIGINT))
    assert train.main(["--resume", run]) == 128 + signal.SIGINT
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].split("resume with: ")[1])
    assert command == ["fastrl", "train", "--resume", run]


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_needs_no_letters_of_its_terminal_and_no_terminal(tmp_path, closed):
    """Names with other letters, where the terminal knows ASCII alone; and a stdout that is closed from the start."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "fastrl.train", "catch", *FLAGS, "--name", "Größe 🎮", "--runs-dir", "ö"]
    if closed:
        command = ["sh", "-c", f"{shlex.join(command)} >&-"]
    result = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "ö" / "Größe 🎮" / "metrics.csv").exists()
    assert result.stdout.isascii()
    assert closed or rb"Gr\xf6\xdfe \U0001f3ae" in result.stdout


# --- outputs --------------------------------------------------------------------------------------------


@pytest.fixture
def played(monkeypatch, tmp_path):
    """How often games were played; they fail at once. The current folder holds a run of catch, run."""
    monkeypatch.chdir(tmp_path)
    make_run(Path("run"))
    played = []

    def fail(*_, **__):
        played.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr("fastrl.play.games.play_games", fail)
    monkeypatch.setattr(watch, "has_display", lambda: False)
    return played


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (evaluate, "run --json run/config.json/x.json"),
        (evaluate, "run --json /proc/x/y.json"),
        (evaluate, "run --json run"),
        (evaluate, "run --out run/config.json/x.gif"),
        (evaluate, "run"),
        (watch, "run"),
        (watch, "run --out run/config.json/x.gif"),
    ],
)
def test_a_file_that_cannot_be_made_is_named_before_the_games(played, module, words):
    if words == "run":
        Path("run/pictures").touch()  # where films go by default
    before = sorted(Path().rglob("*"))
    with pytest.raises(ConfigError, match=r"--(json|out) is .*(where no file can be made|a folder)"):
        module.main(words.split())
    assert played == []
    assert sorted(Path().rglob("*")) == before


def test_games_that_fail_leave_the_old_file_and_no_folder(played):
    Path("old.json").write_text("old", encoding="utf-8")
    for path in ("old.json", "new/folder/x.json"):
        with pytest.raises(ZeroDivisionError):
            evaluate.main(["run", "--json", path, "--out", "films/x.gif"])
    assert Path("old.json").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in Path().iterdir()) == ["old.json", "run"]
    assert played == [1, 1]


def test_scores_go_into_a_folder_that_is_made_and_say_where_the_agent_lies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(Path("run"))
    assert evaluate.main(["run", "--episodes", "2", "--json", "new/x.json"]) == 0
    facts = json.loads(Path("new/x.json").read_text(encoding="utf-8"))
    assert facts["checkpoint"] == str(tmp_path / "run" / "checkpoints" / "000000000400")
    assert len(facts["scores"]) == 2
    assert facts["human_normalized"] is None  # Catch has no levels


def test_scores_of_a_game_with_levels_are_normalised_by_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["breakout", "--episodes", "1", "--max-episode-steps", "100", "--json", "x.json"]
    assert evaluate.main(words) == 0
    facts = json.loads(Path("x.json").read_text(encoding="utf-8"))
    assert facts["human_normalized"] == pytest.approx((facts["mean"] - 1.7) / 28.8)
    assert "; random play scores 1.7, a human 30.5 (Wang et al. 2016)" in capsys.readouterr().out
