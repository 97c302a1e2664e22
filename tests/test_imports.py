"""Imports run one way, and what needs little brings in little."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastrl"
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in PACKAGE.rglob("*.py")
)
# Each layer may import from itself and from those before it.
LAYERS = [
    {f"fastrl.{name}" for name in "checks config rules schedule extras folder machine saved screen stop".split()},
    {m for m in MODULES if m.startswith("fastrl.replay")}
    | {f"fastrl.replay.{name}" for name in "_sum_tree _ring _draw _frames".split()},
    {f"fastrl.{name}" for name in "atari bars camera cartpole curves gymnasium_envs report steps video".split()},
    {
        "fastrl.games",
        "fastrl.plan",
        "fastrl.ale",
        "fastrl.sarsa",
        "fastrl.dqn",
        *(
            f"fastrl.dqn.{n}"
            for n in "device frames graph groups health inputs laps loss network optimizer staging tally".split()
        ),
    },
    {"fastrl.dqn.learner", "fastrl.dqn.checkpoint", "fastrl.dqn.build"},
    {"fastrl.dqn.run", "fastrl.dqn.callbacks", "fastrl.dqn.pretrained", "fastrl.sarsa_run"},
    {"fastrl.command", "fastrl.train", "fastrl.evaluate", "fastrl.plot", "fastrl.watch", "fastrl.__main__"},
    {m for m in MODULES if m.startswith("fastrl.integrations")},  # nothing of the package imports these
    {"fastrl"},  # imports nothing until it is asked to
]


def layer(module: str) -> int:
    return next(i for i, modules in enumerate(LAYERS) if module in modules)


def imported(module: str) -> set[str]:
    """Return the modules of the package that a module names in its import statements."""
    parts = module.split(".")
    path = ROOT.joinpath(*parts)
    source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    known = set().union(*LAYERS)
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name in known and name != "fastrl"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    for other in imported(module):
        assert layer(other) <= layer(module), f"{module} imports {other}"


def test_the_picture_of_the_design_shows_every_module_once():
    picture = re.search(r"^```text\ncsrc.*?^```", (ROOT / "docs" / "design.md").read_text(), re.S | re.M)[0]
    files = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert Counter(re.findall(r"\w+\.py\b", picture)) == files


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("fastrl.integrations")])
def test_integrations_need_the_replay_alone(module):
    own = ("fastrl.replay", "fastrl.extras", "fastrl.integrations")
    assert all(other.startswith(own) for other in imported(module))


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("fastrl.integrations")])
def test_nothing_imports_an_integration(module):
    assert not any(other.startswith("fastrl.integrations") for other in imported(module))


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_replay_brings_in_numpy_and_no_framework():
    loaded = loaded_by("import fastrl.replay")
    assert "numpy" in loaded
    assert not loaded & {"torch", "gymnasium", "envpool", "tensorboard", "PIL", "rich", "tyro", "Cython", "lz4"}


def test_the_package_itself_brings_in_nothing_though_it_loads_networks():
    for statement in ("import fastrl; dir(fastrl)", "from fastrl import *; load_pretrained"):
        assert not loaded_by(statement) & {"numpy", "torch", "safetensors", "fastrl.config", "fastrl.dqn"}


@pytest.mark.parametrize("module", [m for m in MODULES if "dqn" not in m and "integrations" not in m])
def test_torch_stays_in_dqn_and_integrations(module):
    assert "torch" not in loaded_by(f"import {module}")


@pytest.mark.parametrize(
    "module",
    ["fastrl.dqn.run", "fastrl.dqn.callbacks", "fastrl.dqn.learner", "fastrl.dqn.frames", "fastrl.dqn.pretrained"],
)
def test_modules_of_dqn_import_alone(module):
    assert module in loaded_by(f"import {module}")


@pytest.mark.parametrize("missing", ["envpool", "tyro", "tensorboard", "torch", "safetensors", "rich", "PIL"])
def test_a_missing_package_is_answered_with_the_extra_that_brings_it(missing, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = {['catch', '--runs-dir', str(tmp_path)]!r}; "
    code += "from fastrl.train import main, run_command; run_command(main, 'train')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "[train]" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
