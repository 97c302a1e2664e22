"""Targets, errors and the loss of Q-learning: pure functions on tensors, one equation each.

Time-indexed names: ``q_tm1`` and ``action_tm1`` belong to the state where the action was taken,
``q_t`` and ``discount_t`` to the state (n steps later) whose value takes over. ``discount_t`` is
gamma to the number of steps really taken, and 0 after termination: no ``done`` is needed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def taken(q: Tensor, action: Tensor) -> Tensor:
    """Return q[b, action[b]]: [B] of q [B, A] float32 and action [B] int64, or [B, K] of [B, A, K]."""
    if q.dim() == 2:
        return q.gather(1, action.unsqueeze(1)).squeeze(1)
    return q.gather(1, action.view(-1, 1, 1).expand(-1, 1, q.shape[2])).squeeze(1)


def under(returns: Tensor, policy: Tensor) -> Tensor:
    """Return the mean over a policy [B, A]: [B] of returns [B, A], or [B, K] of [B, A, K]."""
    if returns.dim() == 2:
        return (policy * returns).sum(dim=1)
    return (policy.unsqueeze(2) * returns).sum(dim=1)


def best(q: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the actions of the highest values: [B] int64 of q [B, A], of those that a mask [B, A] bool allows."""
    return allowed(q, mask).argmax(dim=1)


def allowed(q: Tensor, mask: Tensor | None) -> Tensor:
    """Return q [B, A] with -inf where a mask [B, A] bool forbids the action; without a mask as it is."""
    return q if mask is None else q.masked_fill(~mask, -torch.inf)


def huber(td: Tensor, delta: float) -> Tensor:
    """Return td^2 / 2 where |td| <= delta, else delta (|td| - delta / 2), elementwise (Huber 1964).

    With delta = 1 its gradient is the clipped TD error of Mnih et al. 2015.
    """
    return F.huber_loss(td, td.new_zeros(()).expand_as(td), reduction="none", delta=delta)


def bootstrapped(reward_t: Tensor, discount_t: Tensor, returns_t: Tensor, largest: float) -> Tensor:
    """Return r + discount * z clipped to [-`largest`, `largest`], as [B] or [B, K].

    It changes nothing where values are returns that are possible, and bounds those that grow by bootstrapping on one
    another (Andrychowicz et al. 2017, appendix A, clip the targets of their critic so). With Munchausen's term, at most
    -0.9 a step, lower values are possible, and these it changes.

    Parameters
    ----------
    reward_t, discount_t : Tensor
        [B] float32; sum of discounted rewards over the n steps, and the discount of what follows.
    returns_t : Tensor
        [B] or [B, K] float32; values or quantiles z that take over.
    largest : float
        The largest return that rewards allow (`DQNConfig.largest_return`), or infinity.
    """
    if returns_t.dim() == 2:
        reward_t, discount_t = reward_t.unsqueeze(1), discount_t.unsqueeze(1)
    target = reward_t + discount_t * returns_t
    return target if math.isinf(largest) else target.clamp(-largest, largest)


def categorical_target(
    reward_t: Tensor, discount_t: Tensor, probs_t: Tensor, support: Tensor, largest: float = math.inf
) -> Tensor:
    """Return the distribution of r + discount * Z, projected onto the atoms (Bellemare et al. 2017, eq. 7).

    Each atom is moved to r + discount * z, clipped to the outermost atoms and to [-`largest`, `largest`], and its
    probability shared between the two atoms beside it by nearness.

    Parameters
    ----------
    reward_t, discount_t : Tensor
        [B] float32; sum of discounted rewards over the n steps, and the discount of what follows.
    probs_t : Tensor
        [B, K] float32; the distribution that takes over, of the chosen action.
    support : Tensor
        [K] float32; returns that the atoms stand for, evenly spaced, ascending.
    largest : float
        The largest return that rewards allow (`DQNConfig.largest_return`), or infinity.

    Returns
    -------
    Tensor
        [B, K] float32; rows sum to 1 if those of `probs_t` do.
    """
    moved = reward_t.unsqueeze(1) + discount_t.unsqueeze(1) * support  # [B, K]
    moved = torch.maximum(torch.minimum(moved, support[-1]), support[0])
    if not math.isinf(largest):
        moved = moved.clamp(-largest, largest)
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


