"""A trained network and the game that it plays, from a run or as it ships."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastrl.base.errors import ConfigError, DamageError
from fastrl.config.record import run_near
from fastrl.dqn import pretrained
from fastrl.dqn.checkpoint import load_learner, load_network, load_state
from fastrl.dqn.network import QNetwork
from fastrl.envs.frames import Frame, is_array, no_array, per_array, require_equal_counts
from fastrl.envs.names import game_name, is_custom, load
from fastrl.envs.rules import EvaluationRules, ProtocolName
from fastrl.play.acting import Act
from fastrl.runs import folder
from fastrl.runs.checkpoints import check_file
from fastrl.runs.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Agent:
    """A trained network and the game that it plays."""

    game: str
    """Plain name of the game, or `module:callable` of a custom environment."""
    network: QNetwork
    """In eval mode, on the CPU."""
    stack: int
    """Frames in one observation."""
    rules: EvaluationRules
    """By which it was trained."""
    origin: Path
    """Where it was read from."""
    films: Path
    """Folder for films of it."""
    masked: bool = False
    """Whether it was trained with action masks; False too where an older version saved it."""
    averaged: bool = False
    """Whether its weights are a moving average of those that learned; False too where an older version saved it."""

    card: str = ""
    """What is known of one that ships, in one line."""

    @property
    def about(self) -> str:
        """What is known of it, in one line."""
        return self.card or f"{self.game}, {self.named}"

    @property
    def named(self) -> str:
        """Where it was read from, and what its weights are if not the last ones."""
        return f"{self.origin}, averaged weights" if self.averaged else str(self.origin)


def load_agent(
    run_or_game: str | os.PathLike[str],
    checkpoint: str = "newest",
    make_env: str | None = None,
    *,
    last_weights: bool = False,
) -> Agent:
    """Return the agent in a run's folder or, where there is no such folder, the one that ships for a game.

    Parameters
    ----------
    run_or_game : str or path-like
        Path of the folder, or the game in any spelling that `fastrl.envs.names.game_name` takes.
    checkpoint : str
        Which of a run's, as `RunFolder.find` takes it.
    make_env : str, optional
        Factory of a custom environment, as ``module:callable`` (default: the one that the run recorded).
    last_weights : bool
        Those that learned, of a run that keeps the average of its weights too.

    Raises
    ------
    ConfigError
        If it names neither, its weights cannot be read, its environment is not found, or the last weights are asked for
        where there are no others, or where they are not saved.
    """
    run_or_game = os.fspath(run_or_game)
    path = Path(run_or_game)
    if os.path.exists(path / "config.json"):
        agent = _trained(path, checkpoint)
        agent = _by_last_weights(agent) if last_weights else agent
    else:
        agent = _shipped(run_or_game, checkpoint)
        if last_weights:
            raise ConfigError(f"--last-weights is on, and {run_or_game} is no run folder; leave it out")
    if make_env is not None:
        if not (is_custom(agent.game) and is_custom(make_env)):
            raise ConfigError(
                f"--make-env is {make_env!r}; give my_module:make_env, for runs of custom environments alone: "
                f"{run_or_game} plays {agent.game}"
            )
        agent = dataclasses.replace(agent, game=make_env)
    if is_custom(agent.game):
        load(agent.game)
    return agent


def rules_for(agent: Agent, protocol: ProtocolName | None, **settings: Any) -> EvaluationRules:
    """Return the rules to play by: the agent's or a protocol's, changed by the settings that are not None.

    Frame skip and actions stay the agent's: it was made for them.
    """
    rules = agent.rules
    if protocol is not None:
        rules = rules.replace(protocol=protocol, full_action_set=rules.full_action_set)
    return rules.replace(**{name: value for name, value in settings.items() if value is not None})


def greedy(network: QNetwork) -> Act:
    """Return the act function that gives the network's Q-values, of which `play_games` takes the highest.

    It raises ConfigError for stacks of another shape than the network was trained on, and ValueError for what is no
    array, and where there are several and not all of as many rows.
    """
    device = next(network.parameters()).device
    known = network.settings["obs_shape"]

    @torch.inference_mode()
    def act(stacks: Frame) -> np.ndarray[Any, Any]:
        for name, array in stacks.items() if isinstance(stacks, Mapping) else [("", stacks)]:
            if not is_array(array):
                place = f"stacks[{name!r}]" if isinstance(stacks, Mapping) else "stacks"
                raise no_array(place, array, f"an array of stacks of frames; the network's have shape {known}")
        if (given := per_array(lambda array: list(array.shape[1:]), stacks)) != known:
            raise ConfigError(
                f"the environment gives stacks of frames of shape {given}, and the network was trained on {known}; "
                "give --make-env the environment that it was trained on"
            )
        require_equal_counts("stacks", stacks)
        tensors = per_array(lambda array: torch.as_tensor(array, device=device), stacks)
        values: np.ndarray[Any, Any] = network(tensors).cpu().numpy()
        return values

    return act


def _trained(run: Path, checkpoint: str) -> Agent:
    config = folder.load_dqn_config(run)
    run_folder = RunFolder(run)
    saved = run_folder.find(checkpoint)
    try:
        state, network = load_state(saved), load_network(saved / "weights.safetensors")
    except DamageError as error:
        others = [path.name for path in run_folder.numbered() if path != saved]
        reason, _, remedy = str(error).partition("; ")
        remedy = f"{remedy}: there is also {', '.join(others)}" if others else "restore it from a copy"
        raise DamageError(f"{reason}; {remedy}") from error
    return Agent(
        game=config.game,
        network=network,
        stack=config.stack,
        rules=EvaluationRules(max_steps=config.max_episode_steps, **config.rules()),
        origin=saved,
        films=run / "pictures",
        masked=bool(state.get("masked", False)),
        averaged=bool(state.get("averaged", False)),
    )


def _by_last_weights(agent: Agent) -> Agent:
    """Return the agent with the weights that learned instead of their average."""
    saved = agent.origin / "learner.safetensors"
    check_file(saved)
    learner = load_learner(agent.origin) if saved.exists() else {}
    if agent.averaged and not learner:
        raise ConfigError(
            f"--last-weights is on, and {agent.origin} holds the averaged weights alone; give --checkpoint newest or "
            "the name of a numbered one"
        )
    if learner.get("average") is None:
        raise ConfigError(
            f"--last-weights is on, and {agent.origin} holds no average of weights: what it plays by are the last ones "
            "anyway; leave it out"
        )
    agent.network.load_state_dict(learner["online"])
    return dataclasses.replace(agent, averaged=False)


def _shipped(name: str, checkpoint: str) -> Agent:
    try:
        game = game_name(name)
    except ConfigError as error:
        for part in (Path(name), *Path(name).parents):  # the name may be that of a checkpoint, or of a file in one
            if part.parent.name == "checkpoints" and os.path.exists(run := part.parent.parent / "config.json"):
                one = "a checkpoint" if part == Path(name) else "inside a checkpoint"
                raise ConfigError(
                    f"{name} is {one} of a run; give the run and the checkpoint's name: "
                    f"{shlex.join([str(run.parent), '--checkpoint', part.name])}"
                ) from error
        if near := run_near(Path(name)):
            raise ConfigError(f"{name} is no run folder; {near}") from error
        raise ConfigError(f"{name} is no run folder (it holds no config.json), and {error}") from error
    card = pretrained.card(game)
    if checkpoint != "newest":
        raise ConfigError(f"--checkpoint is {checkpoint!r}, but one network ships for {game}; leave it out")
    network = pretrained.load_pretrained(game)
    return Agent(
        game=game,
        network=network,
        stack=card.network["obs_shape"][0],
        rules=EvaluationRules(**card.rules | {"frame_skip": card.frame_skip}),
        origin=pretrained.WEIGHTS / f"{game}.safetensors",
        card=card.describe(),
        films=Path(),
        averaged=card.averaged,
    )
