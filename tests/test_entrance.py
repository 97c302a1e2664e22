"""`from fastrl import ...`: the public names, whatever was imported before, and training from Python."""

from __future__ import annotations

import inspect
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from quick_run import QUICK

import fastrl
from fastrl.base.errors import ConfigError
from fastrl.dqn.callbacks import Callback
from fastrl.runs.folder import load_config

ORDERS = [
    "from fastrl import train, DQNConfig",
    "import fastrl.train; from fastrl import train, DQNConfig",
    "from fastrl import DQNConfig; import fastrl.train; from fastrl import train",
    "import fastrl; from fastrl import train, DQNConfig; import fastrl.train",
    "from fastrl.train import config_for; from fastrl import train, DQNConfig",
    "import fastrl.dqn.run; from fastrl import train, DQNConfig",
]


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


def test_names_are_what_the_rooms_have():
    from fastrl import config, replay

    assert fastrl.DQNConfig is config.DQNConfig
    assert fastrl.PrioritizedReplayBuffer is replay.PrioritizedReplayBuffer
    assert "total_frames=40_000" in inspect.getdoc(fastrl.train.start)
    assert list(inspect.signature(fastrl.train).parameters) == ["what", "callbacks", "resume", "quiet", "settings"]
    assert pickle.loads(pickle.dumps(fastrl.train)) is fastrl.train


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
    assert fastrl.train("cartpole", learners=2, episodes=2, runs_dir=str(tmp_path), name="pole", quiet=True) == 0


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
        (lambda: fastrl.train("brakeout"), "did you mean breakout"),
        (lambda: fastrl.train("cartpole", [Callback()]), "callbacks are given, and a cartpole run has none"),
        (lambda: fastrl.DQNConfig(device="mps"), "--device is 'mps'; give auto, cpu or cuda"),
        (lambda: fastrl.train("catch", device="cuda:1"), "--device is 'cuda:1'; give auto, cpu or cuda"),
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


def test_the_notebook_is_committed_without_outputs():
    source = Path(__file__).parent.parent / "examples" / "notebook.ipynb"
    cells = nbformat.read(source, as_version=4).cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells if cell.cell_type == "code")
