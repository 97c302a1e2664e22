"""Checkpoints: folders that appear whole or not at all.

RUN/checkpoints/000004000000/     frames played, so that names sort by age
    state.json                    counters, generators, callbacks: plain JSON
    learner.safetensors           networks, moments and counters of the learner
    games.safetensors             the games in progress, of games that can be saved
    weights.safetensors           the online network alone, with what is needed to rebuild it
    SHA256SUMS                    of all these
    replay/                       only in the newest; shares files with the one before while that is still there
RUN/checkpoints/best/             weights.safetensors and state.json of the best evaluation
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastrl import saved
from fastrl.config import ConfigError
from fastrl.dqn.network import QNetwork
from fastrl.replay import PrioritizedReplayBuffer
from fastrl.replay.saves import Save
from fastrl.saved import damaged, numbered, remove

FORMAT = 2  # since 2 the dense layer reads the features of images position by position
BEST = "best"


class Draft:
    """A checkpoint that is being written: a hidden folder, which `finish` moves to its place.

    Making it writes all but the replay's frames, as it is now. `finish` may run in a thread while everything goes on.

    Parameters
    ----------
    run_folder : Path
        Folder of the run.
    name : str
        Name of the checkpoint's folder; one that exists is replaced.
    state : dict
        JSON-able.
    weights : dict of tensors
        State of the online network.
    learner : dict, optional
        What `Learner.state` returned.
    games : dict, optional
        State of the games: nested dicts of arrays and of what JSON has.
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
        self, run_folder: Path, name: str, state: dict[str, Any], weights: dict[str, Tensor],
        learner: dict[str, Any] | None = None, games: dict[str, Any] | None = None,
        replay: PrioritizedReplayBuffer | None = None, earlier: Path | None = None,
    ) -> None:  # fmt: skip
        self._run_folder, self.folder = run_folder, run_folder / "checkpoints" / name
        self._partial = saved.new_partial(self.folder)
        self._replay: Save | None = None
        with saved.or_removed(self._partial):
            self._write("weights.safetensors", pack_weights(weights, state["network"]))
            if learner is not None:
                self._write("learner.safetensors", saved.pack(saved.mapped(learner, _as_array)))
            if games is not None:
                self._write("games.safetensors", saved.pack(games))
            self._write("state.json", json.dumps({"format": FORMAT} | state).encode())
            if replay is not None:
                self._replay = Save(replay, self._partial / saved.REPLAY, earlier)

    def finish(self) -> Path:
        """Write the rest, move the folder to its place in one move, and return it."""
        with saved.or_removed(self._partial):
            if self._replay is not None:
                self._replay.write()
            saved.put_in_place(self._partial, self.folder)
        if self._replay is not None:
            for other in numbered(self._run_folder):
                if other != self.folder:
                    remove(other / saved.REPLAY)
        return self.folder

    def give_up(self) -> None:
        """Let a `finish` that is writing frames end with an error."""
        if self._replay is not None:
            self._replay.close()

    def _write(self, name: str, content: bytes) -> None:
        (self._partial / name).write_bytes(content)  # `finish` sees to it that it is on the disk


class Background:
    """A thread that finishes a checkpoint, and then calls ``then``.

    It is a daemon: who leaves at once does not wait for it. Nor is it ever joined: a join that a signal interrupts
    takes a thread that runs for one that is over.
    """

    def __init__(self, draft: Draft, then: Callable[[], None]) -> None:
        self._draft, self._then = draft, then
        self._error: BaseException | None = None
        self._over = threading.Event()

    def start(self) -> None:
        """Begin; where no thread is to be had, finish here and now."""
        try:
            threading.Thread(target=self._finish, name="fastrl-checkpoint", daemon=True).start()
        except RuntimeError:
            self._finish()

    @property
    def done(self) -> bool:
        """Whether it is over, however it ended."""
        return self._over.is_set()

    def wait(self) -> None:
        """Wait until it is over; a signal is heard meanwhile, even one that came right before."""
        while not self._over.wait(0.1):
            pass

    def result(self) -> Path:
        """Wait for the checkpoint and return its folder, or raise what went wrong."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._draft.folder

    def give_up(self, seconds: float) -> None:
        """Ask it to end, and wait for that so long at most."""
        self._draft.give_up()
        self._over.wait(seconds)

    def _finish(self) -> None:
        try:
            self._draft.finish()
            self._then()
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()


def find(run_folder: Path, name: str = "newest") -> Path:
    """Return the folder of a checkpoint: ``"newest"``, ``"best"`` or a folder's own name.

    Raises
    ------
    ConfigError
        If there is none; the message lists those that there are.
    """
    if name != Path(name).name or name == "..":  # of the run's own folder alone
        raise ConfigError(f"--checkpoint is {name!r}; give newest, best or the name of a folder in checkpoints/")
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
        state: dict[str, Any] = dict(json.loads((folder / "state.json").read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise damaged(folder / "state.json", error) from error
    _check_format(folder, state.get("format"))
    return state


def load_learner(folder: Path) -> dict[str, Any]:
    """Return what `Learner.state` had returned, on the CPU."""
    return saved.mapped(saved.read(folder / "learner.safetensors"), _as_tensor)


def load_games(folder: Path) -> dict[str, Any] | None:
    """Return the state of the games, None if they could not be saved."""
    path = folder / "games.safetensors"
    return saved.read(path) if path.exists() else None


def pack_weights(weights: dict[str, Tensor], network: dict[str, Any]) -> bytes:
    """Return the content of a safetensors file of weights, of the network with these settings."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    content: bytes = save(tensors, metadata={"network": json.dumps(network), "format": str(FORMAT)})
    return content


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of a safetensors file and the settings of the network that they belong to."""
    saved.check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            network, found = json.loads(file.metadata()["network"]), int(file.metadata().get("format", 1))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
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
        raise damaged(path, error) from error
    return network.eval()


def _check_format(path: Path, found: Any) -> None:
    if found != FORMAT:
        raise ConfigError(f"{path} has format {found}, this version reads {FORMAT}: use the version that wrote it")


def _as_array(leaf: Any) -> Any:
    return leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
