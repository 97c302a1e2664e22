"""Checkpoints: folders that appear whole or not at all.

RUN/checkpoints/000004000000/     frames played, so that names sort by age
    state.json                    counters, generators, callbacks: plain JSON
    learner.pt                    tensors of the learner; read with weights_only=True, so it runs no code
    weights.safetensors           the online network alone, with what is needed to rebuild it
    replay/                       only in the newest; shares files with the one before while that is still there
RUN/checkpoints/best/             weights.safetensors and state.json of the best evaluation
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastrl.config import ConfigError
from fastrl.dqn.network import QNetwork
from fastrl.replay import PrioritizedReplayBuffer
from fastrl.replay.saves import Save

FORMAT = 2  # since 2 the dense layer reads the features of images position by position
BEST = "best"


class Draft:
    """A checkpoint that is being written: a hidden folder, which `finish` moves to its place.

    Making it writes all but the replay's frames. `finish` may run in a thread while everything goes on.

    Parameters
    ----------
    run_folder : Path
        Folder of the run.
    name : str
        Name of the checkpoint's folder; one that exists is replaced.
    state : dict
        JSON-able.
    learner : dict or None
        What `Learner.state` returned.
    weights : dict of tensors
        State of the online network.
    replay : ReplayBuffer, optional
        Saved along with the rest; checkpoints that exist lose theirs once this one is whole.
    earlier : Path, optional
        An earlier save of this replay; see `Save`.

    Attributes
    ----------
    folder : Path
        Where the checkpoint will be.
    """

    def __init__(
        self, run_folder: Path, name: str, state: dict[str, Any], learner: dict[str, Any] | None,
        weights: dict[str, Tensor], replay: PrioritizedReplayBuffer | None = None, earlier: Path | None = None,
    ) -> None:  # fmt: skip
        parent = run_folder / "checkpoints"
        self.folder, self._partial, self._old = parent / name, parent / f".{name}.partial", parent / f".{name}.old"
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._replay: Save | None = None
        try:
            save_file(
                {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()},
                self._partial / "weights.safetensors",
                metadata=metadata(state["network"]),
            )
            if learner is not None:
                torch.save(learner, self._partial / "learner.pt")
            (self._partial / "state.json").write_text(json.dumps({"format": FORMAT} | state))
            if replay is not None:
                self._replay = Save(replay, self._partial / "replay", earlier)
        except BaseException:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise

    def finish(self) -> Path:
        """Write the rest, move the folder to its place in one move, and return it."""
        try:
            if self._replay is not None:
                self._replay.write()
            for path in (*self._partial.rglob("*"), self._partial):
                _sync(path)
            self._move()
        except BaseException:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise
        if self._replay is not None:
            for other in numbered(self.folder.parent.parent):
                if other != self.folder:
                    _remove(other / "replay")
        return self.folder

    def give_up(self) -> None:
        """Let a `finish` that is writing frames end with an error."""
        if self._replay is not None:
            self._replay.close()

    def _move(self) -> None:
        shutil.rmtree(self._old, ignore_errors=True)
        if self.folder.exists():
            os.replace(self.folder, self._old)
        try:
            os.replace(self._partial, self.folder)
        except BaseException:
            if self._old.exists():
                os.replace(self._old, self.folder)
            raise
        _sync(self.folder.parent)
        shutil.rmtree(self._old, ignore_errors=True)


class Background:
    """A thread that finishes a checkpoint.

    It is a daemon: who leaves at once does not wait for it.
    """

    def __init__(self, draft: Draft, then: Callable[[], None]) -> None:
        self._draft, self._then = draft, then
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._finish, name="fastrl-checkpoint", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no thread is to be had
            draft.give_up()
            raise

    @property
    def done(self) -> bool:
        """Whether it is over, however it ended."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until it is over."""
        self._thread.join()

    def result(self) -> Path:
        """Wait for the checkpoint and return its folder, or raise what went wrong."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._draft.folder

    def give_up(self, seconds: float) -> None:
        """Ask it to end, and wait for that so long at most."""
        self._draft.give_up()
        self._thread.join(seconds)

    def _finish(self) -> None:
        try:
            self._draft.finish()
            self._then()
        except BaseException as error:
            self._error = error


def tidy(run_folder: Path) -> None:
    """Put right what a save that was killed left behind; nothing else may be saving into this run."""
    for old in (run_folder / "checkpoints").glob(".*.old"):
        whole = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if not whole.exists():  # it was killed between the two moves that replace a checkpoint
            os.replace(old, whole)
    for pattern in (".*.partial", ".*.old", ".*.gone", "*/.*.gone"):
        for leftover in (run_folder / "checkpoints").glob(pattern):
            shutil.rmtree(leftover)


def prune(run_folder: Path, keep: int) -> None:
    """Delete all numbered checkpoints but the newest ``keep``."""
    for folder in numbered(run_folder)[:-keep]:
        _remove(folder)


def numbered(run_folder: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first, without the best."""
    folders = (run_folder / "checkpoints").glob("[0-9]*")
    return sorted(folder for folder in folders if (folder / "state.json").exists())


