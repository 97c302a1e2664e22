"""Whole games on ale-py through Gymnasium's own preprocessing, by the same rules as on EnvPool: a second opinion."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from fastrl.atari import action_names, task_id
from fastrl.camera import Camera
from fastrl.config import ConfigError
from fastrl.extras import need
from fastrl.plan import Epsilon, Plan, Results
from fastrl.steps import FrameStack

SCREEN_HEIGHT = 210
"""Lines of the screen that agents see, the upper ones: EnvPool's rule. A dozen games draw up to 250."""


def play_ale(plan: Plan) -> Results:
    """Play one game after another; `threads` has no meaning here."""
    env = _gymnasium_env(plan)
    numbers = {name: env.unwrapped.get_action_meanings().index(name) for name in _names(plan)}
    explore = Epsilon(plan.protocol.epsilon, len(numbers), 1, plan.seed)
    game_seeds = np.random.SeedSequence(plan.seed).generate_state(plan.episodes).tolist()
    results = []
    plan.camera.names(list(numbers))
    with contextlib.closing(env):
        for episode, game_seed in enumerate(game_seeds):
            results.append(_one_gymnasium_game(env, numbers, plan, explore, game_seed, filmed=episode == 0))
    scores, lengths = zip(*results, strict=True)
    return np.array(scores, np.float64), np.array(lengths, np.int64)


def _names(plan: Plan) -> tuple[str, ...]:
    return action_names(plan.game, plan.protocol.full_action_set)


def _gymnasium_env(plan: Plan) -> Any:
    """Return ``ALE/<Game>-v5`` with all actions, and the protocol's rules in place of its own; [84, 84] uint8."""
    if plan.game == "catch":
        raise ConfigError("backend is 'gymnasium', which has no catch; give 'envpool'")
    gymnasium, ale_py = need("gymnasium", "train"), need("ale_py", "train")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    wanted = f"ale/{task_id(plan.game)}".lower()  # the two spell one game differently: TicTacToe3d, TicTacToe3D
    env = gymnasium.make(
        next(known for known in gymnasium.registry if known.lower() == wanted),
        frameskip=1,
        full_action_space=True,  # whichever the agent has: for its NOOP, which Backgammon's own actions lack
        repeat_action_probability=plan.protocol.repeat_action_probability,
        max_num_frames_per_episode=0,  # the protocol's cap is counted in agent steps, below
        render_mode="rgb_array" if plan.camera.on else None,
    )
    if plan.camera.shows:
        _show_every_frame(env, plan.camera)
    env = need("gymnasium.wrappers", "train").AtariPreprocessing(
        env,
        noop_max=plan.protocol.noop_max,
        frame_skip=plan.protocol.frame_skip,
        screen_size=84,
        terminal_on_life_loss=False,
        grayscale_obs=True,
    )
    _shrink_upper_lines_alone(env)
    return env


def _shrink_upper_lines_alone(env: Any) -> None:
    """Have an `AtariPreprocessing` make its frames of the lines that EnvPool takes."""
    shrink, screens = env._get_obs, env.obs_buffer

    def shrink_upper_lines() -> Any:
        env.obs_buffer = [screen[:SCREEN_HEIGHT] for screen in screens]
        try:
            return shrink()
        finally:
            env.obs_buffer = screens

    env._get_obs = shrink_upper_lines


def _show_every_frame(env: Any, camera: Camera) -> None:
    """Have an emulator show what each of its steps drew: many games draw some things in every other frame only."""
    step = env.step

    def step_and_show(action: int) -> Any:
        result = step(action)
        camera.show(env.render)
        return result

    env.step = step_and_show


def _one_gymnasium_game(
    env: Any, numbers: dict[str, int], plan: Plan, explore: Epsilon, seed: int, *, filmed: bool
) -> tuple[float, int]:
    """Play one whole game and return its score and its length in agent steps.

    `numbers` has the emulator's numbers of the agent's actions, by name. Where there is a FIRE and the rules say so, it
    is pressed for the player after the reset and after each lost life, for one emulator frame as EnvPool does; that is
    no step of the agent's, but what it earns counts.
    """
    fire, number = numbers.get("FIRE") if plan.protocol.fire_reset else None, list(numbers.values())
    frames = FrameStack(1, plan.stack, (84, 84), np.uint8)
    game_0 = np.array([0])
    frame, info = env.reset(seed=seed)
    first, score, length, over, press = True, 0.0, 0, False, fire is not None
    while not over:
        if press:
            if not first:
                frames.push(frame[None], np.array([False]))  # the one that lost the life
            frame, reward, over, _, after = _one_frame(env, fire)
        else:
            values = plan.act(frames.push(frame[None], np.array([first])))
            action = int(explore(values, game_0)[0])
            plan.camera.decided(values, action)
            if filmed:
                plan.camera.shoot(length, env.render)
            frame, reward, over, _, after = env.step(number[action])
            first, length = False, length + 1
        score += float(reward)
        press = fire is not None and plan.protocol.episodic_life and after["lives"] < info["lives"]
        info, over = after, over or length >= plan.protocol.max_steps
    plan.camera.decided()
    if filmed:
        plan.camera.shoot(length, env.render)
    return score, length


def _one_frame(env: Any, action: int | None) -> Any:
    """Step an `AtariPreprocessing` by one emulator frame instead of an agent step."""
    env.obs_buffer[1][:] = 0  # or the frame before would shine through
    frame_skip, env.frame_skip = env.frame_skip, 1
    try:
        return env.step(action)
    finally:
        env.frame_skip = frame_skip
