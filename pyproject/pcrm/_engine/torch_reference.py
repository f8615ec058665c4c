"""A readable reference implementation of the mathematics, in torch and plain Python.

The Go core is tested against it. It also computes on devices that the core does not support, in
forked children, and where the core could not be built. The documentation of the Go package pcrm
explains the formulas.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import logsigmoid  # softplus is linear above 20, with an error of 3.6e-11 at 21

Tensor = torch.Tensor


def random_delta(u: Tensor, low: float, high: float) -> Tensor:
    """`low + (high - low) * u`."""
    return low + (high - low) * u


def delta(s: Tensor, beta1: float, beta2: float, beta3: float, floor: float | None, cap: float | None) -> Tensor:
    """`beta1 / (s + beta2) + beta3`, clipped to [floor, cap]."""
    curve = beta1 / (s + beta2) + beta3
    return curve if floor is None and cap is None else curve.clamp(floor, cap)


def pair_loss(margin: Tensor, delta: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """`-log sigmoid(m) - log sigmoid(delta - m)`, one value per pair.

    Label smoothing e adds `e * delta` where delta is finite. Where delta is infinite the loss is
    `-(1-e) log sigmoid(m) - e log sigmoid(-m)`.
    """
    constrained = delta < math.inf
    # inf - inf is NaN, so unconstrained pairs get their headroom without the subtraction.
    headroom = torch.where(constrained, delta - margin, math.inf)
    plain = -logsigmoid(margin) - logsigmoid(headroom)
    if label_smoothing == 0:
        return plain
    swapped = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return torch.where(constrained, plain + label_smoothing * delta, swapped)


def win_probability(margin: Tensor, delta: Tensor) -> Tensor:
    """The probability P for which the margin m minimizes `P L(m) + (1 - P) L(-m)`, where L is the pair loss.

    With `A = sigmoid(m) - sigmoid(-m - delta)` and `B = sigmoid(-m) - sigmoid(m - delta)`, P is
    `A / (A + B)` for `|m| < delta / 2`, 0 below and 1 above. Multiplied out, no terms cancel.
    """
    m = margin.abs()
    low = (-m).exp() * -(2 * m - delta).expm1() * (1 + (-delta - m).exp())
    high = -(-delta - 2 * m).expm1() * (1 + (m - delta).exp())
    against = torch.where(2 * m >= delta, 0, low / (low + high))
    return torch.where(margin < 0, against, 1 - against)


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
    return _reduced(loss, reduction)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


def spans(chosen_ids: Tensor, rejected_ids: Tensor, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return the start and end positions of the token form, (B,) each, for rows of ids of shape (B, L).

    A span runs from the first difference to the end of the longer response. Where the two rows are
    equal, it is the last position.
    """
    width = chosen_ids.shape[1]
    position = torch.arange(width, device=chosen_ids.device)

    def first(where: Tensor) -> Tensor:
        return torch.where(where, position, width).amin(1)

    start = first(chosen_ids != rejected_ids)
    end = torch.maximum(
        *(first((ids == pad_token_id) & (position >= start[:, None])) for ids in (chosen_ids, rejected_ids))
    )
    equal = start == width
    return torch.where(equal, width - 1, start), torch.where(equal, width, end)


