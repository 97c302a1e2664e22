"""The equations of Q-learning against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from fastrl.config import DQNConfig
from fastrl.dqn.heads import Expected, Quantile
from fastrl.dqn.loss import (
    bootstrapped,
    categorical_divergence,
    categorical_target,
    huber,
    munchausen_bonus,
    quantile_huber,
    scaled_log_policy,
    soft_policy,
    taken,
    under,
    weighted_mean,
)

GAMMA = 0.5


def test_discount_alone_tells_running_truncated_and_terminated_apart():
    # Three windows of n = 3 with reward 1 per step and a next value of 8: it runs on, it was truncated
    # after two steps (bootstraps with gamma^2), it terminated after two (does not bootstrap).
    reward = torch.tensor([1 + 0.5 + 0.25, 1 + 0.5, 1 + 0.5])
    discount = torch.tensor([GAMMA**3, GAMMA**2, 0.0])
    value = torch.full((3,), 8.0)
    _, error = Expected().loss(torch.zeros(3), reward, discount, value, 1.0, 100.0)
    assert error.tolist() == [1.75 + 1, 1.5 + 2, 1.5]


def test_taken_picks_one_value_per_row():
    q = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert taken(q, torch.tensor([1, 0])).tolist() == [2, 3]


def test_td_error_is_target_less_value_and_only_the_taken_action_gets_gradient():
    q_tm1 = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
    value_t = torch.tensor([5.0, 2.0], requires_grad=True)
    losses, errors = Expected().loss(
        taken(q_tm1, torch.tensor([1, 2])), torch.zeros(2), torch.tensor([0.5, 0.5]), value_t, 1.0, 100.0
    )
    assert errors.tolist() == [0.5, 5.0]  # 2.5 - 2, 1 - 6
    weighted_mean(losses, torch.ones(2)).backward()
    # d/dq of mean(huber): -td / B where |td| <= 1, -sign(td) / B beyond.
    assert q_tm1.grad.tolist() == [[0, -0.25, 0], [0, 0, 0.5]]
    assert value_t.grad is None


def test_huber_is_square_inside_delta_and_linear_beyond():
    td = torch.tensor([0.0, 0.5, -1.0, 1.0, 3.0, -4.0])
    assert huber(td, 1.0).tolist() == [0, 0.125, 0.5, 0.5, 2.5, 3.5]
    assert huber(td, 2.0).tolist() == [0, 0.125, 0.5, 0.5, 4.0, 6.0]


def test_weights_multiply_the_unreduced_loss():
    td, weight = torch.tensor([1.0, 3.0, -4.0, 0.5]), torch.tensor([1.0, 0.5, 0.0, 1.0])
    assert weighted_mean(huber(td, 1.0), weight).item() == (0.5 + 0.5 * 2.5 + 0 + 0.125) / 4
    # One scalar weight on the reduced loss would give another number.
    assert weighted_mean(huber(td, 1.0), weight).item() != (weight.mean() * huber(td, 1.0).mean()).item()


SUPPORT = torch.tensor([-1.0, 0.0, 1.0])


def projected(reward, discount, *probs):
    return categorical_target(torch.tensor([reward]), torch.tensor([discount]), torch.tensor([probs]), SUPPORT)[0]


def test_atoms_that_fall_between_two_are_shared_by_nearness():
    # Atoms -1, 0, 1 move to 0.25 + 0.5 z = -0.25, 0.25, 0.75.
    expected = torch.tensor([0.2 * 0.25, 0.2 * 0.75 + 0.3 * 0.75 + 0.5 * 0.25, 0.3 * 0.25 + 0.5 * 0.75])
    torch.testing.assert_close(projected(0.25, 0.5, 0.2, 0.3, 0.5), expected)


def test_atoms_beyond_the_ends_are_clipped_and_those_on_an_atom_stay_whole():
    assert projected(1.0, 1.0, 0.25, 0.25, 0.5).tolist() == [0, 0.25, 0.75]  # to 0, 1 and 2
    assert projected(-3.0, 1.0, 0.25, 0.25, 0.5).tolist() == [1, 0, 0]
    assert projected(0.0, 1.0, 0.25, 0.25, 0.5).tolist() == [0.25, 0.25, 0.5]


def test_after_a_termination_all_of_the_distribution_lies_on_the_reward():
    assert projected(0.75, 0.0, 0.2, 0.3, 0.5).tolist() == [0, 0.25, 0.75]


def test_atoms_beyond_what_rewards_can_pay_are_clipped_to_that():
    support = torch.linspace(-200, 200, 51)  # 8 apart
    top = torch.eye(51)[-1:]
    reward, discount = torch.tensor([1.0]), torch.tensor([0.9])
    assert categorical_target(reward, discount, top, support)[0] @ support == pytest.approx(181.0)
    assert categorical_target(reward, discount, top, support, 12.0)[0] @ support == pytest.approx(12.0)
    assert categorical_target(-reward, discount, top.flip(1), support, 12.0)[0] @ support == pytest.approx(-12.0)
    loose = categorical_target(reward, discount, top, support, 300.0)
    assert torch.equal(loose, categorical_target(reward, discount, top, support))


def test_a_projection_keeps_the_mean_where_nothing_is_clipped():
    probs = torch.rand(5, 51, generator=torch.manual_seed(0)).softmax(1)
    support = torch.linspace(-10, 10, 51)
    reward, discount = torch.linspace(-1, 1, 5), torch.tensor([0.9, 0.5, 0.0, 0.8, 0.9])
    moved = categorical_target(reward, discount, probs, support)
    torch.testing.assert_close(moved.sum(1), torch.ones(5))
    torch.testing.assert_close(moved @ support, reward + discount * (probs @ support), atol=1e-5, rtol=1e-4)


def test_divergence_is_that_of_kullback_and_leibler_and_its_gradient_that_of_the_cross_entropy():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    divergence = categorical_divergence(logits, target)
    torch.testing.assert_close(divergence, torch.tensor([2.0]).log())  # 0.5 log(0.5 / 0.25), twice
    divergence.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, -0.25, 0.25, 0.25]]))  # softmax - target
    assert target.grad is None
    right = torch.tensor([[0.1, 0.2, 0.7]])
    torch.testing.assert_close(categorical_divergence(right.log(), right), torch.zeros(1), atol=1e-7, rtol=0)


def test_taken_picks_one_distribution_per_row():
    logits = torch.arange(12.0).view(2, 3, 2)
    assert taken(logits, torch.tensor([2, 0])).tolist() == [[4, 5], [6, 7]]


def test_a_policy_takes_the_mean_over_actions_of_values_and_of_each_number():
    policy = torch.tensor([[0.25, 0.75]])
    assert under(torch.tensor([[4.0, 8.0]]), policy).tolist() == [7.0]
    assert under(torch.tensor([[[4.0, 0.0, 1.0], [8.0, 4.0, 1.0]]]), policy).tolist() == [[7.0, 3.0, 1.0]]


# --- quantiles ----------------------------------------------------------------------------------------


def test_the_quantile_loss_is_the_mean_over_targets_of_the_weighted_huber_loss_summed_over_quantiles():
    # Two quantiles, at 0 and 1 with taus 0.25 and 0.75, three targets. u = target - theta:
    #   theta 0:  -1   0.5  3     huber 0.5  0.125  2.5     share 0.75  0.25  0.25
    #   theta 1:  -2  -0.5  2     huber 1.5  0.125  1.5     share 0.25  0.25  0.75
    theta = torch.tensor([[0.0, 1.0]], requires_grad=True)
    target = torch.tensor([[-1.0, 0.5, 3.0]], requires_grad=True)
    loss = quantile_huber(theta, target, torch.tensor([0.25, 0.75]), 1.0)
    first = 0.75 * 0.5 + 0.25 * 0.125 + 0.25 * 2.5
    second = 0.25 * 1.5 + 0.25 * 0.125 + 0.75 * 1.5
    torch.testing.assert_close(loss, torch.tensor([(first + second) / 3]))
    loss.sum().backward()
    # d/dtheta: -share * clipped u, over all pairs.
    expected = [(0.75 * 1 - 0.25 * 0.5 - 0.25 * 1) / 3, (0.25 * 1 + 0.25 * 0.5 - 0.75 * 1) / 3]
    torch.testing.assert_close(theta.grad, torch.tensor([expected]))
    assert target.grad is None


def test_kappa_divides_the_loss_so_that_far_errors_weigh_as_much():
    theta, target, taus = torch.tensor([[0.0]]), torch.tensor([[10.0]]), torch.tensor([0.5])
    # huber(10) = kappa (10 - kappa / 2), over kappa.
    assert quantile_huber(theta, target, taus, 1.0).tolist() == [0.5 * 9.5]
    assert quantile_huber(theta, target, taus, 2.0).tolist() == [0.5 * 9.0]


def test_each_row_may_have_taus_of_its_own():
    generator = torch.Generator().manual_seed(0)
    theta, target, taus = (torch.randn(4, n, generator=generator) for n in (3, 5, 3))
    taus = taus.sigmoid()
    whole = quantile_huber(theta, target, taus, 1.0)
    for row in range(4):
        one = quantile_huber(theta[row : row + 1], target[row : row + 1], taus[row], 1.0)
        torch.testing.assert_close(whole[row : row + 1], one)


def test_the_quantile_loss_of_random_numbers_is_that_of_loops():
    rng = np.random.default_rng(3)
    theta, target = rng.normal(size=(3, 7)) * 2, rng.normal(size=(3, 4)) * 2
    taus = (np.arange(7) + 0.5) / 7
    wanted = np.zeros(3)
    for b in range(3):
        for i in range(7):
            for j in range(4):
                u = target[b, j] - theta[b, i]
                loss = u**2 / 2 if abs(u) <= 0.5 else 0.5 * (abs(u) - 0.25)
                wanted[b] += abs(taus[i] - (u < 0)) * loss / 0.5 / 4
    found = quantile_huber(*(torch.from_numpy(x) for x in (theta, target, taus)), 0.5)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)


def test_the_quantile_losses_gradient_is_that_of_differences_in_float64():
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    taus = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: quantile_huber(t, target, taus, 1.0), (theta,))


def test_targets_are_clipped_to_the_largest_return_and_left_alone_without_one():
    reward, discount = torch.tensor([1.0, -1.0, 0.5]), torch.tensor([0.99, 0.99, 0.0])
    returns = torch.tensor([[150.0, 98.0], [-150.0, 3.0], [1e9, 1e9]])
    wanted = [[100.0, 1 + 0.99 * 98], [-100.0, -1 + 0.99 * 3], [0.5, 0.5]]
    torch.testing.assert_close(bootstrapped(reward, discount, returns, 100.0), torch.tensor(wanted))
    torch.testing.assert_close(bootstrapped(reward, discount, returns[:, 0], 100.0), torch.tensor(wanted)[:, 0])
    free = bootstrapped(reward, discount, returns, math.inf)
    torch.testing.assert_close(free, reward[:, None] + discount[:, None] * returns)


def test_the_largest_return_is_that_of_the_largest_discount_and_of_clipped_rewards():
    assert DQNConfig(gamma=0.99).largest_return == pytest.approx(100)
    assert DQNConfig(gamma_schedule=((0, 0.97), (1000, 0.997))).largest_return == pytest.approx(1000 / 3)
    assert DQNConfig(gamma=0.5, reward_clip=False).largest_return == math.inf
    assert DQNConfig(gamma=1.0).largest_return == math.inf


def test_many_samples_of_a_return_are_learned_as_its_quantiles():
    samples = torch.distributions.Exponential(1.0).icdf((torch.arange(2000) + 0.5) / 2000)
    head, theta = Quantile(4), torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.02)
    for _ in range(800):
        kappa = 0.01  # nearly the plain quantiles
        losses, _ = head.loss(theta, torch.zeros(1), torch.ones(1), samples[None], kappa, 100.0)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    torch.testing.assert_close(theta[0], -torch.log(1 - torch.tensor([0.125, 0.375, 0.625, 0.875])), atol=0.05, rtol=0)


def test_the_error_of_quantiles_is_the_difference_of_the_means():
    theta = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    returns = torch.tensor([[4.0, 8.0], [0.0, 2.0]])
    losses, errors = Quantile(2).loss(theta, torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.5]), returns, 1.0, 100.0)
    assert errors.tolist() == [1 + 0.5 * 6 - 1, 0.0]  # 0.5 + 0.5 * 1 - 1
    assert losses[1] > 0


def test_each_quantile_has_a_gradient_of_the_size_of_the_huber_losses_whatever_their_number():
    """All quantiles moved together, as a last layer's input moves them: half of the Huber loss's for each."""
    for n in (2, 32, 200):
        shift = torch.zeros(1, requires_grad=True)
        reward, discount, returns = torch.ones(1), torch.zeros(1), torch.zeros(1, n)
        losses, _ = Quantile(n).loss(shift + torch.zeros(1, n), reward, discount, returns, 1.0, 100.0)
        losses.sum().backward()
        torch.testing.assert_close(shift.grad, torch.tensor([-0.5 * n]))


# --- Munchausen ---------------------------------------------------------------------------------------


def test_the_scaled_log_policy_is_that_of_a_softmax_and_stays_finite():
    q = torch.tensor([[0.0, 0.03]])  # at a temperature of 0.03 one action is e times as likely
    log_policy = scaled_log_policy(q)
    e = np.e
    np.testing.assert_allclose(log_policy[0], 0.03 * np.log([1 / (1 + e), e / (1 + e)]), rtol=1e-5)
    far = scaled_log_policy(torch.tensor([[-300.0, 200.0, 100.0]]))
    torch.testing.assert_close(far, torch.tensor([[-500.0, 0.0, -100.0]]))


def test_the_bonus_is_a_share_of_the_clipped_log_policy_of_the_action_taken():
    q = torch.tensor([[0.0, 0.5, 0.5], [7.0, 2.0, 0.0]])
    bonus = munchausen_bonus(q, torch.tensor([1, 1]))
    # One of two equal actions: 0.9 * 0.03 * log(1/2). An action 5 worse than the best: clipped to -1.
    np.testing.assert_allclose(bonus, [0.9 * 0.03 * np.log(0.5), 0.9 * -1], rtol=1e-5)


def test_the_soft_value_is_temperature_times_the_log_of_the_sum_of_exponentials():
    q = torch.tensor([[0.1, 0.13, 0.02], [5.0, 5.0, -100.0]])
    policy, entropy = soft_policy(q)
    wanted = 0.03 * np.log(np.exp(q.double().numpy() / 0.03).sum(1))
    np.testing.assert_allclose((policy * q).sum(1) + entropy, wanted, rtol=1e-6)
    np.testing.assert_allclose(policy.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(entropy[1], 0.03 * np.log(2), rtol=1e-5)
    assert policy[1].tolist() == [0.5, 0.5, 0.0]
