"""The trunk's kernels beside a convolution written in NumPy; needs no torch, so it runs under AddressSanitizer too."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

FOLDER = Path(__file__).parents[2] / "fastrl" / "dqn"
(FILE,) = [
    path for path in FOLDER.glob("_trunk.*") if path.name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
]
LOADER = importlib.machinery.ExtensionFileLoader("fastrl.dqn._trunk", str(FILE))  # past a package that needs torch
KERNELS = importlib.util.module_from_spec(
    importlib.util.spec_from_file_location("fastrl.dqn._trunk", FILE, loader=LOADER)
)
LOADER.exec_module(KERNELS)

SETS = KERNELS.supported()
B = 3
SHAPES = [
    # planes, height, width; (filters, kernel, stride) of each layer
    ((4, 36, 36), [(16, 8, 4), (32, 4, 2)]),
    ((1, 41, 39), [(16, 8, 4), (32, 4, 2)]),
    ((3, 20, 23), [(48, 5, 3), (16, 3, 1)]),
    ((5, 9, 9), [(32, 4, 2), (16, 2, 2)]),
    ((2, 8, 8), [(16, 8, 8)]),
    ((4, 52, 37), [(32, 8, 4), (64, 4, 2), (64, 3, 1)]),
    ((4, 12, 12), [(16, 3, 1), (16, 3, 1), (16, 3, 1), (32, 3, 2)]),
]


def elements(array, size):
    """Return float32 as the kernels' elements: themselves, or rounded to bfloat16 in 16 bits."""
    array = np.ascontiguousarray(array, np.float32)
    if size == 4:
        return array
    bits = array.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def numbers(array):
    return array if array.dtype == np.float32 else (array.astype(np.uint32) << 16).view(np.float32)


def rounded(array, size):
    return numbers(elements(array, size)).astype(np.float64)


def windows(x, k, s):
    """Return [B, ho, wo, k, k, c] of x [B, h, w, c]."""
    return np.moveaxis(sliding_window_view(x, (k, k), axis=(1, 2))[:, ::s, ::s], 3, -1)


def forward(x, weights, biases, layers, size):
    """Return the activations [B, ho, wo, n] of each layer for x [B, h, w, c] float64."""
    found = []
    for j, ((_, k, s), weight, bias) in enumerate(zip(layers, weights, biases, strict=True)):
        w = rounded(weight * np.float32(1 / 255) if j == 0 else weight, size)
        x = np.einsum("bhwyxc,nyxc->bhwn", windows(x, k, s), w) + bias
        x = rounded(np.maximum(x, 0), size)
        found.append(x)
    return found


def backward(x, activations, weights, layers, grad, size):
    """Return (weight [n, k, k, c], bias [n]) gradients of each layer."""
    inputs, found = [x, *activations[:-1]], []
    for j in reversed(range(len(layers))):
        _, k, s = layers[j]
        grad = np.where(activations[j] > 0, grad, 0)
        weight = np.einsum("bhwn,bhwyxc->nyxc", grad, windows(inputs[j], k, s)) / (255 if j == 0 else 1)
        found.insert(0, (weight, grad.sum(axis=(0, 1, 2))))
        if j:
            w, into = rounded(weights[j], size), np.zeros(inputs[j].shape)
            for y in range(k):
                for z in range(k):
                    h, wide = grad.shape[1:3]
                    into[:, y : y + s * h : s, z : z + s * wide : s] += grad @ w[:, y, z]
            grad = rounded(into, size)
    return found


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize(("image", "layers"), SHAPES)
@pytest.mark.parametrize("parts", [1, 2])
def test_features_and_gradients_are_those_of_a_convolution_in_numpy(kernels, image, layers, parts):
    size, rng = SETS[kernels], np.random.default_rng(0)
    obs, after = rng.integers(0, 256, (2, B, *image), dtype=np.uint8)
    made = KERNELS.Trunk(kernels, image, layers, B, B + 2, parts, 0)
    nets = []
    for net in (0, 1):
        channels, weights, biases = image[0], [], []
        for n, k, _ in layers:
            weights.append((rng.normal(size=(n, k, k, channels)) / np.sqrt(k * k * channels)).astype(np.float32))
            biases.append((rng.normal(size=n) / 10).astype(np.float32))
            channels = n
        for j in range(len(layers)):
            made.pack(net, j, weights[j], biases[j])
        nets.append((weights, biases))
    made.forward(obs, after)
    x, y = (np.moveaxis(images, 1, -1).astype(np.float64) for images in (obs, after))
    activations = forward(x, *nets[0], layers, size)
    tolerance = 1e-5 if size == 4 else 2**-6
    wanted = (activations[-1], forward(y, *nets[0], layers, size)[-1], forward(y, *nets[1], layers, size)[-1])
    for got, expected in zip(
        (made.features[0][:B], made.features[0][B : 2 * B], made.features[1]), wanted, strict=True
    ):
        expected = expected.reshape(B, -1)
        np.testing.assert_allclose(numbers(got), expected, rtol=tolerance, atol=tolerance * max(expected.max(), 1))
    grad = elements(rng.normal(size=made.features[1].shape), size)
    made.backward(obs, grad)
    exact = numbers(grad).astype(np.float64).reshape(activations[-1].shape)
    for j, (weight, bias) in enumerate(backward(x, activations, nets[0][0], layers, exact, size)):
        got = np.empty(weight.shape, np.float32), np.empty(bias.shape, np.float32)
        made.gradient(j, *got)
        for one, other in zip(got, (weight, bias), strict=True):
            assert np.linalg.norm(one - other) <= (1e-5 if size == 4 else 0.03) * np.linalg.norm(other) + 1e-6
    acted = numbers(made.features[0][:B]).copy()
    made.act(np.concatenate((obs, after[:2])))
    assert np.array_equal(numbers(made.features[0][:B]), acted)
