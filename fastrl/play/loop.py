"""The loop that plays whole games, with any act function on environments of any kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from fastrl.base.errors import ConfigError
from fastrl.envs.frame_stack import FrameStack
from fastrl.envs.frames import select
from fastrl.envs.masks import have_masks, only_allowed
from fastrl.envs.step import GameEnvs, Step
from fastrl.film.camera import Camera
from fastrl.film.picture import Picture
from fastrl.play.acting import Act, Epsilon

Results = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]
"""Scores [games], and lengths [games] in agent steps."""
Draw = Callable[[Step], Picture]
"""Draws the first environment as it is after a step."""


def play_whole_games(
    envs: GameEnvs,
    act: Act,
    games: int,
    *,
    explore: Epsilon,
    stack: int,
    max_steps: int,
    camera: Camera,
    draw: Draw | None,
    masked: bool = False,
) -> Results:
    """Play rounds of one whole game in each environment; return scores and lengths.

    An environment is stepped until its game is over, then left out. Each round starts with a reset of all environments.

    Parameters
    ----------
    envs : GameEnvs
        Environments of any kind.
    act : Act
        Asked for actions before each step that takes some.
    games : int
        Number of games. The last round leaves out the environments that are not needed.
    explore : Epsilon
        For as many games as there are environments.
    stack : int
        Frames in one observation.
    max_steps : int
        A game is cut off after this many agent steps, if its environment did not end it before.
    camera : Camera
        Takes pictures of the first game. Environments that show each frame show those of all games.
    draw : callable or None
        Draws the first game; None: there are no pictures.
    masked : bool
        Whether the environments must give action masks.

    Raises
    ------
    ConfigError
        If they must and give none.
    """
    scores, lengths = np.zeros(games), np.zeros(games, np.int64)
    for opened in range(0, games, envs.num_envs):
        playing = np.arange(min(envs.num_envs, games - opened))  # environments whose game of this round is not over
        stacks = FrameStack(envs.num_envs, stack, envs.frame_shape, envs.frame_dtype)
        step, drawn = envs.reset().select(playing), -1  # and the length of the first game when it was last drawn
        if masked and not have_masks(envs):
            raise ConfigError(
                "the environment gives no action masks, and the agent was trained with them: it would take forbidden "
                "actions; give info['action_mask'] in reset() and in every step(), or --make-env the environment that "
                "it was trained on"
            )
        while len(playing):
            observed = stacks.push(step.frame, step.first, step.env_id)
            over = step.game_over | (step.length >= max_steps)
            ended = opened + playing[over]
            scores[ended], lengths[ended] = step.score[over], step.length[over]
            with_first, first_over, length = playing[0] == 0, bool(over[0]), int(step.length[0])
            playing, observed = playing[~over], select(observed, ~over)
            mask = None if step.mask is None else step.mask[~over]

            asked, actions = len(playing) > 0 and envs.takes_actions, np.zeros(len(playing), np.int64)
            if asked:
                values = act(observed)
                actions = explore(values, playing, mask)
                if mask is not None and np.ndim(values) == 2:
                    values = only_allowed(values, mask)  # no others are drawn

            # One picture per agent step. Where the environment has begun its next game already, the last one is missed.
            missed = first_over and envs.autoreset != "next_step"
            if draw and with_first and (asked or first_over) and length > drawn and not missed:
                drawn = length
                camera.decided(*(() if first_over else (values, int(actions[0]))))
                if opened == 0:
                    camera.shoot(length, partial(draw, step))
                    if not envs.shows_frames:
                        camera.show(partial(draw, step))

            if len(playing):
                envs.send(actions, playing)
                step = envs.recv()
    return scores, lengths
