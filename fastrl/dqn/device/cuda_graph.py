"""CUDA graphs: launch some hundred kernels as one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UPS = 3
"""Calls before the recording, in which libraries choose kernels and optimizers make their moments."""


def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record what a function launches on the current CUDA device; return what launches it all again.

    The function reads and writes tensors that stay where they are, and never waits for the device. It is called
    `WARM_UPS` times and once for the recording, which computes nothing. What the recorded function returns is
    the same tensor each time, overwritten by the next call.
    """
    main, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    gc.collect()  # gradients' nodes remember the stream on which they were first used: leave none of earlier calls
    try:
        aside.wait_stream(main)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                function()
        main.wait_stream(aside)
        with torch.cuda.graph(graph, stream=aside):
            result = function()
    finally:
        torch.cuda.set_stream(main)  # a recording that fails does not see to that

    def replay() -> Tensor:
        graph.replay()
        return result

    replay.recorded = function  # type: ignore[attr-defined]  # keeps the compiled kernels loaded
    return replay


@contextmanager
def unchanged(tensors: Callable[[], list[Tensor]]) -> Iterator[None]:
    """Put tensors back, in place, as they were at entry; those that only exist at exit become zeros.

    Zeros are what the moments of an optimizer begin with.
    """
    before = [(t, t.detach().clone()) for t in tensors()]
    try:
        yield
    finally:
        known = {id(t) for t, _ in before}
        with torch.no_grad():
            for t in tensors():
                if id(t) not in known:
                    t.zero_()
            for t, value in before:
                t.copy_(value)
