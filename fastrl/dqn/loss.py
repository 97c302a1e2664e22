"""Targets, errors and the loss of Q-learning: pure functions on tensors, one equation each.

Time-indexed names: ``q_tm1`` and ``action_tm1`` belong to the state where the action was taken,
``q_t`` and ``discount_t`` to the state (n steps later) whose value takes over. ``discount_t`` is
gamma to the number of steps really taken, and 0 after termination: no ``done`` is needed.
"""

from __future__ import annotations

import torch
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
    """Return q[b, action[b]]: [B] of q [B, A] float32 and action [B] int64, or [B, K] of [B, A, K]."""
    if q.dim() == 2:
        return q.gather(1, action.unsqueeze(1)).squeeze(1)
    return q.gather(1, action.view(-1, 1, 1).expand(-1, 1, q.shape[2])).squeeze(1)


def td_error(q_tm1: Tensor, action_tm1: Tensor, target: Tensor) -> Tensor:
    """Return target - q_tm1[action_tm1] as [B]; gradients reach the taken action alone, never the target."""
    return target.detach() - taken(q_tm1, action_tm1)


def huber(td: Tensor, delta: float) -> Tensor:
    """Return td^2 / 2 where |td| <= delta, else delta (|td| - delta / 2), elementwise (Huber 1964).

    With delta = 1 its gradient is the clipped TD error of Mnih et al. 2015.
    """
    return F.huber_loss(td, td.new_zeros(()).expand_as(td), reduction="none", delta=delta)


def categorical_target(reward_t: Tensor, discount_t: Tensor, probs_t: Tensor, support: Tensor) -> Tensor:
    """Return the distribution of r + discount * Z, projected onto the atoms (Bellemare et al. 2017, eq. 7).

    Each atom is moved to r + discount * z, clipped to the outermost atoms, and its probability shared between
    the two atoms beside it by nearness.

    Parameters
    ----------
    reward_t, discount_t : Tensor
        [B] float32, as in `double_q_target`.
    probs_t : Tensor
        [B, K] float32; the distribution that takes over, of the chosen action.
    support : Tensor
        [K] float32; returns that the atoms stand for, evenly spaced, ascending.

    Returns
    -------
    Tensor
        [B, K] float32; rows sum to 1 if those of `probs_t` do.
    """
    moved = reward_t.unsqueeze(1) + discount_t.unsqueeze(1) * support  # [B, K]
    moved = torch.maximum(torch.minimum(moved, support[-1]), support[0])
    gap = support[1] - support[0]
    # share[b, i, j]: of the probability of old atom j, what atom i gets. Dense, so that nothing is scattered.
    share = (1 - (moved.unsqueeze(1) - support.unsqueeze(1)).abs() / gap).clamp(0, 1)
    return (share * probs_t.unsqueeze(1)).sum(dim=2)


def categorical_divergence(logits_tm1: Tensor, target: Tensor) -> Tensor:
    """Return KL(target || softmax(logits)) as [B], of logits and target [B, K]; no gradient reaches the target.

    Its gradient is that of the cross-entropy (Bellemare et al. 2017, algorithm 1); as a priority, unlike the
    cross-entropy, it vanishes where the prediction is right (Hessel et al. 2018).
    """
    target = target.detach()
    return (torch.xlogy(target, target) - target * logits_tm1.log_softmax(dim=1)).sum(dim=1)


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """Return mean(weight * losses), a scalar; the importance weights [B] multiply the unreduced losses [B].

    Source: Schaul et al. 2016, section 3.4.
    """
    return (weight * losses).mean()
