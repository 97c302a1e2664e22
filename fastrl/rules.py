"""Whose rules an Atari game is played by: protocols with names, and each of their switches (standard library only)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

ProtocolName = Literal["deepmind", "machado"]
BY_PROTOCOL: Any = None
"""Default of a switch: what the protocol says. No object holds it, `Rules.__post_init__` replaces it."""

PROTOCOLS: dict[str, dict[str, Any]] = {
    # Mnih et al. 2015, as most of the literature reads it.
    "deepmind": {
        "repeat_action_probability": 0.0, "episodic_life": True, "fire_reset": True, "full_action_set": False,
        "noop_max": 30,
    },
    # Machado et al. 2018: chance comes from sticky actions alone, and the agent is told nothing of the game.
    "machado": {
        "repeat_action_probability": 0.25, "episodic_life": False, "fire_reset": False, "full_action_set": True,
        "noop_max": 1,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules by which agents are trained and evaluated: scores compare only under the same ones."""

    protocol: ProtocolName = "deepmind"
    """What the five flags that follow say where they are not given: `deepmind` (up to 30 no-ops, lives end episodes) or
    `machado` (sticky actions, no word of lives, all 18 actions; Machado et al. 2018)."""
    repeat_action_probability: float = BY_PROTOCOL
    """Sticky actions: the chance per emulator frame that the last action is repeated instead."""
    episodic_life: bool = BY_PROTOCOL
    """A lost life ends the episode for the learner, though not the game."""
    fire_reset: bool = BY_PROTOCOL
    """FIRE is pressed for the player where a game opens, and with episodic life where a life does, in games that have
    it among their actions."""
    full_action_set: bool = BY_PROTOCOL
    """All actions of the console, instead of those that do something in the game."""
    noop_max: int = BY_PROTOCOL
    """Up to so many no-ops open a game."""
    frame_skip: int = 4
    """Emulator frames per agent step."""

    def __post_init__(self) -> None:
        for name, value in PROTOCOLS.get(self.protocol, {}).items():
            if getattr(self, name) is BY_PROTOCOL:
                object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values in the named fields; another protocol brings its own switches along."""
        if "protocol" in changes:
            changes = dict.fromkeys(PROTOCOLS["deepmind"], BY_PROTOCOL) | changes
        return dataclasses.replace(self, **changes)

    def rules(self) -> dict[str, Any]:
        """Return the rules alone, as arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Rules)}

    @property
    def protocol_name(self) -> str:
        """The protocol's name, and what differs from it."""
        own = [f"{name} {getattr(self, name)}" for name, value in PROTOCOLS[self.protocol].items()
               if getattr(self, name) != value]  # fmt: skip
        return " but ".join([self.protocol, *([", ".join(own)] if own else [])])
