"""The equations of Q-learning against numbers worked out by hand."""

import torch

from fastrl.dqn.loss import (
    categorical_divergence,
    categorical_target,
    double_q_target,
    huber,
    taken,
    td_error,
    weighted_mean,
)

GAMMA = 0.5


def test_double_target_takes_one_networks_choice_and_the_others_value():
    select = torch.tensor([[1.0, 9.0, 2.0]])
    value = torch.tensor([[10.0, 4.0, 20.0]])
    target = double_q_target(torch.tensor([1.0]), torch.tensor([GAMMA]), select, value)
    assert target.tolist() == [1 + 0.5 * 4]


def test_plain_target_is_the_maximum_and_differs_from_double():
    value = torch.tensor([[10.0, 4.0, 20.0]])
    assert double_q_target(torch.tensor([1.0]), torch.tensor([GAMMA]), value, value).tolist() == [1 + 0.5 * 20]


def test_discount_alone_tells_running_truncated_and_terminated_apart():
    # Three windows of n = 3 with reward 1 per step and a next value of 8: it runs on, it was truncated
    # after two steps (bootstraps with gamma^2), it terminated after two (does not bootstrap).
    reward = torch.tensor([1 + 0.5 + 0.25, 1 + 0.5, 1 + 0.5])
    discount = torch.tensor([GAMMA**3, GAMMA**2, 0.0])
    q_t = torch.tensor([[8.0, -1.0]]).expand(3, 2)
    assert double_q_target(reward, discount, q_t, q_t).tolist() == [1.75 + 1, 1.5 + 2, 1.5]


def test_taken_picks_one_value_per_row():
    q = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert taken(q, torch.tensor([1, 0])).tolist() == [2, 3]


def test_td_error_is_target_less_value_and_only_the_taken_action_gets_gradient():
    q_tm1 = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
    target = torch.tensor([2.5, 1.0], requires_grad=True)
    td = td_error(q_tm1, torch.tensor([1, 2]), target)
    assert td.tolist() == [0.5, -5.0]
    weighted_mean(huber(td, 1.0), torch.ones(2)).backward()
    # d/dq of mean(huber): -td / B where |td| <= 1, -sign(td) / B beyond.
    assert q_tm1.grad.tolist() == [[0, -0.25, 0], [0, 0, 0.5]]
    assert target.grad is None


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
