"""The learner with each head, with and without Munchausen, beside its equations written as loops over numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from test_learner import ACTIONS, CPU, IMAGE, TINY, B, make, make_batch, same, weights

from fastrl.base.errors import ConfigError
from fastrl.dqn.learner import Learner

N = 7
HEADS = {
    "expected": {},
    "c51": {"head": "c51", "atoms": N, "v_max": 3.0},
    "quantile": {"head": "quantile", "quantiles": N},
}
WAYS = {"double": {}, "plain": {"double": False}, "munchausen": {"munchausen": True}}
ALL = [{**head, **way} for head, way in itertools.product(HEADS.values(), WAYS.values())]


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x))
    return e / e.sum()


class Loops:
    """The losses and errors of one batch: loops over rows, actions, atoms and quantiles, in float64."""

    def __init__(self, config, support):
        self.config, self.support = config, support

    def value(self, outputs):
        """Return the value of an action with these outputs."""
        if self.config.head == "expected":
            return float(outputs)
        if self.config.head == "c51":
            return float(sum(p * z for p, z in zip(softmax(outputs), self.support, strict=True)))
        return float(sum(outputs) / N)

    def returns(self, outputs):
        """Return what mixes over actions, as a list."""
        return list(softmax(outputs)) if self.config.head == "c51" else list(np.atleast_1d(outputs))

    def row(self, out_tm1, out_t, out_t_online, action, reward, discount):
        """Return loss and error of one transition, from the outputs [A] or [A, N] of its two states."""
        q_tm1, q_t = ([self.value(out) for out in outputs] for outputs in (out_tm1, out_t))
        numbers = [self.returns(out) for out in out_t]
        if self.config.munchausen:
            tau = 0.03
            log_policy = [tau * np.log(max(p, 1e-300)) for p in softmax(np.array(q_tm1) / tau)]
            reward = reward + 0.9 * max(log_policy[action], -1.0)
            policy = softmax(np.array(q_t) / tau)
            reward += discount * sum(-tau * p * np.log(p) for p in policy if p > 0)
            following = [sum(p * n[k] for p, n in zip(policy, numbers, strict=True)) for k in range(len(numbers[0]))]
        else:
            select = [self.value(out) for out in out_t_online] if self.config.double else q_t
            following = numbers[int(np.argmax(select))]
        mine = np.atleast_1d(out_tm1[action]).astype(np.float64)
        return getattr(self, self.config.head)(mine, reward, discount, following)

    def expected(self, mine, reward, discount, following):
        td = reward + discount * following[0] - mine[0]
        return (td**2 / 2 if abs(td) <= 1 else abs(td) - 0.5), abs(td)

    def c51(self, mine, reward, discount, following):
        wanted, gap = np.zeros(N), self.support[1] - self.support[0]
        for z, p in zip(self.support, following, strict=True):  # algorithm 1 of Bellemare et al. 2017
            place = (np.clip(reward + discount * z, self.support[0], self.support[-1]) - self.support[0]) / gap
            low = min(int(place), N - 2)
            wanted[low] += p * (low + 1 - place)
            wanted[low + 1] += p * (place - low)
        divergence = sum(p * np.log(p / q) for p, q in zip(wanted, softmax(mine), strict=True) if p > 0)
        return divergence, divergence

    def quantile(self, mine, reward, discount, following):
        target, loss = [reward + discount * z for z in following], 0.0
        for i, theta in enumerate(mine):
            for other in target:
                u = other - theta
                huber = u**2 / 2 if abs(u) <= 1 else abs(u) - 0.5
                loss += abs((i + 0.5) / N - (u < 0)) * huber / N
        return loss, abs(np.mean(target) - np.mean(mine))


def spread(learner):
    """Let the two networks differ, and values lie far enough apart for every branch of the equations."""
    generator = torch.Generator().manual_seed(5)
    for network in (learner.online, learner.target):
        for name, p in network.named_parameters():
            if name.startswith(("value", "advantage", "action_value")):
                p.data += torch.randn(p.shape, generator=generator) * 0.3
    return learner


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("settings", ALL, ids=str)
def test_losses_and_errors_are_those_of_loops(settings, dueling):
    learner, batch = spread(make(TINY.replace(dueling=dueling, **settings))), make_batch()
    support = np.linspace(-3, 3, N)
    with torch.no_grad():
        obs, next_obs = torch.from_numpy(batch.obs), torch.from_numpy(batch.next_obs)
        out_tm1, out_t_online = (learner.online.outputs(o).numpy().copy() for o in (obs, next_obs))
        out_t = learner.target.outputs(next_obs).numpy().copy()
    loops, losses, errors = Loops(learner.config, support), [], []
    for b in range(B):
        outputs = out_tm1[b], out_t[b], out_t_online[b]
        loss, error = loops.row(*outputs, batch.action[b], float(batch.reward[b]), float(batch.discount[b]))
        losses.append(loss * batch.weight[b])
        errors.append(error)
    np.testing.assert_allclose(learner.learn(batch)[1], errors, rtol=1e-4, atol=1e-5)
    assert learner.metrics()["train/loss"] == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_the_gradient_of_a_heads_loss_is_that_of_differences_in_float64(name):
    head = make(TINY.replace(**HEADS[name])).online.head.double()
    generator = torch.Generator().manual_seed(2)
    shape = (4,) if name == "expected" else (4, N)
    out, out_t = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    reward, discount = torch.rand((2, 4), generator=generator, dtype=torch.float64)
    returns_t = head.returns(out_t)
    out.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: head.loss(x, reward, discount, returns_t, 1.0)[0], (out,))


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_gradients_reach_the_outputs_of_the_action_taken_alone(settings):
    learner = make(TINY.replace(dueling=False, **settings))
    bias = learner.online.action_value.bias
    before = bias.detach().clone().view(ACTIONS, -1)
    learner.learn(make_batch()._replace(action=np.ones(B, np.int64)))
    moved = (bias.detach().view(ACTIONS, -1) - before).abs().sum(1)
    assert moved[1] > 0
    assert moved[0] == moved[2] == 0


@pytest.mark.parametrize("head", HEADS)
def test_munchausen_needs_no_online_forward_of_the_next_observations(head, monkeypatch):
    learner, calls = make(TINY.replace(munchausen=True, **HEADS[head])), []
    features = learner.online.features
    monkeypatch.setattr(learner.online, "features", lambda obs: calls.append(1) or features(obs))
    learner.learn(make_batch())
    assert len(calls) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [
        HEADS["quantile"] | WAYS["munchausen"],
        pytest.param(HEADS["quantile"], marks=pytest.mark.slow),
        pytest.param(HEADS["c51"] | WAYS["munchausen"], marks=pytest.mark.slow),
        pytest.param(WAYS["munchausen"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_and_eager_agree_on_images(settings, precision):
    config = TINY.replace(trunk="small", learning_rate=1e-3, precision=precision, **settings)
    eager, compiled = (Learner(config.replace(compile=c), IMAGE, "uint8", ACTIONS, CPU, 1) for c in (False, True))
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if precision == "float32" else {"rtol": 0.05, "atol": 0.02}
    for seed in range(6):  # across one copy of the target
        batch = make_batch(seed, IMAGE, "uint8")
        np.testing.assert_allclose(compiled.learn(batch)[1], eager.learn(batch)[1], **tolerance)
    if precision == "float32":
        np.testing.assert_array_equal(compiled.act(batch.obs[:4]), eager.q_values(batch.obs[:4]).argmax(1))


@pytest.mark.parametrize("settings", [HEADS["quantile"], {"munchausen": True}], ids=str)
def test_it_overfits_one_batch(settings):
    learner, batch = make(TINY.replace(target_period_updates=10_000, learning_rate=3e-3, **settings)), make_batch()
    first = learner.learn(batch)[1].mean()
    for _ in range(400):
        errors = learner.learn(batch)[1]
    assert errors.mean() < 0.05 * first


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_a_state_is_taken_over_to_the_bit(settings):
    learner, other = make(TINY.replace(**settings)), make(TINY.replace(**settings), seed=2)
    for seed in range(3):
        learner.learn(make_batch(seed))
    other.load_state(learner.state())
    np.testing.assert_array_equal(learner.learn(make_batch(5))[1], other.learn(make_batch(5))[1])
    assert same(weights(learner), weights(other))


def test_the_state_of_a_head_of_as_many_numbers_is_refused():
    learner, saved = make(TINY.replace(**HEADS["quantile"])), make(TINY.replace(**HEADS["c51"])).state()
    with pytest.raises(ConfigError, match="--head is 'quantile'; the saved state needs 'c51'"):
        learner.load_state(saved)
    del saved["head"]  # as states of before heads had names
    make(TINY.replace(**HEADS["c51"])).load_state(saved)
