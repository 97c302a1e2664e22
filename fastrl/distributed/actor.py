"""What a collector does on its node: it owns games, a copy of the network, and a policy with a generator of its own.

Nothing here knows of Ray: `fastrl.distributed.engine` runs an `Actor` in a process of its own.
"""

from __future__ import annotations

import contextlib
import platform
import secrets
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import fastrl
from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig, from_record
from fastrl.distributed.chunk import Chunk, pack
from fastrl.dqn.collector import Collector, build_group
from fastrl.dqn.device.device import pick_precision
from fastrl.dqn.flat import FlatParameters
from fastrl.dqn.learner import pick_fast_kernels
from fastrl.dqn.loss import best
from fastrl.dqn.network import QNetwork, build_network
from fastrl.dqn.policy import Policy
from fastrl.dqn.trunk import FastTrunk
from fastrl.envs.frames import Frame, FrameDtype, in_words, per_array, stacked_shape
from fastrl.envs.masks import have_masks

Weights = dict[str, NDArray[Any]]
"""Of the network that acts, by the names of its state."""


class Request(NamedTuple):
    """What a collector is asked to play."""

    steps: int
    """Vector steps."""
    epsilon: float | NDArray[np.float64]
    """Share of random actions, of all its games or [num_envs] of each."""
    version: int
    """Updates that the weights have had; at 0 all actions are random and no weights are needed."""


def versions() -> dict[str, str]:
    """Return what must be the same wherever a run's processes are."""
    found = {"fastrl": fastrl.__version__, "Python": ".".join(platform.python_version_tuple()[:2])}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["Ray"] = metadata.version("ray")
    return found


def require_versions(who: str, wanted: dict[str, str]) -> None:
    """Raise ConfigError unless this node has the versions `wanted`; the message begins with `who`."""
    found = versions()
    for name, version in wanted.items():
        if found.get(name) != version:
            raise ConfigError(
                f"{who} runs on {platform.node()} with {name} {found.get(name, 'of no version')}, and the learner has "
                f"{version}; install the same version on every node"
            )


def tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """Return copies of weights as a network loads them."""
    return {name: torch.tensor(value) for name, value in weights.items()}


def pick_acting_kernels(config: DQNConfig, obs_dtype: FrameDtype) -> str | None:
    """Return the kernels by which a collector acts: as a learner on its CPU would; None for PyTorch's own.

    Where the processor has some in float32 alone, these, whatever the precision.
    """
    if config.kernels == "torch":
        return None
    here = torch.device("cpu")
    bfloat16 = pick_precision(config.precision, here) == "bfloat16"
    found = pick_fast_kernels(config, obs_dtype, here, bfloat16)
    return found or pick_fast_kernels(config, obs_dtype, here, False)


