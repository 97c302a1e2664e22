"""Everything here runs on the compiled kernels and on their plain twins alike, with NumPy alone."""

from __future__ import annotations

import pytest
from kernels import COMPILED, REFERENCE

from fastrl.replay import Lz4Store, reference, ring, sequences, sum_tree
from fastrl.replay.stores import copy_threads
from fastrl.replay.stores.by_name import STORES
from fastrl.replay.stores.mapped import MmapStore


def pytest_configure(config):
    """Know the marker also where these tests run without the project's pyproject.toml."""
    config.addinivalue_line("markers", "slow: see pyproject.toml")


@pytest.fixture(params=["compiled", "reference"])
def kernels(request, monkeypatch):
    """Let the whole package run on one kind of kernels."""
    if request.param == "reference":
        monkeypatch.setattr(sum_tree, "_sum_tree", reference)
        monkeypatch.setattr(ring, "_ring", reference)
        monkeypatch.setattr(ring, "_append", reference)
        monkeypatch.setattr(ring, "_draw", reference)
        monkeypatch.setattr(sequences, "_sequences", reference)
        monkeypatch.setattr(copy_threads, "_frames", reference)
        return REFERENCE
    return COMPILED


@pytest.fixture
def copies(stores):
    """As `stores`, without those whose buffers refuse to be copied."""
    if stores == "mmap":
        pytest.skip("a copy would share the files")


@pytest.fixture(params=["ram", "lz4", "mmap"])
def stores(request, monkeypatch, tmp_path_factory):
    """Let buffers that are given no store keep their frames in one kind of it."""
    if request.param == "mmap":

        def make(*arguments):
            return MmapStore(*arguments, path=tmp_path_factory.mktemp("store") / "frames", make=True)

        monkeypatch.setitem(STORES, "ram", make)
    if request.param == "lz4":
        pytest.importorskip("lz4.block")
        monkeypatch.setitem(STORES, "ram", Lz4Store)
    return request.param