def quantile_huber(theta_tm1: Tensor, target: Tensor, taus: Tensor, kappa: float) -> Tensor:
    """Return the quantile Huber loss of each row: the mean over the targets, summed over the quantiles.

    A pair's loss is |tau_i - 1{u < 0}| huber(u) / kappa with u = target_j - theta_i (Dabney et al. 2018a, eq. 10 and
    algorithm 1; 2018b, eq. 3). With a mean over the quantiles instead, a quantile's gradient is N times smaller, and
    Adam's eps holds the steps back: Breakout was at 1.5 after 0.5M frames, with the sum at 17.6 (docs/experiments.md).

    Parameters
    ----------
    theta_tm1 : Tensor
        [B, N] float32; the quantiles of the action taken.
    target : Tensor
        [B, M] float32; samples of the return. No gradient reaches them.
    taus : Tensor
        [N] or [B, N] float32 in [0, 1]; what share of the returns lies below each quantile.
    kappa : float
        Error at which the Huber loss turns from quadratic to linear.

    Returns
    -------
    Tensor
        [B] float32.
    """
    u = target.detach().unsqueeze(1) - theta_tm1.unsqueeze(2)  # [B, N, M]
    share = (taus.unsqueeze(-1) - (u.detach() < 0).to(u.dtype)).abs()
    return (share * huber(u, kappa)).mean(dim=2).sum(dim=1) / kappa


MUNCHAUSEN_ALPHA = 0.9
"""Share of the log-policy that is added to the reward; all three are those of Vieillard et al. 2020."""
MUNCHAUSEN_TEMPERATURE = 0.03
"""Temperature tau of the policy softmax(q / tau)."""
MUNCHAUSEN_CLIP = -1.0
"""The least that is added for the log-policy, before it is multiplied by the share: l0."""


def scaled_log_policy(q: Tensor, temperature: float = MUNCHAUSEN_TEMPERATURE) -> Tensor:
    """Return tau log softmax(q / tau) as [B, A], of q [B, A] float32; -inf where q is."""
    return temperature * (q / temperature).log_softmax(dim=1)


def munchausen_bonus(q_tm1: Tensor, action_tm1: Tensor, mask_tm1: Tensor | None = None) -> Tensor:
    """Return alpha [tau log pi(a|s)] clipped to [l0, 0], as [B]: what is added to the reward.

    pi is softmax(q / tau) (Vieillard et al. 2020, eq. 2, clipped as in their experiments).

    Parameters
    ----------
    q_tm1 : Tensor
        [B, A] float32; values at the state where the action was taken.
    action_tm1 : Tensor
        [B] int64; the action taken.
    mask_tm1 : Tensor, optional
        [B, A] bool; the actions that were allowed there, over which pi is.
    """
    return MUNCHAUSEN_ALPHA * taken(scaled_log_policy(allowed(q_tm1, mask_tm1)), action_tm1).clamp(MUNCHAUSEN_CLIP, 0)


def soft_policy(q_t: Tensor, mask_t: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return pi = softmax(q / tau) as [B, A], and its entropy times tau as [B].

    The soft value of a state is the mean of q over pi, and that entropy (Vieillard et al. 2020, eq. 1). With a mask
    [B, A] bool both are over the actions that it allows: pi is 0 elsewhere.
    """
    log_policy = scaled_log_policy(allowed(q_t, mask_t))
    policy = (log_policy / MUNCHAUSEN_TEMPERATURE).exp()
    if mask_t is not None:
        log_policy = log_policy.masked_fill(~mask_t, 0.0)  # 0 log 0 counts as 0
    return policy, -(policy * log_policy).sum(dim=1)


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """Return mean(weight * losses), a scalar; the importance weights [B] multiply the unreduced losses [B].

    Source: Schaul et al. 2016, section 3.4.
    """
    return (weight * losses).mean()
