"""What a checkpoint holds, and how it is read; `fastrl.dqn.run.saver` writes it.

RUN/checkpoints/000004000000/     frames played, so that names sort by age
    state.json                    counters, generators, callbacks: plain JSON
    learner.safetensors           networks, moments and counters of the learner
    games.safetensors             the games in progress, of games that can be saved
    weights.safetensors           the network to play with: the online one, or that of averaged weights if they are
                                  kept; with what is needed to rebuild it
    SHA256SUMS                    of all these
    replay/                       only in the newest; shares files with the one before while that is still there
    rank-1/                       of learner 1, and so on, where torchrun runs several: all but the weights, which are
                                  those of the first; its learner.safetensors holds what is its own
RUN/checkpoints/best/             weights.safetensors and state.json of the best evaluation
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastrl.base.errors import damaged
from fastrl.dqn.network import QNetwork
from fastrl.runs import checkpoints

STATE_FORMAT = 3
"""Of state.json. Since 3 callbacks go by their keys, not by the names of their classes."""
WEIGHTS_FORMAT = 3
"""Of weights. Since 2 the dense layer reads the features of images position by position, since 3 the head is named."""
_KEYS_BEFORE_3 = {"Metrics": "metrics", "Evaluation": "evaluation", "Checkpoints": "checkpoints"}


def load_state(folder: Path) -> dict[str, Any]:
    """Return the JSON part of a checkpoint, lifted to the newest format."""
    try:
        state: dict[str, Any] = dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise damaged(folder / "state.json", error) from error
    if state.get("format") == 2:
        known = state.get("callbacks", {})
        state |= {"format": 3, "callbacks": {_lifted_key(key, known): known[key] for key in known}}
    checkpoints.check_format(folder / "state.json", state.get("format"), STATE_FORMAT, "formats 2 and 3")
    return state


def _lifted_key(key: str, known: Iterable[str]) -> str:
    """Return the key of a callback that format 2 knew by the name of its class, numbered or not.

    The callbacks of every run came last: of several classes of one name, theirs has the highest number.
    """
    name = key.partition("#")[0]
    if name not in _KEYS_BEFORE_3 or key != max((one for one in known if one.partition("#")[0] == name), key=_number):
        return key
    return _KEYS_BEFORE_3[name]


def _number(key: str) -> int:
    return int(key.partition("#")[2] or 1)


def pack_state(state: Mapping[str, Any]) -> bytes:
    """Return the content of state.json for a JSON-able state."""
    return json.dumps({"format": STATE_FORMAT} | dict(state)).encode()


def pack_learner(learner: dict[str, Any]) -> bytes:
    """Return the content of learner.safetensors for what `Learner.state` returned."""
    return checkpoints.pack(checkpoints.mapped(learner, _as_array))


def load_learner(folder: Path) -> dict[str, Any]:
    """Return what `Learner.state` had returned, on the CPU."""
    return checkpoints.mapped(checkpoints.read(folder / "learner.safetensors"), _as_tensor)


OF_ALL = ("online", "target", "average", "optimizer")
"""What all learners of a run have alike, by the names of `Learner.state`."""


def own_part(learner: dict[str, Any]) -> dict[str, Any]:
    """Return what a learner of several has by itself, of what `Learner.state` returned."""
    return {name: value for name, value in learner.items() if name not in OF_ALL}


def load_games(folder: Path) -> dict[str, Any] | None:
    """Return the state of the games, None if they could not be saved."""
    path = folder / "games.safetensors"
    return checkpoints.read(path) if path.exists() else None


def pack_weights(weights: dict[str, Tensor], network: dict[str, Any]) -> bytes:
    """Return the content of a safetensors file of weights, of the network with these settings."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    content: bytes = save(tensors, metadata={"network": json.dumps(network), "format": str(WEIGHTS_FORMAT)})
    return content


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of a safetensors file and the settings of the network that they belong to."""
    checkpoints.check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            network, found = dict(json.loads(file.metadata()["network"])), int(file.metadata().get("format", 1))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    if found == 2:
        found, network = 3, network | {"head": "c51" if network.get("atoms", 1) > 1 else "expected"}
    checkpoints.check_format(path, found, WEIGHTS_FORMAT, "formats 2 and 3")
    return weights, network


def load_network(path: Path) -> QNetwork:
    """Return the network of a safetensors file, in eval mode on the CPU; weights of any precision become float32.

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


def _as_array(leaf: Any) -> Any:
    return leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
