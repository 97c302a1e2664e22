"""Agents by name: the algorithm of a paper, as data that stands between a preset and the flags.

An agent says what is learned and how: head, double, dueling, prioritized, Munchausen, noisy nets, n-step, optimizer,
and a trunk where its name means one. Games, batches, their pace, target copies, the length of the run, and Adam's
step sizes and stability term are the preset's: those of a paper belong to its one game at a time and its 200M frames.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from fastrl.base.errors import ConfigError
from fastrl.config.settings import REPLACES, DQNConfig
from fastrl.envs.names import is_atari

AgentName = Literal["dqn2015", "double", "dueling", "rainbow", "c51", "qr-dqn", "iqn", "m-dqn"]


@dataclass(frozen=True, kw_only=True)
class Agent:
    """An algorithm with a name."""

    settings: Mapping[str, Any]
    """Its settings, by the names of `DQNConfig`'s fields."""
    atari: Mapping[str, Any]
    """Those that only fit the frames of Atari games."""
    source: str
    """The paper, and where it states these settings."""
    deviations: tuple[str, ...]
    """What else differs from it, besides `PACE`."""


PACE = (
    "games side by side, batch size, samples per step, target copies, start of learning, exploration, length and, with "
    "Adam, the step size and the stability term are the preset's"
)
"""What every agent leaves to the preset."""

_PLAIN = {
    "head": "expected", "double": False, "dueling": False, "prioritized": False, "munchausen": False, "noisy": False,
    "n_step": 1, "n_step_end": None, "average_updates": 0,
}  # fmt: skip
_ADAM: dict[str, Any] = {"optimizer": "adam"}
_RMSPROP = {
    "optimizer": "rmsprop", "optimizer_eps": None, "learning_rate": 2.5e-4, "learning_rate_end": None,
    "learning_rate_warmup_steps": 0, "learning_rate_warmup_updates": 0,
}  # fmt: skip
_C51 = {"head": "c51", "atoms": 51, "v_max": 10.0}
_DUELING = _ADAM | {
    "head": "expected", "double": True, "dueling": True, "prioritized": True, "munchausen": False, "noisy": False,
    "average_updates": 0,
}  # fmt: skip
_RAINBOW = _PLAIN | _ADAM | _C51 | {
    "double": True, "dueling": True, "prioritized": True, "alpha": 0.5, "beta_start": 0.4, "beta_end": 1.0,
    "n_step": 3, "noisy": True, "epsilon_start": 0.0, "epsilon_end": 0.0,
}  # fmt: skip
_CLIP = "gradients are scaled down to a norm of 10 (--max-grad-norm), which the paper does not do"
_BOUND = "targets are clipped to what clipped rewards can pay, 1 / (1 - gamma)"
_TRUNK = "the trunk is the preset's (the paper: nature, --trunk nature --hidden 512)"

AGENTS: dict[str, Agent] = {
    "dqn2015": Agent(
        settings=_PLAIN | _RMSPROP | {"huber_delta": 1.0},
        atari={"trunk": "nature", "width": 1, "hidden": 512},
        source="Mnih et al. 2015, extended data table 1",
        deviations=(_CLIP, _BOUND),
    ),
    "double": Agent(
        settings=_PLAIN | _RMSPROP | {"double": True, "huber_delta": 1.0},
        atari={},
        source="van Hasselt, Guez and Silver 2016, appendix (the settings of Mnih et al. 2015)",
        deviations=(_TRUNK, _CLIP, _BOUND),
    ),
    # What the presets were: it changes none but those for Atari.
    "dueling": Agent(
        settings=_DUELING,
        atari={"trunk": "small", "width": 1, "hidden": 256},
        source="Wang et al. 2016, section 4.2, with prioritized replay (its table 2)",
        deviations=(
            _BOUND,
            "returns over n steps, as the preset says (the paper: 1)",
            "Adam (the paper: RMSProp)",
            "the gradient that enters the trunk is not divided by the root of 2",
            "the trunk is small with streams of 256 (the paper: --trunk nature --hidden 512)",
        ),
    ),
    "rainbow": Agent(
        settings=_RAINBOW,
        atari={},
        source="Hessel et al. 2018, table 1",
        deviations=(
            _TRUNK,
            _CLIP,
            "all games of a vector step act with one sample of the noise (the paper has one game)",
        ),
    ),
    "c51": Agent(
        settings=_PLAIN | _ADAM | _C51,
        atari={},
        source="Bellemare, Dabney and Munos 2017, section 5",
        deviations=(_TRUNK, _CLIP),
    ),
    "qr-dqn": Agent(
        settings=_PLAIN | _ADAM | {"head": "quantile", "quantiles": 200, "huber_delta": 1.0},
        atari={},
        source="Dabney et al. 2018a, section 5 (QR-DQN-1: Huber loss with kappa 1)",
        deviations=(_TRUNK, _CLIP, _BOUND),
    ),
    "iqn": Agent(
        settings=_PLAIN | _ADAM | {"head": "iqn", "quantiles": 64, "huber_delta": 1.0},
        atari={},
        source="Dabney et al. 2018b, section 3.2 and its experiments (N = N' = 64, kappa 1, 64 cosines)",
        deviations=(
            _TRUNK,
            _CLIP,
            _BOUND,
            "actions are chosen by means at 64 fixed midpoints, the next action by the target's 64 draws (the paper: "
            "32 draws for each)",
        ),
    ),
    "m-dqn": Agent(
        settings=_PLAIN | _ADAM | {"munchausen": True, "huber_delta": 1.0},
        atari={},
        source="Vieillard, Pietquin and Geist 2020, appendix, its table (alpha 0.9, tau 0.03, clipped at -1)",
        deviations=(
            _TRUNK,
            _CLIP,
            _BOUND,
            "the log-policy added to the reward is the online network's (the paper: the target's)",
            "the default protocol has no sticky actions (the paper: sticky actions, no lives, --protocol machado)",
        ),
    ),
}
"""Each agent by its name."""
SAVED = (
    "trunk", "width", "hidden", "dueling", "head", "atoms", "v_max", "quantiles", "noisy", "optimizer", "prioritized",
    "alpha",
)  # fmt: skip
"""Settings of agents that a checkpoint's networks, optimizer and replay hold: no resume can change them."""


def with_agent(config: DQNConfig, name: str, given: Mapping[str, Any] = MappingProxyType({})) -> DQNConfig:
    """Return settings with an agent's laid over them.

    Parameters
    ----------
    config : DQNConfig
        A preset's settings.
    name : str
        The agent's name.
    given : mapping
        Settings that flags say: the agent leaves them alone, and what a schedule among them replaces.

    Raises
    ------
    ConfigError
        If there is no such agent.
    """
    if name not in AGENTS:
        near = difflib.get_close_matches(str(name), AGENTS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"give one of {', '.join(AGENTS)}"
        raise ConfigError(f"--agent is {name!r}; {remedy}")
    agent = AGENTS[name]
    settings = dict(agent.settings)
    if is_atari(config.game):
        settings |= agent.atari
    said = {"head", *given} if given.get("distributional") else set(given)
    for schedule, replaced in REPLACES.items():
        if given.get(schedule):
            said |= set(replaced)
        elif settings.keys() & set(replaced):
            settings[schedule] = getattr(DQNConfig, schedule)  # off, whatever the preset says
    return config.replace(**{key: value for key, value in settings.items() if key not in said})