def token_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    delta: Tensor,
    pad_token_id: int,
    reduction: str,
) -> Tensor:
    """The mean pair loss over the span of each pair, reduced over the pairs."""
    start, end = (x[:, None] for x in spans(chosen_ids, rejected_ids, pad_token_id))
    position = torch.arange(chosen.shape[1], device=chosen.device)
    inside = (position >= start) & (position < end)
    # Zeros outside the span: a NaN there must not reach the gradient.
    margin = torch.where(inside, chosen.to(delta.dtype) - rejected.to(delta.dtype), 0)
    loss = torch.where(inside, pair_loss(margin, delta[:, None]), 0).sum(1) / (end - start).squeeze(1)
    return _reduced(loss, reduction)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    delta: Tensor,
    beta: float,
    label_smoothing: float,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The pair loss of the difference of the implicit rewards, and these rewards, detached."""
    w, l, ref_w, ref_l = (  # noqa: E741
        x.to(delta.dtype) for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    )
    chosen, rejected = beta * (w - ref_w), beta * (l - ref_l)
    loss = pair_loss(beta * ((w - ref_w) - (l - ref_l)), delta, label_smoothing)
    return _reduced(loss, reduction), chosen.detach(), rejected.detach()


BASELINES = ("offset", "squared", "forward_kl", "backward_kl")


def baseline_loss(name: str, margin: Tensor, x: Tensor) -> Tensor:
    """A loss of another paper, one value per pair, as a function of the margin and a number x per pair.

    offset       -log sigmoid(m - x)
    squared      (m - x)**2
    forward_kl   KL(sigmoid(m) || sigmoid(x))
    backward_kl  KL(sigmoid(x) || sigmoid(m))
    """
    if name == "offset":
        return -logsigmoid(margin - x)
    if name == "squared":
        return (margin - x) ** 2
    return coin_divergence(margin, x) if name == "forward_kl" else coin_divergence(x, margin)


def coin_divergence(a: Tensor, b: Tensor) -> Tensor:
    """KL(sigmoid(a) || sigmoid(b)), the divergence of two Bernoulli distributions."""
    largest = torch.finfo(a.dtype).max
    # sigmoid(-inf) logsigmoid(-inf) would be NaN. A clamp alone would give NaN the gradient 0.
    a = torch.where(a.isinf(), a.clamp(-largest, largest), a)
    return a.sigmoid() * (logsigmoid(a) - logsigmoid(b)) + (-a).sigmoid() * (logsigmoid(-a) - logsigmoid(-b))


def offset_loss(chosen: Tensor, rejected: Tensor, offset: Tensor, coefficient: float, reduction: str) -> Tensor:
    """The term "offset" of `chosen - rejected`, plus `c * (chosen**2 + rejected**2)`, reduced."""
    chosen, rejected = chosen.to(offset.dtype), rejected.to(offset.dtype)
    loss = baseline_loss("offset", chosen - rejected, offset)
    if coefficient != 0:
        loss = loss + coefficient * (chosen**2 + rejected**2)
    return _reduced(loss, reduction)


def dpo_baseline_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    offset: Tensor,
    name: str,
    beta: float,
    reward_beta: float,
    offset_scale: float,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The baseline loss `name` of the margin, `beta` times the difference of log ratios, and of
    `offset_scale * offset`; and the implicit rewards, detached.
    """
    w, l, ref_w, ref_l = (  # noqa: E741
        x.to(offset.dtype) for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    )
    loss = baseline_loss(name, beta * ((w - ref_w) - (l - ref_l)), offset_scale * offset)
    return _reduced(loss, reduction), reward_beta * (w - ref_w).detach(), reward_beta * (l - ref_l).detach()


def fit(
    similarities: Tensor, target_alike: float, target_unlike: float, low: float, high: float
) -> tuple[float, float, float, float, float]:
    """Return beta1, beta2, beta3, floor and cap of the fitted curve.

    Its target delta/2 is target_alike at the high quantile of the similarities, target_unlike at the
    low quantile, and midway at the median of the similarities between the two.
    """
    s = similarities.sort().values
    s_low, s_high = _quantile(s, low), _quantile(s, high)
    if s_high - s_low < 1e-6:  # ten times the difference that the rounding of a float32 prior can make
        raise ValueError(
            f"similarities must differ by at least 1e-06 between the quantiles {low:g} and {high:g}, got {s_low:.7g} and "
            f"{s_high:.7g}: this prior does not tell pairs apart. Use another prior or a fixed delta"
        )
    between = s[(s > s_low) & (s < s_high)]
    spread, middle = s_high - s_low, _quantile(between, 0.5) - s_low if len(between) else math.inf
    # The distance of the pole below s_low. At 10 spreads the curve is nearly a straight line.
    pole = 10 * spread
    if 2 * middle < spread:
        pole = min(pole, middle * spread / (spread - 2 * middle))
    beta2 = max(pole - s_low, 1e-6)  # finite at s = 0
    slope = 2 * (target_unlike - target_alike) / spread
    beta1 = slope * (s_low + beta2) * (s_high + beta2)
    return beta1, beta2, 2 * target_alike - slope * (s_low + beta2), 2 * target_alike, 2 * target_unlike


