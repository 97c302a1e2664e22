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
# Last layers of 3 x 4, 7 x 8, 2 x 3 and 8 x 2 positions; one layer alone; filters beyond whole pairs of registers.
POOLED = [
    ((4, 36, 40), [(16, 8, 4), (32, 4, 2)]),
    ((3, 20, 23), [(48, 5, 2), (48, 2, 1)]),
    ((5, 9, 11), [(16, 5, 3)]),
    ((1, 10, 4), [(64, 3, 1)]),
]

FIRST, SECOND = (3, 1, 1, "first"), (3, 1, 1, "second")
# Trunks with residual blocks: filters, kernel, stride, padding and role of each layer, and the pool at their end.
BLOCKS = [
    (
        (4, 36, 32),
        [(16, 8, 4, 0, "conv"), (16, *FIRST), (16, *SECOND), (32, 3, 1, 1, "pool"), (32, *FIRST), (32, *SECOND)],
        3,
    ),
    ((1, 9, 14), [(16, 3, 1, 1, "pool"), (16, *FIRST), (16, *SECOND), (16, *FIRST), (16, *SECOND)], 0),
    ((5, 11, 6), [(32, 4, 2, 1, "conv"), (48, 3, 1, 1, "pool"), (16, 3, 1, 1, "conv"), (16, *FIRST), (16, *SECOND)], 3),
    ((3, 1, 1), [(16, 3, 1, 1, "pool"), (16, *FIRST), (16, *SECOND)], 3),
    ((2, 2, 27), [(64, 1, 1, 0, "pool"), (64, *FIRST), (64, *SECOND)], 3),
]  # fmt: skip


def test_a_processor_with_tiles_has_the_kernels_that_use_them():
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    if not {"amx_tile", "amx_bf16", "avx512_bf16", "avx512vbmi"} <= set(flags):
        pytest.skip("no tiles here")
    assert list(SETS)[-1] == "amx"


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


def pool(x):
    """Return the largest of each 2x2 positions of x [B, h, w, n], without the last row and column of an odd size."""
    return blocks(x).max(axis=3)


