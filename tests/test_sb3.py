"""Stable-Baselines3's agents on the replay: what is drawn is what its own buffer holds, to the bit."""

from __future__ import annotations

import copy
import io
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import gymnasium as gym
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common import buffers
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from fastrl.integrations.sb3 import PrioritizedDQN, ReplayBuffer
from fastrl.integrations.sb3.agent import stacking

ACTIONS = spaces.Discrete(100_000)  # an action names its step and environment


class Noise(gym.Env):
    """Images (or vectors) without meaning; episodes of 1 to 9 steps, half of them truncated. Deterministic."""

    def __init__(self, seed=0, shape=(12, 10, 1), dtype=np.uint8, actions=ACTIONS):
        high = 255 if dtype == np.uint8 else 1
        self.observation_space = spaces.Box(0, high, shape, dtype)
        self.action_space, self.rng = actions, np.random.default_rng(seed)

    def _see(self):
        space = self.observation_space
        return (self.rng.random(space.shape) * np.nextafter(space.high + 1, 0)).astype(space.dtype)

    def reset(self, *, seed=None, options=None):
        self.left = int(self.rng.integers(1, 10))
        return self._see(), {}

    def step(self, action):
        self.left -= 1
        over = self.left == 0
        cut = over and bool(self.rng.integers(2))
        return self._see(), float(self.rng.normal()), over and not cut, cut, {}


def noise(n_envs=1, **settings):
    return DummyVecEnv([lambda seed=seed: Noise(seed, **settings) for seed in range(n_envs)])


def drive(envs, targets, steps, reset_every=None):
    """Add one stream to several buffers, as `OffPolicyAlgorithm._store_transition` does."""
    obs = envs.reset()
    for t in range(steps):
        if reset_every and t and t % reset_every == 0:
            obs = envs.reset()
        action = t * envs.num_envs + np.arange(envs.num_envs)
        new, reward, done, infos = envs.step(action)
        next_obs = copy.deepcopy(new)
        for i in np.flatnonzero(done):
            next_obs[i] = infos[i]["terminal_observation"]
        for buffer in targets:
            buffer.add(obs, next_obs, action, reward, done, infos)
        obs = new


def pair(envs, size=300, theirs=buffers.ReplayBuffer, their_settings=None, **settings):
    """One of our buffers and one of Stable-Baselines3's, which never overwrites here."""
    spaces_ = (envs.observation_space, envs.action_space, "cpu", envs.num_envs)
    return ReplayBuffer(size, *spaces_, seed=0, **settings), theirs(100_000, *spaces_, **(their_settings or {}))


def every(buffer):
    """All that can be drawn, once each; also the steps and the environments that they come from."""
    batch = buffer.sample(buffer.replay.drawable)
    steps, env = np.divmod(batch.actions[:, 0].numpy(), buffer.n_envs)
    assert len(np.unique(batch.indices)) == len(batch.indices)
    return batch, steps, env


def assert_equal_to(theirs, batch, steps, env):
    assert np.array_equal(batch.observations.numpy(), theirs.observations[steps, env])
    assert np.array_equal(batch.next_observations.numpy(), theirs.next_observations[steps, env])
    assert batch.observations.dtype == torch.as_tensor(theirs.observations[:1]).dtype
    assert np.array_equal(batch.rewards.numpy()[:, 0], theirs.rewards[steps, env])
    dones = theirs.dones[steps, env] * (1 - theirs.timeouts[steps, env])
    assert np.array_equal(batch.dones.numpy()[:, 0], dones)
    assert batch.rewards.dtype == batch.dones.dtype == torch.float32
    assert 0 < dones.sum() < theirs.dones[steps, env].sum()  # both kinds of end were among them


STACKED = {
    "grey, channels last": ({}, "last", False),
    "grey, channels first": ({"shape": (1, 12, 10)}, "first", False),
    "grey, moved to the front": ({}, "last", True),
    "colour, channels last": ({"shape": (14, 15, 3)}, "last", False),
    "colour, moved to the front": ({"shape": (14, 15, 3)}, "last", True),
    "vectors": ({"shape": (5,), "dtype": np.float32}, "last", False),
    "vectors of a double": ({"shape": (5,), "dtype": np.float64}, "last", False),
}


def stacked(case, stack=4, n_envs=3):
    settings, order, moved = STACKED[case]
    envs = VecFrameStack(noise(n_envs, **settings), stack, channels_order=order)
    return VecTransposeImage(envs) if moved else envs


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


