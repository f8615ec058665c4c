"""The mathematics once more, readable, in torch and plain Python.

It is what the Go core is tested against, and what computes on devices that the core
does not serve, in forked children and where the core could not be built. The formulas
are explained in the documentation of the Go package pcrm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import logsigmoid  # not softplus, which is linear from 20 on and errs by 3.6e-11 at 21

Tensor = torch.Tensor


def delta(s: Tensor, beta1: float, beta2: float, beta3: float, floor: float | None, cap: float | None) -> Tensor:
    """`beta1 / (s + beta2) + beta3`, clipped to [floor, cap]."""
    curve = beta1 / (s + beta2) + beta3
    return curve if floor is None and cap is None else curve.clamp(floor, cap)


def pair_loss(margin: Tensor, delta: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """`-log sigmoid(m) - log sigmoid(delta - m)`, one value a pair.

    Label smoothing e adds `e * delta`, or is `-(1-e) log sigmoid(m) - e log sigmoid(-m)`
    where delta is infinite.
    """
    constrained = delta < math.inf
    # inf - inf is NaN: the unconstrained pairs get their headroom without the subtraction.
    headroom = torch.where(constrained, delta - margin, math.inf)
    plain = -logsigmoid(margin) - logsigmoid(headroom)
    if label_smoothing == 0:
        return plain
    swapped = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return torch.where(constrained, plain + label_smoothing * delta, swapped)


def reward_loss(
    chosen: Tensor,
    rejected: Tensor,
    delta: Tensor,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: str,
) -> Tensor:
    """The pair loss of `chosen - rejected`, plus `c * (chosen + rejected)**2`, reduced."""
    chosen, rejected = chosen.to(delta.dtype), rejected.to(delta.dtype)
    loss = pair_loss(chosen - rejected, delta, label_smoothing)
    if center_rewards_coefficient != 0:
        loss = loss + center_rewards_coefficient * (chosen + rejected) ** 2
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


def fit(
    similarities: Tensor, target_alike: float, target_unlike: float, low: float, high: float
) -> tuple[float, float, float, float, float]:
    """beta1, beta2, beta3, floor and cap of the curve with delta/2 = target_alike at the
    high quantile of the similarities and target_unlike at the low one.
    """
    s_low, s_high = (torch.quantile(similarities, q).item() for q in (low, high))
    if s_low == s_high:
        raise ValueError(
            f"similarities have the same value, {s_low:g}, at both quantiles {low:g} and {high:g}: "
            "this prior does not tell pairs apart, use a fixed delta"
        )
    beta2 = 0.001  # keeps the curve finite at s = 0; the value of every published setting
    beta1 = 2 * (target_unlike - target_alike) / (1 / (s_low + beta2) - 1 / (s_high + beta2))
    return beta1, beta2, 2 * target_alike - beta1 / (s_high + beta2), 2 * target_alike, 2 * target_unlike


def length_ratio(chosen: Sequence[int], rejected: Sequence[int], pad_token_id: int | None) -> float:
    """Shorter by longer length in tokens, from the first differing token on; 1 if both are empty.

    A response ends at the first pad token at or after the first difference.
    """
    start = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if start is None:
        start = min(len(chosen), len(rejected))

    def length(ids: Sequence[int]) -> int:
        end = next((i for i in range(start, len(ids)) if ids[i] == pad_token_id), len(ids))
        return end - start

    shorter, longer = sorted((length(chosen), length(rejected)))
    return 1.0 if shorter == longer else shorter / longer
