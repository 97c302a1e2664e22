"""The dueling Q-network and its trunks; `fastrl.dqn.heads` has what the last layers give for each action."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrl.base.console import printable
from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.config.settings import Trunk
from fastrl.dqn.heads import build_head
from fastrl.dqn.noisy import NoisyLinear
from fastrl.envs.frames import FrameShape, per_array


class PlainTrunk(NamedTuple):
    """An image trunk whose convolutions follow each other, a ReLU after each."""

    convolutions: tuple[tuple[int, int, int], ...]  # (filters, kernel, stride)
    pooled: bool = False  # at the end a 2x2 max-pool, which leaves out the last row and column of an odd size
    residual: bool = False  # a residual block behind the convolutions, before the pool


_SMALL = ((16, 8, 4), (32, 4, 2))  # Mnih et al. 2013
IMAGE_TRUNKS = {
    "nature": PlainTrunk(((32, 8, 4), (64, 4, 2), (64, 3, 1))),  # Mnih et al. 2015
    "small": PlainTrunk(_SMALL),
    "pooled": PlainTrunk(_SMALL, pooled=True),
    # Before the pool the block sees all positions, 9 x 9 of an Atari frame, and moves what the pool then chooses from.
    # The trunk whose blocks learn Breakout in fewer frames (Espeholt et al. 2018) has them on 11 x 11 and more. On the
    # 4 x 4 that the pool leaves, a block would cost a fifth.
    "residual": PlainTrunk(_SMALL, pooled=True, residual=True),
    "minatar": PlainTrunk(((16, 3, 1),)),  # Young & Tian 2019, for images of 10 x 10
}
FALLBACKS: tuple[Trunk, ...] = ("small", "minatar")
Dense = Callable[[Tensor, Tensor | None], Tensor]
"""A dense layer with its ReLU: x [R, F] and, where it is noisy, its noise, to [R, width]."""
Obs = Tensor | Mapping[str, Tensor]
"""Observations [B, *obs_shape]; of several arrays, each by name."""


class ImpalaTrunk(NamedTuple):
    """Sections of a convolution and two residual blocks (Espeholt et al. 2018, figure 3, right)."""

    filters: tuple[int, ...]  # of each section
    stride: tuple[int, int] | None = None  # kernel and stride of the first convolution, in place of the pool behind it
    pooled: bool = True  # a max-pool before the dense layer


IMPALA_TRUNKS: dict[str, ImpalaTrunk] = {
    "impala": ImpalaTrunk((16, 32, 32), pooled=False),
    "impala-pooled": ImpalaTrunk((16, 32, 32)),
    "impala-strided": ImpalaTrunk((16, 32), stride=(8, 4)),  # as in Mnih et al. 2013
}


class QNetwork(nn.Module):
    """Action values of a stack of observations.

    Parameters
    ----------
    obs_shape : tuple of int, or dict of such
        Shape of one observation: [stack, height, width] for an image trunk, or [stack, channels, height, width];
        anything for `vector`. Of several arrays, the shape of each by name: `JoinedTrunks` says which trunks they get.
    num_actions : int
        Number of actions A.
    trunk : {"nature", "small", "pooled", "residual", "minatar", "impala", "impala-pooled", "impala-strided", "vector"}
        Layers below the heads.
    hidden : int
        Width of the dense layer in each stream (and of both layers of the `vector` trunk).
    dueling : bool
        Q = V + A - mean(A) (Wang et al. 2016, eq. 9) instead of a single stream; with atoms, of each.
    width : int
        Multiplies the filters of an image trunk.
    atoms : int
        Numbers that an action has: 1 of the head `expected`, more of others.
    v_max : float
        Largest return that an atom of the head `c51` stands for.
    head : {"expected", "c51", "quantile", "iqn"}
        What these numbers are.
    noisy : bool
        The dense and the last layers are `NoisyLinear`.

    Attributes
    ----------
    head : Head
        Makes values of what the last layers give, and losses.
    noise_size : int
        Normal random numbers that one sample of the noise takes; 0 without noise.
    settings : dict
        The arguments, as JSON has them: `QNetwork(**settings)` is a network of the same shape.

    Raises
    ------
    ConfigError
        The trunk is unknown or does not fit the observation, or the head is unknown or does not fit `atoms`.
    """

    block: nn.Sequential | None  # behind the trunk's features; only `residual` has one

    def __init__(
        self,
        obs_shape: FrameShape,
        num_actions: int,
        trunk: Trunk = "nature",
        hidden: int = 512,
        dueling: bool = True,
        width: int = 1,
        atoms: int = 1,
        v_max: float = 10.0,
        head: str = "expected",
        noisy: bool = False,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "obs_shape": per_array(list, obs_shape), "num_actions": num_actions, "trunk": trunk, "hidden": hidden,
            "dueling": dueling, "width": width, "atoms": atoms, "v_max": v_max, "head": head, "noisy": noisy,
        }  # fmt: skip
        self.trunk: Any  # JoinedTrunks, or layers [Sequential]
        if isinstance(obs_shape, Mapping):
            self.trunk, self.block = JoinedTrunks(obs_shape, trunk, hidden, width), None
            features = self.trunk.features
        else:
            self.trunk, features, self._positions = _build_trunk(tuple(obs_shape), trunk, hidden, width)
            self.block, features = _build_block(trunk, features, self._positions)
        self.dueling, self.num_actions = dueling, num_actions
        self.head = build_head(head, atoms, v_max, features)
        self._numbers, linear = self.head.per_layer, NoisyLinear if noisy else nn.Linear
        if dueling:
            # The first layers of both streams read the same features: one product, split after it.
            self.hidden = NoisyLinear(features, 2 * hidden, streams=2) if noisy else nn.Linear(features, 2 * hidden)
            self.value = linear(hidden, self._numbers)
            self.advantage = linear(hidden, num_actions * self._numbers)
        else:
            self.hidden = linear(features, hidden)
            self.action_value = linear(hidden, num_actions * self._numbers)
        last = [self.value, self.advantage] if dueling else [self.action_value]
        self._noises = [layer.noise_size for layer in (self.hidden, *last) if isinstance(layer, NoisyLinear)]
        self.noise_size = sum(self._noises)

    def forward(self, obs: Obs, noise: Tensor | None = None) -> Tensor:
        """Return Q [B, A] float32 of obs [B, *obs_shape]; uint8 is scaled to [0, 1], floats pass as they are.

        Of several arrays `obs` is a dict. Noise [noise_size] are normal random numbers; without them noisy layers are
        their means.
        """
        return self.values(self.behind(self.features(obs), noise=noise))

    def outputs(self, obs: Obs) -> Tensor:
        """Return what the last layers give, float32: [B, A], or with atoms [B, A, atoms]."""
        return self.behind(self.features(obs))

    def features(self, obs: Obs) -> Tensor:
        """Return what the trunk makes of obs: features [B, F], of images position by position, before any block."""
        if isinstance(obs, Tensor):
            return _features(self.trunk, obs)
        joined: Tensor = self.trunk(obs)
        return joined

    def behind(
        self, features: Tensor, dense: Dense | None = None, taus: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Return what the last layers make of features [B, F]; see `outputs`.

        Parameters
        ----------
        features : Tensor
            [B, F].
        dense : callable, optional
            Takes the place of the dense layer with its ReLU.
        taus : Tensor, optional
            [B, head.samples] float32; the head's random numbers, where it takes some.
        noise : Tensor, optional
            [noise_size] float32; normal random numbers, where layers are noisy.
        """
        own, *others = (None,) * 3 if noise is None else torch.split(noise, self._noises)
        x = self.head.below(self._through_block(features), taus)
        x = F.relu(_through(self.hidden, x, own)) if dense is None else dense(x, own)
        # The last layers in float32, also under autocast: bfloat16 has steps of 0.5 near 100, actions differ by less.
        with torch.autocast(x.device.type, enabled=False):
            return self.head.above(self._last_layers(x.float(), others))

    def _through_block(self, features: Tensor) -> Tensor:
        """Return features [B, F] as they are, or as the residual block and its pool turn them into [B, F']."""
        return features if self.block is None else _through_block(self.block, features, self._positions)

    def _last_layers(self, x: Tensor, noises: Sequence[Tensor | None]) -> Tensor:
        if not self.dueling:
            return self._per_action(_through(self.action_value, x, noises[0]))
        x_value, x_advantage = x.chunk(2, dim=1)
        value = _through(self.value, x_value, noises[0])
        advantage = self._per_action(_through(self.advantage, x_advantage, noises[1]))
        value = value if self._numbers == 1 else value.unsqueeze(1)
        return value + advantage - advantage.mean(dim=1, keepdim=True)

    def values(self, outputs: Tensor) -> Tensor:
        """Return Q [B, A] float32 of what `outputs` returned."""
        return self.head.values(outputs)

    def _per_action(self, x: Tensor) -> Tensor:
        return x if self._numbers == 1 else x.view(-1, self.num_actions, self._numbers)

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise ConfigError naming the first weight that a state dict lacks, or has in another shape."""
        saved, own = ({name: list(t.shape) for name, t in s.items()} for s in (state, self.state_dict()))
        for name in sorted(saved.keys() | own.keys()):
            if saved.get(name) != own.get(name):
                raise ConfigError(
                    f"weight {name} is {saved.get(name, 'missing')} in the saved state and "
                    f"{own.get(name, 'missing')} here; give the --game, --stack, --trunk, --width, --hidden, "
                    "--dueling, --head, --atoms, --quantiles and --noisy that it was trained with"
                )


class JoinedTrunks(nn.Module):
    """A trunk for each array of an observation; their features are joined, in the order of `obs_shape`.

    Images get the image trunk asked for, or the one that `trunk_for` finds for them; vectors, and all arrays where
    `vector` is asked for, get that.

    Parameters
    ----------
    obs_shape : dict of tuple of int
        Shape of each array, by name: [stack, n] of a vector, [stack, H, W] or [stack, C, H, W] of an image.
    trunk, hidden, width
        As of `QNetwork`.

    Attributes
    ----------
    features : int
        F, of all arrays together.
    kinds : dict of str
        Which trunk each array has, by its name.

    Raises
    ------
    ConfigError
        The trunk is unknown.
    """

    def __init__(self, obs_shape: Mapping[str, Sequence[int]], trunk: Trunk, hidden: int, width: int) -> None:
        super().__init__()
        self.kinds = trunks_of(obs_shape, trunk)
        built = [_OneTrunk(tuple(shape), self.kinds[name], hidden, width) for name, shape in obs_shape.items()]
        self.each = nn.ModuleList(built)  # in order: names of a user's arrays may be no names of modules
        self.features = sum(one.features for one in built)

    @property
    def words(self) -> str:
        """Which trunk each array has, in words."""
        return ", ".join(f"{kind} of {printable(name)}" for name, kind in self.kinds.items())

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Return features [B, F] of obs, [B, *shape] each."""
        return torch.cat([one(obs[name]) for name, one in zip(self.kinds, self.each, strict=True)], dim=1)


