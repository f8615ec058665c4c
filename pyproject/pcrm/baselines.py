"""Losses of other papers, for comparison. `pcrm.functional` exports them too.

They accept the same shapes, dtypes, devices and reductions as `pcrm_loss` and `pcrm_dpo_loss`.
Torch computes them under every backend, so second derivatives work too. In a graph of
`torch.compile` the values of margins, gaps, offsets and lengths are not checked. Each loss is a
function of a pair's margin and one extra number per pair; docs/baselines.md lists them in a table.
Plain Bradley-Terry is `pcrm_loss` with delta = inf. Plain DPO is `pcrm_dpo_loss` with delta = inf,
and `cdpo_loss` adds label smoothing.
Centering (arXiv 2312.09244) is the option `center_rewards_coefficient` of `pcrm_loss`.
`pcrm.trace` does not record these losses.
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
    """Ranking loss of Llama 2's reward models, with a required margin for each pair.

        L = -log sigmoid(chosen - rejected - margin)

    A larger margin pushes the scores further apart. Llama 2 gives clearer preferences larger
    margins, up to 1 in one variant and up to 3 in another. With margin 0 this is the Bradley-Terry loss.
    Source: arXiv 2307.09288, equation 2. TRL reads the margin from the column `margin`.

    Args:
        chosen_rewards: Scores of the chosen responses, shape (B,), float32, float64,
            bfloat16 or float16.
        rejected_rewards: Scores of the rejected responses, with the same shape, dtype and device.
        margin: The margin of each pair, shape (B,), or one number for all pairs, in units of the
            score. Any finite number; no gradient flows through it.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_loss`.

    Raises:
        TypeError, ValueError: As in `pcrm_loss`. Also if a margin is not finite (checked on the
            CPU only; the message names the index) or requires a gradient.
    """
    return _of_scores(chosen_rewards, rejected_rewards, "margin", margin, 0.0, reduction)


def l2_reward_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, *, coefficient: float, reduction: Reduction = "mean"
) -> Tensor:
    """Bradley-Terry loss with an L2 penalty on the scores.

        L = -log sigmoid(chosen - rejected) + coefficient * (chosen**2 + rejected**2)

    The penalty limits the scale of the scores, and with it the margins. It comes from no
    particular paper: it is weight decay on the outputs. Unlike centering, it also penalizes the
    margin, since
    `chosen**2 + rejected**2 = ((chosen + rejected)**2 + (chosen - rejected)**2) / 2`.

    Args:
        chosen_rewards, rejected_rewards: Scores, shape (B,), as in `pcrm_loss`.
        coefficient: Weight of the penalty, finite and at least 0.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_loss`.

    Raises:
        TypeError, ValueError: As in `pcrm_loss`. Also if `coefficient` is negative or not finite.
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
    """Identity preference optimization (IPO) loss, which pulls the margin toward a fixed target.

        h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        L = (h - 1 / (2 beta))**2

    TRL's `loss_type: ipo` uses log probabilities per token (the sum divided by the response's
    length), which TRL says the paper's experiments used. This function accepts either kind, but
    beta has a different scale for each. Source: arXiv 2310.12036, equation 17, where beta is
    called tau.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        beta: The paper's tau, finite and greater than 0. A smaller beta means a larger target.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_dpo_loss`.

    Raises:
        TypeError, ValueError: As in `pcrm_dpo_loss`.
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
    """Reward-aware preference optimization (RPO) loss, which pulls the implicit margin toward a gold margin.

    With z as in `pcrm_dpo_loss`, x = eta * gold_gap, q = sigmoid(z) and p = sigmoid(x):

        backward_kl  L = p log(p / q) + (1 - p) log((1 - p) / (1 - q))
        forward_kl   L = q log(q / p) + (1 - q) log((1 - q) / (1 - p))
        squared      L = (z - x)**2

    Source: Nemotron-4 340B, arXiv 2406.11704, section 3.3.2, which uses the first distance. The
    names and the other two distances come from NeMo-Aligner's `rpo_bwd_kl`, `rpo_fwd_kl` and
    `rpo_sq`. This is not the RPO of arXiv 2405.16436, which adds a supervised term.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        gold_gap: How much higher a reward model or a rater scores the chosen response than the
            rejected one, shape (B,), or one number for all pairs. Finite, of any sign; no
            gradient flows through it.
        beta: Scale from log-probability ratios to rewards, finite and greater than 0.
        eta: Scale from the gold gap to the unit of z, finite and greater than 0.
        distance: "backward_kl", "forward_kl" or "squared".
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_dpo_loss`. Where z is close to x, rounding can make a divergence slightly
        negative, by about the rounding error of a number near 1.

    Raises:
        TypeError, ValueError: As in `pcrm_dpo_loss`. Also if `distance` is unknown, `eta` is not
            finite and greater than 0, or a gold gap is not finite (checked on the CPU only; the
            message names the index) or requires a gradient.
    """
    logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    distances = torch_reference.BASELINES[1:]
    if distance not in distances:
        raise ValueError(f"distance must be one of {', '.join(distances)}, got {distance!r}")
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
    """DPO loss with an offset (ODPO), which pushes the implicit rewards apart by more than the offset.

        L = -log sigmoid(z - offset)

    with z as in `pcrm_dpo_loss`. With offset 0 this is the DPO loss. Source: arXiv 2402.10571,
    where the offset is alpha times the logarithm of the difference between the two responses' scores.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        offset: The offset of each pair, shape (B,), or one number for all pairs, in units of z.
            Any finite number; no gradient flows through it.
        beta: Scale from log-probability ratios to rewards, finite and greater than 0.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_dpo_loss`.

    Raises:
        TypeError, ValueError: As in `pcrm_dpo_loss`. Also if an offset is not finite (checked on
            the CPU only; the message names the index) or requires a gradient.
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
    """DPO loss with a length penalty (R-DPO), which discourages longer responses.

        L = -log sigmoid(z + alpha * (chosen_length - rejected_length))

    with z as in `pcrm_dpo_loss`. The learned reward is the DPO reward minus alpha times the
    length. With alpha 0 this is the DPO loss. Source: arXiv 2403.19159.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        chosen_lengths: Lengths of the chosen responses in tokens, shape (B,), integers or
            floating point, at least 0.
        rejected_lengths: The same for the rejected responses.
        alpha: Penalty per token, in units of z, finite and at least 0.
        beta: Scale from log-probability ratios to rewards, finite and greater than 0.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_dpo_loss`. The returned rewards do not include the length term.

    Raises:
        TypeError, ValueError: As in `pcrm_dpo_loss`. Also if the lengths have the wrong shape or
            device, a length is negative (checked on the CPU only; the message names the index),
            or `alpha` is negative or not finite.
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
    """Evaluate a formula. If torch cannot compute with a tensor subclass, the error names the argument."""
    if torch.compiler.is_compiling():
        return formula(*tensors, *settings)
    with named_if_wrapped(**dict(zip(names, tensors, strict=True))):
        return formula(*tensors, *settings)


def _of_pairs(name: str, value: Any, scores: Tensor, first: str, least: float = -math.inf) -> Tensor:
    """Return one number per pair as a contiguous tensor of shape (B,) in the compute dtype.

    Checks the values on the CPU, except while a graph is compiled.
    """
    dtype = COMPUTE[scores.dtype]
    wanted = "finite" if least == -math.inf else f"finite and at least {least:g}"
    if not isinstance(value, Tensor):
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a torch.Tensor or a float, got {type(value).__name__}")
        value = _check.number(name, value)
        if not (abs(value) <= torch.finfo(dtype).max and value >= least):
            raise ValueError(f"{name} must be {wanted}, got {value:g}")
        return scores.new_full(scores.shape, value, dtype=dtype)
    check_dense(name, value)
    if value.dtype is torch.bool or value.is_complex():
        raise TypeError(f"{name} must be floating point or integer, got dtype {value.dtype}")
    if value.requires_grad:
        raise ValueError(f"{name} must not require a gradient, because none flows through it: pass {name}.detach()")
    if value.dim() == 0:
        value = value.to(scores.device).expand(scores.shape)
    if value.shape != scores.shape:
        raise ValueError(
            f"{name} must have shape {tuple(scores.shape)} or be one number, got shape {tuple(value.shape)}"
        )
    if value.device != scores.device:
        raise ValueError(f"{name} must be on the device of {first}, {scores.device}, got {value.device}")
    numbers = value.to(dtype).contiguous()
    if numbers.is_cpu and not torch.compiler.is_compiling():
        check_where(name, value, numbers.isfinite() & (numbers >= least), wanted)
    return numbers
