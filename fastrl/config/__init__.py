"""Settings of every run: types, ranges and defaults, presets, and the record of them in config.json."""

from fastrl.config.agents import AGENTS, AgentName, with_agent
from fastrl.config.presets import PRESETS, Preset, custom_preset, preset_for
from fastrl.config.record import from_record, lift, read_record, to_record
from fastrl.config.settings import Device, DQNConfig, RunConfig, SarsaConfig, check_device

__all__ = [
    "AGENTS",
    "PRESETS",
    "AgentName",
    "DQNConfig",
    "Device",
    "Preset",
    "RunConfig",
    "SarsaConfig",
    "check_device",
    "custom_preset",
    "from_record",
    "lift",
    "preset_for",
    "read_record",
    "to_record",
    "with_agent",
]
