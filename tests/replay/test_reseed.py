"""Draws that start again from another seed, so that workers differ."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
from make import filled, go_on_alike, refused

from fastrl.replay import Batch

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
METHODS = [method for method in ("fork", "spawn") if method in multiprocessing.get_all_start_methods()]


def same(one, other):
    for name in Batch.__slots__:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("seed", [7, np.uint32(7), [3, 7], (3, 7), np.random.SeedSequence(7), np.array([3, 7])])
def test_a_reseeded_buffer_draws_as_one_built_with_that_seed(seed, stores):
    buffer, built = filled(30, seed=0), filled(30, seed=seed)
    buffer.sample(9)
    buffer.reseed(seed)
    go_on_alike(buffer, built)


def test_other_seeds_give_other_draws():
    drawn = []
    workers = [np.random.SeedSequence(0, spawn_key=(worker,)) for worker in range(2)]
    for seed in (0, 1, [1, 2], [2, 1], *workers, None, None):
        buffer = filled(30)
        buffer.reseed(seed)
        drawn.append(buffer.sample(20).index.tolist())
    assert len(set(map(tuple, drawn))) == 8


def test_priorities_are_as_they_were():
    buffer = filled(30)
    index = np.unique(buffer.sample(40).index)
    buffer.update_priorities(index, np.where(np.arange(len(index)) == 3, 1e6, 0.0))
    weights, highest = buffer.weights(index), buffer.max_priority
    buffer.reseed(5)
    assert np.array_equal(buffer.weights(index), weights)
    assert buffer.max_priority == highest
    assert set(buffer.sample(20).index) == {index[3]}


def test_a_draw_that_fails_leaves_a_reseeded_generator_as_it_was():
    buffer, twin = filled(30), filled(30, seed=5)
    buffer.sample(4)
    buffer.reseed(5)
    with pytest.raises(ValueError, match="out"):
        buffer.sample(4, out=5)
    same(buffer.sample(4), twin.sample(4))


@pytest.mark.parametrize("seed", [-1, 1.5, "seed", [1, -2], object()])
def test_what_is_no_seed_is_refused(seed):
    buffer = filled(30)
    with refused(buffer, "seed is .*; give an integer from 0 up, a sequence of them, a SeedSequence or None"):
        buffer.reseed(seed)
    with pytest.raises(ValueError, match=r"seed is .*; give an integer from 0 up"):
        filled(seed=seed)


def test_a_batch_in_flight_is_taken_first():
    buffer, twin = filled(30), filled(30)
    buffer.prefetch(4)
    with pytest.raises(ValueError, match=r"has not been taken; call sample.* before you reseed"):
        buffer.reseed(5)
    same(buffer.sample(4), twin.sample(4))
    buffer.reseed(5)
    twin.reseed(5)
    same(buffer.sample(4), twin.sample(4))


def work(buffer, seeds, answers):
    """Draw what one worker draws, and put its names and frames into a queue."""
    drawn = []
    for seed in seeds:
        if seed is not None:
            buffer.reseed(seed)
        drawn.append(buffer.sample(8).index.tolist())
    answers.put(drawn)


def draws_of_workers(method, seeds_of_each):
    context = multiprocessing.get_context(method)
    buffer, results = filled(30), []
    for seeds in seeds_of_each:  # one after the other, so that answers are in order
        answers = context.SimpleQueue()
        process = context.Process(target=work, args=(buffer, seeds, answers))
        process.start()
        results.append(answers.get())
        process.join()
    return results


@pytest.mark.parametrize("method", METHODS)
def test_workers_that_reseed_differ_and_can_be_repeated(method):
    alike = draws_of_workers(method, [[None], [None]])
    assert alike[0] == alike[1]  # without a seed of their own
    seeds = [[seed, None] for seed in np.random.SeedSequence(7).spawn(2)]
    one, other = draws_of_workers(method, seeds)
    assert one != other
    assert one[0] != one[1]  # and each goes on
    expected = []
    for worker in range(2):
        buffer = filled(30, seed=np.random.SeedSequence(7, spawn_key=(worker,)))
        expected.append([buffer.sample(8).index.tolist() for _ in range(2)])
    assert [one, other] == expected  # whatever the start method