# --- the agent -----------------------------------------------------------------------------------------


def cartpole(kind=PrioritizedDQN, **settings):
    settings = {"buffer_size": 2000} | settings
    return kind("MlpPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [32]}, **settings)


def parameters(model):
    return torch.cat([p.detach().reshape(-1) for p in model.policy.parameters()])


@pytest.mark.parametrize("n_steps", [1, 3])
def test_without_priorities_it_is_dqn_to_the_bit(n_steps):
    settings = {"learning_starts": 50, "train_freq": 2, "target_update_interval": 50}
    uniform = {"alpha": 0.0, "seed": 1}
    returns = {"n_steps": n_steps, "gamma": 0.99} if n_steps > 1 else {}
    mine = cartpole(n_steps=n_steps, replay_buffer_kwargs=uniform, **settings)
    start = parameters(mine)
    mine.learn(300)
    theirs = cartpole(DQN, replay_buffer_class=ReplayBuffer, replay_buffer_kwargs=uniform | returns, **settings)
    assert torch.equal(start, parameters(theirs))
    theirs.learn(300)
    assert torch.equal(parameters(mine), parameters(theirs))
    assert not torch.equal(parameters(mine), start)
    assert mine._n_updates == theirs._n_updates > 100


def prepared(**settings):
    """A model with 300 steps in its buffer, uneven priorities and plain gradient descent."""
    model = cartpole(learning_starts=10_000, **settings)
    model.policy.optimizer = torch.optim.SGD(model.policy.q_net.parameters(), lr=1e-4)
    with torch.no_grad():
        for p in model.q_net_target.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.learn(300)
    index = model.replay_buffer.sample(1000).indices
    model.replay_buffer.update_priorities(index, 10.0 * (index % 7))
    return model


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_weights_multiply_the_losses_and_td_errors_become_priorities(double, n_steps):
    model = prepared(double=double, n_steps=n_steps, beta_end=0.7)
    same = copy.deepcopy(model.replay_buffer).sample(64, beta=0.7)  # of a copy: the next draw
    assert same.weights.min() < 0.5 * same.weights.max()
    q_net = copy.deepcopy(model.q_net)
    with torch.no_grad():
        q_next = model.q_net_target(same.next_observations)
        best = (q_net if double else model.q_net_target)(same.next_observations).argmax(1)
        target = same.rewards[:, 0] + same.discounts[:, 0] * q_next[torch.arange(64), best]
    q = q_net(same.observations)[torch.arange(64), same.actions[:, 0]]
    losses = F.smooth_l1_loss(q, target, reduction="none")
    loss = (losses * same.weights[:, 0]).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(q_net.parameters(), model.max_grad_norm)
    assert 0 < norm
    before = model.q_net.state_dict()
    expected = {name: before[name] - 1e-4 * p.grad for name, p in q_net.named_parameters()}
    model.train(gradient_steps=1, batch_size=64)
    assert model.logger.name_to_value["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert abs(losses.mean().item() - loss.item()) > 0.1 * loss.item()
    for name, p in model.q_net.named_parameters():
        assert torch.allclose(p, expected[name], atol=1e-7), name
    td = (target - q).detach().abs().numpy().astype(np.float64)
    last = {index: k for k, index in enumerate(same.indices)}  # of a row drawn twice the last one counts
    index, k = np.array(list(last)), np.array(list(last.values()))
    assert np.allclose(model.replay_buffer.replay.weights(index), (td[k] + 1e-6) ** 0.6, rtol=1e-4)


def test_beta_goes_to_its_end_over_the_training(monkeypatch):
    seen = []
    draw = ReplayBuffer.sample

    def sample(self, size, env=None, beta=None):
        seen.append(beta)
        return draw(self, size, env, beta)

    monkeypatch.setattr(ReplayBuffer, "sample", sample)
    cartpole(beta_start=0.2, beta_end=0.8, learning_starts=0, train_freq=1).learn(150)
    assert seen[0] == pytest.approx(0.2, abs=0.02)
    assert seen[-1] == pytest.approx(0.8)
    assert np.all(np.diff(seen) > 0)


def test_it_learns_cartpole():
    model = PrioritizedDQN(
        "MlpPolicy", "CartPole-v1", seed=0, device="cpu", double=True, n_steps=3, learning_rate=1e-3, batch_size=64,
        learning_starts=500, train_freq=4, target_update_interval=250, exploration_fraction=0.3, gamma=0.98,
        policy_kwargs={"net_arch": [64, 64]}, buffer_size=20_000,
    )  # fmt: skip
    model.learn(10_000)
    (earlier,) = model.get_env().env_method("get_episode_rewards")
    assert np.mean(earlier[:20]) < 40  # as it began
    env = gym.make("CartPole-v1")
    returns = []
    for seed in range(10):
        (obs, _), over, total = env.reset(seed=seed), False, 0.0
        while not over:
            obs, reward, terminated, truncated, _ = env.step(model.predict(obs, deterministic=True)[0])
            over, total = terminated or truncated, total + float(reward)
        returns.append(total)
    assert np.mean(returns) > 150, returns


def images(n_envs=2, actions=spaces.Discrete(3)):  # noqa: B008
    return VecFrameStack(noise(n_envs, actions=actions), 4)


def agent(envs, **settings):
    settings = {"learning_starts": 20, "buffer_size": 500, "seed": 0, "device": "cpu"} | settings
    return PrioritizedDQN("MlpPolicy", envs, policy_kwargs={"net_arch": [8]}, **settings)


def test_stacking_is_read_from_the_environments():
    assert stacking(agent(images()).get_env()) == {"stack": 4, "channels_order": "first"}
    model = agent(images())
    assert model.replay_buffer.stacks.frame_shape == (1, 12, 10)
    whole = agent(images(), replay_buffer_kwargs={"stack": 1})
    assert whole.replay_buffer.stacks.frame_shape == (4, 12, 10)
    assert stacking(noise()) == {}
    model.learn(60)
    assert model._n_updates > 0


def test_a_training_that_a_callback_stopped_goes_on():
    model = agent(images())
    model.learn(200, callback=lambda local, _: local["self"].num_timesteps < 90)
    assert model.num_timesteps == 90
    model.learn(100, reset_num_timesteps=False)
    model.learn(100)


def test_nothing_is_learned_while_nothing_can_be_drawn():
    model = agent(images(), learning_starts=0, train_freq=1, n_steps=3)
    model.learn(2)
    assert model._n_updates == 0
    model.learn(40)
    assert model._n_updates > 0


def test_the_models_seed_seeds_the_draws():
    draws = []
    for seed in (0, 0, 1):
        model = agent(images(), learning_starts=1000, seed=seed)
        model.learn(100)
        draws.append(model.replay_buffer.sample(64).indices.tolist())
    assert draws[0] == draws[1] != draws[2]


# --- files ---------------------------------------------------------------------------------------------


def test_a_saved_buffer_draws_what_it_would_have_drawn_and_goes_on(tmp_path):
    model, other = agent(images(), n_steps=3), agent(images(), n_steps=3, seed=1)
    model.learn(700)
    model.save_replay_buffer(tmp_path / "replay")
    assert (tmp_path / "replay.pkl").stat().st_size < model.replay_buffer.replay.nbytes + 20_000
    other.load_replay_buffer(tmp_path / "replay")
    for _ in range(3):
        a, b = model.replay_buffer.sample(16), other.replay_buffer.sample(16)
        for name, x, y in zip(a._fields, a, b, strict=True):
            assert np.array_equal(x, y), name
    other.replay_buffer.replay.check()
    other.learn(100)  # the episodes under way in the file are not mixed with these
    other.replay_buffer.replay.check()


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


def test_a_buffer_of_another_model_is_refused_and_the_own_one_kept():
    model, saved = agent(images()), io.BytesIO()
    for other, message in [
        (agent(images(3)), "n_envs 3.*2"),
        (agent(images(), n_steps=2), "n_steps 2.*1"),
        (agent(images(), gamma=0.9), "gamma 0.9.*0.99"),
        (agent(VecFrameStack(noise(2, actions=spaces.Discrete(3)), 2)), "observation_space"),
    ]:
        saved.seek(0)
        other.save_replay_buffer(saved)
        saved.seek(0)
        mine = model.replay_buffer
        with pytest.raises(ValueError, match=message):
            model.load_replay_buffer(saved)
        assert model.replay_buffer is mine
    saved.seek(0)
    DQN("MlpPolicy", "CartPole-v1", buffer_size=10).save_replay_buffer(saved)
    saved.seek(0)
    with pytest.raises(TypeError, match=r"replay_buffer is .*PrioritizedDQN"):
        model.load_replay_buffer(saved)
    assert model.replay_buffer is mine


def test_a_saved_model_keeps_its_settings(tmp_path):
    model = agent(images(), n_steps=3, double=True, beta_start=0.5, replay_buffer_kwargs={"alpha": 0.7})
    model.learn(60)
    model.save(tmp_path / "model")
    again = PrioritizedDQN.load(tmp_path / "model", images(), device="cpu")
    assert (again.n_steps, again.double, again.beta_start) == (3, True, 0.5)
    assert again.replay_buffer.replay.settings == model.replay_buffer.replay.settings
    assert torch.equal(parameters(again), parameters(model))
    again.learn(60, reset_num_timesteps=False)


# --- what is refused -----------------------------------------------------------------------------------

BOX = spaces.Box(0, 255, (12, 10, 4), np.uint8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation_space": spaces.Dict({"a": BOX})}, "observation_space is Dict.*FlattenObservation"),
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
    ("settings", "message"),
    [
        ({"double": 1}, "double is 1"),
        ({"beta_start": 1.5}, "beta_start is 1.5"),
        ({"beta_end": -1}, "beta_end is -1"),
        ({"replay_buffer_class": buffers.ReplayBuffer}, "replay_buffer_class is .*give a subclass"),
        ({"replay_buffer_kwargs": {"gamma": 0.5}}, "gamma is 0.99, but 0.5 in replay_buffer_kwargs"),
        ({"replay_buffer_kwargs": {"n_steps": 2}, "n_steps": 3}, "n_steps is 3, but 2 in replay_buffer_kwargs"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage is True"),
    ],
)
def test_the_agent_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        agent(images(), **settings)


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


def test_what_cannot_be_normalized_is_refused_when_the_model_is_built():
    with pytest.raises(ValueError, match="norm_obs of VecNormalize is True, but stack is 4; give False, or stack=1"):
        agent(VecNormalize(images(), norm_reward=False))
    with pytest.raises(ValueError, match="norm_reward of VecNormalize is True, but n_steps is 2"):
        agent(VecNormalize(images(), norm_obs=False), n_steps=2)
    agent(VecNormalize(VecTransposeImage(images()), norm_obs=False)).learn(100)


# --- Breakout ------------------------------------------------------------------------------------------


def test_breakout_takes_an_eighth_of_the_memory_and_is_learned_from():
    ale_py = pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    from stable_baselines3.common.env_util import make_atari_env

    gym.register_envs(ale_py)
    envs = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", n_envs=2, seed=0), 4)
    model = PrioritizedDQN(
        "CnnPolicy", envs, buffer_size=1000, learning_starts=200, train_freq=8, batch_size=8, seed=0, device="cpu",
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}},
    )  # fmt: skip
    seen = buffers.ReplayBuffer(400, model.observation_space, model.action_space, "cpu", n_envs=2)
    add = model.replay_buffer.add

    def add_to_both(*step):
        seen.add(*step)
        add(*step)

    model.replay_buffer.add = add_to_both
    model.learn(400)
    del model.replay_buffer.add
    assert model._n_updates > 10
    assert np.isfinite(model.logger.name_to_value["train/loss"])
    assert 7056 < model.replay_buffer.replay.nbytes / 1000 < 7100
    batch = model.replay_buffer.sample(300)
    assert batch.observations.shape == (300, 4, 84, 84)
    mine = np.concatenate([batch.observations.numpy(), batch.next_observations.numpy()], axis=1)
    theirs = np.concatenate([seen.observations, seen.next_observations], axis=2).reshape(-1, 8, 84, 84)
    assert {both.tobytes() for both in mine} <= {both.tobytes() for both in theirs}
    assert seen.dones.any()


def test_the_example_runs():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    main = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "sb3_breakout.py"))["main"]
    model = main(total_timesteps=240, n_envs=2, buffer_size=500, learning_starts=200, device="cpu")
    assert model.num_timesteps >= 240
    assert model._n_updates > 0


def test_without_stable_baselines3_the_message_names_the_extra():
    code = "import sys; sys.modules['stable_baselines3'] = None; import fastrl.integrations.sb3"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs the extra 'sb3': pip install -c constraints.txt -e '.[sb3]'" in result.stderr
