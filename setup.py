"""Builds the Cython kernels; everything else about the package stands in pyproject.toml.

``FASTRL_DEBUG=1`` builds them with bounds checks and assertions.
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = {  # module: source
    "fastrl.replay._sum_tree": "csrc/_sum_tree.pyx",
    "fastrl.replay._ring": "csrc/_ring.pyx",
    "fastrl.replay._frames": "csrc/_frames.pyx",
}

DEBUG = os.environ.get("FASTRL_DEBUG", "0") not in ("", "0")

DIRECTIVES = {
    "language_level": 3,
    "binding": True,  # signatures that inspect and stubtest can read
    "embedsignature": False,
    "autotestdict": False,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
}

# No -march=native: a wheel must run on any machine of its platform. No contraction into fused
# multiply-adds: the kernels and their plain twins agree to the last bit.
COMPILE_ARGS = [] if sys.platform == "win32" else (["-O1"] if DEBUG else ["-O3", "-g0"]) + ["-ffp-contract=off"]

setup(
    ext_modules=cythonize(
        [Extension(name, [source], extra_compile_args=COMPILE_ARGS) for name, source in KERNELS.items()],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython-debug" if DEBUG else "build/cython",
        show_all_warnings=True,
        force=True,  # the generated C depends on the directives too
    )
)
