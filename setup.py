"""Builds the Cython kernels; everything else about the package is in pyproject.toml.

Environment variables choose other builds than the release:

* ``FASTRL_DEBUG=1``: bounds checks and assertions (``make debug``).
* ``FASTRL_SANITIZE=address,undefined``: the compiler's sanitizers of these names (tools/instrumented.sh).
* ``FASTRL_COVERAGE=1``: lines that can be traced, with the C beside the .pyx, where the plugin of coverage.py looks for
  it (tools/instrumented.sh).
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = {  # module: sources
    "fastrl.replay._sum_tree": ["csrc/_sum_tree.pyx"],
    "fastrl.replay._ring": ["csrc/_ring.pyx"],
    "fastrl.replay._append": ["csrc/_append.pyx"],
    "fastrl.replay._draw": ["csrc/_draw.pyx"],
    "fastrl.replay._sequences": ["csrc/_sequences.pyx"],
    "fastrl.replay._frames": ["csrc/_frames.pyx"],
    "fastrl.dqn._trunk": ["csrc/_trunk.pyx", "csrc/trunk/trunk.c"],
    "fastrl.dqn._adam": ["csrc/_adam.pyx", "csrc/adam/adam.c"],
}

DEBUG, COVERAGE = (os.environ.get(name, "0") not in ("", "0") for name in ("FASTRL_DEBUG", "FASTRL_COVERAGE"))
SANITIZE = os.environ.get("FASTRL_SANITIZE", "")

DIRECTIVES = {
    "language_level": 3,
    "binding": True,  # signatures that inspect and stubtest can read
    "embedsignature": False,
    "autotestdict": False,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "linetrace": COVERAGE,
}

# No -march=native: a wheel must run on any machine of its platform. No contraction into fused multiply-adds: the
# replay's kernels and their plain twins agree to the last bit. The trunk's kernels are made of them, and held to a
# tolerance.
COMPILE_ARGS = ["-O1"] if DEBUG else ["-O3", "-g0"]
NO_CONTRACTION = ["-ffp-contract=off"]
OWN_ARGS = {
    # Loops aligned: where one happens to lie is up to 15 % of a kernel's time.
    "fastrl.dqn._trunk": ["-ffp-contract=fast", "-falign-loops=32", "-Wno-psabi"],
    "fastrl.dqn._adam": [
        *NO_CONTRACTION,
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wno-psabi",
    ],  # or roots are taken one by one
}
if sys.platform == "win32":  # its compiler has neither these flags nor the vector types of the trunk
    for name in OWN_ARGS:
        del KERNELS[name]
    COMPILE_ARGS, NO_CONTRACTION = [], []
LINK_ARGS = []
if SANITIZE:
    COMPILE_ARGS += ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    LINK_ARGS += [f"-fsanitize={SANITIZE}"]
OPTIONS = {
    "include_dirs": ["csrc"],
    "extra_link_args": LINK_ARGS,
    "define_macros": [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")] if COVERAGE else [],
}

setup(
    ext_modules=cythonize(
        [
            Extension(name, sources, extra_compile_args=COMPILE_ARGS + OWN_ARGS.get(name, NO_CONTRACTION), **OPTIONS)
            for name, sources in KERNELS.items()
        ],
        compiler_directives=DIRECTIVES,
        build_dir=None if COVERAGE else "build/cython-debug" if DEBUG else "build/cython",
        show_all_warnings=True,
        force=True,  # the generated C depends on the directives too
    )
)
