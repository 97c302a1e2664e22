"""The dueling Q-network and its trunks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrl.config import ConfigError, DQNConfig

# Convolutions of each image trunk: (filters, kernel, stride), a ReLU after each.
IMAGE_TRUNKS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),  # Mnih et al. 2015
    "small": ((16, 8, 4), (32, 4, 2)),  # Mnih et al. 2013
}


class QNetwork(nn.Module):
    """Action values of a stack of observations.

    Parameters
    ----------
    obs_shape : tuple of int
        Shape of one observation: [stack, height, width] for an image trunk, anything for `vector`.
    num_actions : int
        Number of actions A.
    trunk : {"nature", "small", "vector"}
        Layers below the heads.
    hidden : int
        Width of the dense layer in each stream (and of both layers of the `vector` trunk).
    dueling : bool
        Q = V + A - mean(A) (Wang et al. 2016, eq. 9) instead of a single stream.

    Raises
    ------
    ConfigError
        The trunk is unknown or does not fit the observation.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        num_actions: int,
        trunk: Literal["nature", "small", "vector"] = "nature",
        hidden: int = 512,
        dueling: bool = True,
    ) -> None:
        super().__init__()
        self.trunk, features = _build_trunk(obs_shape, trunk, hidden)
        self.dueling = dueling
        if dueling:
            # The first layers of both streams read the same features: one product, split after it.
            self.hidden = nn.Linear(features, 2 * hidden)
            self.value = nn.Linear(hidden, 1)
            self.advantage = nn.Linear(hidden, num_actions)
        else:
            self.hidden = nn.Linear(features, hidden)
            self.action_value = nn.Linear(hidden, num_actions)

    def forward(self, obs: Tensor) -> Tensor:
        """Return Q [B, A] float32 of obs [B, *obs_shape]; uint8 is scaled to [0, 1], floats pass as they are."""
        # Channels last already here: eager convolutions on a CPU otherwise lose up to half of their speed.
        layout = torch.channels_last if obs.dim() == 4 else torch.preserve_format
        x = obs.to(torch.float32, memory_format=layout)
        x = x / 255 if obs.dtype == torch.uint8 else x
        features = self.trunk(x)
        # Flattened in the order in which they lie, position by position: no transposition there and back.
        features = features.permute(0, 2, 3, 1) if features.dim() == 4 else features
        x = F.relu(self.hidden(features.flatten(1)))
        if not self.dueling:
            q: Tensor = self.action_value(x).float()
            return q
        x_value, x_advantage = x.chunk(2, dim=1)
        # Sums in float32: under autocast the streams are bfloat16, whose steps near 100 are 0.5.
        value: Tensor = self.value(x_value).float()
        advantage: Tensor = self.advantage(x_advantage).float()
        return value + advantage - advantage.mean(dim=1, keepdim=True)

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise ConfigError naming the first weight that a state dict lacks, or has in another shape."""
        saved, own = ({name: list(t.shape) for name, t in s.items()} for s in (state, self.state_dict()))
        for name in sorted(saved.keys() | own.keys()):
            if saved.get(name) != own.get(name):
                raise ConfigError(
                    f"weight {name} is {saved.get(name, 'missing')} in the saved state and "
                    f"{own.get(name, 'missing')} here; give the --game, --stack, --trunk, --hidden and --dueling "
                    "that it was trained with"
                )


def build_network(config: DQNConfig, obs_shape: tuple[int, ...], num_actions: int) -> QNetwork:
    """Return the network that the settings ask for, with PyTorch's default initial weights."""
    return QNetwork(obs_shape, num_actions, config.trunk, config.hidden, config.dueling)


def _build_trunk(obs_shape: tuple[int, ...], trunk: str, hidden: int) -> tuple[nn.Sequential, int]:
    """Return the layers and the number of features that they give."""
    if trunk == "vector":
        inputs = math.prod(obs_shape)
        layers = [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        return nn.Sequential(*layers), hidden
    if trunk not in IMAGE_TRUNKS:
        raise ConfigError(f"--trunk is {trunk!r}; give nature, small or vector")
    if len(obs_shape) != 3:
        raise _misfit(trunk, obs_shape)
    layers = []
    channels, height, width = obs_shape
    for filters, kernel, stride in IMAGE_TRUNKS[trunk]:
        if min(height, width) < kernel:
            raise _misfit(trunk, obs_shape)
        layers += [nn.Conv2d(channels, filters, kernel, stride), nn.ReLU()]
        channels, height, width = filters, (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return nn.Sequential(*layers), channels * height * width


def _misfit(trunk: str, obs_shape: tuple[int, ...]) -> ConfigError:
    return ConfigError(
        f"--trunk is {trunk!r}, whose convolutions do not fit observations of shape {list(obs_shape)}; "
        "give --trunk vector"
    )
