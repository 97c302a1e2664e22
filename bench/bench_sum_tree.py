"""The sum tree beside its plain twin: update and draw a batch of 256."""

from __future__ import annotations

import numpy as np
import pytest

from fastrl.replay import SumTree, reference, sum_tree

BATCH = 256


@pytest.fixture(params=["compiled", "plain"])
def kernels(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(sum_tree, "_sum_tree", reference)


def tree_and_batches(capacity):
    rng = np.random.default_rng(0)
    tree = SumTree(capacity)
    tree.set(np.arange(capacity), rng.random(capacity))
    # Many batches in turn, so that the caches hold what they would in a run.
    indices = np.sort(rng.integers(capacity, size=(64, BATCH)), axis=1)
    return tree, rng, indices, rng.random((64, BATCH))


@pytest.mark.parametrize("capacity", [2**14, 2**20])
@pytest.mark.benchmark(group="sum tree: update 256")
def bench_update(benchmark, kernels, capacity):
    tree, _, indices, weights = tree_and_batches(capacity)
    turn = iter(range(10**9))

    def update():
        k = next(turn) % 64
        tree.set(indices[k], weights[k])

    benchmark.pedantic(update, rounds=200, iterations=1, warmup_rounds=64)
    tree.check()


@pytest.mark.parametrize("capacity", [2**14, 2**20])
@pytest.mark.benchmark(group="sum tree: draw 256")
def bench_sample(benchmark, kernels, capacity):
    tree, rng, _, _ = tree_and_batches(capacity)
    index = benchmark.pedantic(tree.sample, args=(BATCH, rng), rounds=200, iterations=1, warmup_rounds=20)
    assert len(index) == BATCH
