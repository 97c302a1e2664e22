"""`from fastrl import ...`: the public names, whatever was imported before, and training from Python."""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import pickle
import pydoc
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import nbclient
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from quick_run import QUICK

import fastrl
from fastrl.base.errors import ConfigError
from fastrl.dqn.callbacks import Callback
from fastrl.runs.folder import RunFolder, load_config

ORDERS = [
    "from fastrl import train, DQNConfig",
    "import fastrl.train; from fastrl import train, DQNConfig",
    "from fastrl import DQNConfig; import fastrl.train; from fastrl import train",
    "import fastrl; from fastrl import train, DQNConfig; import fastrl.train",
    "from fastrl.train import config_for; from fastrl import train, DQNConfig",
    "import fastrl.dqn.run; from fastrl import train, DQNConfig",
    "import fastrl.train as train; from fastrl import DQNConfig",
    "import fastrl.train as first; from fastrl import train; assert first is train",
    "from fastrl import *; import fastrl.train; assert train is fastrl.train",
    "from fastrl.train import train as function; from fastrl import train; assert train is not function",
]

CATCH = str(Path(__file__).parent / "fixtures" / "catch")
DEVICES = ("mps", "xpu", "gpu", "CPU")
NO_DEVICE = "--device is '{}', but networks learn on a CPU or a CUDA GPU alone; give auto, cpu or cuda"


def python(code, *flags):
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("order", ORDERS)
def test_train_is_the_same_callable_in_whatever_order_things_are_imported(order):
    done = python(
        f"{order}\nimport sys\nassert callable(train) and train.main and train is sys.modules['fastrl.train']"
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_and_every_name_is_there():
    heavy = "numpy torch gymnasium envpool rich".split()
    done = python(f"import sys, fastrl\nassert not set(sys.modules) & set({heavy}), sys.modules\nassert dir(fastrl)")
    assert done.returncode == 0, done.stderr
    for name in fastrl.__all__:
        assert getattr(fastrl, name) is not None
        assert name in dir(fastrl)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = fastrl.trian


def test_names_are_what_the_rooms_have_and_what_type_checkers_read():
    listed = {}
    for node in ast.walk(ast.parse(Path(fastrl.__file__).read_text())):
        if isinstance(node, ast.If):
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom):
                    listed |= {alias.name: statement.module for alias in statement.names}
    assert listed.pop("train") == "fastrl.train"
    assert listed == fastrl._ROOMS
    assert sorted({*listed, "train", "__version__"}) == sorted(fastrl.__all__)
    for name, room in listed.items():
        assert getattr(fastrl, name) is getattr(sys.modules[room], name)


def test_train_is_told_apart_from_no_function():
    train = fastrl.train
    assert str(inspect.signature(train)) == str(inspect.signature(train.train))
    assert list(inspect.signature(train).parameters) == ["what", "callbacks", "agent", "resume", "quiet", "settings"]
    for same in (pickle.loads(pickle.dumps(train)), copy.copy(train), copy.deepcopy(train)):
        assert same is train
    told = pydoc.plain(pydoc.render_doc(train))
    assert "Train an agent until its last frame" in told
    assert "config_for(" in told
    assert "main(" not in told


