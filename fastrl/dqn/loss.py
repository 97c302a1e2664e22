"""Targets, errors and the loss of Q-learning: pure functions on tensors, one equation each.

Time-indexed names: ``q_tm1`` and ``action_tm1`` belong to the state where the action was taken,
``q_t`` and ``discount_t`` to the state (n steps later) whose value takes over. ``discount_t`` is
gamma to the number of steps really taken, and 0 after termination: no ``done`` is needed.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def double_q_target(reward_t: Tensor, discount_t: Tensor, q_t_select: Tensor, q_t_value: Tensor) -> Tensor:
    """Return r + discount * q_value[argmax q_select], the target of double Q-learning.

    Parameters
    ----------
    reward_t, discount_t : Tensor
        [B] float32; sum of discounted rewards over the n steps, and the discount of what follows.
    q_t_select : Tensor
        [B, A] float32; chooses the action. The online network's values for double Q-learning (van
        Hasselt et al. 2016, eq. 4); the same tensor as `q_t_value` gives the target of plain DQN.
    q_t_value : Tensor
        [B, A] float32; values the chosen action (the target network).

    Returns
    -------
    Tensor
        [B] float32.
    """
    return reward_t + discount_t * taken(q_t_value, q_t_select.argmax(dim=1))


def taken(q: Tensor, action: Tensor) -> Tensor:
    """Return q[b, action[b]] as [B], of q [B, A] float32 and action [B] int64."""
    return q.gather(1, action.unsqueeze(1)).squeeze(1)


def td_error(q_tm1: Tensor, action_tm1: Tensor, target: Tensor) -> Tensor:
    """Return target - q_tm1[action_tm1] as [B]; gradients reach the taken action alone, never the target."""
    return target.detach() - taken(q_tm1, action_tm1)


def huber(td: Tensor, delta: float) -> Tensor:
    """Return td^2 / 2 where |td| <= delta, else delta (|td| - delta / 2), elementwise (Huber 1964).

    With delta = 1 its gradient is the clipped TD error of Mnih et al. 2015.
    """
    return F.huber_loss(td, td.new_zeros(()).expand_as(td), reduction="none", delta=delta)


def weighted_mean_loss(td: Tensor, weight: Tensor, delta: float) -> Tensor:
    """Return mean(weight * huber(td)), a scalar; the importance weights [B] multiply the unreduced loss.

    Source: Schaul et al. 2016, section 3.4.
    """
    return (weight * huber(td, delta)).mean()
