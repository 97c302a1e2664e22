"""The optimizers, Adam and the centred RMSProp of the DQN paper, and the step over all parameters of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.dqn.flat import FlatParameters, as_numpy
from fastrl.dqn.openmp import openmp_parallel

try:
    from fastrl.dqn import _adam
except ImportError:  # not built: on Windows, or in place by an older version
    _adam = None  # type: ignore[assignment]


RMSPROP_EPS = 0.01 / 32**2
"""The paper's stability term, for losses that are a mean over rows."""


class CentredRMSProp(torch.optim.Optimizer):
    """RMSProp that divides by the gradient's standard deviation, as in Mnih et al. 2015::

        m = rho m + (1 - rho) g
        v = rho v + (1 - rho) g^2
        p = p - lr g / sqrt(v - m^2 + eps)

    The paper's eps = 0.01 goes with a gradient that is summed over its 32 rows. That of a mean is 32 times
    smaller, and its eps 32^2 times: `RMSPROP_EPS`. ``torch.optim.RMSprop(centered=True)`` adds eps outside the root.

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
        self, params: Iterable[Tensor], lr: float | Tensor = 2.5e-4, rho: float = 0.95, eps: float = RMSPROP_EPS
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
    """Return PyTorch's optimizer for the settings, with the `stability_term` as its eps."""
    lr = config.learning_rate
    rate = torch.tensor(lr, device=device) if device.type == "cuda" else lr  # where a recorded graph finds a new one
    if config.optimizer == "rmsprop":
        return CentredRMSProp(params, lr=rate, eps=stability_term(config))
    # One pass over the memory. The fused kernels read weight, gradient and moments by address, whatever their
    # layout: all must have the weight's, as gradients have by autograd's contract and moments by `load_state`.
    return torch.optim.Adam(
        params,
        lr=rate,
        eps=stability_term(config),
        fused=True,
        capturable=device.type == "cuda",  # the count of steps lies on the device, for CUDA graphs
    )


def stability_term(config: DQNConfig) -> float:
    """Return eps: by default 0.005 / batch size for Adam, and `RMSPROP_EPS`."""
    if config.optimizer_eps is not None:
        return config.optimizer_eps
    return RMSPROP_EPS if config.optimizer == "rmsprop" else 0.005 / config.batch_size


