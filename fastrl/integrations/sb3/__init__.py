"""Stable-Baselines3's DQN with prioritized replay: a buffer for its ``replay_buffer_class``, and a DQN with weights.

The buffer alone also serves Stable-Baselines3's other off-policy agents. They do not update priorities, so their draws
are uniform, and stacked images take an eighth of the memory.
"""

from fastrl.base.extras import extra

with extra("sb3"):
    import stable_baselines3  # noqa: F401

from fastrl.integrations.sb3.agent import PrioritizedDQN
from fastrl.integrations.sb3.buffer import ReplayBuffer, Samples

__all__ = ["PrioritizedDQN", "ReplayBuffer", "Samples"]
