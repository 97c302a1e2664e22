"""Compiled kernels beside their plain twins on the same random operations."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import COMPILED, REFERENCE

from fastrl.replay.ring import _COLUMNS, _CURSORS, Ring


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
            powers = 0.9 ** np.arange(n_step + 1)
            returns, discounts = np.empty(len(drawn), np.float32), np.empty(len(drawn), np.float32)
            next_slots = np.empty(len(drawn), np.int64)
            kernels.n_step(ring.reward, ring.mark, rows, drawn, powers, returns, discounts, next_slots)
            stacks = np.empty((2, len(drawn), stack), np.int64)
            kernels.stack_numbers(ring.first, rows, drawn, False, stacks[0])
            kernels.stack_numbers(ring.first, rows, next_slots, True, stacks[1])
            index, located = np.empty(len(drawn), np.int64), np.empty((2, num_envs * rows), np.int64)
            rings_of_kind.names(drawn, index)
            assert (index % num_envs == drawn // rows).all()
            every = np.arange(ring.count.max() * num_envs)[-num_envs * rows :]  # those overwritten too
            alive = np.full(len(every), 9, np.uint8)
            known = every // num_envs < ring.count[every % num_envs]
            unknown = rings_of_kind.locate(every, located[0, : len(every)], alive)
            assert unknown == (-1 if known.all() else np.argmin(known))
            of_known = np.ascontiguousarray(every[known])
            assert rings_of_kind.locate(of_known, located[1, : len(of_known)], alive[: len(of_known)]) == -1
            assert set(located[1, : len(of_known)][alive[: len(of_known)] != 0]) <= set(drawn.tolist())
            names = [index, located[1, : len(of_known)], alive[: len(of_known)]]
            arrays = [getattr(ring, name) for name in _COLUMNS + _CURSORS]
            answers.append([slots, changed[:found], returns, discounts, next_slots, stacks, *names, *arrays])
        for compiled, plain in zip(*answers, strict=True):
            assert np.array_equal(compiled, plain)


def test_gather_copies_numbered_frames_and_zeros(kernels):
    frames = np.arange(5 * 3, dtype=np.uint8).reshape(5, 3)
    out = np.full((6, 3), 99, np.uint8)
    kernels.gather(frames, np.array([[1, 2], [4, -1], [0, 4]]), out, 1, 3)
    assert out.tolist() == [[99] * 3, [99] * 3, [12, 13, 14], [0, 0, 0], [0, 1, 2], [12, 13, 14]]


@pytest.mark.parametrize("seed", range(4))
def test_gathering_both_in_one_pass_is_gathering_each(seed):
    """Numbers of few frames, so that stacks share none, some or all of theirs, in and out of order."""
    rng = np.random.default_rng(seed)
    frames, numbers = rng.integers(256, size=(5, 3), dtype=np.uint8), rng.integers(-1, 5, size=(2, 200, 3))
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
    # Rewards 1 2 3 4; the second row of env 1 (slot 5) is truncated, the third of env 0 (slot 2) terminated.
    reward = np.array([1, 2, 3, 4, 1, 2, 3, 4], np.float32)
    mark = np.array([0, 0, 2, 0, 0, 1, 0, 0], np.uint8)
    slots = np.array([0, 1, 4, 5, 3])
    returns, discounts, after = np.empty(5, np.float32), np.empty(5, np.float32), np.empty(5, np.int64)
    kernels.n_step(reward, mark, 4, slots, 0.5 ** np.arange(4), returns, discounts, after)
    assert returns.tolist() == [1 + 1 + 0.75, 2 + 1.5, 1 + 1, 2, 4 + 0.5 + 0.5]  # the last one wraps: 3, 0, 1
    assert discounts.tolist() == [0, 0, 0.25, 0.5, 0.125]
    assert after.tolist() == [3, 3, 6, 6, 2]


def test_stacks_stop_at_the_first_frame_and_wrap_around_the_ring(kernels):
    first = np.array([0, 0, 1, 0, 0], np.uint8)
    numbers = np.empty((3, 4), np.int64)
    kernels.stack_numbers(first, 5, np.array([4, 2, 0]), False, numbers)
    assert numbers.tolist() == [[2, 2, 3, 4], [2, 2, 2, 2], [2, 3, 4, 0]]
    kernels.stack_numbers(first, 5, np.array([4, 2, 0]), True, numbers)
    assert numbers.tolist() == [[-1, 2, 3, 4], [-1, -1, -1, 2], [2, 3, 4, 0]]
