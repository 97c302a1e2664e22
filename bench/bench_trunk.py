"""The kernels of a CPU's trunks alone, on each instruction set: samples forward and back in one thread, in GFLOP/s."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from fastrl.dqn import _trunk  # noqa: E402
from fastrl.dqn.flat import FlatParameters  # noqa: E402
from fastrl.dqn.network import QNetwork  # noqa: E402
from fastrl.dqn.trunk import FastTrunk  # noqa: E402

ROWS = 8  # few, so that a round is shorter than the system's time slice
TRUNKS = ["small", "nature", "impala-strided", "impala-pooled"]


def make_trunk(trunk, kernels):
    networks = [QNetwork((4, 84, 84), 4, trunk).to(memory_format=torch.channels_last) for _ in range(2)]
    torch.set_num_threads(1)
    flat = [FlatParameters(network.parameters()) for network in networks]
    return FastTrunk(*networks, flat, ROWS, ROWS, kernels), networks[0]


def flop_of(network):
    """Return products and sums of a sample: forward, and of the gradients of all weights."""
    x = torch.zeros(1, 4, 84, 84)
    with FlopCounterMode(display=False) as counter:
        features = network.features(x)
    forward = counter.get_total_flops()
    weights = [p for p in network.trunk.parameters() if p.requires_grad]
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(features.sum(), weights)
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("kernels", _trunk.supported())
@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.benchmark(group="trunk")
def bench_trunk(benchmark, kernels, trunk, way):
    fast, network = make_trunk(trunk, kernels)
    obs = np.random.default_rng(0).integers(0, 256, (ROWS, 4, 84, 84), dtype=np.uint8)
    features = fast.features(obs, obs, online_next=False)[0]
    grad = torch.randn(features.shape).to(features.dtype)
    work = (lambda: fast.act(obs)) if way == "forward" else (lambda: fast.gradients(obs, grad))
    benchmark.pedantic(work, rounds=30, warmup_rounds=3)
    if benchmark.enabled:
        flop = ROWS * flop_of(network)[way == "backward"]
        benchmark.extra_info |= {
            "gflops": flop / 1e9 / benchmark.stats.stats.min,
            "us_per_sample": 1e6 * benchmark.stats.stats.min / ROWS,
        }
