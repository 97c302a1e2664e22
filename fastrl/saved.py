"""What the checkpoints of every agent have in common: numbered folders, checksums, and arrays in files without code.

RUN/checkpoints/000004000000/     a number that grows as the run goes on, so that names sort by age
    SHA256SUMS                    of all other files but a replay, which has checksums inside; `sha256sum -c` reads it
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

from fastrl.config import ConfigError
from fastrl.extras import need
from fastrl.folder import sync, write_atomically

SUMS = "SHA256SUMS"
REPLAY = "replay"


class DamageError(ConfigError):
    """A file is not what was written."""


def damaged(path: Path, error: object) -> DamageError:
    """Return the error to raise for a file that cannot be read for this reason."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DamageError(f"{path} cannot be read ({reason}); use another checkpoint of the run")


def numbered(run_folder: Path) -> list[Path]:
    """Return the checkpoints of a run that it can go on from or be judged by, oldest first, without the best."""
    folders = (run_folder / "checkpoints").glob("[0-9]*")
    return sorted(folder for folder in folders if (folder / "state.json").exists())


def newest_whole(run_folder: Path) -> tuple[Path, list[str]]:
    """Return the newest checkpoint whose checksums hold, and words on those passed over.

    Raises
    ------
    ConfigError
        If there is none.
    """
    wrong: list[DamageError] = []
    for folder in reversed(numbered(run_folder)):
        try:
            check(folder)
        except DamageError as error:
            wrong.append(error)
        else:
            reasons = (str(error).partition(";")[0] for error in wrong)
            return folder, [f"{reason}; going on from the checkpoint before" for reason in reasons]
    raise wrong[0] if wrong else ConfigError(f"{run_folder} has no checkpoint yet; start a run of another --name")


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
        (partial / "state.json").write_text(json.dumps(state))
        put_in_place(partial, final)
    return final


def new_partial(final: Path) -> Path:
    """Make the hidden folder in which a checkpoint is written that shall be at ``final``, and return it."""
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
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
    seal(partial)
    for path in (*partial.rglob("*"), partial):
        sync(path)
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
    """Delete a file, or a folder so that nobody finds half of it; or nothing."""
    if path.is_dir():
        gone = path.with_name(f".{path.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def prune(run_folder: Path, keep: int) -> None:
    """Delete all numbered checkpoints but the newest ``keep`` and the one that has the replay."""
    for folder in numbered(run_folder)[:-keep]:
        if not (folder / REPLAY).exists():
            remove(folder)


def check(folder: Path) -> None:
    """Raise `DamageError`, which names the file, unless a checkpoint holds the very bytes that were sealed."""
    if not (folder / SUMS).exists():
        raise damaged(folder / SUMS, "it is lost, or an older version saved, which can go on from there")
    sums = _read_sums(folder)
    for path in _files(folder):
        if path.name not in sums:
            raise damaged(folder / SUMS, f"it does not tell the checksum of {path.name}")
    for name, expected in sums.items():  # of `folder` alone: what a damaged list names is not opened elsewhere
        if folder / name not in _files(folder):
            raise damaged(folder / name[:255], "it is missing")
        if _sha256(folder / name) != expected:
            raise damaged(folder / name, "its checksum is wrong")


def check_file(path: Path) -> None:
    """Raise `DamageError` if a file is not what was sealed; where nothing was, do nothing."""
    if (path.parent / SUMS).exists() and path.exists() and _read_sums(path.parent).get(path.name) != _sha256(path):
        raise damaged(path, "its checksum is wrong")


def set_aside(run_folder: Path, found: Path) -> list[str]:
    """Rename checkpoints newer than the one found whole, so that nobody counts them; return words on each."""
    words = []
    for folder in numbered(run_folder):
        if folder > found:
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            words.append(f"the damaged one is set aside as {aside}; delete it when you like")
    return words


def recover(run_folder: Path) -> None:
    """Put in order what a run left behind that was killed while it saved; nothing else may be saving into it."""
    parent = run_folder / "checkpoints"
    for old in parent.glob(".*.old"):
        final = parent / old.name[1:].removesuffix(".old")
        if not final.exists():  # killed between two moves
            os.replace(old, final)
    for pattern in (".*.partial", ".*.old", ".*.gone", "*/.*.gone"):
        for left in parent.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)
    for left in run_folder.glob(".*.partial"):  # of `write_atomically`
        left.unlink()


def pack(state: Mapping[str, Any]) -> bytes:
    """Return the content of a file for a state: nested dicts of NumPy arrays and of whatever JSON has.

    The file is one of safetensors': arrays by the names on the way to them, the rest as JSON in its header.
    """
    leaves = _flat(state)
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items() if isinstance(leaf, np.ndarray)}
    arrays = {name: array.reshape(leaves[name].shape) for name, array in arrays.items()}  # NumPy makes [1] of []
    rest = {name: leaf for name, leaf in leaves.items() if name not in arrays}
    content: bytes = need("safetensors.numpy", "train").save(arrays, metadata={"state": json.dumps(rest)})
    return content


def read(path: Path) -> dict[str, Any]:
    """Return the state whose `pack` a file holds; runs no code of the file, and takes no more memory than it is long.

    Raises
    ------
    DamageError
        If it is no such file.
    """
    safetensors = need("safetensors", "train")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            leaves: dict[str, Any] = json.loads(file.metadata()["state"])
            leaves |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _nested(leaves)
    except (OSError, safetensors.SafetensorError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as e:
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
        return dict(line.split("  ", 1)[::-1] for line in (folder / SUMS).read_text().splitlines())
    except (OSError, ValueError) as error:
        raise damaged(folder / SUMS, error) from error


def _files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that checksums are kept of."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name not in (SUMS, REPLAY))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