class FlatOptimizer:
    """Clips gradients by their norm and takes a step, over all parameters of a network.

    On a CPU Adam is a kernel of `csrc/adam`: it reads the gradients where autograd left them, and writes parameters,
    moments and a bfloat16 copy of some parameters in one pass. Its twin is PyTorch's, which serves all else.

    Parameters
    ----------
    config : DQNConfig
        All settings.
    params : sequence of P Tensors
        The parameters.
    flat : FlatParameters
        The same in one array.
    device : torch.device
        Where they are.
    copies : sequence of P (Tensor or None), optional
        bfloat16 copies of parameters, of the same layout, that a step is to keep up to date where it can.

    Attributes
    ----------
    keeps_copies : bool
        Whether steps keep the copies up to date.
    """

    def __init__(
        self,
        config: DQNConfig,
        params: Sequence[Tensor],
        flat: FlatParameters,
        device: torch.device,
        copies: Sequence[Tensor | None] = (),
    ) -> None:
        self._config, self._device = config, device
        self._params, self._flat, self._rate = list(params), flat, config.learning_rate
        self._into = flat.views(flat.grads)
        self._torch = build_optimizer(config, [flat.values], device)
        self._adam: _adam.Adam | None = None
        self.keeps_copies = False
        if device.type == "cpu" and config.optimizer == "adam" and _adam is not None:
            self._use_kernel(_adam.supported()[-1], copies or [None] * len(flat))

    def _use_kernel(self, kernels: str, copies: Sequence[Tensor | None]) -> None:
        """Step by `csrc/adam` from now on; the moments stay PyTorch's."""
        zeros = {name: torch.zeros_like(self._flat.values.data) for name in ("exp_avg", "exp_avg_sq")}
        state: dict[str, Tensor] = {"step": torch.tensor(0.0), **zeros}
        self._torch.state[self._flat.values] = state
        self._count = state["step"].numpy()
        self._betas: tuple[float, float] = self._torch.param_groups[0]["betas"]
        self._eps: float = self._torch.param_groups[0]["eps"]
        self._norm = torch.zeros(())
        self._adam = _adam.Adam(
            self._flat.values.detach().numpy(),
            state["exp_avg"].numpy(),
            state["exp_avg_sq"].numpy(),
            self._flat.starts,
            [p.numel() for p in self._params],
            [None if copy is None else in_memory(copy) for copy in copies],
            kernels,
            torch.get_num_threads(),
            openmp_parallel(),
        )
        self.keeps_copies = True

    def step(self, grads: Sequence[Tensor]) -> Tensor:
        """Take a step along the gradients of all parameters; return the norm that they had, on the device."""
        if self._adam is None:
            self.take(grads)
            return self.step_taken()
        return self._step_kernel(grads)

    # The two parts of a step with several learners, which average ``flat.grads`` between them.

    def take(self, grads: Sequence[Tensor]) -> None:
        """Copy the gradients of all parameters into ``flat.grads``."""
        torch._foreach_copy_(self._into, list(grads))

    def step_taken(self) -> Tensor:
        """Take a step along the gradients taken; return their norm."""
        if self._adam is not None:
            return self._step_kernel(self._into)
        norm = self._clip()
        self._torch.step()
        return norm

    def _step_kernel(self, grads: Sequence[Tensor]) -> Tensor:
        assert self._adam is not None
        self._count += 1
        arrays = [in_memory(g, p) for g, p in zip(grads, self._params, strict=True)]
        most = self._config.max_grad_norm
        self._norm.fill_(self._adam.step(arrays, int(self._count), self._rate, *self._betas, self._eps, most))
        return self._norm

    def _clip(self) -> Tensor:
        """Scale the gradients down to `max_grad_norm`, if they are larger; return the norm they had."""
        flat, most = self._flat, self._config.max_grad_norm
        if self._device.type == "cuda":
            return clip_grad_norm_([flat.values], most)
        norm: Tensor = torch.linalg.vector_norm(flat.grads)
        if norm > most:
            flat.grads.mul_(most / (norm + 1e-6))
        return norm

    @property
    def rate(self) -> float:
        """Step size."""
        return self._rate

    def set_rate(self, rate: float) -> None:
        """Take steps of another size from now on; in place where a CUDA graph reads it."""
        if rate == self._rate:
            return
        self._rate = rate
        set_rate(self._torch, rate)

    def tensors(self) -> list[Tensor]:
        """Return all tensors that a step changes besides parameters and copies."""
        return [t for state in self._torch.state.values() for t in state.values()]

    def state(self) -> dict[str, Any]:
        """Return the optimizer's name, and its moments parameter by parameter: views of them."""
        return {"name": self._config.optimizer, "moments": moments(self._torch, self._flat)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Copy what `state` returned in; rates and other settings stay.

        Raises
        ------
        ConfigError
            The state belongs to another optimizer; nothing is changed then.
        """
        self.check_state(state)
        load_moments(self._torch, self._flat, {int(i): found for i, found in state["moments"].items()})

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ConfigError if a state belongs to another optimizer."""
        if state["name"] != self._config.optimizer:
            raise ConfigError(f"--optimizer is {self._config.optimizer!r}; the saved state needs {state['name']!r}")


def in_memory(tensor: Tensor, like: Tensor | None = None) -> NDArray[Any]:
    """Return the elements of a tensor in the order in which they lie, or those of `like` do, as float32 or uint16."""
    if like is not None and tensor.stride() != like.stride():
        tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
    return as_numpy(tensor.detach().as_strided((tensor.numel(),), (1,)))


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
            # On the parameters' device, the count too: the fused kernels read it there.
            like = flat.values.data if value.dim() else value
            own[name] = torch.zeros_like(like, device=flat.values.device)
        if not value.dim():
            own[name].copy_(value)
            continue
        for i, view in enumerate(flat.views(own[name])):
            view.copy_(saved[i][name])
