"""Losses of other papers, to compare with: `pcrm.functional` has them beside its own.

They take the shapes, dtypes, devices and reductions of `pcrm_loss` and `pcrm_dpo_loss`, so
that an experiment changes one word. Torch computes them whatever backend is chosen, so second
derivatives work too. In a graph of `torch.compile` the values of margins, gaps, offsets and
lengths are not checked. Each loss is a function of a pair's margin and of one number
of the pair's own; docs/baselines.md has them in a table. Plain Bradley-Terry is `pcrm_loss`
with delta = inf, plain DPO is `pcrm_dpo_loss` with it (`cdpo_loss` with label smoothing), and
centering (arXiv 2312.09244) is the option `center_rewards_coefficient` of the former.
`pcrm.trace` does not record them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import torch

from . import _check
from ._engine import torch_reference
from ._engine.dtypes import COMPUTE, REDUCTIONS, Reduction
from ._engine.losses import LOGPS, REWARDS
from ._engine.tensors import Tensor, check_alike, check_dense, check_where, named_if_wrapped

Distance = Literal["squared", "forward_kl", "backward_kl"]


def llama2_margin_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, margin: Tensor | float, *, reduction: Reduction = "mean"
) -> Tensor:
    """The ranking loss of Llama 2's reward models, with a margin for each pair.

        L = -log sigmoid(chosen - rejected - margin)

    (arXiv 2307.09288, equation 2; TRL's column `margin`.) A larger margin wants the scores
    further apart: Llama 2 takes up to 1 or 3, by how clear the preference is. With margin 0
    it is the Bradley-Terry loss.

    Args:
        chosen_rewards: Scores of the preferred responses, shape (B,), float32, float64,
            bfloat16 or float16.
        rejected_rewards: Scores of the others, of the same shape, dtype and device.
        margin: Of each pair, shape (B,), or one number for all. Any finite numbers; no
            gradient flows through them.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_loss` does.

    Raises:
        TypeError, ValueError: as in `pcrm_loss`; a margin that is not finite (named by its
            index, and looked at on the CPU) or that requires a gradient.
    """
    return _of_scores(chosen_rewards, rejected_rewards, "margin", margin, 0.0, reduction)


def l2_reward_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, *, coefficient: float, reduction: Reduction = "mean"
) -> Tensor:
    """The Bradley-Terry loss with a penalty on the size of the scores.

        L = -log sigmoid(chosen - rejected) + coefficient * (chosen**2 + rejected**2)

    It keeps the scale of the scores, and with it all margins, from growing. (No paper of its
    own: weight decay on the outputs. What it does beyond centering is the margin's part, as
    `chosen**2 + rejected**2 = ((chosen + rejected)**2 + (chosen - rejected)**2) / 2`.)

    Args:
        chosen_rewards, rejected_rewards: Scores, shape (B,), as in `pcrm_loss`.
        coefficient: Of the penalty, at least 0.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_loss` does.

    Raises:
        TypeError, ValueError: as in `pcrm_loss`; a coefficient that is negative or infinite.
    """
    coefficient = _check.at_least_0("coefficient", coefficient)
    return _of_scores(chosen_rewards, rejected_rewards, "margin", 0.0, coefficient, reduction)


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """Identity preference optimization, which aims at a margin instead of without end.

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        L = (h - 1 / (2 beta))**2

    (arXiv 2310.12036, equation 17, where beta is called tau.) TRL gives it log probabilities
    per token, sums divided by the response's length, which its `loss_type: ipo` says are
    those of the paper's experiments; it makes no difference here, but beta has another scale
    for them.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        beta: The paper's tau, greater than 0: the smaller, the further apart.
        reduction: "mean", "sum" or "none".

    Returns, raises: as `pcrm_dpo_loss` does.
    """
    logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    beta = _check.positive("beta", beta)
    return _of_logps(logps, "1 / (2 beta)", 1 / (2 * beta), "squared", 1.0, beta, 1.0, reduction)


def rpo_distance_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    gold_gap: Tensor | float,
    *,
    beta: float = 0.1,
    eta: float = 1.0,
    distance: Distance = "backward_kl",
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """Reward-aware preference optimization: the implicit rewards' margin is to be the gold one.

    With z as in `pcrm_dpo_loss`, x = eta * gold_gap, q = sigmoid(z) and p = sigmoid(x):

        backward_kl  L = p log(p / q) + (1 - p) log((1 - p) / (1 - q))
        forward_kl   L = q log(q / p) + (1 - q) log((1 - q) / (1 - p))
        squared      L = (z - x)**2

    (Nemotron-4 340B, arXiv 2406.11704, section 3.3.2, has the first; the names and the others
    are NeMo-Aligner's `rpo_bwd_kl`, `rpo_fwd_kl` and `rpo_sq`. Not the RPO of arXiv 2405.16436,
    which adds a supervised term.)

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        gold_gap: By how much a reward model or a rater scores the chosen response higher,
            shape (B,), or one number for all. Finite; no gradient flows through it.
        beta: Scales log-probability ratios to rewards, greater than 0.
        eta: Scales the gold gap to the same unit, greater than 0.
        distance: "backward_kl", "forward_kl" or "squared".
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_dpo_loss` does. Where z is near x a divergence is rounded as numbers up to 1
        are: it may be as much under 0.

    Raises:
        TypeError, ValueError: as in `pcrm_dpo_loss`; another distance; an eta that is not
            greater than 0 and finite; a gold gap that is not finite (named by its index, and
            looked at on the CPU) or that requires a gradient.
    """
    logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    distances = torch_reference.BASELINES[1:]
    if distance not in distances:
        raise ValueError(f"distance is {distance!r}, must be one of {', '.join(distances)}")
    beta, eta = _check.positive("beta", beta), _check.positive("eta", eta)
    return _of_logps(logps, "gold_gap", gold_gap, distance, beta, beta, eta, reduction)


def odpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    offset: Tensor | float,
    *,
    beta: float = 0.1,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """DPO with an offset: the implicit rewards have to differ by more than that.

        L = -log sigmoid(z - offset)

    with z as in `pcrm_dpo_loss`. (arXiv 2402.10571, whose offset is alpha times
    the logarithm of the difference of two scores.) With offset 0 it is DPO.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        offset: Of each pair, shape (B,), or one number for all, in units of z. Any finite
            numbers; no gradient flows through them.
        beta: Scales log-probability ratios to rewards, greater than 0.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_dpo_loss` does.

    Raises:
        TypeError, ValueError: as in `pcrm_dpo_loss`; an offset that is not finite (named by
            its index, and looked at on the CPU) or that requires a gradient.
    """
    logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    beta = _check.positive("beta", beta)
    return _of_logps(logps, "offset", offset, "offset", beta, beta, 1.0, reduction)


def rdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    alpha: float,
    beta: float = 0.1,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """DPO with a term for length, which a policy then has less of a reason to increase.

        L = -log sigmoid(z + alpha * (chosen_length - rejected_length))

    with z as in `pcrm_dpo_loss`: the reward is to be what DPO would learn less alpha times the
    length. (arXiv 2403.19159.) With alpha 0 it is DPO.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        chosen_lengths: Lengths of the preferred responses in tokens, shape (B,), integers or
            floating point, at least 0.
        rejected_lengths: The same of the other responses.
        alpha: The penalty of a token, in units of z, at least 0.
        beta: Scales log-probability ratios to rewards, greater than 0.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_dpo_loss` does. The rewards are without the term for length.

    Raises:
        TypeError, ValueError: as in `pcrm_dpo_loss`; lengths of another shape or device, a
            negative one (named by its index, and looked at on the CPU); an alpha that is
            negative or infinite.
    """
    logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    check_alike(LOGPS, logps, 1)
    alpha, beta = _check.at_least_0("alpha", alpha), _check.positive("beta", beta)
    longer_by = _of_pairs("chosen_lengths", chosen_lengths, logps[0], LOGPS[0], 0.0) - _of_pairs(
        "rejected_lengths", rejected_lengths, logps[0], LOGPS[0], 0.0
    )
    return _of_logps(logps, "the difference of lengths", longer_by, "offset", beta, beta, -alpha, reduction)


def _of_scores(
    chosen: Tensor, rejected: Tensor, name: str, offset: Any, coefficient: float, reduction: Reduction
) -> Tensor:
    check_alike(REWARDS, (chosen, rejected), 1)
    _check.one_of("reduction", reduction, REDUCTIONS)
    offset = _of_pairs(name, offset, chosen, REWARDS[0])
    names, tensors = (*REWARDS, name), (chosen, rejected, offset)
    return _computed(torch_reference.offset_loss, names, tensors, coefficient, reduction)


def _of_logps(
    logps: Sequence[Tensor],
    name: str,
    offset: Any,
    term: str,
    beta: float,
    reward_beta: float,
    offset_scale: float,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor]:
    check_alike(LOGPS, tuple(logps), 1)
    _check.one_of("reduction", reduction, REDUCTIONS)
    offset = _of_pairs(name, offset, logps[0], LOGPS[0])
    names, tensors = (*LOGPS, name), (*logps[:2], *(x.detach() for x in logps[2:]), offset)
    settings = (term, beta, reward_beta, offset_scale, reduction)
    return _computed(torch_reference.dpo_baseline_loss, names, tensors, *settings)


def _computed(formula: Callable[..., Any], names: Sequence[str], tensors: Sequence[Tensor], *settings: Any) -> Any:
    """What a formula gives; where torch cannot compute with a wrapper, an error that names it."""
    if torch.compiler.is_compiling():
        return formula(*tensors, *settings)
    with named_if_wrapped(**dict(zip(names, tensors, strict=True))):
        return formula(*tensors, *settings)


def _of_pairs(name: str, value: Any, scores: Tensor, first: str, least: float = -math.inf) -> Tensor:
    """A number a pair as a contiguous tensor of shape (B,) in the dtype that computes.

    Its values are checked on the CPU, except while a graph is compiled.
    """
    dtype = COMPUTE[scores.dtype]
    wanted = "finite" if least == -math.inf else f"finite and at least {least:g}"
    if not isinstance(value, Tensor):
        if not isinstance(value, Real):
            raise TypeError(f"{name} is a {type(value).__name__}, must be a torch.Tensor or a float")
        value = _check.number(name, value)
        if not (abs(value) <= torch.finfo(dtype).max and value >= least):
            raise ValueError(f"{name} is {value:g}, must be {wanted}")
        return scores.new_full(scores.shape, value, dtype=dtype)
    check_dense(name, value)
    if value.dtype is torch.bool or value.is_complex():
        raise TypeError(f"{name} has dtype {value.dtype}, must be floating point or integer")
    if value.requires_grad:
        raise ValueError(f"{name} requires a gradient, but none flows through it: pass {name}.detach()")
    if value.dim() == 0:
        value = value.to(scores.device).expand(scores.shape)
    if value.shape != scores.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, must be {tuple(scores.shape)} or one number")
    if value.device != scores.device:
        raise ValueError(f"{name} is on {value.device}, {first} is on {scores.device}")
    numbers = value.to(dtype).contiguous()
    if numbers.is_cpu and not torch.compiler.is_compiling():
        check_where(name, value, numbers.isfinite() & (numbers >= least), wanted)
    return numbers
