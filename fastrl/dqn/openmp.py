"""The OpenMP library that PyTorch has loaded, whose threads our kernels share."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

LIBRARY = re.compile(r"lib(?:gomp|omp|iomp5)\S*\.so\S*")


@cache
def openmp_parallel() -> int:
    """Return the address of ``GOMP_parallel`` in PyTorch's OpenMP library, whose threads are shared; 0 if not found."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if maps.exists() else []
    for library in (*candidates(lines, Path(torch.__file__).parent), None):
        try:
            found = ctypes.CDLL(library, mode=ctypes.RTLD_LOCAL).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(found, ctypes.c_void_p).value or 0
    return 0


def candidates(lines: Sequence[str], package: Path) -> list[str]:
    """Return the paths of OpenMP libraries in lines of ``/proc/self/maps``; those of PyTorch's package and wheel first.

    Others may have brought a copy of their own: it has threads of its own, too.
    """
    paths = dict.fromkeys(path for line in lines if LIBRARY.fullmatch(os.path.basename(path := line[line.find("/") :])))
    own = [f"{package}{os.sep}", f"{package}.libs{os.sep}"]
    return sorted(paths, key=lambda path: not any(path.startswith(folder) for folder in own))