class _OneTrunk(nn.Module):
    """The trunk of one array of several, with the block behind it, where it has one."""

    def __init__(self, obs_shape: tuple[int, ...], trunk: Trunk, hidden: int, width: int) -> None:
        super().__init__()
        self.layers, features, self._positions = _build_trunk(obs_shape, trunk, hidden, width)
        self.block, self.features = _build_block(trunk, features, self._positions)

    def forward(self, obs: Tensor) -> Tensor:
        """Return features [B, F] of obs [B, *obs_shape]."""
        features = _features(self.layers, obs)
        return features if self.block is None else _through_block(self.block, features, self._positions)


def trunks_of(obs_shape: Mapping[str, Sequence[int]], trunk: Trunk) -> dict[str, Trunk]:
    """Return which trunk each array of an observation gets; see `JoinedTrunks`."""
    if trunk == "vector":
        return dict.fromkeys(obs_shape, trunk)
    _check_trunk(trunk)
    return {name: trunk_for(tuple(frame), trunk) for name, (_, *frame) in obs_shape.items()}


def _features(trunk: nn.Sequential, obs: Tensor) -> Tensor:
    """Return features [B, F] of one array [B, *obs_shape], of images position by position."""
    obs = obs.flatten(1, 2) if obs.dim() == 5 else obs  # a stack of images in colour
    # Channels last already here: eager convolutions on a CPU otherwise lose up to half of their speed.
    layout = torch.channels_last if obs.dim() == 4 else torch.preserve_format
    x = obs.to(torch.float32, memory_format=layout)
    x = x / 255 if obs.dtype == torch.uint8 else x
    features = trunk(x)
    # Flattened in the order in which they lie, position by position: no transposition there and back.
    features = features.permute(0, 2, 3, 1) if features.dim() == 4 else features
    flat: Tensor = features.flatten(1)
    return flat


