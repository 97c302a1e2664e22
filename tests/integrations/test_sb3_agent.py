"""Stable-Baselines3's DQN with priorities: its updates, its files, and real training."""

from __future__ import annotations

import copy
import io
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import gymnasium as gym
import torch
import torch.nn.functional as F
from gymnasium import spaces
from sb3_envs import agent, images, noise
from stable_baselines3 import DQN
from stable_baselines3.common import buffers
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage

from fastrl.integrations.sb3 import PrioritizedDQN, ReplayBuffer
from fastrl.integrations.sb3.agent import stacking


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


def test_a_rollout_that_goes_past_the_end_is_learned_from_with_the_last_beta():
    model = agent(images(8), learning_starts=0)
    model.learn(101)  # eight environments take 104 steps
    assert model.logger.name_to_value["train/beta"] == 1


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
    other.learn(100)  # the episodes in progress in the file are not mixed with these
    other.replay_buffer.replay.check()


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
    foreign = io.BytesIO(pickle.dumps({"no": "buffer"}))
    with pytest.raises(TypeError, match=r"replay_buffer is .*dict.*PrioritizedDQN"):
        model.load_replay_buffer(foreign)
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


@pytest.mark.parametrize("changes", [{"gamma": 0.95}, {"n_steps": 5}, {"n_steps": 1}])
def test_a_saved_model_takes_other_returns(tmp_path, changes):
    agent(images(), n_steps=3, gamma=0.99, replay_buffer_kwargs={"alpha": 0.7}).save(tmp_path / "model")
    again = PrioritizedDQN.load(tmp_path / "model", images(), device="cpu", **changes)
    wanted = {"n_steps": 3, "gamma": 0.99} | changes
    assert {name: getattr(again, name) for name in wanted} == wanted
    settings = again.replay_buffer.replay.settings
    assert (settings["n_step"], settings["gamma"], settings["alpha"]) == (wanted["n_steps"], wanted["gamma"], 0.7)


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
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "sb3_breakout.py"))["main"]
    model = main(total_timesteps=240, n_envs=2, buffer_size=500, learning_starts=200, device="cpu")
    assert model.num_timesteps >= 240
    assert model._n_updates > 0
