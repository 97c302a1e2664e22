"""CUDA graphs: launch some hundred kernels as one."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

WARM_UPS = 3
"""Calls before the recording, in which libraries choose kernels and optimizers make their moments."""


LAUNCHERS = {  # Inductor's setting, and the variable by which a user decides
    "use_static_cuda_launcher": "TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER",
    "use_fast_triton_launcher": "TORCHINDUCTOR_USE_FAST_TRITON_LAUNCHER",
}


def avoid_short_lived_kernels() -> None:
    """Let Triton launch what torch.compile makes from now on, unless the environment says otherwise.

    The fast launcher of torch 2.13 keeps the address of a kernel but not the kernel, which may be unloaded under it:
    https://github.com/pytorch/pytorch/pull/190502. It stands on the static launcher. A replayed graph needs neither.
    """
    from torch._inductor import config

    for name, variable in LAUNCHERS.items():
        if variable not in os.environ and hasattr(config, name):
            setattr(config, name, False)


def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record what a function launches on the current CUDA device; return what launches it all again.

    The function reads and writes tensors that stay where they are, and never waits for the device. It is called
    `WARM_UPS` times and once for the recording, which computes nothing. What the recorded function returns is
    the same tensor each time, overwritten by the next call.
    """
    main, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    gc.collect()  # gradients' nodes remember the stream on which they were first used: leave none of earlier calls
    collects = gc.isenabled()
    gc.disable()  # to free memory of a device may mean to wait for it, which ends a recording
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
        if collects:
            gc.enable()

    def replay() -> Tensor:
        graph.replay()
        return result

    # The graph calls compiled kernels by address: keep them loaded as long as it may be replayed.
    replay.recorded, replay.modules = function, _compiled_modules()  # type: ignore[attr-defined]
    return replay


def _compiled_modules() -> list[ModuleType]:
    """Return the modules that torch.compile has made in this process; their kernels are loaded while they live."""
    cache = getattr(sys.modules.get("torch._inductor.codecache"), "PyCodeCache", None)
    return list(getattr(cache, "modules", []))


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