def _through_block(block: nn.Sequential, features: Tensor, positions: tuple[int, int]) -> Tensor:
    """Return what a residual block and its pool make of features [B, F] at these positions [H, W]."""
    # Channels last as they lie: a view, no copy; and so they come out.
    x = block(features.view(len(features), *positions, -1).permute(0, 3, 1, 2))
    flat: Tensor = x.permute(0, 2, 3, 1).flatten(1)
    return flat


def _through(layer: nn.Linear, x: Tensor, noise: Tensor | None) -> Tensor:
    y: Tensor = layer(x) if noise is None else layer(x, noise)
    return y


NETWORK = ("trunk", "head", "dueling", "noisy", "width", "hidden", "atoms", "quantiles")
"""Settings by which `build_network` builds; environments give the rest."""


def build_network(config: DQNConfig, obs_shape: FrameShape, num_actions: int) -> QNetwork:
    """Return the network that the settings ask for, with PyTorch's default initial weights."""
    return QNetwork(
        obs_shape,
        num_actions,
        config.trunk,
        config.hidden,
        config.dueling,
        config.width,
        config.numbers_per_action,
        config.v_max,
        config.head,
        config.noisy,
    )


def trunk_for(frame_shape: FrameShape, preferred: Trunk) -> Trunk:
    """Return the trunk for frames [n], [H, W] or [C, H, W]: of images the first of these that fits.

    The one preferred, `small`, `minatar`, `vector`. Of several arrays, the first that fits one of them.
    """
    if isinstance(frame_shape, Mapping):
        found = [trunk_for(shape, preferred) for shape in frame_shape.values()]
        return next(trunk for trunk in (preferred, *FALLBACKS, "vector") if trunk in found)
    if len(frame_shape) > 1:
        for trunk in (preferred, *FALLBACKS):
            if _fits(trunk, frame_shape[-2:]):
                return trunk
    return "vector"


