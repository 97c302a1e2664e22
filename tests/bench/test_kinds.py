"""The oracle of the bench of dictionaries, stretches and frames in files: it passes what is right and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import kinds
    import peers_kinds

    yield kinds, peers_kinds
    for name in ("kinds", "peers_kinds", "contender", "floor"):
        sys.modules.pop(name, None)


@pytest.fixture(params=["dictionary", "sequences", "mmap"])
def kind(request, tmp_path):
    (tmp_path / request.param).mkdir()
    return request.param, tmp_path / request.param


def test_what_fastrl_draws_is_right(bench, kind):
    kinds, peers = bench
    name, folder = kind
    assert kinds.check(peers.Fastrl, kinds.KINDS[name], folder) == 1.0


@pytest.mark.parametrize("fault", ["a frame of another time", "a frame of another environment", "another reward"])
def test_items_that_are_wrong_are_counted(bench, kind, fault):
    kinds, peers = bench
    name, folder = kind

    class Wrong(peers.Fastrl):
        prioritized = False

        def items(self, drawn):
            arrays, reward = super().items(drawn)
            last = {key: array.copy() for key, array in arrays.items()}
            frames = next(reversed(last.values())).reshape(len(reward), last_length, -1)
            if fault == "another reward":
                reward = reward.copy()
                reward[::2, -1] += 1
            else:
                frames[::2, -1, int(fault.endswith("environment"))] += 1
            return last, reward

    last_length = kinds.KINDS[name].length
    assert kinds.check(Wrong, kinds.KINDS[name], folder) == 0.5


def test_a_buffer_whose_priorities_do_nothing_is_found_out(bench, kind):
    kinds, peers = bench
    name, folder = kind

    class Uniform(peers.Fastrl):
        def update(self, drawn, priority):
            pass

    with pytest.raises(AssertionError, match="weighs nearly everything was drawn in"):
        kinds.check(Uniform, kinds.KINDS[name], folder)
