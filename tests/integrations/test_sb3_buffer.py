"""Stable-Baselines3's agents on the replay: what is drawn is what its own buffer holds, to the bit."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import gymnasium as gym
import torch
from gymnasium import spaces
from sb3_envs import STACKED, Noise, agent, assert_equal_to, drive, every, noise, pair, stacked
from stable_baselines3.common import buffers
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from fastrl.integrations.sb3 import ReplayBuffer
from fastrl.integrations.sb3.agent import stacking
from fastrl.replay import buffer as replay_module


@pytest.mark.parametrize("reset_every", [None, 23])
@pytest.mark.parametrize("case", STACKED)
def test_stacks_are_those_of_the_environments_to_the_bit(case, reset_every):
    envs = stacked(case)
    mine, theirs = pair(envs, **stacking(envs))
    drive(envs, [mine, theirs], 250, reset_every)  # each ring is overwritten more than once
    batch, steps, env = every(mine)
    assert len(steps) > 200
    assert_equal_to(theirs, batch, steps, env)
    assert mine.replay.nbytes < theirs.observations[: mine.buffer_size].nbytes / 4 + 100 * 300


@pytest.mark.parametrize("case", STACKED)
def test_the_replay_takes_each_step_in_one_call_with_ends_of_episodes_or_without(monkeypatch, case):
    def nobody(*_):
        raise AssertionError("NumPy checks the step")

    monkeypatch.setattr(replay_module, "check_rows", nobody)
    envs = stacked(case)
    mine, theirs = pair(envs, **stacking(envs))
    drive(envs, [mine, theirs], 100)
    assert theirs.dones[:100].any()


def test_whole_observations_are_stored_as_they_are():
    envs = noise(3, shape=(5,), dtype=np.float32)
    mine, theirs = pair(envs)
    drive(envs, [mine, theirs], 250, reset_every=31)
    assert_equal_to(theirs, *every(mine))


def test_integers_are_observations_too():
    space = spaces.Discrete(7)
    settings = (1000, space, spaces.Discrete(3), "cpu", 2)
    mine, theirs = ReplayBuffer(*settings), buffers.ReplayBuffer(*settings)
    for t in range(20):
        step = (np.array([t % 7, 0]), np.array([(t + 1) % 7, 0]), np.array([t % 3, 1]), np.ones(2))
        for buffer in (mine, theirs):
            buffer.add(*step, np.zeros(2, bool), [{}, {}])
    batch = mine.sample(8)
    assert batch.observations.shape == theirs.sample(8).observations.shape == (8, 1)
    assert ((batch.observations + 1) % 7 == batch.next_observations)[batch.observations != 0].all()


def test_frames_padded_with_the_first_of_them():
    def make():
        env = Noise(3, shape=(12, 10))
        return gym.wrappers.FrameStackObservation(env, 4)

    envs = DummyVecEnv([make])
    mine, theirs = pair(envs, stack=4, stack_padding="first", channels_order="first")
    drive(envs, [mine, theirs], 400, reset_every=50)
    assert_equal_to(theirs, *every(mine))


def test_returns_of_several_steps_are_those_of_its_own_buffer():
    envs = stacked("grey, moved to the front", n_envs=1)
    n = {"n_steps": 3, "gamma": 0.5}
    mine, theirs = pair(envs, theirs=buffers.NStepReplayBuffer, their_settings=n, **stacking(envs), **n)
    drive(envs, [mine, theirs], 500)
    batch, steps, _ = every(mine)
    expected = theirs._get_samples(steps)
    for name in ("observations", "actions", "next_observations", "dones"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert torch.allclose(batch.rewards, expected.rewards, atol=1e-6)
    assert torch.equal(batch.discounts, expected.discounts * (1 - expected.dones))
    assert len(torch.unique(batch.discounts)) == 4  # cut short by truncations too


def test_without_its_own_treatment_a_truncation_is_a_termination():
    envs = noise(2)
    mine, theirs = pair(envs, handle_timeout_termination=False)
    drive(envs, [mine, theirs], 200)
    batch, steps, env = every(mine)
    assert np.array_equal(batch.dones[:, 0].numpy(), theirs.dones[steps, env])


def test_normalizing_happens_at_the_draw_with_the_statistics_of_then():
    model = agent(VecNormalize(noise(2, shape=(3,), dtype=np.float32)), learning_starts=10_000)
    model.learn(300)
    envs, mine = model.get_env(), model.replay_buffer
    plain = copy.deepcopy(mine).sample(64)  # of a copy: the next draw
    normal = mine.sample(64, env=envs)
    assert np.array_equal(plain.indices, normal.indices)
    assert np.allclose(normal.observations, envs.normalize_obs(plain.observations.numpy()))
    assert np.allclose(normal.rewards, envs.normalize_reward(plain.rewards.numpy()))
    assert normal.observations.dtype == normal.rewards.dtype == torch.float32
    assert not np.allclose(normal.observations, plain.observations)


def test_an_episode_goes_on_after_saving():
    envs = stacked("grey, moved to the front")
    mine, theirs = pair(envs, **stacking(envs))
    obs = envs.reset()
    for t in range(60):
        action = t * 3 + np.arange(3)
        new, reward, done, infos = envs.step(action)
        next_obs = copy.deepcopy(new)
        for i in np.flatnonzero(done):
            next_obs[i] = infos[i]["terminal_observation"]
        if t % 7 == 0:
            mine = pickle.loads(pickle.dumps(mine, protocol=4 + t % 2))
        for buffer in (mine, theirs):
            buffer.add(obs, next_obs, action, reward, done, infos)
        obs = new
    batch, steps, env = every(mine)
    assert len(steps) == 3 * 60 - (~done).sum()
    assert_equal_to(theirs, batch, steps, env)


# --- what is refused -----------------------------------------------------------------------------------

BOX = spaces.Box(0, 255, (12, 10, 4), np.uint8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation_space": spaces.Tuple([BOX])}, "observation_space is Tuple.*FlattenObservation"),
        ({"observation_space": spaces.Dict({"a": spaces.Dict({"b": BOX})})}, "observation_space is Dict.*FlattenObs"),
        ({"channels_order": {"a": "first"}}, "channels_order is {'a': 'first'}; give 'first', 'last' or None"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage is True; leave it out"),
        ({"handle_timeout_termination": None}, "handle_timeout_termination is None; give True or False"),
        ({"n_envs": 0}, "n_envs is 0"),
        ({"buffer_size": 10, "n_envs": 4}, "buffer_size is 10; .* need 12 or more"),
        ({"buffer_size": 1e5}, "buffer_size is 100000.0; give an integer"),
        ({"stack": 3}, r"stack is 3, but observations of shape \(12, 10, 4\).*n_stack"),
        ({"stack": 0}, "stack is 0"),
        ({"stack_padding": "none"}, "stack_padding is 'none'; give one of"),
        ({"channels_order": "middle"}, "channels_order is 'middle'; give 'first', 'last' or None"),
        ({"n_steps": 3}, "gamma is None, but n_steps=3.*give the agent's gamma"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"beta": 2.0}, "beta is 2.0"),
        ({"eps": 0.0}, "eps is 0.0"),
    ],
)
def test_a_buffer_refuses(settings, message):
    arguments = {"buffer_size": 100, "observation_space": BOX, "action_space": spaces.Discrete(3)} | settings
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": np.zeros((3, 12, 10, 4), np.uint8)}, r"obs has shape \(3, 12, 10, 4\).*n_envs=2"),
        ({"next_obs": np.zeros((2, 4, 12, 10), np.uint8)}, r"next_obs has shape \(2, 4, 12, 10\)"),
        ({"action": np.zeros(3)}, "action has shape"),
        ({"reward": np.zeros(3)}, "reward has shape"),
        ({"reward": np.array([0, np.nan])}, "reward holds nan"),
        ({"done": np.zeros(3)}, r"done has shape \(3,\)"),
        ({"infos": [{}]}, "infos 1 entries"),
        ({"done": np.ones(2), "infos": [{}, {"TimeLimit.truncated": True}]}, r"infos\[1\] says TimeLimit.truncated"),
        ({"obs": np.ones((2, 12, 10, 4), np.uint8), "done": np.ones(2)}, "obs of environment 0 opens an episode"),
        ({"next_obs": np.ones((2, 12, 10, 4), np.uint8)}, "next_obs of environment 0 does not hold the newer frames"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_before_anything_changes(changes, message):
    buffer = ReplayBuffer(100, BOX, spaces.Discrete(3), n_envs=2, stack=4)
    step = {
        "obs": np.zeros((2, 12, 10, 4), np.uint8), "next_obs": np.zeros((2, 12, 10, 4), np.uint8),
        "action": np.zeros(2, np.int64), "reward": np.zeros(2), "done": np.zeros(2, bool), "infos": [{}, {}],
    }  # fmt: skip
    buffer.add(**step)
    buffer.add(**step)
    assert buffer.replay.drawable == 2
    fresh = "opens" in message
    if fresh:
        buffer.reset()
    with pytest.raises(ValueError, match=message):
        buffer.add(**step | changes)
    assert len(buffer.replay) == (0 if fresh else 4)
    assert fresh or buffer.sample(4).observations.shape == (4, 12, 10, 4)


def test_without_stable_baselines3_the_message_names_the_extra():
    code = "import sys; sys.modules['stable_baselines3'] = None; import fastrl.integrations.sb3"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(r"needs the extra 'sb3': pip install .*\[sb3\]", result.stderr)