def _fits(trunk: str, image: tuple[int, ...]) -> bool:
    """Whether the convolutions of a trunk, and its pool, if it has some, fit an image [H, W]."""
    plain = IMAGE_TRUNKS.get(trunk)
    if plain is None:
        impala = IMPALA_TRUNKS.get(trunk)
        return impala is None or impala.stride is None or min(image) >= impala.stride[0]
    for _, kernel, stride in plain.convolutions:
        if min(image) < kernel:
            return False
        image = tuple((side - kernel) // stride + 1 for side in image)
    return not plain.pooled or min(image) >= 2


Built = tuple[nn.Sequential, int, tuple[int, int]]  # layers, features that they give, and at how many positions [H, W]


def _build_trunk(obs_shape: tuple[int, ...], trunk: str, hidden: int, width: int) -> Built:
    if trunk == "vector":
        inputs = math.prod(obs_shape)
        dense = [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        return nn.Sequential(*dense), hidden, (1, 1)
    _check_trunk(trunk)
    if len(obs_shape) == 4:
        obs_shape = (obs_shape[0] * obs_shape[1], *obs_shape[2:])
    if len(obs_shape) != 3 or not _fits(trunk, obs_shape[1:]):
        raise _misfit(trunk, obs_shape)
    return (
        _convolutions(obs_shape, trunk, width)
        if trunk in IMAGE_TRUNKS
        else _impala(obs_shape, IMPALA_TRUNKS[trunk], width)
    )


def _check_trunk(trunk: str) -> None:
    if trunk not in get_args(Trunk):
        *most, last = get_args(Trunk)
        raise ConfigError(f"--trunk is {trunk!r}; give {', '.join(most)} or {last}")


def _convolutions(obs_shape: tuple[int, ...], trunk: str, width: int) -> Built:
    plain = IMAGE_TRUNKS[trunk]
    layers: list[nn.Module] = []
    channels, height, w = obs_shape
    for filters, kernel, stride in plain.convolutions:
        layers += [nn.Conv2d(channels, filters * width, kernel, stride), nn.ReLU()]
        channels, height, w = filters * width, (height - kernel) // stride + 1, (w - kernel) // stride + 1
    if plain.pooled and not plain.residual:
        layers.append(nn.MaxPool2d(2))
        height, w = height // 2, w // 2
    return nn.Sequential(*layers), channels * height * w, (height, w)


def _build_block(trunk: str, features: int, positions: tuple[int, int]) -> tuple[nn.Sequential | None, int]:
    """Return what lies between the trunk's features and the dense layer, and how many features it gives."""
    if trunk not in IMAGE_TRUNKS or not IMAGE_TRUNKS[trunk].residual:
        return None, features
    height, width = positions
    channels = features // (height * width)
    return nn.Sequential(Residual(channels), nn.ReLU(), nn.MaxPool2d(2)), channels * (height // 2) * (width // 2)


def _impala(obs_shape: tuple[int, ...], impala: ImpalaTrunk, width: int) -> Built:
    layers: list[nn.Module] = []
    channels, height, w = obs_shape
    for number, each in enumerate(impala.filters):
        filters = each * width
        if number == 0 and impala.stride is not None:
            kernel, stride = impala.stride
            layers.append(nn.Conv2d(channels, filters, kernel, stride))
            height, w = (height - kernel) // stride + 1, (w - kernel) // stride + 1
        else:
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            height, w = (height + 1) // 2, (w + 1) // 2
        layers += [Residual(filters), Residual(filters)]
        channels = filters
    layers.append(nn.ReLU())
    if impala.pooled:
        # Of 11 x 11 this makes the 6 x 6 of an adaptive pool, from the same windows (Clark et al. 2024, BTR).
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        height, w = (height + 1) // 2, (w + 1) // 2
    return nn.Sequential(*layers), channels * height * w, (height, w)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 convolutions that keep [B, channels, H, W] (Espeholt et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        change: Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + change


def _misfit(trunk: str, obs_shape: tuple[int, ...]) -> ConfigError:
    fits = trunk_for(obs_shape, "small") if len(obs_shape) == 3 else "vector"
    return ConfigError(
        f"--trunk is {trunk!r}, whose convolutions do not fit observations of shape {list(obs_shape)}; "
        f"give --trunk {fits}"
    )
