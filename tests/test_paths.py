"""What scripts and settings name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMING = [
    ROOT / name for name in ("Makefile", ".ci/run", "pyproject.toml", "setup.py", "MANIFEST.in", "CONTRIBUTING.md")
] + sorted(path for folder in ("bench", "tools", "tests") for path in (ROOT / folder).rglob("*.sh"))
FOLDERS = "bench csrc docs examples fastrl tests tools".split()
# A path of this project: one of its folders, and what follows up to anything that no path has.
PATH = re.compile(rf"(?<![\w./$*-])((?:{'|'.join(FOLDERS)})/[\w./*-]*\w)")
MADE = ("fastrl/replay/_", "docs/results/")  # by a build, or by a bench


def named(text: str) -> set[str]:
    return {path for path in PATH.findall(text) if not path.startswith(MADE)}


def test_the_pattern_finds_paths():
    text = "run tests/soak.sh, bench/*.sh or 'fastrl/weights/x.json'; not build/tests/x or $work/tests/y"
    assert named(text) == {"tests/soak.sh", "bench/*.sh", "fastrl/weights/x.json"}


@pytest.mark.parametrize("file", NAMING, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_is_named_is_there(file):
    for path in named(file.read_text()):
        assert list(ROOT.glob(path)), f"{path} is named in {file.relative_to(ROOT)}"


def test_every_package_is_listed():
    """An editable install finds packages that a wheel would lack."""
    listed = set(
        re.findall(
            r'"(fastrl[\w.]*)"',
            re.search(r"^packages = \[.*?\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)[0],
        )
    )
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "fastrl").rglob("*.py")}
    assert listed == found


def test_no_room_is_ignored_by_git():
    """A line such as ``runs/`` would swallow fastrl/runs/."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    rooms = {path.name for path in (ROOT / "fastrl").rglob("*") if path.is_dir()} - {"__pycache__"}
    assert not rooms & {line.rstrip("/") for line in lines if not line.startswith(("/", "!"))}
