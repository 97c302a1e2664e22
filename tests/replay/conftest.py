"""Everything here runs on the compiled kernels and on their plain twins alike, with NumPy alone."""

from __future__ import annotations

import pytest
from kernels import COMPILED, REFERENCE

from fastrl.replay import ram, reference, ring, sum_tree


@pytest.fixture(params=["compiled", "reference"])
def kernels(request, monkeypatch):
    """Let the whole package run on one kind of kernels."""
    if request.param == "reference":
        monkeypatch.setattr(sum_tree, "_sum_tree", reference)
        monkeypatch.setattr(ring, "_ring", reference)
        monkeypatch.setattr(ring, "_frames", reference)
        monkeypatch.setattr(ram, "_frames", reference)
        return REFERENCE
    return COMPILED
