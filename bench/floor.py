"""The floor under every replay: the same bytes copied from random places into reused arrays, and a bare sum tree.

``floor.c`` is compiled by the system's ``cc`` into a temporary folder, without ``-march=native``, as a wheel would be.
Places and targets are drawn beforehand, and Python does no more than call.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from contender import FRAME, FRAME_BYTES, STACK, Drawn, Step, Tree

ARITY = 8
POOL = 64
"""Draws made beforehand, taken in turn."""
SIGNATURES = {"gather": "ppiiipi", "scatter": "ppiip", "tree_find": "ppipppi", "tree_write": "ppippi"}
"""Of the functions in ``floor.c``: pointers and integers."""


@functools.cache
def compiled() -> ctypes.CDLL:
    """Return the functions of ``floor.c``."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "floor.so"
        source = Path(__file__).with_name("floor.c")
        subprocess.run(["cc", "-O3", "-fopenmp", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        code = ctypes.CDLL(str(library))  # stays mapped when the file is gone
    for name, arguments in SIGNATURES.items():
        getattr(code, name).argtypes = [ctypes.c_void_p if kind == "p" else ctypes.c_int64 for kind in arguments]
    return code


def pointer(array: np.ndarray) -> int:
    """Return where the data of an array lie, which the caller must hold until the call is over."""
    return array.ctypes.data


class BareTree:
    """A float64 tree, eight children to a node, with weights of its own; see `fastrl.replay.SumTree` for the layout."""

    def __init__(self, leaves: int, code: ctypes.CDLL) -> None:
        sizes = [-(-leaves // ARITY) * ARITY]
        while sizes[-1] > 1:
            parents = sizes[-1] // ARITY
            sizes.append(parents if parents == 1 else -(-parents // ARITY) * ARITY)
        self.nodes, self._code, self._rng = np.zeros(sum(sizes)), code, np.random.default_rng(0)
        self._offsets = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
        self._head = pointer(self.nodes), pointer(self._offsets), len(sizes)
        self._pools: dict[int, itertools.cycle] = {}
        self.write(np.arange(leaves), self._rng.random(leaves) + 0.5)

    def find(self, size: int) -> np.ndarray:
        """Return ``size`` leaves in ascending order, one of each stratum of the sum."""
        if size not in self._pools:
            fractions = (np.arange(size) + self._rng.random((POOL, size))) / size  # of a total that the writes change
            scratch = np.empty(size), np.empty(size)
            self._pools[size] = itertools.cycle([(row, *scratch, np.empty(size, np.int64)) for row in fractions])
        fractions, targets, rest, leaves = next(self._pools[size])
        np.multiply(fractions, self.nodes[-1], out=targets)
        self._code.tree_find(*self._head, pointer(targets), pointer(rest), pointer(leaves), size)
        return leaves

    def write(self, leaves: np.ndarray, weights: np.ndarray) -> None:
        """Give ascending ``leaves`` the weights, contiguous int64 and float64."""
        self._code.tree_write(*self._head, pointer(leaves), pointer(weights), len(leaves))


class Floor:
    """What a replay does at the least: nothing is checked, allocated or looked up; see `contender.Buffer`.

    A draw finds B leaves and copies the two stacks of B transitions, 8 frames each, from the 4 + n (n = 1: 5, n = 3:
    7) that they are made of, around random places. An update writes B leaves, an add copies the newest frames.
    """

    about = "copies, a bare tree"
    prioritized = True

    def __init__(self, rows: int, num_envs: int, n_step: int, threads: int = 1, batches: int = 1) -> None:
        self._code, self._threads, self._batches = compiled(), threads, batches
        self._per_env = rows // num_envs
        self.rows = self._per_env * num_envs
        self._ring = np.zeros((self.rows, *FRAME), np.uint8)
        self._tree = BareTree(self.rows, self._code)
        self._rng = np.random.default_rng(0)
        self._cursors, self._t = np.arange(num_envs) * self._per_env, 0
        self.set_n_step(n_step)

    def set_n_step(self, n_step: int) -> bool:
        """Say how far the next stack lies behind the first."""
        first = np.arange(STACK) - STACK + 1
        self._offsets = np.stack([first, first + n_step])
        self._pools: dict[int, itertools.cycle] = {}
        return True

    def add(self, step: Step) -> None:
        """Copy N frames to the cursors of N environments."""
        places = self._cursors + self._t % self._per_env
        self._code.scatter(pointer(self._ring), pointer(places), len(places), FRAME_BYTES, pointer(step.frame))
        self._t += 1

    def sample(self, batch_size: int) -> Drawn:
        """Find B leaves and copy the 8 frames of B transitions, into each of ``batches`` pieces of memory in turn."""
        leaves = self._tree.find(batch_size)
        if batch_size not in self._pools:
            self._pools[batch_size] = self._pool(batch_size)
        places, out = next(self._pools[batch_size])
        self._code.gather(
            pointer(self._ring), pointer(places), batch_size, STACK, FRAME_BYTES, pointer(out), self._threads
        )
        return Drawn(leaves, out)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        """Write B leaves."""
        self._tree.write(drawn.index, priority)

    def transitions(self, drawn: Drawn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return both stacks; it has no rewards."""
        return drawn.batch[0], drawn.batch[1], np.full(len(drawn.index), np.nan)

    @staticmethod
    def bytes_a_row(n_step: int) -> int:
        """Return the bytes of a frame and of a leaf with its share of the sums."""
        return FRAME_BYTES + 10

    @staticmethod
    def tree(leaves: int) -> Tree:
        """Return a bare tree of N leaves."""
        tree = BareTree(leaves, compiled())
        return Tree(tree.find, tree.write)

    def _pool(self, batch_size: int) -> itertools.cycle:
        """Return random places for B transitions ``[2, B, 4]``, many times over, and the memory that takes them."""
        rows = self._rng.integers(self._per_env - 2 * STACK, size=(POOL, batch_size, 1)) + STACK
        envs = self._rng.integers(len(self._cursors), size=(POOL, batch_size, 1))
        places = self._cursors[envs] + rows + self._offsets[:, None, None]  # [2, POOL, B, 4]
        outs = [np.empty((2, batch_size, STACK, *FRAME), np.uint8) for _ in range(self._batches)]
        return itertools.cycle([(np.ascontiguousarray(places[:, k]), outs[k % len(outs)]) for k in range(POOL)])
