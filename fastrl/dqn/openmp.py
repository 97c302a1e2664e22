"""The OpenMP library that PyTorch has loaded, whose threads our kernels share."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path


@cache
def openmp_parallel() -> int:
    """Return the address of ``GOMP_parallel`` in PyTorch's OpenMP library, whose threads are shared; 0 if not found."""
    maps = Path("/proc/self/maps")
    libraries = (
        re.findall(r"\S*/lib(?:gomp|omp|iomp5)\S*\.so\S*", maps.read_text(encoding="utf-8", errors="surrogateescape"))
        if maps.exists()
        else []
    )
    for library in (*dict.fromkeys(libraries), None):
        try:
            found = ctypes.CDLL(library, mode=ctypes.RTLD_LOCAL).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(found, ctypes.c_void_p).value or 0
    return 0