class CopiedNetwork:
    """The learner's network, as it was at one update, on the CPU; not compiled.

    Parameters
    ----------
    network : QNetwork
        One of its shape.
    seed : int
        Seeds the noise that it acts with, if its layers are noisy.
    kernels : str, optional
        Those of `FastTrunk` for its trunk, and with them the arithmetic. Default: PyTorch's, in float32.
    most : int
        Observations to act for at once, at most; with `kernels` alone.

    Attributes
    ----------
    updates : int
        Updates that its weights have had; 0 until `load`.
    """

    def __init__(self, network: QNetwork, seed: int = 0, kernels: str | None = None, most: int = 0) -> None:
        self._network, self.updates = network.eval(), 0
        self._generator = torch.Generator().manual_seed(seed)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._trunk: FastTrunk | None = None
        if kernels is not None:
            flat = FlatParameters(network.parameters())
            self._trunk = FastTrunk(network, network, (flat, flat), 1, most, kernels)
            self._dense = self._trunk.dense()[0]

    def load(self, weights: Weights, updates: int) -> None:
        """Take over weights, unless they are those of before."""
        if updates != self.updates:
            self._network.load_state_dict(tensors(weights))
            self.updates = updates

    def act(self, obs: Frame, mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return the greedy actions [n] int64 of obs [n, stack, *frame_shape], of those that a mask [n, A] allows."""
        size = self._network.noise_size
        noise = torch.randn(size, generator=self._generator) if size else None
        with torch.inference_mode():
            eager = self._trunk is None
            values = self._network(per_array(torch.from_numpy, obs), noise) if eager else self._fast(obs, noise)
            greedy: NDArray[np.int64] = best(values, None if mask is None else torch.from_numpy(mask)).numpy()
        return greedy

    def _fast(self, obs: NDArray[Any], noise: torch.Tensor | None) -> torch.Tensor:
        """Return Q [n, A] float32, by the trunk's own kernels."""
        assert self._trunk is not None
        features = self._trunk.act(obs)
        with torch.autocast("cpu", torch.bfloat16, enabled=features.dtype == torch.bfloat16):
            outputs = self._network.behind(features, self._dense, noise=noise)
        return self._network.values(outputs)


class Actor:
    """Plays games on request. Its arguments are plain, so that a node with another version can say so.

    Parameters
    ----------
    record : dict
        The settings, as `fastrl.config.to_record` has them.
    seed, number : int
        Of the run; of this collector.
    wanted : dict
        `versions` of the learner.
    again : bool
        Whether this process replaces an earlier one. The first is seeded, so that a run repeats itself; a later one
        must not repeat what the first played, and draws fresh entropy.

    Raises
    ------
    ConfigError
        By `open_games` and `collect`, if this node has other versions, or for the reasons of `build_group`.
    """

    def __init__(self, record: dict[str, Any], seed: int, number: int, wanted: dict[str, str], *, again: bool) -> None:
        self._record, self._seed, self._number, self._wanted, self._again = record, seed, number, wanted, again
        self._born, self._seq, self._life = secrets.randbits(62), 0, 0
        self._collector: Collector | None = None

    def become(self, number: int, life: int) -> None:
        """Play in the place of a collector from now on; in another one than before, as a new process would.

        Parameters
        ----------
        number : int
            The collector's.
        life : int
            How often another process has stepped in for it, this one included.
        """
        if (number, life) != (self._number, self._life):
            self._number, self._life = number, life
            self._born, self._seq = secrets.randbits(62), 0

    def open_games(self) -> dict[str, Any]:
        """Open the games, unless they are open; return what the learner must agree with."""
        require_versions(f"collector {self._number}", self._wanted)
        if self._collector is None:
            self._build()
        assert self._collector is not None
        return facts(self._collector.envs)

    def collect(self, request: Request, weights: Weights | None) -> Chunk:
        """Play vector steps and return them.

        Parameters
        ----------
        request : Request
            How many, and how.
        weights : dict or None
            Those of the request's version.
        """
        self.open_games()
        assert self._collector is not None
        if weights is not None:
            self._network.load(weights, request.version)
        self._policy.epsilon = request.epsilon
        rows = []
        for _ in range(request.steps):
            self._collector.send(self._policy)
            rows.append(self._collector.recv())
        self._seq += 1
        return pack(rows, number=self._number, born=self._born, seq=self._seq, version=self._network.updates)

    def close(self) -> None:
        """Close the games."""
        if self._collector is not None:
            self._collector.close()

    def _build(self) -> None:
        config = from_record(self._record, Path("the learner's config.json"))
        assert isinstance(config, DQNConfig)
        entropy = np.random.SeedSequence() if self._again else np.random.SeedSequence([self._seed, self._number, 0])
        games, coins, noise = (int(s) for s in entropy.generate_state(3))
        group = build_group(config.replace(env_threads=config.env_threads or 1), games)  # a collector is one core
        envs = group.envs
        network = build_network(config, stacked_shape(config.stack, envs.frame_shape), envs.num_actions)
        self._network = CopiedNetwork(network, noise, pick_acting_kernels(config, envs.frame_dtype), config.num_envs)
        self._policy = Policy(self._network, envs.num_actions, np.random.default_rng(coins))
        collector = Collector([group])
        collector.start(self._policy)
        self._collector = collector


def facts(envs: Any) -> dict[str, Any]:
    """Return what a collector's games and the learner must agree about."""
    return {
        "actions": envs.action_names,
        "frames": in_words(envs.frame_shape, envs.frame_dtype),
        "frame_skip": envs.frame_skip,
        "autoreset": envs.autoreset,
        "action masks": have_masks(envs),
    }
