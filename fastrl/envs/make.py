"""From the name of a game to environments that play it: the only place that builds any of the three kinds.

Each kind is imported where it is built, so that only the libraries in use have to be installed and loaded.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from fastrl.base.errors import ConfigError
from fastrl.envs.frames import FrameShape
from fastrl.envs.names import is_custom
from fastrl.envs.rules import Rules
from fastrl.envs.step import EachFrame, GameEnvs

Backend = Literal["envpool", "gymnasium"]


def make_envs(
    game: str,
    num_envs: int,
    *,
    rules: Rules,
    seed: int,
    first: int = 0,
    threads: int = 0,
    reward_clip: bool = False,
    max_episode_steps: int = 27_000,
    dephase_steps: int = 0,
    backend: Backend = "envpool",
    pictures: bool = False,
    each_frame: EachFrame | None = None,
) -> GameEnvs:
    """Make environments of a game, an Atari game or a custom one.

    Parameters
    ----------
    game : str
        Any spelling that `fastrl.envs.names.task_id` takes, or ``module:callable`` of a custom environment
        (`fastrl.envs.custom`). Such a one knows neither rules nor threads nor backends: of what follows, only seed,
        reward_clip and max_episode_steps affect it, and it has pictures if its render_mode is "rgb_array".
    num_envs : int
        Number of environments. With ale-py it must be 1; a custom vector decides its own number.
    rules : Rules
        The rules of the game.
    seed : int
        At least 0. Same seed and same actions, same games.
    first : int
        With EnvPool, number of the first environment among those that the seed is for.
    threads : int
        EnvPool's threads; 0: one per CPU core that this process may use.
    reward_clip : bool
        `Step.reward` is the sign of the reward; `Step.score` is never clipped.
    max_episode_steps : int
        Agent steps after which a game is cut off.
    dephase_steps : int
        With EnvPool, `reset()` starts each game with 0 to `dephase_steps` random actions.
    backend : {"envpool", "gymnasium"}
        What plays Atari games: EnvPool, or ale-py through Gymnasium's preprocessing.
    pictures : bool
        Let Atari games draw.
    each_frame : callable, optional
        With ale-py, called after each emulator frame (`fastrl.envs.step.EachFrame`); needs `pictures`.

    Raises
    ------
    ConfigError
        For a setting out of its range, an unknown game or backend, ``catch`` with ale-py, or a callable that cannot be
        imported or makes an environment that does not fit.
    ImportError
        If a library is missing; the message names the extra.
    """
    if is_custom(game):
        from fastrl.envs.custom import CustomEnvs

        return CustomEnvs(game, num_envs, seed=seed, reward_clip=reward_clip, max_episode_steps=max_episode_steps)
    shared = {name: value for name, value in rules.rules().items() if name != "protocol"}  # the switches that it sets
    shared |= {"seed": seed, "reward_clip": reward_clip, "max_episode_steps": max_episode_steps, "render": pictures}
    if backend == "envpool":
        from fastrl.envs.atari import AtariEnvs

        return AtariEnvs(game, num_envs, first=first, threads=threads, dephase_steps=dephase_steps, **shared)
    if backend != "gymnasium":
        raise ConfigError(f"backend is {backend!r}; give 'envpool' or 'gymnasium'")
    if num_envs != 1:
        raise ConfigError(f"num_envs is {num_envs}; backend 'gymnasium' plays one game at a time: give 1")
    if dephase_steps:
        raise ConfigError(f"dephase_steps is {dephase_steps}, which backend 'gymnasium' does not have; give 0")
    from fastrl.envs.ale import AleEnvs

    return AleEnvs(game, each_frame=each_frame, **shared)


def look_at(game: str) -> tuple[FrameShape, int | None]:
    """Make a custom environment once, play one step, and return the shape of its frames and how many its vector holds.

    The shape is [n] unless frames are images; of several arrays, the shape of each by name. The number is None where
    the callable makes single environments, of which there may be any number.
    """
    from fastrl.envs.custom import CustomEnvs

    envs = CustomEnvs(game, 1, seed=0)
    try:
        opened = envs.reset()
        first = np.zeros(envs.num_envs, np.int64) if opened.mask is None else opened.mask.argmax(axis=1)
        envs.step(first)  # what fails here would otherwise fail in a run that has begun
        single = isinstance(envs.frame_shape, tuple)
        shape = (math.prod(envs.frame_shape),) if single and not envs.images else envs.frame_shape
        return shape, envs.num_envs if envs.is_vector else None
    finally:
        envs.close()
