"""The learner: networks and optimizer on their device, and one update per batch.

All that an update reads and writes stays where it is in memory: its inputs, weights, moments and sums. So the
whole of it can be recorded once as a CUDA graph, and a CPU writes into pages that are mapped already.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.base.errors import ConfigError
from fastrl.base.machine import cpu_count, keep_freed_memory
from fastrl.config import DQNConfig
from fastrl.dqn.average import AveragedWeights
from fastrl.dqn.device import cuda_graph
from fastrl.dqn.device.device import pick_precision
from fastrl.dqn.device.inputs import fill, make_input
from fastrl.dqn.device.transfer import Columns, Download, Upload, torch_dtype
from fastrl.dqn.flat import FlatParameters
from fastrl.dqn.loss import allowed, best, munchausen_bonus, soft_policy, taken, under, weighted_mean
from fastrl.dqn.network import Dense as DenseLayer
from fastrl.dqn.network import Obs, QNetwork, build_network
from fastrl.dqn.optimizer import FlatOptimizer
from fastrl.dqn.peers import ALONE, Peers
from fastrl.dqn.trunk import FastTrunk, pick_kernels
from fastrl.dqn.update_stats import Tally
from fastrl.envs.frames import (
    Frame,
    FrameDtype,
    FrameShape,
    count,
    dtypes_in_words,
    is_array,
    no_array,
    per_array,
    require_equal_counts,
)
from fastrl.envs.masks import ACTION_MASK, only_allowed

State = dict[str, Any]
Spec = tuple[tuple[int, ...], torch.dtype]
Specs = dict[str, Any]  # shape and dtype of each input of the loss, in order; of several arrays dicts of these
Priorities = tuple[NDArray[np.int64], NDArray[np.float32]]


class Batch(Protocol):
    """What the learner reads of a batch of B transitions; n-step sums and terminations are in it."""

    @property
    def obs(self) -> Any: ...  # [B, *obs_shape] obs_dtype, array or tensor, on the host or on the device; or a dict
    @property
    def action(self) -> NDArray[Any]: ...  # [B] integer
    @property
    def reward(self) -> NDArray[Any]: ...  # [B] float, discounted sum over the n steps
    @property
    def next_obs(self) -> Any: ...  # [B, *obs_shape] obs_dtype, as obs
    @property
    def discount(self) -> NDArray[Any]: ...  # [B] float, gamma^steps, 0 after termination
    @property
    def weight(self) -> NDArray[Any]: ...  # [B] float, importance weights
    @property
    def index(self) -> NDArray[Any]: ...  # [B] integer, the replay's row numbers


class MaskedBatch(Batch, Protocol):
    """What a learner of masked actions reads besides, by the name `ACTION_MASK`."""

    @property
    def extra(self) -> dict[str, NDArray[Any]]: ...  # [B, A] bool, the actions that were allowed at obs
    @property
    def next_extra(self) -> dict[str, NDArray[Any]]: ...  # [B, A] bool, and those at next_obs


class Learner:
    """Online and target network, optimizer and counters; greedy actions out, batches in.

    With `average_updates` it keeps the moving average of the online network's weights too, which is `judged`.

    Parameters
    ----------
    config : DQNConfig
        All settings; `num_envs / env_groups` and `batch_size` fix the compiled shapes.
    obs_shape : tuple of int, or dict of such
        Shape of one (stacked) observation, e.g. (4, 84, 84). Of several arrays, the shape of each by name; observations
        are then dicts, here and in batches.
    obs_dtype : dtype, or dict of such
        NumPy dtype of observations: uint8 or float32.
    num_actions : int
        Number of actions A.
    device : torch.device
        Where the networks live; see `pick_device`.
    seed : int
        Seeds the initial weights, noise and taus, without touching PyTorch's global generator.
    delayed : bool, optional
        Hand priorities back one update late, through staging buffers, so that the host never waits
        for the update that it has just asked for. Default: on CUDA only.
    peers : Peers, optional
        The learners whose gradients are averaged in every update. All must have one seed, for equal weights; noise and
        taus are each one's own.
    masked : bool, optional
        Environments say which actions they allow: `act` takes a mask, and `learn` a `MaskedBatch`. Greedy actions and
        soft policies, also those of targets, are then of allowed actions alone. A dueling network keeps its mean over
        all actions.

    Attributes
    ----------
    updates : int
        Updates made so far.
    target_period : int
        Updates between two copies of the online network into the target network; may be set at any time.
    precision : {"float32", "bfloat16"}
        Arithmetic of the networks' layers; the last ones and the weights are always float32.
    errors : [B] float32
        Errors of the last batch whose priorities were handed back; [0] before the first.

    Raises
    ------
    ConfigError
        The trunk does not fit the observation, or the kernels that the settings ask for do not fit.

    Warns
    -----
    RuntimeWarning
        torch.compile failed, or recording a CUDA graph; the learner then goes without.
    """

    def __init__(
        self,
        config: DQNConfig,
        obs_shape: FrameShape,
        obs_dtype: FrameDtype,
        num_actions: int,
        device: torch.device,
        seed: int,
        *,
        delayed: bool | None = None,
        peers: Peers = ALONE,
        masked: bool = False,
    ) -> None:
        on_gpu = device.type == "cuda"
        torch.set_num_threads(config.torch_threads or (1 if on_gpu else cpu_count()))
        keep_freed_memory()
        self.config, self.device, self._peers = config, device, peers
        self.precision = pick_precision(config.precision, device)
        self.updates = self._copied = 0  # the last update at which the target network was copied
        self.target_period = config.target_period_updates
        self.delayed = on_gpu if delayed is None else delayed
        self._obs_shape, self._obs_dtype = per_array(tuple, obs_shape), per_array(np.dtype, obs_dtype)

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.online = build_network(config, self._obs_shape, num_actions)
            self.target = build_network(config, self._obs_shape, num_actions)
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        # Channels last: the faster convolution on GPUs and CPUs alike. The input may keep its own layout.
        for network in (self.online, self.target):
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._params: list[Tensor] = list(self.online.parameters())
        self._flat, self._flat_target = (FlatParameters(net.parameters()) for net in (self.online, self.target))
        self._average: AveragedWeights | None = None
        if config.average_updates:
            self._average = AveragedWeights(self.online, self._flat, config.average_updates)

        self._specs = _specs(config.batch_size, self._obs_shape, self._obs_dtype, num_actions if masked else None)
        self._columns = Columns({k: v for k, v in self._specs.items() if "obs" not in k}, device, staged=self.delayed)

        def make(spec: Spec) -> Tensor:
            return make_input(*spec, device)

        self._inputs = {
            name: per_array(make, spec) if "obs" in name else self._columns.tensors[name]
            for name, spec in self._specs.items()
        }
        acting = _obs_spec(config.group_size, self._obs_shape, self._obs_dtype)
        self._acting = per_array(make, acting)
        self._acting_mask: Tensor | None = None
        if masked:
            self._acting_mask = make_input((config.group_size, num_actions), torch.bool, device)
            for mask in (self._inputs["mask"], self._inputs["next_mask"], self._acting_mask):
                mask.fill_(True)  # for the first calls, which compile and record
        self._uploads: dict[str, Any] = {
            name: per_array(lambda _: Upload(device, staged=self.delayed), self._obs_shape)
            for name in ("obs", "next_obs", "acting")
        }
        self._uploads["acting_mask"] = Upload(device, staged=self.delayed)
        self._downloads = [Download(config.batch_size, device) for _ in range(2)]
        self._pending: tuple[NDArray[np.int64], Download] | None = None
        self._tally = Tally(dict(self.online.named_parameters()), device)
        # Random numbers of updates and actions: drawn on the host, equal on all devices, outside of what is compiled or
        # recorded. Taus of online and target network; noise of both, and of the online network where it selects.
        stream = [seed, 1, *([peers.rank] if peers.rank else [])]
        self._generator = torch.Generator().manual_seed(int(np.random.SeedSequence(stream).generate_state(1)[0]))
        samples, noise = self.online.head.samples, self.online.noise_size
        sizes = {"taus": (2, config.batch_size, samples), "noise": (3, noise), "acting_noise": (noise,)}
        self._draws = {name: torch.zeros(size, device=device) for name, size in sizes.items() if size[-1]}
        self._drawn = {name: torch.zeros(size) for name, size in sizes.items() if size[-1]}
        self._uploads |= {name: Upload(device, staged=self.delayed) for name in self._draws}
        self.errors = np.zeros(0, np.float32)
        self._build_functions()

    def _build_functions(self) -> None:
        """Write act and loss as plain functions, and compile them where asked and possible."""
        config, online, target = self.config, self.online, self.target
        device, bfloat16 = self.device, self.precision == "bfloat16"
        head, select_online = online.head, config.double and not config.munchausen
        largest = config.largest_return

        trunk = self._trunk = self._fast_trunk(bfloat16)
        copies = [None if trunk is None or config.noisy else trunk.copy_of(p) for p in self._params]
        optimizer = self._optimizer = FlatOptimizer(config, self._params, self._flat, device, copies)
        dense: dict[QNetwork, DenseLayer] = {}
        if trunk is not None:
            dense = dict(zip((online, target), trunk.dense(), strict=True))

        def arithmetic() -> Any:
            # One block per call: weights cast without gradient must not serve a call with one.
            return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)

        def features(network: QNetwork, obs: Obs) -> Tensor:
            with arithmetic():
                return network.features(obs)

        def behind(network: QNetwork, x: Tensor, taus: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
            with arithmetic():
                return network.behind(x, dense.get(network), taus, noise)

        def q_values(network: QNetwork, obs: Obs, noise: Tensor | None = None) -> Tensor:
            with torch.no_grad():
                return network.values(behind(network, features(network, obs), noise=noise))

        def act_behind(x: Tensor, noise: Tensor | None, mask: Tensor | None) -> Tensor:
            with torch.no_grad():
                return best(online.values(behind(online, x, noise=noise)), mask)

        def act(obs: Obs, noise: Tensor | None, mask: Tensor | None) -> Tensor:
            with torch.no_grad():
                return act_behind(features(online, obs), noise, mask)

        def loss_behind(
            x_tm1: Tensor,
            x_t: Tensor,
            x_t_target: Tensor,
            action_tm1: Tensor,
            reward_t: Tensor,
            discount_t: Tensor,
            weight: Tensor,
            mask_tm1: Tensor | None,
            mask_t: Tensor | None,
            taus: Tensor | None,
            noise: Tensor | None,
        ) -> tuple[Tensor, Tensor, Tensor]:
            taus_tm1, taus_t = (None, None) if taus is None else taus.unbind()
            noise_tm1, noise_t, noise_select = (None, None, None) if noise is None else noise.unbind()
            out_tm1 = behind(online, x_tm1, taus_tm1, noise_tm1)
            with torch.no_grad():
                q_tm1 = online.values(out_tm1.detach())
                out_t = behind(target, x_t_target, taus_t, noise_t)
                if config.munchausen:
                    policy, entropy = soft_policy(target.values(out_t), mask_t)
                    reward_t = reward_t + munchausen_bonus(q_tm1, action_tm1, mask_tm1) + discount_t * entropy
                    returns_t = under(head.returns(out_t), policy)
                else:
                    out_select = behind(online, x_t, noise=noise_select) if select_online else out_t
                    returns_t = head.returns(taken(out_t, best(online.values(out_select), mask_t)))
            losses, errors = head.loss(
                taken(out_tm1, action_tm1), reward_t, discount_t, returns_t, config.huber_delta, largest, taus_tm1
            )
            value, errors = weighted_mean(losses, weight), errors.detach()
            q_max = allowed(q_tm1, mask_tm1).max()
            stats = torch.stack((value.detach(), errors.mean(), taken(q_tm1, action_tm1).mean(), q_max))
            return value, errors, stats

        def loss(
            obs_tm1: Obs,
            action_tm1: Tensor,
            reward_t: Tensor,
            obs_t: Obs,
            discount_t: Tensor,
            weight: Tensor,
            mask_tm1: Tensor | None,
            mask_t: Tensor | None,
            taus: Tensor | None,
            noise: Tensor | None,
        ) -> tuple[Tensor, Tensor, Tensor]:
            with torch.no_grad():
                x_t_target = features(target, obs_t)
                x_t = features(online, obs_t) if select_online else x_t_target
            x_tm1 = features(online, obs_tm1)
            return loss_behind(
                x_tm1, x_t, x_t_target, action_tm1, reward_t, discount_t, weight, mask_tm1, mask_t, taus, noise
            )

        leaves = [p if copy is None else copy for p, copy in zip(self._params, copies, strict=True)]

        def gradients() -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
            """Return the gradients of the loss on `self._inputs`, the errors [B] and the figures, all on the device."""
            value, errors, stats = self._loss()
            return torch.autograd.grad(value, leaves), errors, stats

        def update() -> Tensor:
            """One update of a learner that is alone; return its errors [B] without waiting for them."""
            grads, errors, stats = gradients()
            with torch.no_grad():
                finish(stats, optimizer.step(grads))
            return errors

        def finish(stats: Tensor, norm: Tensor) -> None:
            self._tally.add(stats, norm)
            if config.target_tau:  # theta' += tau (theta - theta'), a part of what a CUDA graph records
                self._flat_target.values.lerp_(self._flat.values, config.target_tau)
            if trunk is not None:
                trunk.learned(copied=optimizer.keeps_copies)

        # With several learners an update has two parts, between which they average: no recording may hold that.
        stats_kept = torch.zeros(4, device=device)

        def differentiate() -> Tensor:
            """Leave the gradients in the optimizer, and the figures; return the errors."""
            grads, errors, stats = gradients()
            with torch.no_grad():
                optimizer.take(grads)
                stats_kept.copy_(stats)
            return errors

        def step() -> Tensor:
            """Do the rest, with the mean of the gradients."""
            with torch.no_grad():
                norm = optimizer.step_taken()
                finish(stats_kept, norm)
            return norm

        average = self._peers.average

        def in_parts(differentiate: Callable[[], Tensor], step: Callable[[], Tensor]) -> Callable[[], Tensor]:
            assert average is not None
            return _averaging(differentiate, partial(average, self._flat.grads), step)

        self._q_values = q_values
        self._update: Callable[[], Tensor] = update if average is None else in_parts(differentiate, step)

        def use(act_behind: Any, loss_behind: Any, act: Any, loss: Any) -> None:
            """Act and learn by these functions: those behind the features, where the trunk is the fast one."""
            taus, noise, acting_noise = (self._draws.get(name) for name in ("taus", "noise", "acting_noise"))
            given = [tensor for name, tensor in self._inputs.items() if "mask" not in name]
            others = [self._inputs.get("mask"), self._inputs.get("next_mask"), taus, noise]
            if trunk is None:
                self._act: Callable[[], Tensor] = lambda: act(self._acting, acting_noise, self._acting_mask)
                self._loss: Callable[[], tuple[Tensor, Tensor, Tensor]] = lambda: loss(*given, *others)
                return
            columns = [*(t for name, t in self._inputs.items() if "obs" not in name and "mask" not in name), *others]
            self._act = lambda: act_behind(trunk.act(self._frames["acting"]), acting_noise, self._acting_mask)
            self._loss = lambda: loss_behind(
                *trunk.features(self._frames["obs"], self._frames["next_obs"], online_next=select_online), *columns
            )

        use(act_behind, loss_behind, act, loss)
        if not config.compile:
            return
        with _eager_if_it_fails("torch.compile", "Install a C++ compiler (CPU) or Triton (CUDA)"):
            if device.type == "cuda":
                cuda_graph.avoid_short_lived_kernels()
            functions = [torch.compile(f, fullgraph=True, dynamic=False) for f in (act_behind, loss_behind, act, loss)]
            use(*functions)
            try:
                with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # the first calls compile
                    warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor")  # of the features
                    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # last layers are float32
                    self._act()
                    torch.autograd.grad(self._loss()[0], leaves)
            except BaseException:
                use(act_behind, loss_behind, act, loss)
                raise
        if device.type == "cuda":
            with _eager_if_it_fails("recording a CUDA graph", "Update PyTorch and the driver"):
                with cuda_graph.unchanged(self._tensors):
                    act_recorded = cuda_graph.record(self._act)
                    if average is None:
                        recorded = cuda_graph.record(update)
                    else:
                        recorded = in_parts(cuda_graph.record(differentiate), cuda_graph.record(step))
                self._act, self._update = act_recorded, recorded

    def _fast_trunk(self, bfloat16: bool) -> FastTrunk | None:
        """Return the fast trunk, if it is wanted, and networks, device and observations are made for it."""
        config, kernels = self.config, pick_fast_kernels(self.config, self._obs_dtype, self.device, bfloat16)
        if kernels is None and config.kernels == "fastrl":
            raise ConfigError(
                f"--kernels is 'fastrl', which has none here for {self.precision}, trunk {config.trunk} and "
                f"observations of {dtypes_in_words(self._obs_dtype)} on {self.device.type}; give --kernels auto"
            )
        if kernels is None or config.kernels == "torch":
            return None
        b, n = config.batch_size, config.group_size
        self._frames = {
            name: np.zeros((rows, *self._obs_shape), np.uint8)
            for name, rows in {"obs": b, "next_obs": b, "acting": n}.items()
        }
        return FastTrunk(self.online, self.target, (self._flat, self._flat_target), b, n, kernels)

    def _tensors(self) -> list[Tensor]:
        """Return all tensors that an update changes."""
        return [*self._params, self._flat_target.values, *self._optimizer.tensors(), self._tally.totals]

    def act(self, obs: Frame, mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return the greedy actions [N] int64 of obs [N, *obs_shape]; compiled where N is that of a group.

        Where layers are noisy, by one new sample of the noise for all rows. A learner of masked actions needs the mask
        [N, A] bool of those that are allowed.
        """
        self._check_obs(obs)
        self._check_mask(mask, count(obs))
        self._draw("acting_noise")
        if count(obs) != count(self._acting):
            found = self._values(self.online, obs, self._draws.get("acting_noise"))
            greedy: NDArray[np.int64] = (found if mask is None else only_allowed(found, mask)).argmax(axis=1)
            return greedy
        if mask is not None and self._acting_mask is not None:
            self._bring("acting_mask", mask, self._acting_mask)
        if self._trunk is None:
            self._bring("acting", obs, self._acting)
        else:
            self._frames["acting"] = obs
        actions: NDArray[np.int64] = self._act().cpu().numpy()
        return actions

    def q_values(self, obs: Frame) -> NDArray[np.float32]:
        """Return Q [N, A] float32 of obs [N, *obs_shape], for any N; without noise, by the means of noisy layers."""
        self._check_obs(obs)
        return self._values(self.online, obs)

    @property
    def judged(self) -> QNetwork:
        """The network that evaluations play and checkpoints hand on: of averaged weights, if they are kept."""
        return self.online if self._average is None else self._average.network

    def judged_q_values(self, obs: Frame) -> NDArray[np.float32]:
        """Return what `q_values` does, by the network that is `judged`."""
        self._check_obs(obs)
        return self._values(self.judged, obs)

    def _values(self, network: QNetwork, obs: Frame, noise: Tensor | None = None) -> NDArray[np.float32]:
        if self._trunk is not None:
            self._trunk.take_over()  # its copies of the dense layer are those of the last update or action
        values: NDArray[np.float32] = self._q_values(network, self._tensors_of(obs), noise).cpu().numpy()
        return values

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return copies of the online network's weights, float32 by the names of its state; waits for the device."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.online.state_dict().items()}

    def _draw(self, *names: str) -> None:
        """Draw the random numbers of these names anew, where there are any."""
        for name in names:
            if name in self._drawn:
                drawn = self._drawn[name]
                if name == "taus":
                    drawn.uniform_(generator=self._generator)
                else:
                    drawn.normal_(generator=self._generator)
                self._bring(name, drawn.numpy(), self._draws[name])

    def _bring(self, name: str, value: Any, into: Any) -> None:
        """Bring arrays of the host, or tensors, into an input; of several arrays, all of them."""

        def bring(upload: Upload, value: NDArray[Any] | Tensor, into: Tensor) -> None:
            if isinstance(value, Tensor):
                fill(into, value)
            elif self.delayed and torch_dtype(value.dtype) == into.dtype:
                upload.send(value, into)
            else:
                fill(into, upload.send(value))

        per_array(bring, self._uploads[name], value, into)

    def _tensors_of(self, obs: Frame) -> Obs:
        tensors: Obs = per_array(lambda array: torch.as_tensor(array, device=self.device), obs)
        return tensors

    def _check_obs(self, obs: Frame) -> None:
        for place, array, (shape, dtype) in _each_array("obs", obs, self._specs["obs"]):  # of as many rows as there are
            wanted = dtype if isinstance(array, Tensor) else _numpy_dtype(dtype)
            if not is_array(array) or array.shape[1:] != shape[1:] or array.dtype != wanted:
                sides = ", ".join(map(str, ("N", *shape[1:])))
                if not is_array(array):
                    raise no_array(place, array, f"an array, {wanted} [{sides}]")
                raise ValueError(f"{place} is {array.dtype} {list(array.shape)}; give {wanted} [{sides}]")
        require_equal_counts("obs", obs)

    def _check_mask(self, mask: NDArray[np.bool_] | None, rows: int) -> None:
        if self._acting_mask is None:
            if mask is not None:
                raise ValueError("mask is given to a learner without masks; leave it out, or build it with masked=True")
            return
        wanted = (rows, self._acting_mask.shape[1])
        if mask is None or mask.shape != wanted or mask.dtype != np.bool_:
            got = "None" if mask is None else f"{mask.dtype} {list(mask.shape)}"
            raise ValueError(f"mask is {got}; give bool {list(wanted)}, since the learner was built with masked=True")

    def learn(self, batch: Batch, *, measure: bool = False) -> Priorities | None:
        """Do one update and return (index [B] int64, errors [B] float32), or None.

        An error is what the head gives: |td|, the Kullback-Leibler divergence from the target, or the difference of the
        means.

        Parameters
        ----------
        batch : Batch
            `batch_size` transitions; its arrays may be reused once this returns.
        measure : bool
            Measure the norms of the parameters and of this update too (a copy of all weights).

        Returns
        -------
        tuple or None
            Priorities of this batch; when `delayed`, those of the previous one (None at the first).

        Raises
        ------
        ValueError
            An array of the batch has another shape than expected.
        """
        self._check(batch)
        for name, value in {"obs": batch.obs, "next_obs": batch.next_obs}.items():
            if self._trunk is not None:
                self._frames[name] = np.asarray(value)
            else:
                self._bring(name, value, self._inputs[name])
        self._columns.send({name: _column(batch, name) for name in self._columns.tensors})
        self._draw("taus", "noise")
        before = [p.detach().clone() for p in self._params] if measure else []
        errors = self._update()
        self.updates += 1
        self._tally.updates += 1
        with torch.no_grad():
            if not self.config.target_tau and self.updates - self._copied >= self.target_period:
                self._copied = self.updates
                # In place: compiled functions and CUDA graphs keep reading the same memory.
                self._flat_target.values.copy_(self._flat.values)
            if self._average is not None:
                self._average.add()
            if before:
                self._tally.measure(before, self._params)
        # Two downloads take turns: the one used now was fetched an update ago.
        download = self._downloads[self.updates % 2]
        download.start(errors)
        previous = self.flush() if self.delayed else None
        self._pending = (batch.index.astype(np.int64), download)
        return previous if self.delayed else self.flush()

    def set_learning_rate(self, rate: float) -> None:
        """Take steps of this size from the next update on."""
        self._optimizer.set_rate(rate)

    def flush(self) -> Priorities | None:
        """Wait for the priorities that `learn` still owes and return them, or None."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        index, download = pending
        self.errors = download.finish()
        return index, self.errors

    def _check(self, batch: Batch) -> None:
        for name, spec in self._specs.items():
            for place, array, (shape, dtype) in _each_array(f"batch.{name}", _column(batch, name), spec):
                if not is_array(array):
                    raise no_array(place, array, f"an array, {_numpy_dtype(dtype)} {list(shape)}")
                wanted = array.dtype  # of columns, which may vary
                if "obs" in name or "mask" in name:
                    wanted = dtype if isinstance(array, Tensor) else _numpy_dtype(dtype)
                if array.shape != shape or array.dtype != wanted:
                    raise ValueError(f"{place} is {array.dtype} {list(array.shape)}; give {wanted} {list(shape)}")
        if batch.index.shape != batch.action.shape:
            raise ValueError(f"batch.index has shape {list(batch.index.shape)}; give [{len(batch.action)}]")

    @property
    def finite(self) -> bool:
        """Whether every gradient since the last `metrics` had a finite norm; True on a GPU, which is not waited for.

        There NaN comes through to the errors. The kernels of a CPU rectify it to 0.
        """
        return self._tally.finite

    def metrics(self) -> dict[str, float]:
        """Return means since the last call (q_max: the maximum) and start anew; waits for the device.

        Means are missing when nothing was learned since, and norms, by layer too, when no update was measured.
        """
        return {"train/learning_rate": self._optimizer.rate} | self._tally.read()

    def state(self) -> State:
        """Return copies of all that learning continues from, pending priorities included: tensors, numbers, dicts."""
        index, download = self._pending or (None, None)
        state = {
            "online": self.online.state_dict(),
            "target": self.target.state_dict(),
            "average": None if self._average is None else self._average.state(),
            "optimizer": self._optimizer.state(),
            "head": self.config.head,
            "generator": self._generator.get_state() if self._draws else None,
            "updates": self.updates,
            "copied": self._copied,
            **self._tally.state(),
            "pending": download and {"index": torch.from_numpy(index), "errors": torch.from_numpy(download.finish())},
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        return copy.deepcopy(state)

    def load_state(self, state: State) -> None:
        """Continue from what `state` returned; learning rate and other settings stay as they are.

        Raises
        ------
        ConfigError
            The state belongs to another network or optimizer; nothing is changed then.
        """
        self._optimizer.check_state(state["optimizer"])
        head = state.get("head", self.config.head)  # heads of as many numbers look alike; older states lack it
        if head != self.config.head:
            raise ConfigError(f"--head is {self.config.head!r}; the saved state needs {head!r}")
        self.online.check_state(state["online"])
        self.target.check_state(state["target"])
        self.online.load_state_dict(state["online"])
        self.target.load_state_dict(state["target"])
        if self._average is not None:
            if average := state.get("average"):
                self._average.load_state(average)
            else:  # it was not kept before
                self._average.start()
        self._optimizer.load_state(state["optimizer"])
        self.updates = state["updates"]
        period = self.config.target_period_updates  # which older states were written with: they lack the last copy
        self._copied = state.get("copied", self.updates - self.updates % period)
        self._tally.load_state(state)
        self._pending = None
        if state["pending"] is not None:
            errors = state["pending"]["errors"]
            download = Download(len(errors), self.device)  # of the batch size of before
            download.start(errors)
            self._pending = (state["pending"]["index"].numpy(), download)
        if state.get("generator") is not None:  # states of before there was one lack it
            self._generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


def pick_fast_kernels(config: DQNConfig, obs_dtype: FrameDtype, device: torch.device, bfloat16: bool) -> str | None:
    """Return the kernels of the fast trunk; None where it does not fit device, observations, trunk or precision.

    It takes observations of one array.
    """
    single = not isinstance(obs_dtype, Mapping)
    fits = device.type == "cpu" and single and np.dtype(obs_dtype) == np.uint8 and config.trunk != "vector"
    return pick_kernels(bfloat16) if fits else None


def _averaging(
    differentiate: Callable[[], Tensor], average: Callable[[], None], step: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """Return an update of two parts, between which the gradients are averaged."""

    def update() -> Tensor:
        errors = differentiate()
        average()
        step()
        return errors

    update.recorded = differentiate, step  # type: ignore[attr-defined]
    return update


@contextmanager
def _eager_if_it_fails(what: str, remedy: str) -> Iterator[None]:
    """Turn any error of a compiler into one warning."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"{what} failed ({reason}); continuing without it, which is slower. {remedy}, or pass --no-compile to "
            "silence this",
            RuntimeWarning,
            stacklevel=6,
        )


