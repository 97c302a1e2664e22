"""Adam's kernels beside the algorithm in NumPy float64; needs no torch, so it runs under AddressSanitizer too."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "fastrl" / "dqn"
(FILE,) = [path for path in FOLDER.glob("_adam.*") if path.name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))]
LOADER = importlib.machinery.ExtensionFileLoader("fastrl.dqn._adam", str(FILE))  # past a package that needs torch
KERNELS = importlib.util.module_from_spec(
    importlib.util.spec_from_file_location("fastrl.dqn._adam", FILE, loader=LOADER)
)
LOADER.exec_module(KERNELS)

SETS = KERNELS.supported()
STARTS, COUNTS = [0, 32, 64, 20_064, 20_096], [5, 32, 20_000, 1, 8_192]  # parts of a block, a block, and several
TOTAL = 28_300
RATE, BETA1, BETA2, EPS = 1e-2, 0.9, 0.999, 1e-4


def bfloat16(array):
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def numbers(array):
    return array if array.dtype == np.float32 else (array.astype(np.uint32) << 16).view(np.float32)


class Case:
    """Parameters, moments and gradients; of the gradients and copies every other one is bfloat16."""

    def __init__(self, kernels, seed=0):
        self.rng = np.random.default_rng(seed)
        self.values = self.rng.standard_normal(TOTAL).astype(np.float32)
        self.mean, self.square = np.zeros((2, TOTAL), np.float32)
        self.copies = [np.zeros(n, np.uint16) if i % 2 == 0 else None for i, n in enumerate(COUNTS)]
        self.adam = KERNELS.Adam(self.values, self.mean, self.square, STARTS, COUNTS, self.copies, kernels, 1, 0)

    def grads(self, scale=1e-3):
        found = [(scale * self.rng.standard_normal(n)).astype(np.float32) for n in COUNTS]
        return [bfloat16(g) if i in (1, 2) else g for i, g in enumerate(found)]

    def step(self, grads, count, max_norm=1e9):
        return self.adam.step(grads, count, RATE, BETA1, BETA2, EPS, max_norm)


def expected(values, grads, steps, max_norm=1e9):
    """Return the parameters and norms after steps along the gradients of each: Kingma & Ba 2015, algorithm 1."""
    values, norms = values.astype(np.float64), []
    mean, square = np.zeros((2, TOTAL))
    for t, some in zip(range(1, steps + 1), grads, strict=True):
        flat = np.zeros(TOTAL)
        for start, g in zip(STARTS, some, strict=True):
            flat[start : start + g.size] = numbers(g)
        norm = np.sqrt((flat**2).sum())
        norms.append(norm)
        flat *= min(1, max_norm / (norm + 1e-6)) if norm > max_norm else 1
        mean = BETA1 * mean + (1 - BETA1) * flat
        square = BETA2 * square + (1 - BETA2) * flat**2
        step = RATE * (mean / (1 - BETA1**t)) / (np.sqrt(square / (1 - BETA2**t)) + EPS)
        values -= step
    return values, norms


def test_the_first_step_by_hand():
    values, mean, square = np.array([[1, 2], [0, 0], [0, 0]], np.float32)
    adam = KERNELS.Adam(values, mean, square, [0], [2], [None], "portable", 1, 0)
    norm = adam.step([np.array([3, -4], np.float32)], 1, 0.5, 0.9, 0.999, 1.0, 10.0)
    assert norm == 5
    # Corrected, the moments are g and g^2: a step of 0.5 g / (|g| + 1).
    assert values == pytest.approx([1 - 0.5 * 3 / 4, 2 + 0.5 * 4 / 5], rel=1e-6)
    assert mean == pytest.approx([0.3, -0.4], rel=1e-6)
    assert square == pytest.approx([0.009, 0.016], rel=1e-6)


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("max_norm", [1e9, 0.05])
def test_steps_are_those_of_the_paper_with_clipped_gradients(kernels, max_norm):
    case = Case(kernels)
    before = case.values.copy()
    grads = [case.grads() for _ in range(4)]
    norms = [case.step(some, t + 1, max_norm) for t, some in enumerate(grads)]
    values, wanted = expected(before, grads, 4, max_norm)
    np.testing.assert_allclose(norms, wanted, rtol=1e-5)
    np.testing.assert_allclose(case.values - before, values - before, rtol=2e-4, atol=2e-6)
    between = np.ones(TOTAL, bool)
    for start, count in zip(STARTS, COUNTS, strict=True):
        between[start : start + count] = False
    assert np.array_equal(case.values[between], before[between])


@pytest.mark.parametrize("kernels", SETS)
def test_copies_are_the_parameters_rounded_to_the_nearest(kernels):
    case = Case(kernels)
    case.step(case.grads(), 1)
    for start, copy in zip(STARTS, case.copies, strict=True):
        if copy is not None:
            assert np.array_equal(copy, bfloat16(case.values[start : start + copy.size]))


def test_all_sets_of_kernels_give_the_same_bits():
    found = []
    for kernels in SETS:
        case = Case(kernels)
        norms = [case.step(case.grads(), t, 0.05) for t in range(1, 6)]
        found.append((norms, case.values.tobytes(), case.mean.tobytes(), case.square.tobytes()))
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("kernels", SETS)
def test_a_gradient_that_is_not_finite_shows_in_the_norm(kernels):
    for bad in (np.nan, np.inf):
        case = Case(kernels)
        grads = case.grads()
        grads[4][8_191] = bad
        assert not np.isfinite(case.step(grads, 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kernels": "mmx"}, "kernels is 'mmx'; this processor has portable"),
        ({"starts": [0, 3]}, "parameter 1 is 4 elements at 3 of 8; the last ended at 4"),
        ({"counts": [4, 5]}, "parameter 1 is 5 elements at 4 of 8"),
        ({"counts": [4, 0]}, "parameter 1 is 0 elements"),
        ({"copies": [None]}, "2 starts, 2 counts, 1 copies"),
        ({"threads": 0}, "0 threads"),
        ({"mean": np.zeros(7, np.float32)}, r"mean is float32 \[7\]; give float32 \[8\]"),
        ({"square": np.zeros(8)}, r"square is float64 \[8\]; give float32 \[8\]"),
        ({"copies": [None, np.zeros(4, np.float32)]}, r"copies\[1\] is float32 \[4\]; give uint16 \[4\]"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    values, mean, square = np.zeros((3, 8), np.float32)
    arguments = {
        "values": values, "mean": mean, "square": square, "starts": [0, 4], "counts": [4, 4], "copies": [None, None],
        "kernels": "portable", "threads": 1, "parallel": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=said):
        KERNELS.Adam(**arguments | change)


def test_gradients_that_do_not_fit_are_refused():
    case = Case("portable")
    before = case.values.copy()
    grads = case.grads()
    for wrong, said in [
        (grads[:-1], "4 gradients; give 5"),
        ([*grads[:-1], grads[0]], r"grads\[4\] is float32 \[5\]; give float32 \[8192\]"),
        ([grads[0].astype(np.float64), *grads[1:]], r"grads\[0\] is float64 \[5\]; give float32 \[5\]"),
        ([np.zeros((10,), np.float32)[::2], *grads[1:]], "C-contiguous"),
    ]:
        with pytest.raises(ValueError, match=said):
            case.step(wrong, 1)
    with pytest.raises(ValueError, match="count is 0; give at least 1"):
        case.step(grads, 0)
    assert np.array_equal(case.values, before)
