"""Whose rules an Atari game is played by: protocols with names, and each of their switches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from fastrl.base.ranges import Between, check

ProtocolName = Literal["deepmind", "machado"]
MOST_STEPS_OF_A_GAME = 1_000_000_000
"""EnvPool counts the steps of a game in 32 bits."""
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
    """Sets the five flags below unless given explicitly: `deepmind` (at most 30 no-ops, lives end episodes) or
    `machado` (sticky actions, lives hidden, all 18 actions; Machado et al. 2018)."""
    repeat_action_probability: Annotated[float, Between(0, 1)] = BY_PROTOCOL
    """Sticky actions: the chance per emulator frame that the last action is repeated instead."""
    episodic_life: bool = BY_PROTOCOL
    """A lost life ends the episode for the learner, though not the game."""
    fire_reset: bool = BY_PROTOCOL
    """FIRE is pressed for the player at the start of a game, and with episodic life at the start of each life, in games
    that have this action."""
    full_action_set: bool = BY_PROTOCOL
    """All actions of the console, instead of those with an effect in the game."""
    noop_max: Annotated[int, Between(1, 10_000)] = BY_PROTOCOL
    """At most N no-ops at the start of a game and, on EnvPool with episodic life, of each life."""
    frame_skip: Annotated[int, Between(1, 1_000)] = 4
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


@dataclass(frozen=True, kw_only=True)
class EvaluationRules(Rules):
    """The rules of an evaluation: scores compare only under the same ones."""

    epsilon: Annotated[float, Between(0, 1)] = 0.01
    """Share of random actions, each game tossing its own coin."""
    max_steps: Annotated[int, Between(1, MOST_STEPS_OF_A_GAME)] = 27_000
    """A game is cut off after N agent steps, over all its lives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)

    def describe(self, *, atari: bool = True) -> str:
        """Return the rules in one line: all, or those that games of any kind have."""
        shared = f"whole games, unclipped scores, epsilon {self.epsilon:g}, at most {self.max_steps:,} steps"
        if not atari:
            return shared
        return (
            f"protocol {self.protocol_name}: {shared} ({self.max_steps * self.frame_skip:,} frames), up to "
            f"{self.noop_max} no-op frames, sticky actions {self.repeat_action_probability:g}"
        )
