"""Check that a wheel holds the package as the tree has it, and that every module of it imports: check_wheel.py WHEEL.

The list of packages in pyproject.toml is fixed, and an editable install never reads it: a room that is missing there
shows nowhere else. Needs an environment with the extras `train` and `sb3`; the wheel itself is not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORT_ALL = """
import importlib, sys
from pathlib import Path
where, *modules = sys.argv[1:]
for module in modules:
    found = Path(importlib.import_module(module).__file__)
    assert Path(where) in found.parents, f"{module} was imported from {found}"
print(f"{len(modules)} modules of the wheel import")
"""


def main() -> None:
    """Compare and import; leave with status 1 and the names where they differ."""
    wheel = zipfile.ZipFile(sys.argv[1])
    packed = {name for name in wheel.namelist() if name.startswith("fastrl/")}
    kernels = {name for name in packed if name.endswith((".so", ".pyd"))}
    ships = ("*.py", "*.pyi", "py.typed", "weights/*.safetensors", "weights/*.json")
    tree = {str(path.relative_to(ROOT)) for pattern in ships for path in (ROOT / "fastrl").rglob(pattern)}
    stubs = {Path(name).stem for name in tree if name.endswith(".pyi")}
    if packed - kernels != tree:
        sys.exit(f"only in the tree: {sorted(tree - packed)}; only in the wheel: {sorted(packed - kernels - tree)}")
    if {Path(name).name.partition(".")[0] for name in kernels} != stubs:
        sys.exit(f"compiled are {sorted(kernels)}, and stubs stand for {sorted(stubs)}")
    sources = sorted(name.removesuffix(".py") for name in tree if name.endswith(".py"))
    modules = [name.removesuffix("/__init__").replace("/", ".") for name in sources]
    with tempfile.TemporaryDirectory() as folder:
        wheel.extractall(folder)
        environment = os.environ | {"PYTHONPATH": folder}
        subprocess.run([sys.executable, "-P", "-c", IMPORT_ALL, folder, *modules], env=environment, check=True)


if __name__ == "__main__":
    main()
