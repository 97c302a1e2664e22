"""Imports run one way, and what needs little brings in little."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastrl"
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in PACKAGE.rglob("*.py")
)
KERNELS = {f"fastrl.replay.{path.stem}" for path in PACKAGE.glob("replay/_*.pyi")}
# A room is a folder or a module at the root; each layer imports from itself, without circles, and from those before it.
LAYERS = [
    ["base"],
    ["replay", "replay.stores", "replay.saves", "envs", "film"],
    ["config"],
    ["play", "runs", "sarsa"],
    ["dqn", "dqn.device"],
    ["distributed"],
    ["dqn.run"],
    ["cli", "train", "evaluate", "watch", "plot", "__main__", "integrations", "integrations.sb3"],
]
ROOMS = {f"fastrl.{room}": layer for layer, rooms in enumerate(LAYERS) for room in rooms}
DESIGN = (ROOT / "docs" / "design.md").read_text()


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def room_of(module: str) -> str:
    """Return the room that a module belongs to."""
    return module if module in ROOMS else module.rpartition(".")[0]


def imported(module: str) -> set[str]:
    """Return the modules of the package that a module names in its import statements, wherever they stand.

    Kernels are left out: they import nothing but each other.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source(module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found = inner & (set(MODULES) | KERNELS)
            names |= found if len(found) == len(inner) else found | {node.module}
    return {name for name in names if name.split(".")[0] == "fastrl" and name != "fastrl"} - KERNELS


def arrows() -> dict[str, set[str]]:
    """Return for each room the other rooms that it imports from."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module in MODULES:
        if module != "fastrl":
            found[room_of(module)] |= {room_of(other) for other in imported(module)} - {room_of(module)}
    return found


def test_every_module_belongs_to_a_room():
    assert {room_of(module) for module in MODULES if module != "fastrl"} == set(ROOMS)


def test_a_glance_shows_the_house():
    assert 20 <= len(ROOMS) <= 25
    assert len(LAYERS) <= 8


@pytest.mark.parametrize("module", [m for m in MODULES if m != "fastrl"])
def test_imports_run_one_way(module):
    for other in imported(module):
        assert ROOMS[room_of(other)] <= ROOMS[room_of(module)], f"{module} imports {other}"


def test_no_rooms_import_each_other_in_a_circle():
    list(TopologicalSorter(arrows()).static_order())  # raises CycleError, which names the circle


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imported(module) & set(MODULES) - {module} for module in MODULES}
    list(TopologicalSorter(graph).static_order())


def test_no_import_for_types_alone_hides_a_circle():
    """Under ``if TYPE_CHECKING`` stand slow packages of layers before, never what would be a circle."""
    for module in MODULES:
        for node in ast.walk(ast.parse(source(module).read_text())):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                for statement in node.body:
                    assert isinstance(statement, ast.ImportFrom)
                    if module != "fastrl" and str(statement.module).startswith("fastrl"):
                        assert ROOMS[room_of(str(statement.module))] < ROOMS[room_of(module)], module


def test_the_design_lists_the_layers():
    listed = re.search(r"^```text\n1  base.*?^```", DESIGN, re.S | re.M)[0].splitlines()[1:-1]
    assert [line.split()[1:] for line in listed] == LAYERS


def test_the_picture_of_the_design_shows_every_module_once():
    picture = re.search(r"^```text\ncsrc.*?^```", DESIGN, re.S | re.M)[0]
    files = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert Counter(re.findall(r"\w+\.py\b", picture)) == files


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("fastrl.integrations")])
def test_integrations_need_the_replay_alone(module):
    """But for the way to a device, which is PyTorch's and stands once."""
    parts = module.split(".")
    library = ".".join(parts[:3])  # such as fastrl.integrations.sb3
    allowed = {"fastrl.replay", "fastrl.base", "fastrl.base.extras"}
    allowed |= {"fastrl.dqn.device.transfer"} if module == "fastrl.integrations.torch" else set()
    for other in imported(module):
        assert other in allowed or other.startswith(library), other
    public = set(importlib.import_module("fastrl.replay").__all__)
    for node in ast.walk(ast.parse(source(module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fastrl.replay":
            assert {alias.name for alias in node.names} <= public


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
    for statement in ("import fastrl; dir(fastrl)", "from fastrl import __version__"):
        assert not loaded_by(statement) & {"numpy", "torch", "safetensors", "fastrl.config", "fastrl.dqn"}


@pytest.mark.parametrize(
    "module", [m for m in MODULES if not {"dqn", "distributed", "integrations"} & set(m.split("."))]
)
def test_torch_stays_in_dqn_and_integrations(module):
    assert "torch" not in loaded_by(f"import {module}")


@pytest.mark.parametrize("module", MODULES)
def test_ray_is_imported_by_one_module_when_it_is_used(module):
    names = {alias.name for node in ast.walk(ast.parse(source(module).read_text())) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    assert "ray" not in names
    assert ('need("ray"' in source(module).read_text()) == (module == "fastrl.distributed.engine")


def test_torch_distributed_is_imported_by_one_module():
    importing = {
        module
        for module in MODULES
        for node in ast.walk(ast.parse(source(module).read_text()))
        if (isinstance(node, ast.Import) and any(alias.name.startswith("torch.distributed") for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.distributed"))
    }
    assert importing == {"fastrl.distributed.ranks"}


@pytest.mark.parametrize(
    "module",
    [
        "fastrl.dqn.run",
        "fastrl.dqn.callbacks",
        "fastrl.dqn.learner",
        "fastrl.dqn.device.store",
        "fastrl.dqn.pretrained",
    ],
)
def test_modules_of_dqn_import_alone(module):
    assert module in loaded_by(f"import {module}")


@pytest.mark.parametrize("missing", ["envpool", "tensorboard", "torch", "safetensors", "rich", "PIL"])
def test_a_missing_package_is_answered_with_the_extra_that_brings_it(missing, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = {['catch', '--runs-dir', str(tmp_path)]!r}; "
    code += "from fastrl.cli import run_command; from fastrl.train import main; run_command(main, 'train')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "[train]" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
