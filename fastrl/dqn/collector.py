"""The collector: games and acting. A policy goes in, rows for the replay come out.

Games may stand in groups that take turns: while one is stepped, the others are acted for and learned from.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.dqn.policy import Policy
from fastrl.envs.frame_stack import FrameStack
from fastrl.envs.frames import Frame
from fastrl.envs.make import make_envs
from fastrl.envs.step import Envs, Step, selected

Array = NDArray[Any]


@runtime_checkable
class Saveable(Protocol):
    """Games with these methods continue in the middle at a resume; EnvPool's have none and start anew."""

    def state(self) -> dict[str, Any]:
        """Return all that they continue from, a step in progress included: nested dicts of arrays and JSON values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from where `state` was taken, in place of `reset`."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What one vector step brings: a row of the replay for each of n environments, and how their games stand."""

    frame: Frame
    """[n, *frame_shape], the newest frame of the observation in which the action was taken; of several, a dict."""
    action: NDArray[np.int64]
    """[n] int64."""
    reward: NDArray[np.float32]
    """[n] float32, to learn from."""
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    """[n] bool: how the action ended the episode, if it did."""
    first: NDArray[np.bool_]
    """[n] bool: the frame opens a game."""
    final: Frame | None
    """[n, *frame_shape] or None: the last frames of episodes that ended, where the next row does not hold them."""
    env_id: NDArray[np.int64]
    """[n] int64: the environments, numbered over all groups."""
    reset: NDArray[np.bool_]
    """[n] bool: the action was ignored for a reset, and is no agent step."""
    game_over: NDArray[np.bool_]
    """[n] bool: the action ended a whole game."""
    score: NDArray[np.float64]
    """[n] float64: unclipped reward of the whole game so far."""
    length: NDArray[np.int64]
    """[n] int64: agent steps of the whole game so far."""
    mask: NDArray[np.bool_] | None = None
    """[n, A] bool: the actions that were allowed at the frame; None where the games give no masks."""
    final_mask: NDArray[np.bool_] | None = None
    """[n, A] bool: those at `final`; None where that is."""

    @property
    def counted(self) -> NDArray[np.int64]:
        """The actions that were agent steps, [at most n] int64: all but those of resets."""
        return self.action[~self.reset]

    def select(self, rows: NDArray[np.bool_]) -> Rows:
        """Return copies of some rows, given as [n] bool."""
        return selected(self, rows)


