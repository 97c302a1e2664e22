from __future__ import annotations

import numpy as np
import pytest
from kernels import COMPILED, REFERENCE

from fastrl.replay import SumTree


def test_the_leaf_found_is_the_first_whose_running_sum_exceeds_the_target(kernels):
    tree = SumTree(5)
    tree.set([0, 1, 2, 3, 4], [0.0, 2.0, 0.0, 1.0, 0.0])
    assert tree.total == 3.0
    assert tree.find([0.0, 1.9, 2.0, 2.9]).tolist() == [1, 1, 3, 3]


def test_a_target_that_rounding_carried_to_the_total_finds_the_last_leaf_that_weighs_anything(kernels):
    tree = SumTree(100)
    tree.set(np.arange(70), np.full(70, 0.1))
    assert tree.find([tree.total, np.nextafter(tree.total, 0)]).tolist() == [69, 69]


@pytest.mark.parametrize("capacity", [1, 7, 8, 9, 64, 65, 512, 513, 5000])
def test_leaves_of_weight_zero_are_never_found(kernels, capacity):
    rng = np.random.default_rng(capacity)
    tree = SumTree(capacity)
    weights = np.where(rng.random(capacity) < 0.3, rng.random(capacity) * 10.0 ** rng.integers(-9, 9, capacity), 0)
    weights[rng.integers(capacity)] = 1.0
    tree.set(np.arange(capacity), weights)
    tree.check()
    targets = np.concatenate((rng.random(500) * tree.total, [0.0, tree.total], np.cumsum(weights)))
    found = tree.find(np.clip(targets, 0, tree.total))
    assert (weights[found] > 0).all()


def test_the_first_value_out_of_range_is_found(kernels):
    assert kernels.bad_index(np.array([0, 6, 3]), 7) == -1
    assert kernels.bad_index(np.array([0, 7, -1]), 7) == 1
    assert kernels.bad_index(np.array([3, -(1 << 62), 1 << 62]), 7) == 1
    assert kernels.bad_index(np.empty(0, np.int64), 7) == -1
    assert kernels.bad_number(np.array([0.0, 2.5, -0.0]), 2.5) == -1
    for bad in (-1e-300, 2.6, np.nan, np.inf, -np.inf):
        assert kernels.bad_number(np.array([1.0, 2.0, bad, -1.0]), 2.5) == 2


def test_of_repeated_indices_the_last_wins(kernels):
    tree = SumTree(20)
    tree.set([3, 17, 3, 3], [1.0, 2.0, 3.0, 4.0])
    assert tree.get([3, 17]).tolist() == [4.0, 2.0]
    assert tree.total == 6.0
    tree.check()


@pytest.mark.parametrize("capacity", [1, 8, 10, 64, 100, 1000])
def test_kernel_and_twin_agree_to_the_last_bit(capacity, monkeypatch):
    rng = np.random.default_rng(capacity)
    trees = SumTree(capacity), SumTree(capacity)
    for _ in range(60):
        size = rng.integers(1, 50)
        index = rng.integers(capacity, size=size)
        weight = rng.random(size) * 10.0 ** rng.integers(-12, 12, size) * (rng.random(size) < 0.7)
        results = []
        for tree, kernels in zip(trees, (COMPILED, REFERENCE), strict=True):
            kernels.set_leaves(tree._nodes, tree._offsets, index, weight)
            tree.check()
            targets = np.linspace(0, tree.total, 40)
            leaves = np.empty(40, np.int64)
            kernels.find_leaves(tree._nodes, tree._offsets, targets, leaves)
            drawn, uniforms = np.empty(40, np.int64), np.linspace(0, 1, 40)
            if tree.total:
                kernels.draw_leaves(tree._nodes, tree._offsets, uniforms, drawn)
            else:
                drawn[:] = 0
            results.append((tree._nodes.copy(), leaves, targets, drawn, uniforms))
        for compiled, plain in zip(*results, strict=True):
            assert np.array_equal(compiled, plain)


def test_draws_come_as_often_as_the_weights_say(kernels):
    weights = np.array([0.0, 1, 2, 3, 4, 0, 10, 0.5])
    tree = SumTree(8)
    tree.set(np.arange(8), weights)
    rng, draws = np.random.default_rng(0), np.zeros(8)
    for _ in range(400):
        draws += np.bincount(tree.sample(50, rng), minlength=8)
    expected = weights / weights.sum() * 20_000
    # Binomial deviation is at most sqrt(n p (1 - p)); stratified draws scatter less.
    deviation = np.sqrt(expected * (1 - expected / 20_000))
    assert (np.abs(draws - expected) <= 4 * deviation).all()


def test_sums_do_not_drift_over_a_million_updates():
    rng = np.random.default_rng(0)
    tree = SumTree(1000)
    for _ in range(1000):
        tree.set(rng.integers(1000, size=1000), rng.random(1000) ** 8 * 1e6)
    assert tree.total == pytest.approx(tree.weights.sum(), rel=1e-14)
    tree.check()
    tree.set(np.arange(1000), np.zeros(1000))
    assert tree.total == 0.0


@pytest.mark.parametrize(
    ("index", "weight", "message"),
    [
        ([8], [1.0], "index holds 8"),
        ([-1], [1.0], "index holds -1"),
        ([0.5], [1.0], "integers"),
        ([0, 1], [1.0], "one per index"),
        ([0], [np.nan], "weight holds nan"),
        ([0], [-1.0], "weight holds -1"),
        ([0], [np.inf], "weight holds inf"),
        ([0], [1e308], "weight holds 1e"),
    ],
)
def test_bad_weights_are_refused_before_anything_changes(index, weight, message):
    tree = SumTree(8)
    tree.set([0], [2.0])
    with pytest.raises(ValueError, match=message):
        tree.set([1, *index], [1.0, *weight])
    assert tree.total == 2.0


def test_a_tree_of_nothing_and_targets_outside_are_refused():
    with pytest.raises(ValueError, match="capacity is 0"):
        SumTree(0)
    tree = SumTree(3)
    with pytest.raises(ValueError, match="all weights are 0"):
        tree.find([0.0])
    tree.set([1], [1.0])
    with pytest.raises(ValueError, match=r"target holds 1.5"):
        tree.find([1.5])
