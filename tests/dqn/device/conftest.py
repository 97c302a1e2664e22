"""The GPU that the CPU plays."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from stand_in_cuda import Cuda, stand_in_cuda

from fastrl.dqn import optimizer


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    monkeypatch.setattr(optimizer, "_adam", None)  # a CPU then has PyTorch's optimizer too, to compare bits with
    gc.freeze()  # each recording collects garbage, for which all that pytest holds takes long
    with stand_in_cuda() as played:
        yield played
    gc.unfreeze()