class Group:
    """Games that step together.

    Attributes
    ----------
    envs
        The games, n of them.
    number : int
        Of the group.
    env_id : [n] int64
        Their numbers among the games of all groups.
    """

    def __init__(self, envs: Envs, number: int, stack: int) -> None:
        self.envs, self.number = envs, number
        self.env_id = np.arange(envs.num_envs) + number * envs.num_envs
        self._stack = FrameStack(envs.num_envs, stack, envs.frame_shape, envs.frame_dtype)
        self._actions: NDArray[np.int64] | None = None  # of the newest step

    def reset(self) -> None:
        """Open the games."""
        self._now = self.envs.reset()
        self._now.first[:] = True  # games from before a resume are abandoned

    def observe(self) -> Frame:
        """Return the stacked frames [n, stack, *frame_shape] in which actions are due; call it once per step."""
        return self._stack.push(self._now.frame, self._now.first)

    def act(self, policy: Policy) -> None:
        """Start a step by this policy."""
        self.send(policy.act(self.observe(), self.env_id, self._now.mask))

    def send(self, actions: NDArray[np.int64]) -> None:
        """Start a step."""
        self._actions = actions
        self.envs.send(actions)

    def recv(self) -> tuple[Step, NDArray[np.int64], Step]:
        """Wait for the step; return the one before it, the actions, and the one that they led to."""
        assert self._actions is not None
        before, self._now = self._now, self.envs.recv()
        return before, self._actions, self._now

    def state(self) -> dict[str, Any] | None:
        """Return all that these games continue from; None if they cannot be saved or were not opened."""
        if not isinstance(self.envs, Saveable) or not hasattr(self, "_now"):
            return None
        now = {field.name: getattr(self._now, field.name) for field in dataclasses.fields(Step)}
        given = {name: column for name, column in now.items() if column is not None}
        return {"envs": self.envs.state(), "stack": self._stack.state(), "now": given, "actions": self._actions}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from where `state` was taken."""
        assert isinstance(self.envs, Saveable)
        self.envs.load_state(state["envs"])
        self._stack.load_state(state["stack"])
        self._now, self._actions = Step(**state["now"]), state["actions"]


class RowSource(Protocol):
    """What a loop asks of games and acting: `Collector` is one, and so are collectors in other processes."""

    envs: Envs
    """Games to ask about shapes and actions; do not step them."""

    def open_games(self) -> None:
        """Open the games, unless they are open or continue."""

    def start(self, policy: Policy) -> None:
        """Be ready for `send`."""

    def send(self, policy: Policy) -> None:
        """Let games go on, by this policy."""

    def recv(self) -> Rows:
        """Wait for the rows of one vector step and return them."""

    def state(self) -> dict[str, Any] | None:
        """Return the state of all games; None if they cannot be saved."""

    def load_state(self, state: dict[str, Any] | None) -> bool:
        """Continue the games from where `state` was called; return whether they can."""

    def close(self) -> None:
        """Close all games."""


class Collector:
    """Games in this process, which run while the learner learns: `send`, learn, `recv`.

    Parameters
    ----------
    groups : sequence of Group
        At least one; with several, the rows received are of the group sent longest ago.

    Attributes
    ----------
    envs : Envs
        The games of the first group, to ask about shapes and actions.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = deque(groups)  # the one to send next stands first
        self._opened = self._continue = False  # the games; from a saved state
        self.envs = groups[0].envs

    def open_games(self) -> None:
        """Open the games, unless they are open or continue; `start` does so too."""
        if not self._opened:
            for group in self._groups:
                group.reset()
        self._opened = True

    def start(self, policy: Policy) -> None:
        """Open the games, unless they continue, and send all groups but one."""
        if self._continue:
            return
        self.open_games()
        for group in list(self._groups)[1:]:
            group.act(policy)

    def send(self, policy: Policy) -> None:
        """Act for one group and start its step."""
        self._groups[0].act(policy)

    def recv(self) -> Rows:
        """Wait for the group sent longest ago and return its rows."""
        self._groups.rotate(-1)
        group = self._groups[0]  # with one group the same again
        before, action, after = group.recv()
        return Rows(
            frame=before.frame,
            action=action,
            reward=after.reward,
            terminated=after.terminated,
            truncated=after.truncated,
            first=before.first,
            final=after.final,
            env_id=group.env_id,
            reset=after.reset,
            game_over=after.game_over,
            score=after.score,
            length=after.length,
            mask=before.mask,
            final_mask=after.final_mask,
        )

    def state(self) -> dict[str, Any] | None:
        """Return the state of all games, and which group is next; None if they cannot be saved."""
        states = {str(group.number): group.state() for group in self._groups}
        return None if None in states.values() else {"turn": self._groups[0].number, "groups": states}

    def load_state(self, state: dict[str, Any] | None) -> bool:
        """Continue the games from where `state` was called; return whether they can."""
        if state is None or not isinstance(self.envs, Saveable):
            return False
        for group in self._groups:
            group.load_state(state["groups"][str(group.number)])
        self._groups.rotate(-state["turn"])
        self._opened = self._continue = True
        return True

    def close(self) -> None:
        """Close all games, even if one of them raises."""
        with contextlib.ExitStack() as last:
            for group in self._groups:
                last.callback(group.envs.close)


def build_collector(config: DQNConfig, seed: int) -> Collector:
    """Start the games that the settings ask for.

    By default EnvPool has a thread per core for each group: a group that steps while another has ended its step has all
    cores, and 64 games on 16 threads are four whole rounds.

    Raises
    ------
    ConfigError
        If a setting does not fit the game.
    """
    seeds = np.random.SeedSequence(seed).generate_state(config.env_groups)
    with contextlib.ExitStack() as undo:
        groups = []
        for number, s in enumerate(seeds):
            groups.append(build_group(config, int(s), number))
            undo.callback(groups[-1].envs.close)
        undo.pop_all()
    return Collector(groups)


def build_group(config: DQNConfig, seed: int, number: int = 0) -> Group:
    """Start the games of one group; errors as of `build_envs`, and for a vector that makes another number of games."""
    envs = build_envs(config, seed)
    if envs.num_envs != config.group_size:  # a custom vector environment decides it
        envs.close()
        groups = f" in {config.env_groups} groups" if config.env_groups > 1 else ""
        raise ConfigError(
            f"--num-envs is {config.num_envs}{groups}, and {config.game} makes {envs.num_envs} at a time; give "
            f"{envs.num_envs * config.env_groups}"
        )
    return Group(envs, number, config.stack)


def build_envs(config: DQNConfig, seed: int) -> Envs:
    """Start the games of one group; errors as of `make_envs`, and for a frame skip that the game does not have."""
    envs = make_envs(
        config.game,
        config.group_size,
        rules=config,
        seed=seed,
        threads=config.env_threads,
        reward_clip=config.reward_clip,
        max_episode_steps=config.max_episode_steps,
        dephase_steps=config.dephase_steps,
    )
    if envs.frame_skip != config.frame_skip:  # or frames would be counted wrong
        envs.close()
        raise ConfigError(
            f"--frame-skip is {config.frame_skip}, which {config.game} does not do; give {envs.frame_skip}"
        )
    return envs
