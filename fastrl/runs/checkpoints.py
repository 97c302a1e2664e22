"""What the checkpoints of every agent have in common: numbered folders, checksums, and arrays in files without code.

RUN/checkpoints/000004000000/     a number that grows with the run, so that names sort by age
    SHA256SUMS                    of all other files but a replay, which has checksums inside; `sha256sum -c` reads it
    rank-1/                       the part of learner 1, and so on, of a run that has several; sealed by itself
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.base.errors import ConfigError, damaged
from fastrl.base.extras import extra
from fastrl.base.files import sync, write_atomically

SUMS = "SHA256SUMS"
REPLAY = "replay"
BEST = "best"
TIMED = "TIMED"
"""File in a checkpoint that the next checkpoint replaces."""


def part(checkpoint: Path, rank: int) -> Path:
    """Return the folder of a learner's part of a checkpoint: of the first one, the checkpoint itself."""
    return checkpoint / f"rank-{rank}" if rank else checkpoint


def replays(checkpoint: Path) -> list[Path]:
    """Return where all learners' replays may lie in a checkpoint."""
    return [checkpoint / REPLAY, *(path / REPLAY for path in checkpoint.glob("rank-*"))]


def seal(folder: Path) -> None:
    """Write the checksums of a checkpoint's files."""
    write_atomically(folder / SUMS, "".join(f"{_sha256(path)}  {path.name}\n" for path in _files(folder)))


def write_checkpoint(run_folder: Path, name: str, state: Mapping[str, Any], arrays: Mapping[str, Any]) -> Path:
    """Write a small checkpoint in one move and return its folder.

    Parameters
    ----------
    run_folder : Path
        Folder of the run.
    name : str
        Name of the checkpoint's folder; one that exists is replaced.
    state : mapping
        JSON-able; goes into ``state.json``.
    arrays : mapping
        As `pack` takes it; goes into ``arrays.safetensors``.
    """
    final = run_folder / "checkpoints" / name
    partial = new_partial(final)
    with or_removed(partial):
        (partial / "arrays.safetensors").write_bytes(pack(arrays))
        (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
        put_in_place(partial, final)
    return final


def hidden(final: Path) -> Path:
    """Return the hidden folder in which a checkpoint is written that shall be at ``final``."""
    return final.with_name(f".{final.name}.partial")


def new_partial(final: Path) -> Path:
    """Make that hidden folder, and return it; never the folder of the run, which may have been moved."""
    partial = hidden(final)
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(exist_ok=True)
    partial.mkdir()
    return partial


@contextmanager
def or_removed(partial: Path) -> Iterator[None]:
    """Delete the hidden folder if anything goes wrong inside the ``with`` statement."""
    try:
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def put_in_place(partial: Path, final: Path) -> None:
    """Seal a checkpoint, and once its files are on the disk let it appear in one move; what was there goes."""
    settle(partial)
    move(partial, final)


def settle(partial: Path) -> None:
    """Seal a checkpoint, or a learner's part of one, and wait until its files are on the disk."""
    seal(partial)
    for path in (*partial.rglob("*"), partial):
        sync(path)


def move(partial: Path, final: Path) -> None:
    """Let a checkpoint that is sealed appear in one move; what was there goes."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    try:
        os.replace(partial, final)
    except BaseException:
        if old.exists():
            os.replace(old, final)
        raise
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file, or a folder in one move so that no half of it is seen; nothing where neither exists."""
    if path.is_dir():
        gone = path.with_name(f".{path.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def check_format(path: Path, found: Any, wanted: int, known: str) -> None:
    """Raise ConfigError unless a file has the wanted format; ``known`` says in words which ones this version reads."""
    if found != wanted:
        raise ConfigError(
            f"{path} has format {found!r}, and this version reads {known}; install the version of fastrl that wrote it"
        )


def check(folder: Path) -> None:
    """Raise `DamageError`, which names the file, unless a checkpoint holds the very bytes that were sealed."""
    if not (folder / SUMS).exists():
        raise damaged(folder / SUMS, "it is lost, or an older version saved, which can resume from there")
    sums = _read_sums(folder)
    for path in _files(folder):
        if path.name not in sums:
            raise damaged(folder / SUMS, f"it does not tell the checksum of {path.name}")
    for name, expected in sums.items():  # of `folder` alone: what a damaged list names is not opened elsewhere
        if folder / name not in _files(folder):
            raise damaged(folder / name[:255], "it is missing")
        if _sha256(folder / name) != expected:
            raise damaged(folder / name, "its checksum is wrong")
    for rank in range(1, learners(folder)):
        check(part(folder, rank))


def learners(folder: Path) -> int:
    """Return how many learners saved a checkpoint together; 1 for the part of one of them."""
    try:
        return int(json.loads((folder / "state.json").read_text(encoding="utf-8")).get("learners", 1))
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise damaged(folder / "state.json", error) from error


def check_file(path: Path) -> None:
    """Raise `DamageError` if a file is not what was sealed; where nothing was, do nothing."""
    if (path.parent / SUMS).exists() and path.exists() and _read_sums(path.parent).get(path.name) != _sha256(path):
        raise damaged(path, "its checksum is wrong")


def pack(state: Mapping[str, Any]) -> bytes:
    """Return the content of a file for a state: nested dicts of NumPy arrays and of JSON values.

    The file is one of safetensors': arrays by the names on the way to them, the rest as JSON in its header.
    """
    leaves = _flat(state)
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items() if isinstance(leaf, np.ndarray)}
    arrays = {name: array.reshape(leaves[name].shape) for name, array in arrays.items()}  # NumPy makes [1] of []
    rest = {name: leaf for name, leaf in leaves.items() if name not in arrays}
    with extra("train"):
        from safetensors.numpy import save
    content: bytes = save(arrays, metadata={"state": json.dumps(rest)})
    return content


def read(path: Path) -> dict[str, Any]:
    """Return the state whose `pack` a file holds; runs no code of the file, and takes no more memory than it is long.

    Raises
    ------
    DamageError
        If it is no such file.
    """
    with extra("train"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework="np") as file:
            leaves: dict[str, Any] = json.loads(file.metadata()["state"])
            leaves |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _nested(leaves)
    except (OSError, SafetensorError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as e:
        raise damaged(path, e) from e


def mapped(state: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return nested dicts with all that is no dict changed."""
    return {name: mapped(leaf, change) if isinstance(leaf, dict) else change(leaf) for name, leaf in state.items()}


def _flat(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by their paths; an empty dict is a leaf."""
    leaves: dict[str, Any] = {}
    for name, leaf in state.items():
        leaves |= _flat(leaf, f"{prefix}{name}/") if isinstance(leaf, dict) and leaf else {f"{prefix}{name}": leaf}
    return leaves


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        place = state
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = leaf
    return state


def _read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums by file name."""
    try:
        return dict(line.split("  ", 1)[::-1] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise damaged(folder / SUMS, error) from error


def _files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that checksums are kept of."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name not in (SUMS, REPLAY))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
