"""The optimizers: Adam from PyTorch, and the centred RMSProp of the DQN paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastrl.config import DQNConfig
from fastrl.dqn.flat import FlatParameters


class CentredRMSProp(torch.optim.Optimizer):
    """RMSProp that divides by the gradient's standard deviation, as in Mnih et al. 2015::

        m = rho m + (1 - rho) g
        v = rho v + (1 - rho) g^2
        p = p - lr g / sqrt(v - m^2 + eps)

    ``torch.optim.RMSprop(centered=True)`` adds eps outside the root: with the paper's eps = 0.01
    small gradients would take ten times longer steps there.

    Parameters
    ----------
    params : iterable of Tensor
        What to optimize.
    lr : float or Tensor
        Step size; as a tensor it may be changed in place, for CUDA graphs.
    rho, eps : float
        Decay of both averages, and the stability term inside the root.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor = 2.5e-4, rho: float = 0.95, eps: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step along the gradients; parameters without one stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p] = {"mean": torch.zeros_like(p), "mean_square": torch.zeros_like(p)}
        g = [p.grad for p in params]
        m = [self.state[p]["mean"] for p in params]
        v = [self.state[p]["mean_square"] for p in params]
        lr, rho, eps = group["lr"], group["rho"], group["eps"]

        torch._foreach_mul_(m, rho)
        torch._foreach_add_(m, g, alpha=1 - rho)
        torch._foreach_mul_(v, rho)
        torch._foreach_addcmul_(v, g, g, value=1 - rho)
        root = torch._foreach_addcmul(v, m, m, value=-1)  # v - m^2
        torch._foreach_add_(root, eps)
        torch._foreach_sqrt_(root)
        step = torch._foreach_div(g, root)
        torch._foreach_mul_(step, lr)
        torch._foreach_sub_(params, step)


def build_optimizer(config: DQNConfig, params: Iterable[Tensor], device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer that the settings ask for.

    ``optimizer_eps`` defaults to 0.005 / batch size for Adam and to the paper's 0.01 for RMSProp.
    """
    eps, lr = config.optimizer_eps, config.learning_rate
    rate = torch.tensor(lr, device=device) if device.type == "cuda" else lr  # where a recorded graph finds a new one
    if config.optimizer == "rmsprop":
        return CentredRMSProp(params, lr=rate, eps=0.01 if eps is None else eps)
    # One pass over the memory. The fused kernels read weight, gradient and moments by address, whatever their
    # layout: all must have the weight's, as gradients have by autograd's contract and moments by `load_moments`.
    return torch.optim.Adam(
        params,
        lr=rate,
        eps=0.005 / config.batch_size if eps is None else eps,
        fused=True,
        capturable=device.type == "cuda",  # the count of steps lies on the device, for CUDA graphs
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Take steps of another size from now on; in place where a CUDA graph reads it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def moments(optimizer: torch.optim.Optimizer, flat: FlatParameters) -> dict[int, dict[str, Tensor]]:
    """Return what the optimizer of `flat` keeps, parameter by parameter: views of its moments, and its counts."""
    known = optimizer.state[flat.values]
    split = {name: flat.views(value) for name, value in known.items() if value.dim()}
    counts = {name: value for name, value in known.items() if not value.dim()}
    return {i: counts | {name: views[i] for name, views in split.items()} for i in range(len(flat)) if known}


def load_moments(
    optimizer: torch.optim.Optimizer, flat: FlatParameters, saved: Mapping[int, Mapping[str, Any]]
) -> None:
    """Copy what `moments` returned in; rates and other settings stay.

    Moments that exist stay where they are in memory, since CUDA graphs read them there. Those that are not in `saved`
    become zeros.
    """
    own = optimizer.state[flat.values]
    first = saved.get(0, {})
    for name in own.keys() - first.keys():
        own[name].zero_()
    for name, value in first.items():
        if name not in own:
            own[name] = torch.zeros_like(flat.values.data) if value.dim() else torch.zeros_like(value)
        if not value.dim():
            own[name].copy_(value)
            continue
        for i, view in enumerate(flat.views(own[name])):
            view.copy_(saved[i][name])
