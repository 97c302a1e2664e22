"""The equations of Q-learning against numbers worked out by hand."""

import torch

from fastrl.dqn.loss import double_q_target, huber, taken, td_error, weighted_mean_loss

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
    weighted_mean_loss(td, torch.ones(2), 1.0).backward()
    # d/dq of mean(huber): -td / B where |td| <= 1, -sign(td) / B beyond.
    assert q_tm1.grad.tolist() == [[0, -0.25, 0], [0, 0, 0.5]]
    assert target.grad is None


def test_huber_is_square_inside_delta_and_linear_beyond():
    td = torch.tensor([0.0, 0.5, -1.0, 1.0, 3.0, -4.0])
    assert huber(td, 1.0).tolist() == [0, 0.125, 0.5, 0.5, 2.5, 3.5]
    assert huber(td, 2.0).tolist() == [0, 0.125, 0.5, 0.5, 4.0, 6.0]


def test_weights_multiply_the_unreduced_loss():
    td, weight = torch.tensor([1.0, 3.0, -4.0, 0.5]), torch.tensor([1.0, 0.5, 0.0, 1.0])
    assert weighted_mean_loss(td, weight, 1.0).item() == (0.5 + 0.5 * 2.5 + 0 + 0.125) / 4
    # One scalar weight on the reduced loss would give another number.
    assert weighted_mean_loss(td, weight, 1.0).item() != (weight.mean() * huber(td, 1.0).mean()).item()
