"""The learner with a distribution of returns for each action (C51)."""

import numpy as np
import pytest
import torch
from test_learner import TINY, make, make_batch, same, weights

from fastrl.dqn.heads import Categorical

C51 = TINY.replace(head="c51", atoms=11, v_max=3.0)


def test_the_error_is_the_divergence_from_the_projected_target():
    learner, batch = make(C51), make_batch()
    network = learner.online  # target = online at first
    with torch.no_grad():
        out_tm1, out_t = (network.outputs(torch.from_numpy(obs)) for obs in (batch.obs, batch.next_obs))
    support = np.linspace(-3, 3, 11)
    probs_t = out_t.softmax(2).numpy()
    best = (probs_t * support).sum(2).argmax(1)
    for i, error in enumerate(learner.learn(batch)[1]):
        wanted = np.zeros(11)
        for z, p in zip(support, probs_t[i, best[i]], strict=True):  # algorithm 1 of Bellemare et al. 2017
            b = (np.clip(batch.reward[i] + batch.discount[i] * z, -3, 3) + 3) / 0.6
            low = min(int(b), 9)
            wanted[low] += p * (low + 1 - b)
            wanted[low + 1] += p * (b - low)
        log_p = out_tm1[i, batch.action[i]].log_softmax(0).numpy()
        kept = wanted > 0
        assert error == pytest.approx(np.sum(wanted[kept] * (np.log(wanted[kept]) - log_p[kept])), abs=1e-5)


def test_it_overfits_one_batch_down_to_what_the_targets_leave():
    learner, batch = make(C51.replace(target_period_updates=10_000)), make_batch()
    first = learner.learn(batch)[1].mean()
    for _ in range(300):
        divergence = learner.learn(batch)[1]
    assert divergence.mean() < 0.02 * first
    assert learner.metrics()["train/td_error"] < first


def test_an_error_that_rounding_puts_below_zero_is_zero_as_priorities_need():
    """Where the prediction is the target, up to rounding; the loss stays as it is."""
    head = Categorical(51, 10.0)
    logits = torch.randn(4096, 51, generator=torch.Generator().manual_seed(0)) * 8
    zero, one = torch.zeros(4096), torch.ones(4096)
    divergence, error = head.loss(logits, zero, one, logits.softmax(1), delta=1.0, largest=100.0)
    assert (divergence < 0).any()
    assert (error >= 0).all()
    assert torch.equal(error, divergence.clamp(min=0))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dueling", [True, False])
def test_compiled_and_eager_agree(double, dueling):
    config = C51.replace(double=double, dueling=dueling, learning_rate=1e-3)
    eager, compiled = make(config), make(config.replace(compile=True))
    for seed in range(7):  # across one copy of the target
        batch = make_batch(seed)
        np.testing.assert_allclose(compiled.learn(batch)[1], eager.learn(batch)[1], rtol=1e-3, atol=1e-4)
    assert compiled.metrics() == pytest.approx(eager.metrics(), rel=1e-3, abs=1e-4)
    np.testing.assert_array_equal(compiled.act(batch.obs[:4]), eager.q_values(batch.obs[:4]).argmax(1))


def test_a_state_is_taken_over_to_the_bit():
    learner, other = make(C51), make(C51, seed=2)
    for seed in range(3):
        learner.learn(make_batch(seed))
    other.load_state(learner.state())
    np.testing.assert_array_equal(learner.learn(make_batch(5))[1], other.learn(make_batch(5))[1])
    assert same(weights(learner), weights(other))


def test_values_lie_between_the_outermost_atoms():
    q = make(C51).q_values(100 * np.random.default_rng(0).random((50, 1, 10, 5), np.float32))
    assert np.abs(q).max() <= 3
    assert q.dtype == np.float32
    assert q.std() > 0
