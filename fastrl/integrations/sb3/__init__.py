"""Stable-Baselines3's DQN with prioritized replay: a buffer for its ``replay_buffer_class``, and a DQN with weights.

The buffer alone also serves Stable-Baselines3's own off-policy agents: nobody updates priorities there, so draws are
uniform, and stacked images take an eighth of the memory.
"""

from fastrl.extras import need

need("stable_baselines3", "sb3")

from fastrl.integrations.sb3.agent import PrioritizedDQN  # noqa: E402
from fastrl.integrations.sb3.buffer import ReplayBuffer, Samples  # noqa: E402

__all__ = ["PrioritizedDQN", "ReplayBuffer", "Samples"]
