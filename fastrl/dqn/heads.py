"""Heads: what the last layers give for each action, and how that is learned.

A new head is a class here and a name in `HEADS` and in ``DQNConfig.head``. Network and learner ask it for no more than
`Head` has: how many numbers an action has, their mean, what takes over at the next state, and the loss. A head may also
stand below the dense layer, and ask for random numbers (`Implicit`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrl.base.errors import ConfigError
from fastrl.dqn.loss import bootstrapped, categorical_divergence, categorical_target, huber, quantile_huber


class Head(nn.Module, ABC):
    """What the last layers give for each action: K numbers, `outputs` [B, A] if K is 1, else [B, A, K].

    Attributes
    ----------
    atoms : int
        K.
    per_layer : int
        How many of the K the last layers give in one pass.
    samples : int
        Random numbers in [0, 1] that a row takes in learning, `taus`.
    """

    def __init__(self, atoms: int, per_layer: int | None = None, samples: int = 0) -> None:
        super().__init__()
        self.atoms, self.samples = atoms, samples
        self.per_layer = atoms if per_layer is None else per_layer

    def below(self, features: Tensor, taus: Tensor | None) -> Tensor:
        """Return what the dense layer reads, [R, F] of features [B, F]; ``taus`` [B, samples] are None in acting."""
        return features

    def above(self, out: Tensor) -> Tensor:
        """Return `outputs` of what the last layers gave for R rows: [R, A], or [R, A, per_layer]."""
        return out

    @abstractmethod
    def values(self, outputs: Tensor) -> Tensor:
        """Return the expected returns Q [B, A] float32."""

    @abstractmethod
    def returns(self, outputs: Tensor) -> Tensor:
        """Return what mixes over actions, [..., K] of outputs [..., K]: values, probabilities or quantiles."""

    @abstractmethod
    def loss(
        self,
        out_tm1: Tensor,
        reward_t: Tensor,
        discount_t: Tensor,
        returns_t: Tensor,
        delta: float,
        largest: float,
        taus: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return losses [B], and errors [B], which become priorities.

        Parameters
        ----------
        out_tm1 : Tensor
            Outputs of the action taken: [B], or [B, K].
        reward_t, discount_t : Tensor
            [B] float32; sum of discounted rewards over the n steps, and the discount of what follows.
        returns_t : Tensor
            What takes over, as `returns` gives it, of one action: [B], or [B, K].
        delta : float
            Error at which a Huber loss turns from quadratic to linear.
        largest : float
            The largest return that rewards allow, to which targets are clipped, or infinity.
        taus : Tensor, optional
            [B, samples] float32; the random numbers that the outputs were made with.
        """


class Expected(Head):
    """The expected return: the Huber loss of the TD error (Mnih et al. 2015)."""

    def __init__(self) -> None:
        super().__init__(1)

    def values(self, outputs: Tensor) -> Tensor:
        return outputs

    def returns(self, outputs: Tensor) -> Tensor:
        return outputs

    def loss(
        self,
        out_tm1: Tensor,
        reward_t: Tensor,
        discount_t: Tensor,
        returns_t: Tensor,
        delta: float,
        largest: float,
        taus: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        td = bootstrapped(reward_t, discount_t, returns_t, largest).detach() - out_tm1
        return huber(td, delta), td.abs()


class Categorical(Head):
    """Logits of K returns, evenly spaced from -`v_max` to `v_max` (C51, Bellemare et al. 2017).

    The divergence from the projected target is loss and error.
    """

    support: Tensor

    def __init__(self, atoms: int, v_max: float) -> None:
        super().__init__(atoms)
        self.register_buffer("support", torch.linspace(-v_max, v_max, atoms), persistent=False)

    def values(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=2) @ self.support

    def returns(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=-1)

    def loss(
        self,
        out_tm1: Tensor,
        reward_t: Tensor,
        discount_t: Tensor,
        returns_t: Tensor,
        delta: float,
        largest: float,
        taus: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        target = categorical_target(reward_t, discount_t, returns_t, self.support, largest)
        divergence = categorical_divergence(out_tm1, target)
        return divergence, divergence.clamp(min=0)  # rounding puts one of 0 below it, and priorities may not be


class Quantile(Head):
    """N quantiles of the return, at the midpoints of N equal shares (Dabney et al. 2018a, lemma 2).

    The error is the difference of the means, |mean target - mean|: a loss over pairs does not vanish where the
    prediction is right.
    """

    taus: Tensor

    def __init__(self, atoms: int, per_layer: int | None = None, samples: int = 0) -> None:
        super().__init__(atoms, per_layer, samples)
        self.register_buffer("taus", (torch.arange(atoms) + 0.5) / atoms, persistent=False)

    def values(self, outputs: Tensor) -> Tensor:
        return outputs.mean(dim=2)

    def returns(self, outputs: Tensor) -> Tensor:
        return outputs

    def loss(
        self,
        out_tm1: Tensor,
        reward_t: Tensor,
        discount_t: Tensor,
        returns_t: Tensor,
        delta: float,
        largest: float,
        taus: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        target = bootstrapped(reward_t, discount_t, returns_t, largest)
        error = (target.mean(dim=1) - out_tm1.mean(dim=1)).abs()
        return quantile_huber(out_tm1, target, self.taus if taus is None else taus, delta), error


class Implicit(Quantile):
    """The quantile of any share tau, at N of them: the implicit quantile network, IQN (Dabney et al. 2018b).

    The features are multiplied by relu(W cos(pi i tau) + b), i = 0 ... 63 (eq. 4), and each product passes through the
    dense and the last layers: N times their arithmetic. In learning, shares are drawn uniformly, for online and target
    network apart. The papers also draw them to act; here values are means at the midpoints of N equal shares, and do
    not vary.
    """

    frequencies: Tensor

    def __init__(self, atoms: int, features: int) -> None:
        super().__init__(atoms, per_layer=1, samples=atoms)
        self.register_buffer("frequencies", math.pi * torch.arange(64.0), persistent=False)
        self.embedding = nn.Linear(64, features)

    def below(self, features: Tensor, taus: Tensor | None) -> Tensor:
        taus = self.taus if taus is None else taus  # [N], or [B, N]
        embedded = F.relu(self.embedding((taus.unsqueeze(-1) * self.frequencies).cos()))
        return (features.unsqueeze(1) * embedded).flatten(0, 1)  # [B N, F]

    def above(self, out: Tensor) -> Tensor:
        return out.view(-1, self.atoms, out.shape[1]).transpose(1, 2)


HEADS: dict[str, Callable[[int, float, int], Head]] = {
    "expected": lambda atoms, v_max, features: Expected(),
    "c51": lambda atoms, v_max, features: Categorical(atoms, v_max),
    "quantile": lambda atoms, v_max, features: Quantile(atoms),
    "iqn": lambda atoms, v_max, features: Implicit(atoms, features),
}
"""Each head by its name, made of the numbers that an action has, the largest return, and the width of the features."""


def build_head(name: str, atoms: int, v_max: float, features: int) -> Head:
    """Return a head by its name; ConfigError if there is none, or it does not have that many numbers for an action."""
    if name not in HEADS:
        raise ConfigError(f"--head is {name!r}; give {', '.join(HEADS)}")
    if (atoms == 1) != (name == "expected"):
        raise ConfigError(f"--head is {name!r} with {atoms} numbers for each action; give 1 for expected, else more")
    return HEADS[name](atoms, v_max, features)
