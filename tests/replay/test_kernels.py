"""Compiled kernels beside their plain twins on the same random operations."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from kernels import COMPILED, REFERENCE

from fastrl.replay import SumTree, _ring, marks
from fastrl.replay.ring import _COLUMNS, _CURSORS, Ring


def test_kernels_and_python_mean_the_same_by_the_marks():
    assert {name: value for name, value in vars(marks).items() if name.isupper()} == _ring.MARKS
    marked = [marks.ROW, marks.TRUNCATED, marks.TERMINATED, marks.FINAL]
    assert len(set(marked)) == 4
    assert marks.UNKNOWN not in (False, True)  # the other states of `opens`


@pytest.mark.parametrize("seed", range(8))
def test_push_and_reads_agree_to_the_last_bit(seed):
    rng = np.random.default_rng(seed)
    num_envs, stack, n_step = rng.integers(1, 5, 3).tolist()
    rows = stack + n_step + int(rng.integers(1, 12))
    rings = [Ring(num_envs, rows, stack, n_step, (), np.dtype(np.int64)) for _ in range(2)]
    for _ in range(300):
        env = rng.permutation(num_envs)[: rng.integers(0, num_envs + 1)]
        n = len(env)
        reward = rng.normal(size=n).astype(np.float32)
        mark = rng.choice([0, 0, 0, 1, 2], n).astype(np.uint8)
        first = rng.choice([-1, -1, -1, 0, 1], n).astype(np.int8)
        answers = []
        for ring, kernels in zip(rings, (COMPILED, REFERENCE), strict=True):
            slots, changed = np.empty(n, np.int64), np.empty(n * (stack + n_step), np.int64)
            rings_of_kind = kernels.Rings(
                rows, stack, n_step, ring.count, ring.pending, ring.ended, ring.opens, ring.first, ring.reward,
                ring.mark, ring.drawable,
            )  # fmt: skip
            found = rings_of_kind.push(env, reward, mark, first, slots, changed)
            ring.check()
            drawn = np.flatnonzero(ring.drawable)
            batches = [draw(kernels, ring, drawn, stack, n_step, zero=zero) for zero in (False, True)]
            if len(drawn):  # with equal weights, each once and in order
                assert np.array_equal(ring.slots(batches[0].index)[0], drawn)
            located = np.empty((2, num_envs * rows), np.int64)
            every = np.arange(ring.count.max() * num_envs)[-num_envs * rows :]  # those overwritten too
            alive = np.full(len(every), 9, np.uint8)
            known = every // num_envs < ring.count[every % num_envs]
            unknown = rings_of_kind.locate(every, located[0, : len(every)], alive)
            assert unknown == (-1 if known.all() else np.argmin(known))
            of_known = np.ascontiguousarray(every[known])
            assert rings_of_kind.locate(of_known, located[1, : len(of_known)], alive[: len(of_known)]) == -1
            assert set(located[1, : len(of_known)][alive[: len(of_known)] != 0]) <= set(drawn.tolist())
            names = [located[1, : len(of_known)], alive[: len(of_known)]]
            arrays = [getattr(ring, name) for name in _COLUMNS + _CURSORS]
            drawn_columns = [column for batch in batches for column in vars(batch).values()]
            answers.append([slots, changed[:found], *drawn_columns, *names, *arrays])
        for compiled, plain in zip(*answers, strict=True):
            assert np.array_equal(compiled, plain)


def test_gather_copies_numbered_frames_and_zeros(kernels):
    frames = np.arange(-3, 5 * 3).astype(np.uint8).reshape(6, 3)[1:]  # what lies before them is no frame of zeros
    out = np.full((6, 3), 99, np.uint8)
    kernels.gather(frames, np.array([[1, 2], [4, -1], [0, 4]]), out, 1, 3)
    assert out.tolist() == [[99] * 3, [99] * 3, [12, 13, 14], [0, 0, 0], [0, 1, 2], [12, 13, 14]]


@pytest.mark.parametrize("seed", range(4))
def test_gathering_both_in_one_pass_is_gathering_each(seed):
    """Numbers of few frames, so that stacks share none, some or all of theirs, in and out of order."""
    rng = np.random.default_rng(seed)
    frames, numbers = rng.integers(256, size=(6, 3), dtype=np.uint8)[1:], rng.integers(-1, 5, size=(2, 200, 3))
    begin, end = sorted(rng.integers(200, size=2).tolist())
    outs = np.full((2, 2, 600, 3), 99, np.uint8)
    for out, kernels in zip(outs, (COMPILED, REFERENCE), strict=True):
        kernels.gather_both(frames, numbers, *out, begin, end)
    each = np.full((2, 600, 3), 99, np.uint8)
    for k in range(2):
        COMPILED.gather(frames, numbers[k], each[k], begin, end)
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[0], each)


def test_n_step_return_worked_out_by_hand(kernels):
    ring = Ring(2, 4, 1, 3, (), np.dtype(np.int64))
    ring.count[:] = 4
    # The second row of env 1 (slot 5) is truncated, the third of env 0 (slot 2) terminated.
    ring.reward[:] = [1, 2, 3, 4, 1, 2, 3, 4]
    ring.mark[:] = [0, 0, 2, 0, 0, 1, 0, 0]
    batch = draw(kernels, ring, np.array([0, 1, 3, 4, 5]), 1, 3, gamma=0.5)
    assert batch.returns.tolist() == [1 + 1 + 0.75, 2 + 1.5, 4 + 0.5 + 0.5, 1 + 1, 2]  # the third wraps: 3, 0, 1
    assert batch.discounts.tolist() == [0, 0, 0.125, 0.25, 0.5]
    assert batch.numbers[:, :, 0].tolist() == [[0, 1, 3, 4, 5], [3, 3, 2, 6, 6]]


@pytest.mark.parametrize(
    ("zero", "stacks"),
    [(False, [[2, 3, 4, 0], [2, 2, 2, 2], [2, 2, 3, 4]]), (True, [[2, 3, 4, 0], [-1, -1, -1, 2], [-1, 2, 3, 4]])],
)
def test_stacks_stop_at_the_first_frame_and_wrap_around_the_ring(kernels, zero, stacks):
    ring = Ring(1, 5, 4, 1, (), np.dtype(np.int64))
    ring.count[:], ring.first[2] = 6, 1
    assert draw(kernels, ring, np.array([0, 2, 4]), 4, 1, zero=zero).numbers[0].tolist() == stacks


def test_drawn_rows_bring_their_actions_names_and_the_ratios_of_their_weights(kernels):
    ring = Ring(2, 4, 1, 1, (2,), np.dtype(np.int16))
    ring.count[:], ring.action[:] = [5, 4], np.arange(16).reshape(8, 2)  # env 0 has overwritten its first row
    batch = draw(kernels, ring, np.array([0, 3, 6]), 1, 1, weights=[1.0, 0.5, 1.5], uniforms=[0.9, 0.1, 0.1])
    assert batch.index.tolist() == [8, 6, 5]
    assert batch.ratios.tolist() == [2.0, 1.0, 3.0]
    assert batch.action.view(np.int16).tolist() == [[0, 1], [6, 7], [12, 13]]


def draw(kernels, ring, slots, stack, n_step, *, zero=False, gamma=0.9, weights=None, uniforms=None):
    """Draw among ``slots``, by default each of them once."""
    tree, size = SumTree(len(ring.first)), len(slots)
    tree.set(slots, np.ones(size) if weights is None else weights)
    actions = ring.action.reshape(len(ring.action), -1).view(np.uint8)
    batch = SimpleNamespace(
        ratios=np.full(size, 0.5) if uniforms is None else np.array(uniforms),
        action=np.empty((size, actions.shape[1]), np.uint8),
        returns=np.empty(size, np.float32), discounts=np.empty(size, np.float32), index=np.empty(size, np.int64),
        numbers=np.empty((2, size, stack), np.int64),
    )  # fmt: skip
    drawer = kernels.Drawer(
        ring.rows, zero, gamma ** np.arange(n_step + 1), *tree.memory, ring.count, ring.first, ring.reward, ring.mark,
        actions,
    )  # fmt: skip
    if size:
        drawer.draw(*vars(batch).values())
    return batch
