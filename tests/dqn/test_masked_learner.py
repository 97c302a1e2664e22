"""Action masks in the learner: greedy actions, targets by numbers made by hand, all heads, compiled."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastrl.config import DQNConfig
from fastrl.dqn.device.device import forget_compiled
from fastrl.dqn.learner import Learner
from fastrl.dqn.loss import MUNCHAUSEN_TEMPERATURE, best, munchausen_bonus, soft_policy
from fastrl.envs.masks import ACTION_MASK
from fastrl.replay.batch import ExtraBatch

CPU = torch.device("cpu")
OBS, IMAGE, ACTIONS, B = (1, 4), (2, 36, 36), 3, 4
TINY = DQNConfig(
    game="catch", trunk="vector", hidden=8, stack=1, batch_size=B, num_envs=4, compile=False, precision="float32",
    dueling=False, torch_threads=1, huber_delta=1e9,
)  # fmt: skip
HEADS = {
    "expected": {},
    "c51": {"head": "c51", "atoms": 11, "v_max": 50.0},
    "quantile": {"head": "quantile", "quantiles": 5},
    "iqn": {"head": "iqn", "quantiles": 5},
}
WAYS = {
    "double": {"double": True}, "plain": {"double": False}, "munchausen": {"munchausen": True},
    "noisy": {"noisy": True},
}  # fmt: skip


def make(seed=1, shape=OBS, dtype="float32", masked=True, device=CPU, **settings):
    return Learner(TINY.replace(**settings), shape, dtype, ACTIONS, device, seed, masked=masked)


def make_batch(
    mask=None, next_mask=None, *, seed=0, shape=OBS, dtype="float32", reward=None, discount=None, action=None
):
    rng = np.random.default_rng(seed)
    obs = rng.integers(0, 256 if dtype == "uint8" else 2, (2, B, *shape)).astype(dtype)
    masks = [np.ones(ACTIONS, bool) if m is None else np.asarray(m, bool) for m in (mask, next_mask)]
    now, after = (np.ascontiguousarray(np.broadcast_to(m, (B, ACTIONS))) for m in masks)
    return ExtraBatch(
        obs=obs[0],
        action=rng.integers(0, ACTIONS, B) if action is None else np.full(B, action),
        reward=rng.normal(size=B).astype(np.float32) if reward is None else np.full(B, reward, np.float32),
        next_obs=obs[1],
        discount=rng.choice(np.float32([0, 0.97]), B) if discount is None else np.full(B, discount, np.float32),
        weight=np.ones(B, np.float32),
        index=np.arange(B),
        extra={ACTION_MASK: now},
        next_extra={ACTION_MASK: after},
    )


def give_values(network, values):
    """Let a network without dueling have these values in every state, whatever its head makes them of."""
    with torch.no_grad():
        layer = network.action_value
        layer.weight.zero_()
        each = torch.tensor(values, dtype=torch.float32)
        layer.bias.copy_(each.repeat_interleave(len(layer.bias) // len(each)))


def same(a, b):
    a, b = a.online.state_dict(), b.online.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


# --- targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["expected", "quantile", "iqn"])
def test_the_targets_are_those_made_by_hand(head):
    # Online values 1, 5, 3 and target's 10, 30, 20. Reward 0.5, discount 0.5, and action 2 was taken: its value is 3.
    for double, mask, following in [
        (True, [1, 0, 1], 20.0),  # of actions 0 and 2 the online network takes 2
        (True, [1, 0, 0], 10.0),
        (True, [1, 1, 1], 30.0),
        (False, [1, 0, 1], 20.0),  # the highest that the target network allows
        (False, [1, 0, 0], 10.0),
        (False, [1, 1, 0], 30.0),
    ]:
        learner = make(double=double, **HEADS[head])
        give_values(learner.online, [1.0, 5.0, 3.0])
        give_values(learner.target, [10.0, 30.0, 20.0])
        batch = make_batch([0, 0, 1], mask, reward=0.5, discount=0.5, action=2)
        expected = abs(0.5 + 0.5 * following - 3.0)
        np.testing.assert_allclose(learner.learn(batch)[1], expected, rtol=1e-6)


def test_the_double_target_selects_by_the_online_network_alone():
    learner = make(double=True)
    give_values(learner.online, [3.0, 5.0, 1.0])  # of 0 and 2 it takes 0, the target network would take 2
    give_values(learner.target, [10.0, 30.0, 20.0])
    batch = make_batch([1, 1, 1], [1, 0, 1], reward=0.5, discount=0.5, action=2)
    np.testing.assert_allclose(learner.learn(batch)[1], 0.5 + 0.5 * 10 - 1.0, rtol=1e-6)


@pytest.mark.parametrize("double", [True, False])
def test_the_distribution_that_takes_over_is_that_of_the_best_allowed_action(double):
    # Three atoms -2, 0, 2. Action 0 has (1/2, 1/4, 1/4), action 1 the best (0+, 0+, 1-), action 2 (1/4, 1/2, 1/4).
    learner = make(double=double, head="c51", atoms=3, v_max=2.0)
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.01, 0.01, 0.98], [0.25, 0.5, 0.25]])
    with torch.no_grad():
        for network in (learner.online, learner.target):
            network.action_value.weight.zero_()
            network.action_value.bias.copy_(probabilities.log().flatten())
    batch = make_batch([1, 1, 1], [1, 0, 1], reward=0.0, discount=1.0, action=0)
    # With reward 0 and discount 1 the target is action 2's own distribution, of value 0 (action 0 has -0.5).
    expected = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25) + 0.0
    np.testing.assert_allclose(learner.learn(batch)[1], expected, rtol=1e-5)


@pytest.mark.parametrize("head", ["expected", "quantile", "iqn"])
def test_munchausens_target_is_soft_over_allowed_actions(head):
    # Target's values 0, 5, 0 with the second forbidden: pi is (1/2, 0, 1/2), and tau times its entropy tau ln 2.
    # Online values 1, 9, 1 with the second forbidden: log pi of action 0 is -ln 2.
    learner = make(munchausen=True, **HEADS[head])
    give_values(learner.online, [1.0, 9.0, 1.0])
    give_values(learner.target, [0.0, 5.0, 0.0])
    batch = make_batch([1, 0, 1], [1, 0, 1], reward=0.5, discount=0.5, action=0)
    tau_ln_2 = 0.03 * math.log(2)
    target = 0.5 - 0.9 * tau_ln_2 + 0.5 * tau_ln_2
    np.testing.assert_allclose(learner.learn(batch)[1], 1.0 - target, rtol=1e-5)


def test_a_soft_policy_over_one_action_has_no_entropy_and_no_bonus():
    q, mask = torch.tensor([[3.0, 50.0, -2.0]]), torch.tensor([[False, False, True]])
    policy, entropy = soft_policy(q, mask)
    assert policy.tolist() == [[0.0, 0.0, 1.0]]
    assert entropy.tolist() == [0.0]
    assert munchausen_bonus(q, torch.tensor([2]), mask).tolist() == [0.0]
    assert best(q, mask).tolist() == [2]


def test_a_mask_of_all_actions_changes_no_soft_policy():
    q, mask = torch.randn(5, 4) * MUNCHAUSEN_TEMPERATURE, torch.ones(5, 4, dtype=torch.bool)
    for masked, plain in zip(soft_policy(q, mask), soft_policy(q), strict=True):
        assert torch.equal(masked, plain)


# --- all heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("head", HEADS)
def test_masks_of_all_actions_learn_and_act_as_no_masks_to_the_bit(head, way):
    settings = HEADS[head] | WAYS[way] | {"dueling": True}
    masked, plain = make(**settings), make(masked=False, **settings)
    for seed in range(4):
        batch = make_batch(seed=seed)
        np.testing.assert_array_equal(masked.learn(batch)[1], plain.learn(batch)[1])
    assert same(masked, plain)
    obs = make_batch(seed=9).obs
    np.testing.assert_array_equal(masked.act(obs, np.ones((B, ACTIONS), bool)), plain.act(obs))
    assert masked.metrics() == plain.metrics()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("head", HEADS)
def test_values_of_forbidden_actions_never_reach_a_target(head, way):
    learners = [make(**HEADS[head] | WAYS[way]) for _ in range(2)]
    with torch.no_grad():  # another value of action 1 at all states, in one of the learners
        for network in (learners[1].online, learners[1].target):
            numbers = len(network.action_value.bias) // ACTIONS
            network.action_value.bias[numbers : 2 * numbers] += torch.linspace(0, 90, numbers) if numbers > 1 else 90
    batch = make_batch([1, 0, 1], [1, 0, 1], action=2)
    one, other = (learner.learn(batch)[1] for learner in learners)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)
    unmasked = [make(masked=False, **HEADS[head] | WAYS[way]) for _ in range(2)]
    with torch.no_grad():
        for network in (unmasked[1].online, unmasked[1].target):
            numbers = len(network.action_value.bias) // ACTIONS
            network.action_value.bias[numbers : 2 * numbers] += torch.linspace(0, 90, numbers) if numbers > 1 else 90
    one, other = (learner.learn(replace(batch, discount=np.ones(B, np.float32)))[1] for learner in unmasked)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("settings", [{}, *({"noisy": True} | h for h in HEADS.values())], ids=str)
@pytest.mark.parametrize("rows", [4, 7])  # those of the group, and any other number
def test_greedy_actions_are_the_best_of_the_allowed(settings, rows):
    learner, rng = make(**settings), np.random.default_rng(rows)
    obs, mask = rng.random((rows, *OBS), np.float32), rng.random((rows, ACTIONS)) < 0.5
    mask[np.arange(rows), rng.integers(ACTIONS, size=rows)] = True
    actions = learner.act(obs, mask)
    assert actions.dtype == np.int64
    assert mask[np.arange(rows), actions].all()
    if not settings:
        np.testing.assert_array_equal(actions, np.where(mask, learner.q_values(obs), -np.inf).argmax(axis=1))
    only = np.eye(ACTIONS, dtype=bool)[rng.integers(ACTIONS, size=rows)]
    np.testing.assert_array_equal(learner.act(obs, only), only.argmax(axis=1))


def test_the_largest_value_of_the_metrics_is_that_of_an_allowed_action():
    learner = make()
    give_values(learner.online, [1.0, 5.0, 3.0])
    learner.learn(make_batch([1, 0, 1], action=0))
    assert learner.metrics()["train/q_max"] == 3.0


@pytest.mark.parametrize(
    "settings", [{}, {"munchausen": True} | HEADS["quantile"], {"noisy": True, "double": True} | HEADS["iqn"]], ids=str
)
def test_compiled_and_eager_agree_on_masked_images(settings):
    forget_compiled()
    options = {"shape": IMAGE, "dtype": "uint8", "trunk": "small", "learning_rate": 1e-3, **settings}
    eager, compiled = (make(compile=c, **options) for c in (False, True))
    rng = np.random.default_rng(0)
    for seed in range(3):
        mask, after = (np.ones((B, ACTIONS), bool) for _ in range(2))
        mask[:, seed % ACTIONS], after[np.arange(B), rng.integers(ACTIONS, size=B)] = False, False
        batch = make_batch(mask, after, seed=seed, shape=IMAGE, dtype="uint8", action=(seed + 1) % ACTIONS)
        np.testing.assert_allclose(compiled.learn(batch)[1], eager.learn(batch)[1], rtol=1e-3, atol=1e-4)
    for k in range(ACTIONS):  # the mask is an input of what was compiled, and no constant
        mask = np.ones((B, ACTIONS), bool)
        mask[:, k] = False
        actions = compiled.act(batch.obs, mask)
        assert (actions != k).all()
        np.testing.assert_array_equal(actions, eager.act(batch.obs, mask))


# --- misuse -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, r"mask is None; give bool \[4, 3\]"),
        (np.ones((4, 2), bool), r"mask is bool \[4, 2\]; give bool \[4, 3\]"),
        (np.ones((4, 3), np.int8), r"mask is int8 \[4, 3\]; give bool"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        make().act(np.zeros((4, *OBS), np.float32), mask)


def test_a_learner_without_masks_takes_none():
    with pytest.raises(ValueError, match="leave it out, or build it with masked=True"):
        make(masked=False).act(np.zeros((4, *OBS), np.float32), np.ones((4, 3), bool))


def test_a_batch_of_other_masks_is_refused():
    learner, batch = make(), make_batch()
    for wrong in (np.ones((B, ACTIONS + 1), bool), np.ones((B, ACTIONS), np.int8)):
        with pytest.raises(ValueError, match=r"batch.next_mask is .*; give bool \[4, 3\]"):
            learner.learn(replace(batch, next_extra={ACTION_MASK: wrong}))
