"""Prioritized experience replay over unstacked frames. Needs NumPy alone."""

from fastrl.replay.batch import Batch, ExtraBatch
from fastrl.replay.buffer import ReplayBuffer
from fastrl.replay.hindsight import Hindsight, HindsightBatch
from fastrl.replay.prioritized import PrioritizedReplayBuffer
from fastrl.replay.rows import Rows
from fastrl.replay.sequences import SequenceBatch
from fastrl.replay.stores.compressed import Lz4Store
from fastrl.replay.stores.ram import RamStore
from fastrl.replay.stores.store import FrameStore, MakeStore
from fastrl.replay.sum_tree import SumTree

__all__ = [
    "Batch",
    "ExtraBatch",
    "FrameStore",
    "Hindsight",
    "HindsightBatch",
    "Lz4Store",
    "MakeStore",
    "PrioritizedReplayBuffer",
    "RamStore",
    "ReplayBuffer",
    "Rows",
    "SequenceBatch",
    "SumTree",
]