def test_the_replay_and_settings_need_numpy_alone_and_what_needs_more_names_the_extra():
    others = "torch gymnasium envpool rich tensorboard PIL safetensors lz4 ale_py cv2 scipy matplotlib IPython pygame"
    done = python(
        f"""
import sys
sys.modules |= dict.fromkeys({others.split()}, None)
import fastrl
from fastrl import ConfigError, DQNConfig, PrioritizedReplayBuffer, ReplayBuffer, SarsaConfig, preset_for, train
for ask in (lambda: fastrl.Callback, lambda: train("catch"), lambda: train(DQNConfig()), lambda: train("cartpole")):
    try:
        ask()
    except ImportError as error:
        assert "[train]" in str(error) and len(str(error).splitlines()) == 1, error
    else:
        raise AssertionError(ask)
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_config_a_game_and_a_resume_train(tmp_path):
    class Seen(Callback):
        games = 0

        def on_game(self, run, score, length):
            self.games += 1

    seen = Seen()
    run = fastrl.train(QUICK.replace(total_frames=1_000, runs_dir=str(tmp_path), name="config"), [seen], quiet=True)
    assert run.frames >= 1_000
    assert seen.games > 10
    flags = {"runs_dir": str(tmp_path), "compile": False, "final_episodes": 1}
    game = fastrl.train("catch", total_frames=600, name="game", quiet=True, **flags)
    assert load_config(tmp_path / "game").trunk == "vector"  # the preset's
    assert 600 <= game.frames < 1_000
    longer = fastrl.train(resume=game.folder, total_frames=1_200, quiet=True)
    assert longer.folder.path == game.folder.path
    assert longer.frames >= 1_200
    pole = fastrl.train("cartpole", learners=2, episodes=2, runs_dir=str(tmp_path), name="pole", quiet=True)
    assert list(pole.folder.checkpoints.glob("sarsa-v?.npz"))
    again = fastrl.train(fastrl.SarsaConfig(learners=2, episodes=2), resume=pole.folder, quiet=True)
    assert (again.folder.path, again.stop.signal, again.status) == (pole.folder.path, None, 0)


def test_settings_to_start_from_are_those_of_the_command(tmp_path):
    cpu = fastrl.preset_for("space_invaders", "cpu").config
    assert fastrl.config_for("ALE/SpaceInvaders-v5", "cpu", seed=3) == cpu.replace(device="cpu", seed=3)
    cart = fastrl.config_for(lambda: gym.make("CartPole-v1"), "cpu", total_frames=7)
    assert (cart.trunk, cart.device, cart.total_frames) == ("vector", "cpu", 7)


def test_a_run_that_is_stopped_says_how_python_resumes_it(tmp_path, capsys):
    class Stops(Callback):
        def on_step(self, run, actions):
            if run.steps == 320:
                signal.raise_signal(signal.SIGTERM)

    run = fastrl.train("catch", [Stops()], compile=False, runs_dir=str(tmp_path), name="run", total_frames=2_000)
    assert run.stop.signal == signal.SIGTERM
    first, *_, said = capsys.readouterr().out.splitlines()
    assert first.startswith("catch: 2,000 frames of Catch; Ctrl-C or a notebook's stop button saves the run")
    assert said == f"stopped after 320 frames; resume with: train(resume={str(tmp_path / 'run')!r})"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fastrl.train(),
            "nothing is given to train on; give a DQNConfig, a game such as",
        ),
        (
            lambda: fastrl.train("catch", total_frame=5),
            "total_frame is no setting of DQNConfig; did you mean total_f",
        ),
        (lambda: fastrl.train("catch", total_frames=0), "--total-frames is 0; give at least 1"),
        (
            lambda: fastrl.train("catch", Batch=0),
            r"Batch is no setting of DQNConfig; help\(fastrl.DQNConfig\) lists them",
        ),
        (lambda: fastrl.train("brakeout"), "did you mean breakout"),
        (lambda: fastrl.train("catch", game="pong"), "game is 'pong', and catch is given first; give one game"),
        (lambda: fastrl.train(42), "42 is given to train on, of type int; give a DQNConfig, a game such as 'breakout'"),
        (lambda: fastrl.train(["catch"]), "of type list; give a DQNConfig, a game"),
        (lambda: fastrl.train(fastrl.DQNConfig), r"the class itself; give DQNConfig\(\)"),
        (lambda: fastrl.train(fastrl.preset_for("catch", "cpu")), r"a Preset is given; give its \.config"),
        (lambda: fastrl.train(gym.make("CartPole-v1")), "is an environment itself"),
        (lambda: fastrl.train(CATCH), r"is the folder of a run, no game; give resume='.*catch'"),
        (lambda: fastrl.train(Path(CATCH)), r"is the folder of a run, no game; give resume='.*catch'"),
        (lambda: fastrl.train("catch", Callback()), "callbacks is of type Callback; give a list"),
        (lambda: fastrl.train("catch", [Callback]), "callbacks holds the class Callback; give objects"),
        (lambda: fastrl.config_for("cartpole"), r"its settings are SarsaConfig\(\)"),
        (lambda: fastrl.config_for("catch", "mps"), "--device is 'mps'"),
        (lambda: fastrl.preset_for("breakout", "auto"), "device is 'auto'; give cpu or cuda"),
        (lambda: fastrl.train("cartpole", [Callback()]), "callbacks are given, and a cartpole run has none"),
        *((lambda device=device: fastrl.DQNConfig(device=device), NO_DEVICE.format(device)) for device in DEVICES),
        *((lambda device=device: fastrl.train("catch", device=device), NO_DEVICE.format(device)) for device in DEVICES),
        (lambda: fastrl.DQNConfig(device="cuda:1"), "give cuda, and CUDA_VISIBLE_DEVICES=1 in the environment chooses"),
        (lambda: fastrl.load_pretrained("breakout", "mps"), NO_DEVICE.format("mps")),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_runs_and_shows_the_panel_the_curve_and_the_film(tmp_path):
    """In a kernel of its own: what `open_screen` chooses there, and what a cell displays."""
    source = Path(__file__).parent.parent / "examples" / "notebook.ipynb"
    shutil.copy(source, tmp_path)
    notebook = nbformat.read(tmp_path / source.name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    panels = [html for output in outputs if "frames" in (html := output.get("data", {}).get("text/html", ""))]
    assert len(panels) == 1  # one picture, redrawn
    assert "2,000 of 2,000" in panels[0]
    assert "━━━━" in panels[0]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "catch on cpu" in said
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/png" in shown
    assert "image/gif" in shown
    assert len(list((tmp_path / "runs").iterdir())) == 1


@contextlib.contextmanager
def kernel_in(folder):
    """A function that runs a cell, and gives the status, the text printed and the panels; `act` gets each message."""
    manager, client = start_new_kernel(cwd=str(folder))

    def run(cell, act=lambda manager, message: None):
        said, panels = [], []

        def hear(message):
            kind, content = message["msg_type"], message["content"]
            if kind in ("display_data", "update_display_data"):
                panels.append(content["data"]["text/plain"])
            elif kind == "stream":
                said.append(content["text"])
            act(manager, kind)

        reply = client.execute_interactive(cell, output_hook=hear, timeout=300)
        return reply["content"]["status"], "".join(said), panels

    try:
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_the_stop_button_saves_the_run_and_the_cell_can_be_run_again(tmp_path):
    pressed = []

    def press(manager, kind):
        if kind == "update_display_data" and not pressed:
            pressed.append(manager.interrupt_kernel())

    cell = "run = train('catch', total_frames={}, compile=False, device='cpu', final_episodes=1)"
    with kernel_in(tmp_path) as run:
        run("from fastrl import train")
        status, said, panels = run(cell.format("4_000_000"), press)
        assert status == "ok"
        (first,) = (tmp_path / "runs").iterdir()
        assert said.endswith(f"resume with: train(resume={str(first)!r})\n")
        assert "of 4,000,000" in panels[-1]
        assert RunFolder(first).newest_whole()[1] == []
        run("stopped = run")
        for _ in range(2):
            assert run(cell.format("400"))[0] == "ok"
        assert len(list((tmp_path / "runs").iterdir())) == 3
        _, said, _ = run(f"train(resume={str(first)!r}, total_frames=stopped.frames + 400)")
        assert "resuming after" in said
        _, said, _ = run("import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)")
        assert said == "True\n"


def test_the_notebook_is_committed_without_outputs():
    source = Path(__file__).parent.parent / "examples" / "notebook.ipynb"
    cells = nbformat.read(source, as_version=4).cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells if cell.cell_type == "code")