def find(run_folder: Path, name: str = "newest") -> Path:
    """Return the folder of a checkpoint: ``"newest"``, ``"best"`` or a folder's own name.

    Raises
    ------
    ConfigError
        If there is none; the message lists those that there are.
    """
    known = [folder.name for folder in numbered(run_folder)]
    if name == "newest" and known:
        return run_folder / "checkpoints" / known[-1]
    folder = run_folder / "checkpoints" / name
    if name != "newest" and (folder / "state.json").exists():
        return folder
    if (run_folder / "checkpoints" / BEST / "state.json").exists():
        known.append(BEST)
    there_is = f"there is {', '.join(known)}" if known else "the run has none yet"
    raise ConfigError(f"{run_folder} has no checkpoint {name!r}; {there_is}")


def load_state(folder: Path) -> dict[str, Any]:
    """Return the JSON part of a checkpoint."""
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder / "state.json", error) from error
    _check_format(folder, state.get("format"))
    return state


def load_learner(folder: Path) -> dict[str, Any]:
    """Return what `Learner.state` had returned, on the CPU; runs no code of the file."""
    try:
        state: dict[str, Any] = torch.load(folder / "learner.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows in many ways
        raise _damaged(folder / "learner.pt", error) from error
    return state


def metadata(network: dict[str, Any]) -> dict[str, str]:
    """Return what a safetensors file of weights says of the network with these settings."""
    return {"network": json.dumps(network), "format": str(FORMAT)}


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of a safetensors file and the settings of the network that they belong to."""
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            network, found = json.loads(file.metadata()["network"]), int(file.metadata().get("format", 1))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    _check_format(path, found)
    return weights, network


def load_network(path: Path) -> QNetwork:
    """Return the network of a safetensors file, in eval mode on the CPU; its weights are float32 whatever the file's.

    Raises
    ------
    ConfigError
        If the file cannot be read, or describes another network than its weights make up.
    """
    weights, settings = load_weights(path)
    try:
        with torch.device("meta"):  # shapes before memory: a damaged file may describe a network of any size
            QNetwork(**settings).check_state(weights)
        network = QNetwork(**settings)
        network.load_state_dict(weights)
    except Exception as error:  # damage shows in many ways
        raise _damaged(path, error) from error
    return network.eval()


def _check_format(path: Path, found: Any) -> None:
    if found != FORMAT:
        raise ConfigError(f"{path} has format {found}, this version reads {FORMAT}: use the version that wrote it")


def _damaged(path: Path, error: Exception) -> ConfigError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConfigError(f"{path} cannot be read ({reason}); use another checkpoint of the run")


def _remove(path: Path) -> None:
    """Delete a file, or a folder so that nobody finds half of it; or nothing."""
    if path.is_dir():
        gone = path.with_name(f".{path.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make sure that a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
