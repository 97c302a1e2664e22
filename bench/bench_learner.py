"""The learner: one update, eager beside compiled, and the actions of a vector step."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from loops import seconds_of  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from fastrl.config import preset_for  # noqa: E402
from fastrl.dqn.device.device import has_bfloat16  # noqa: E402
from fastrl.dqn.learner import Learner  # noqa: E402
from fastrl.replay import Batch  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
TRUNKS = [("small", 256), ("nature", 512), ("impala-strided", 256)]


def make_learner(device, trunk, hidden, compiled, batch_size, kernels="auto"):
    config = preset_for("breakout", device).config.replace(
        trunk=trunk,
        hidden=hidden,
        compile=compiled,
        batch_size=batch_size,
        head="expected",
        munchausen=False,
        double=True,
        kernels=kernels,
    )
    return Learner(config, (4, 84, 84), np.uint8, 4, torch.device(device), seed=0), config


def random_batch(size, device="cpu"):
    rng = np.random.default_rng(0)
    obs = rng.integers(256, size=(2, size, 4, 84, 84), dtype=np.uint8)
    obs = [torch.from_numpy(o).to(device) for o in obs] if device == "cuda" else obs  # where the replay has them
    scalars = rng.random((3, size)).astype(np.float32)
    return Batch(obs[0], rng.integers(4, size=size), scalars[0], obs[1], scalars[1], scalars[2], np.arange(size))


def flop_per_sample(trunk, hidden, batch):
    """Count the arithmetic of one update in products and sums: three forwards and one backward."""
    learner, _ = make_learner("cpu", trunk, hidden, False, len(batch.index), kernels="torch")  # whose work is counted
    with FlopCounterMode(display=False) as counter:
        learner.learn(batch)
    return counter.get_total_flops() / len(batch.index)


def matrix_product(device, dtype):
    """Return a large product to compare with, and its arithmetic."""
    size = 2048 if device == "cpu" else 16384  # of milliseconds, against which a launch is nothing
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b, 2 * size**3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("trunk", "hidden"), TRUNKS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("batch_size", [64, 256])
@pytest.mark.benchmark(group="learner: update")
def bench_update(benchmark, device, trunk, hidden, compiled, batch_size):
    """An update, and in turns with it a matrix product in the same precision: how near to the machine's arithmetic."""
    learner, _ = make_learner(device, trunk, hidden, compiled, batch_size)
    batch = random_batch(batch_size, device)
    low = has_bfloat16(torch.device(device))
    product, product_flop = matrix_product(device, torch.bfloat16 if low else torch.float32)

    seconds: list[float] = []

    def beside():  # before each round of the benchmark
        seconds.append(seconds_of(product))

    benchmark.pedantic(lambda: seconds_of(lambda: learner.learn(batch)), setup=beside, rounds=12, warmup_rounds=3)
    if benchmark.enabled:
        rate = batch_size / benchmark.stats.stats.median
        done = rate * flop_per_sample(trunk, hidden, random_batch(batch_size))
        possible = product_flop / float(np.median(seconds))
        benchmark.extra_info |= {
            "samples_per_second": rate, "update_gflops": done / 1e9, "matrix_product_gflops": possible / 1e9,
            "share_of_matrix_product": done / possible, "precision": "bfloat16" if low else "float32",
        }  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("trunk", "hidden"), TRUNKS)
@pytest.mark.benchmark(group="learner: act for 64 games")
def bench_act(benchmark, device, trunk, hidden):
    """Compiled on a GPU alone: on a CPU that gains nothing and takes a while."""
    learner, _ = make_learner(device, trunk, hidden, device == "cuda", 64)
    obs = random_batch(64).obs
    actions = benchmark.pedantic(learner.act, args=(obs,), rounds=20, warmup_rounds=3)
    assert actions.shape == (64,)
