"""Prioritized experience replay over unstacked frames. Needs NumPy alone."""

from fastrl.replay.batch import Batch
from fastrl.replay.buffer import PrioritizedReplayBuffer, ReplayBuffer
from fastrl.replay.store import FrameStore, MakeStore, RamStore
from fastrl.replay.sum_tree import SumTree

__all__ = ["Batch", "FrameStore", "MakeStore", "PrioritizedReplayBuffer", "RamStore", "ReplayBuffer", "SumTree"]