def _column(batch: Batch, name: str) -> Any:
    """Return an array of a batch by the name of the input that it fills."""
    if name == "mask":
        return cast(MaskedBatch, batch).extra[ACTION_MASK]
    if name == "next_mask":
        return cast(MaskedBatch, batch).next_extra[ACTION_MASK]
    return getattr(batch, name)


def _each_array(name: str, value: Any, spec: Any) -> Iterator[tuple[str, Any, Spec]]:
    """Yield each array of a value, where it stands in words, and its spec; ValueError for arrays of other names."""
    if not isinstance(spec, Mapping):
        yield name, value, spec
        return
    if not isinstance(value, Mapping) or value.keys() != spec.keys():
        got = f"of type {type(value).__name__}"
        if isinstance(value, Mapping):
            got = f"a dictionary of {', '.join(map(repr, value)) or 'nothing'}"
        raise ValueError(f"{name} is {got}; give a dictionary of {', '.join(map(repr, spec))}")
    for key, one in spec.items():
        yield f"{name}[{key!r}]", value[key], one


@cache
def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype


def _obs_spec(rows: int, obs_shape: FrameShape, obs_dtype: FrameDtype) -> Any:
    """Return shape and dtype of observations; of several arrays, of each."""
    return per_array(lambda shape, dtype: ((rows, *shape), torch_dtype(dtype)), obs_shape, obs_dtype)


def _specs(B: int, obs_shape: FrameShape, obs_dtype: FrameDtype, masked_actions: int | None) -> Specs:
    obs, column = _obs_spec(B, obs_shape, obs_dtype), ((B,), torch.float32)
    return {  # in the order of the loss's arguments
        "obs": obs,
        "action": ((B,), torch.int64),
        "reward": column,
        "next_obs": obs,
        "discount": column,
        "weight": column,
    } | dict.fromkeys([] if masked_actions is None else ["mask", "next_mask"], ((B, masked_actions or 0), torch.bool))