def blocks(x):
    """Return [B, h // 2, w // 2, 4, n] of x [B, h, w, n]."""
    b, h, w, n = x.shape
    x = x[:, : h - h % 2, : w - w % 2].reshape(b, h // 2, 2, w // 2, 2, n)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4, n)


def unpool(x, grad):
    """Return the gradients [B, h, w, n] of x, of which grad [B, h // 2, w // 2, n] goes to the first that won."""
    into = np.zeros(x.shape)
    winner = blocks(x).argmax(axis=3)
    for p in range(4):
        h, w = grad.shape[1:3]
        into[:, p // 2 : 2 * h : 2, p % 2 : 2 * w : 2] = np.where(winner == p, grad, 0)
    return into


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


def packed(made, channels, layers, rng):
    """Give both networks random weights of their own; return (weights, biases) of each."""
    nets = []
    for net in (0, 1):
        planes, weights, biases = channels, [], []
        for n, k, *_ in layers:
            weights.append((rng.normal(size=(n, k, k, planes)) / np.sqrt(k * k * planes)).astype(np.float32))
            biases.append((rng.normal(size=n) / 10).astype(np.float32))
            planes = n
        for j in range(len(layers)):
            made.pack(net, j, weights[j], biases[j])
        nets.append((weights, biases))
    return nets


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize(
    ("image", "layers", "pooled"), [*((*shape, False) for shape in SHAPES), *((*shape, True) for shape in POOLED)]
)
@pytest.mark.parametrize("parts", [1, 2])
def test_features_and_gradients_are_those_of_a_convolution_in_numpy(kernels, image, layers, pooled, parts):
    size, rng = SETS[kernels], np.random.default_rng(0)
    obs, after = rng.integers(0, 256, (2, B, *image), dtype=np.uint8)
    made = KERNELS.Trunk(kernels, image, layers, B, B + 2, parts, 0, 2 if pooled else 0)
    nets = packed(made, image[0], layers, rng)
    made.forward(obs, after)
    x, y = (np.moveaxis(images, 1, -1).astype(np.float64) for images in (obs, after))
    activations = forward(x, *nets[0], layers, size)
    tolerance = 1e-5 if size == 4 else 2**-6
    wanted = [activations[-1], forward(y, *nets[0], layers, size)[-1], forward(y, *nets[1], layers, size)[-1]]
    wanted = [pool(a) for a in wanted] if pooled else wanted
    for got, expected in zip(
        (made.features[0][:B], made.features[0][B : 2 * B], made.features[1]), wanted, strict=True
    ):
        expected = expected.reshape(B, -1)
        np.testing.assert_allclose(numbers(got), expected, rtol=tolerance, atol=tolerance * max(expected.max(), 1))
    grad = elements(rng.normal(size=made.features[1].shape), size)
    made.backward(obs, grad)
    exact = numbers(grad).astype(np.float64).reshape(wanted[0].shape)
    exact = unpool(activations[-1], exact) if pooled else exact
    for j, (weight, bias) in enumerate(backward(x, activations, nets[0][0], layers, exact, size)):
        got = np.empty(weight.shape, np.float32), np.empty(bias.shape, np.float32)
        made.gradient(j, *got)
        for one, other in zip(got, (weight, bias), strict=True):
            assert np.linalg.norm(one - other) <= (1e-5 if size == 4 else 0.03) * np.linalg.norm(other) + 1e-6
    acted = numbers(made.features[0][:B]).copy()
    made.act(np.concatenate((obs, after[:2])))
    assert np.array_equal(numbers(made.features[0][:B]), acted)


def padded(x, rim, value=0.0):
    return np.pad(x, ((0, 0), (rim, rim), (rim, rim), (0, 0)), constant_values=value)


def convolved(x, weight, bias, k, s, rim):
    return np.einsum("bhwyxc,nyxc->bhwn", windows(padded(x, rim), k, s), weight) + bias


def convolved_back(x, weight, grad, k, s, rim):
    """Return gradients of a convolution's weights, biases and input x."""
    into, (h, w) = np.zeros_like(padded(x, rim)), grad.shape[1:3]
    for y in range(k):
        for z in range(k):
            into[:, y : y + s * h : s, z : z + s * w : s] += grad @ weight[:, y, z]
    inside = slice(rim, -rim or None)
    of_weight = np.einsum("bhwn,bhwyxc->nyxc", grad, windows(padded(x, rim), k, s))
    return of_weight, grad.sum(axis=(0, 1, 2)), into[:, inside, inside]


def pool3(x):
    """Return the largest of 3x3 positions, 2 apart, of x [B, h, w, n] with a rim, and which of the nine they are."""
    nine = windows(padded(x, 1, -np.inf), 3, 2)
    nine = nine.reshape(*nine.shape[:3], 9, -1)
    return nine.max(axis=3), nine.argmax(axis=3)


def unpool3(won, grad, shape):
    into, (h, w) = padded(np.zeros(shape), 1), grad.shape[1:3]
    for p in range(9):
        into[:, p // 3 : p // 3 + 2 * h : 2, p % 3 : p % 3 + 2 * w : 2] += np.where(won == p, grad, 0)
    return into[:, 1:-1, 1:-1]


def through_blocks(x, weights, biases, layers, pool, size):
    """Return features [B, h, w, n] of x [B, h, w, c], and what `back_through_blocks` needs."""
    inputs, wins, stream = [], [], None
    for j, (_, k, s, rim, role) in enumerate(layers):
        stream = x if role == "first" else stream
        x = np.maximum(x, 0) if role in ("first", "second") else x
        inputs.append(x)
        w = rounded(weights[j] * np.float32(1 / 255) if j == 0 else weights[j], size)
        x = convolved(x, w, biases[j], k, s, rim)
        x = rounded(x + stream if role == "second" else np.maximum(x, 0) if role == "first" else x, size)
        before = x
        x, won = pool3(x) if role == "pool" else (x, None)
        wins.append((won, before.shape))
    last = np.maximum(x, 0)
    features, won = pool3(last) if pool else (last, None)
    return features, (inputs, wins, (won, last))


def back_through_blocks(kept, weights, layers, pool, grad, size):
    """Return (weight, bias) gradients of each layer."""
    inputs, wins, (won, last) = kept
    grad = rounded(unpool3(won, grad, last.shape), size) if pool else grad
    grad = np.where(last > 0, grad, 0)
    found, inner = [], grad  # of x; and of y, inside a block
    for j in reversed(range(len(layers))):
        _, k, s, rim, role = layers[j]
        own = inner if role == "first" else grad
        own = rounded(unpool3(wins[j][0], own, wins[j][1]), size) if role == "pool" else own
        weight, bias, into = convolved_back(inputs[j], rounded(weights[j], size), own, k, s, rim)
        found.insert(0, (weight / 255 if j == 0 else weight, bias))
        if role == "second":
            inner = rounded(np.where(inputs[j] > 0, into, 0), size)
        elif role == "first":
            grad = rounded(grad + np.where(inputs[j] > 0, into, 0), size)
        else:
            grad = rounded(into, size)
    return found


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize(("image", "layers", "pool"), BLOCKS)
@pytest.mark.parametrize("parts", [1, 2])
def test_with_residual_blocks_too(kernels, image, layers, pool, parts):
    size, rng = SETS[kernels], np.random.default_rng(1)
    obs, after = rng.integers(0, 256, (2, B, *image), dtype=np.uint8)
    made = KERNELS.Trunk(kernels, image, layers, B, B + 2, parts, 0, pool)
    nets = packed(made, image[0], layers, rng)
    made.forward(obs, after)
    x, y = (np.moveaxis(images, 1, -1).astype(np.float64) for images in (obs, after))
    tolerance = 1e-5 if size == 4 else 2**-5
    results = [through_blocks(images, *nets[net], layers, pool, size) for images, net in ((x, 0), (y, 0), (y, 1))]
    found = made.features[0][:B], made.features[0][B : 2 * B], made.features[1]
    for got, (wanted, _) in zip(found, results, strict=True):
        expected = wanted.reshape(B, -1)
        np.testing.assert_allclose(numbers(got), expected, rtol=tolerance, atol=tolerance * max(expected.max(), 1))
    features, kept = results[0]
    grad = elements(rng.normal(size=made.features[1].shape), size)
    for _ in range(2):  # what one backward leaves behind does not matter to the next
        made.backward(obs, grad)
    exact = numbers(grad).astype(np.float64).reshape(features.shape)
    for j, (weight, bias) in enumerate(back_through_blocks(kept, nets[0][0], layers, pool, exact, size)):
        got = np.empty(weight.shape, np.float32), np.empty(bias.shape, np.float32)
        made.gradient(j, *got)
        for one, other in zip(got, (weight, bias), strict=True):
            assert np.linalg.norm(one - other) <= (1e-5 if size == 4 else 0.05) * np.linalg.norm(other) + 1e-6
    acted = numbers(made.features[0][:B]).copy()
    made.act(np.concatenate((obs, after[:2])))
    assert np.array_equal(numbers(made.features[0][:B]), acted)


@pytest.mark.parametrize("kernels", SETS)
def test_windows_of_the_3x3_pool_share_positions_and_the_first_of_equals_wins(kernels):
    """One 1x1 filter that gives the image less 5, and blocks that add nothing: every number is known."""
    size = SETS[kernels]
    image = np.array([
        [0, 1, 0, 0, 9],  # rows and columns 0 and 1, 1 to 3, 3 and 4 are the windows' places
        [1, 1, 2, 4, 4],
        [1, 3, 4, 4, 4],
        [1, 4, 8, 6, 6],
        [4, 4, 4, 6, 6],
    ], np.uint8)  # fmt: skip
    layers = [(16, 1, 1, 0, "pool"), (16, *FIRST), (16, *SECOND)]
    made = KERNELS.Trunk(kernels, (2, 5, 5), layers, 1, 0, 1, 0)
    weight, bias = np.zeros((16, 1, 1, 2), np.float32), np.zeros(16, np.float32)
    weight[0, 0, 0, 0], bias[0] = 255, -5
    for net in (0, 1):
        made.pack(net, 0, weight, bias)
        for j in (1, 2):
            made.pack(net, j, np.zeros((16, 3, 3, 16), np.float32), np.zeros(16, np.float32))
    features = np.maximum(np.array([[1, 4, 9], [4, 8, 6], [4, 8, 6]]) - 5, 0).ravel()
    gradient, found = np.empty_like(weight), np.zeros((5, 5))
    grad = np.zeros((1, 9, 16), np.float32)
    grad[0, :, 0], grad[0, :, 1] = 2 ** np.arange(9), 1
    for y, x in np.ndindex(5, 5):  # the second plane marks a position, whose gradient is then that of its weight
        obs = np.stack((image, np.zeros_like(image)))[None]
        obs[0, 1, y, x] = 255
        made.forward(obs, obs)
        for got in (made.features[0][:1], made.features[1]):
            assert np.array_equal(numbers(got).reshape(9, 16)[:, 0], features)
            assert not numbers(got).reshape(9, 16)[:, 1:].any()
        made.backward(obs, elements(grad.reshape(1, 144), size))
        made.gradient(0, gradient, bias.copy())
        found[y, x] = gradient[0, 0, 0, 1]
        assert not gradient[1:].any()
    wanted = np.zeros((5, 5))
    wanted[0, 4] = 2**2
    wanted[3, 2] = 2**4 + 2**7  # of two windows
    wanted[3, 3] = 2**5 + 2**8
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("kernels", SETS)
def test_negative_numbers_are_pooled_by_their_order_and_of_equal_ones_the_first(kernels):
    """The block's first layer passes x on, so what the pool chose shows, though the features are not positive there."""
    image = np.array([[4, 2, 2, 2], [2, 2, 2, 2], [1, 1, 3, 1], [1, 1, 1, 3]], np.uint8)
    layers = [(16, 1, 1, 0, "pool"), (16, *FIRST), (16, *SECOND)]
    made = KERNELS.Trunk(kernels, (1, 4, 4), layers, 1, 0, 1, 0)
    weight = np.zeros((16, 1, 1, 1), np.float32)
    weight[0], weight[1] = 255, -255
    block = np.zeros((2, 16, 3, 3, 16), np.float32)
    for net in (0, 1):
        made.pack(net, 0, weight, np.where(np.arange(16) < 2, [-9, 0] + [0] * 14, 0).astype(np.float32))
        made.pack(net, 1, block[0], np.zeros(16, np.float32))
        made.pack(net, 2, block[1], np.where(np.arange(16) < 2, 20, 0).astype(np.float32))  # makes all positive
    obs = image[None, None]
    made.forward(obs, obs)
    features = numbers(made.features[1]).reshape(2, 2, 16)
    assert np.array_equal(features[..., 0] - 20, [[4 - 9, 2 - 9], [2 - 9, 3 - 9]])
    assert np.array_equal(features[..., 1] - 20, [[-2, -2], [-1, -1]])
    grad = np.zeros((1, 4, 16), np.float32)
    grad[0, :, :2] = np.array([1, 2, 4, 8])[:, None]
    made.backward(obs, elements(grad.reshape(1, 64), SETS[kernels]))
    gradient, bias = np.empty_like(weight), np.empty(16, np.float32)
    made.gradient(0, gradient, bias)
    # Each window's winner times its gradient, and of the first of equal ones: all of the same value here.
    np.testing.assert_allclose(
        gradient[:2, 0, 0, 0] * 255, [4 + 2 * 2 + 2 * 4 + 3 * 8, 2 + 2 * 2 + 1 * 4 + 1 * 8], rtol=1e-5
    )
    assert np.array_equal(bias[:3], [15, 15, 0])


@pytest.mark.parametrize(
    ("layers", "pool", "match"),
    [
        ([(16, 3, 1, 1, "relu")], 0, "layer 0 is"),
        ([(16, 3, 1, 2, "conv"), (16, *FIRST), (16, *SECOND)], 0, "layer 0 is"),
        ([(16, 3, 1, 1, "third"), (16, *FIRST), (16, *SECOND)], 0, "layer 0 is"),
        ([(16, *FIRST), (16, *SECOND)], 0, "layer 0 is"),
        ([(16, 3, 1), (16, *FIRST), (16, *SECOND)], 0, "layer 0 is"),
        ([(16, 3, 1, 1, "conv")], 0, "layer 0 is"),
        ([(16, 3, 1, 1, "conv"), (16, *FIRST)], 0, "layer 1 is"),
        ([(16, 3, 1, 1, "conv"), (16, *SECOND)], 0, "layer 1 is"),
        ([(16, 3, 1, 1, "conv"), (32, *FIRST), (32, *SECOND)], 0, "layer 1 is"),
        ([(16, 3, 1, 1, "conv"), (16, *FIRST), (32, *SECOND)], 0, "layer 1 is"),
        ([(16, 3, 1, 1, "conv"), (16, *FIRST), (16, 3, 1, 1, "conv"), (16, *SECOND)], 0, "layer 1 is"),
        ([(16, 3, 1, 1, "conv"), (16, 3, 2, 1, "first"), (16, *SECOND)], 0, "layer 1 is"),
        ([(16, 3, 1, 1, "conv"), (16, 5, 1, 1, "first"), (16, *SECOND)], 0, "layer 1 is"),
        ([(16, 3, 1, 1, "conv"), (16, *FIRST), (16, *SECOND), (16, *SECOND)], 0, "layer 3 is"),
        ([(16, 3, 1, 1, "conv"), (16, *FIRST), (16, *SECOND), (16, 3, 1, 1, "conv")], 0, "layer 3 is"),
        ([(16, 3, 1, 1, "conv"), (16, *FIRST), (16, *SECOND)], 2, "pool is 2; give 0, or 3 "),
        ([(16, 3, 1)], 3, "pool is 3; give 0, or 2 "),
        ([(16, 3, 1)], -1, "pool is -1; give 0, or 2 "),
    ],
)
def test_layers_that_do_not_fit_each_other_are_refused(layers, pool, match):
    with pytest.raises(ValueError, match=match):
        KERNELS.Trunk("portable", (4, 12, 12), layers, 1, 1, 1, 0, pool)


@pytest.mark.parametrize("kernels", SETS)
def test_the_pool_takes_the_largest_and_its_gradient_goes_to_the_first_of_equals(kernels):
    """One 1x1 filter that copies the image, and 15 that give nothing: every number is known."""
    size = SETS[kernels]
    image = np.array([
        [1, 2, 7, 7, 9],  # 2 x 2 blocks: [[1, 2], [4, 3]], [[7, 7], [7, 7]]; the last column is left out
        [4, 3, 7, 7, 9],
        [0, 5, 6, 8, 9],  # and [[0, 5], [5, 0]], [[6, 8], [6, 8]]; so is the last row
        [5, 0, 6, 8, 9],
        [9, 9, 9, 9, 9],
    ], np.uint8)  # fmt: skip
    made = KERNELS.Trunk(kernels, (2, 5, 5), [(16, 1, 1)], 1, 0, 1, 0, 2)
    weight = np.zeros((16, 1, 1, 2), np.float32)
    weight[0, 0, 0, 0] = 255  # the first layer divides by it
    for net in (0, 1):
        made.pack(net, 0, weight, np.zeros(16, np.float32))
    # One sample at a time: the second plane marks a position, whose gradient is then that of its weight.
    gradient, bias, found = np.empty_like(weight), np.empty(16, np.float32), np.zeros((5, 5))
    grad = np.zeros((1, 4, 16), np.float32)
    grad[0, :, 0], grad[0, :, 1] = (1, 2, 3, 4), 1  # the second filter's activations are 0: no gradient passes
    for y, x in np.ndindex(5, 5):
        obs = np.stack((image, np.zeros_like(image)))[None]
        obs[0, 1, y, x] = 255
        made.forward(obs, obs)
        for features in (made.features[0][:1], made.features[1]):
            assert np.array_equal(numbers(features).reshape(4, 16)[:, 0], [4, 7, 5, 8])
            assert not numbers(features).reshape(4, 16)[:, 1:].any()
        made.backward(obs, elements(grad.reshape(1, 64), size))
        made.gradient(0, gradient, bias)
        found[y, x] = gradient[0, 0, 0, 1]
        assert not gradient[1:].any()
        assert bias[0] == 10
    np.testing.assert_allclose(found, [[0, 0, 2, 0, 0], [1, 0, 0, 0, 0], [0, 3, 0, 4, 0], [0] * 5, [0] * 5], rtol=1e-6)


def test_a_pool_needs_two_positions_on_each_side():
    with pytest.raises(ValueError, match=r"pool is 2, and the last layer gives \[1, 2\]; give one that gives \[2, 2\]"):
        KERNELS.Trunk("portable", (4, 3, 4), [(16, 3, 1)], 1, 1, 1, 0, 2)