def _quantile(ascending: Tensor, q: float) -> float:
    """Like torch.quantile, which accepts at most 16 million numbers."""
    at = q * (len(ascending) - 1)
    below = int(at)
    return torch.lerp(ascending[below], ascending[min(below + 1, len(ascending) - 1)], at - below).item()


def preference_as_reward(rewards: Tensor, reference_rewards: Tensor) -> Tensor:
    """The mean over references of `sigmoid(r - reference)`, for rewards (B,) and references (K,) or (B, K)."""
    return (rewards.unsqueeze(1) - reference_rewards).sigmoid().mean(1)


def length_bonus(lengths: Tensor, max_length: float, weight: float, cap: float, multiplier: Tensor | float) -> Tensor:
    """`weight * min(multiplier * length / max_length, cap)`."""
    return weight * (multiplier * lengths / max_length).clamp(max=cap)


def length_ratio(chosen: Sequence[int], rejected: Sequence[int], pad_token_id: int | None) -> float:
    """The shorter length divided by the longer one, in tokens from the first difference on; 1 if both are 0.

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


def random_uniform(seed: int, chosen: Sequence[int], rejected: Sequence[int], pad_token_id: int | None) -> float:
    """A number in [0, 1): a hash of the seed and both rows of ids, without their padding.

    Uses the same 64-bit arithmetic as prior.RandomUniform in Go. See there.
    """
    wrap, factor = 2**64 - 1, 0x9E3779B97F4A7C15
    rows = []
    for ids in (chosen, rejected):
        end = len(ids)
        while end and ids[end - 1] == pad_token_id:
            end -= 1
        rows.append(ids[:end])
    h = seed
    for value in (*map(len, rows), *rows[0], *rows[1]):
        h = (h ^ (value & wrap)) * factor & wrap
        h ^= h >> 32
    return ((h * factor & wrap) >> 40) / 2**24


def cosine(a: Tensor, b: Tensor, angular: bool) -> Tensor:
    """The cosine of each pair of rows, clamped to [0, 1], or (pi - acos) / pi of it."""
    a, b = a.double(), b.double()
    c = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(0, 1)
    return (math.pi - c.acos()) / math.pi if angular else c


def lexical(chosen: str, rejected: str, words: bool) -> float:
    """The cosine of the counts of all n-grams of two texts: 3 to 5 characters, or 1 to 2 words.

    Texts are compared in lower case, with runs of white space as one space, and one space at each end.
    """
    counts = [Counter(_grams(text, words)) for text in (chosen, rejected)]
    if counts[0] == counts[1]:
        return 1.0
    dot = sum(n * counts[1][gram] for gram, n in counts[0].items())
    squares = [sum(n * n for n in c.values()) for c in counts]
    return dot / math.sqrt(squares[0] * squares[1]) if dot else 0.0


def _grams(text: str, words: bool) -> Iterator[object]:
    # c.lower()[0]: one code point per code point, like Go's unicode.ToLower. Go also treats the
    # separators 1c to 1f as letters.
    tokens = re.split(r"[^\S\x1c-\x1f]+", "".join(c.lower()[0] for c in text))
    tokens = [t for t in tokens if t]
    units = tokens if words else " ".join(["", *tokens, ""]) if tokens else ""
    for n in (1, 2) if words else (3, 4, 5):
        for i in range(len(units) - n + 1):
            yield tuple(units[i : i + n]) if words else units[i : i + n]
