"""The losses as functions of tensors: pcrm's own, and those of `pcrm.baselines` for comparison.

The forward pass computes both the loss and its gradient; the backward pass only multiplies that
gradient by the incoming one. `pcrm.backends` selects the implementation. All implementations
agree to rounding. On a CUDA device the work is queued on the current stream, and a CUDA graph
can capture it after one call outside the graph, which loads the kernels. The torch
implementation is always used where torch must trace the computation: in torch.func's transforms,
forward-mode differentiation and torch.jit.trace.
"""

from __future__ import annotations

import math

from . import _check
from ._engine.dispatch import evaluate
from ._engine.dtypes import REDUCTION_CODES, REDUCTIONS, Reduction
from ._engine.losses import DPO, LOGPS, PAIR, REWARDS, TOKEN
from ._engine.tensors import NO_TOKEN, Tensor, check_alike, check_ids, delta_per_pair, with_marked_padding
from ._engine.trace import UNKNOWN, Origin
from .baselines import ipo_loss, l2_reward_loss, llama2_margin_loss, odpo_loss, rdpo_loss, rpo_distance_loss


def pcrm_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    delta: Tensor | float,
    *,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    check_finite: bool = False,
    origin: Origin = UNKNOWN,
) -> Tensor:
    """Prior-constrained preference loss of a batch of pairs.

    With the margin m = chosen - rejected,

        L = -log sigmoid(m) - log sigmoid(delta - m)

    The loss is minimal at the target margin m = delta / 2. The minimum is
    2 softplus(-delta / 2), not zero. With delta = +inf this is the Bradley-Terry loss
    -log sigmoid(m). Source: arXiv 2404.00978, equation 4.

    Args:
        chosen_rewards: Scores of the chosen responses, shape (B,), float32, float64,
            bfloat16 or float16.
        rejected_rewards: Scores of the rejected responses, with the same shape, dtype and device.
        delta: The ceiling of each pair's margin, shape (B,), or one number for all pairs. Greater
            than 0, in units of the score; +inf leaves a pair unconstrained. No gradient flows
            through it.
        label_smoothing: Weight e of the pair with its labels swapped, in [0, 0.5). With a finite delta it
            adds the constant e * delta and does not change the gradient. With delta = +inf the
            loss is -(1-e) log sigmoid(m) - e log sigmoid(-m).
        center_rewards_coefficient: Coefficient c, at least 0. Adds c * (chosen + rejected)**2
            to the loss of each pair, like TRL's option of the same name (arXiv 2312.09244).
        reduction: "mean", "sum" or "none".
        check_finite: Raise an error for NaN and infinite scores. Without it they propagate to
            the loss, as in torch.
        origin: The prior and the constraint that `delta` comes from, recorded by `pcrm.trace`.
            `PCRMLoss` and the trainers set it.

    Returns:
        The loss: a scalar, or shape (B,) for "none". Its dtype is that of the scores; for
        bfloat16 and float16 the loss is computed and returned in float32. The gradient always
        has the dtype of the scores.

    Raises:
        TypeError: The scores or delta are not floating-point tensors, or the dtypes of the
            scores differ.
        ValueError: The scores are not of shape (B,), are empty, or differ in shape or device;
            `delta` is not positive or requires a gradient; an option is out of range; or, with
            `check_finite`, a score is not finite. On the CPU the message names the index of
            the first offending delta. On other devices the values of delta are not checked,
            to avoid a synchronization.
    """
    check_alike(REWARDS, (chosen_rewards, rejected_rewards), 1)
    label_smoothing, code = _check.label_smoothing(label_smoothing), _reduction_code(reduction)
    center_rewards_coefficient = _check.at_least_0("center_rewards_coefficient", center_rewards_coefficient)
    delta = delta_per_pair(delta, chosen_rewards, REWARDS[0])
    arguments = (delta, label_smoothing, center_rewards_coefficient, code, check_finite)
    return evaluate(PAIR, chosen_rewards, rejected_rewards, arguments, origin)


def pcrm_token_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    delta: Tensor | float,
    *,
    pad_token_id: int | None = None,
    chosen_mask: Tensor | None = None,
    rejected_mask: Tensor | None = None,
    reduction: Reduction = "mean",
    origin: Origin = UNKNOWN,
) -> Tensor:
    """Prior-constrained loss over the scores of all tokens, as in the authors' released code.

    Applies the pair loss of `pcrm_loss` at each position of a span, takes the mean over the
    span, then reduces over the pairs. The span begins at the first position where the two rows
    of token ids differ and ends with the longer response. Two equal rows are compared at their
    last position. Positions where the shorter response is padded count too, as in the released code.

    The attention masks say where each response ends. Without masks, a response ends at the
    first `pad_token_id` at or after the first difference. That is wrong if the pad token
    also occurs inside responses, for example if it equals the end-of-turn token. Pass the
    masks in that case.

    Args:
        chosen_rewards: A score for each position of the chosen rows, shape (B, L), with the
            dtypes of `pcrm_loss`.
        rejected_rewards: The same for the rejected rows.
        chosen_ids: Token ids of prompt and chosen response, shape (B, L), int64 or int32, padded
            on the right.
        rejected_ids: The same for the rejected rows.
        delta: The constraint of each pair, shape (B,), or one number for all pairs, as in
            `pcrm_loss`.
        pad_token_id: The id of the pad token, at least 0. Required without masks, ignored with them.
        chosen_mask: 1 or True at the tokens of the chosen row, 0 or False at its padding, shape
            (B, L): a tokenizer's `attention_mask`. Pass both masks or neither. With masks, the
            ids must be less than 2**31 - 1.
        rejected_mask: The same for the rejected rows.
        reduction: Reduction over the pairs: "mean", "sum" or "none".
        origin: As in `pcrm_loss`.

    Returns:
        The loss: a scalar, or shape (B,) for "none". The gradient is 0 outside the spans.

    Raises:
        TypeError, ValueError: As in `pcrm_loss`. Also if ids or masks have the wrong shape,
            device or dtype; if `pad_token_id` is negative; if both it and the masks are missing;
            or if a mask is not padded on the right (checked on the CPU only, to avoid a
            synchronization).
    """
    check_alike(REWARDS, (chosen_rewards, rejected_rewards), 2)
    check_ids("chosen_ids", chosen_ids, chosen_rewards)
    check_ids("rejected_ids", rejected_ids, chosen_rewards)
    if chosen_mask is not None or rejected_mask is not None:
        chosen_ids = with_marked_padding("chosen", chosen_ids, chosen_mask)
        rejected_ids = with_marked_padding("rejected", rejected_ids, rejected_mask)
        pad_token_id = NO_TOKEN
    elif pad_token_id is None:
        raise TypeError("pad_token_id is missing: pass it, or chosen_mask and rejected_mask")
    pad_token_id = _check.integer("pad_token_id", pad_token_id)
    code = _reduction_code(reduction)
    delta = delta_per_pair(delta, chosen_rewards, REWARDS[0])
    arguments = (chosen_ids, rejected_ids, delta, pad_token_id, code)
    return evaluate(TOKEN, chosen_rewards, rejected_rewards, arguments, origin)


def pcrm_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    delta: Tensor | float,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    origin: Origin = UNKNOWN,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prior-constrained DPO loss.

    The loss of `pcrm_loss`, with the margin of the implicit rewards in place of m:

        z = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
        L = -log sigmoid(z) - log sigmoid(delta - z)

    With delta = +inf this is the DPO loss. Source: arXiv 2404.00978, section 3.3, which extends
    arXiv 2305.18290.

    Args:
        policy_chosen_logps: Log probability (natural logarithm) of each chosen response under
            the policy, shape (B,), with the dtypes of `pcrm_loss`.
        policy_rejected_logps: The same for the rejected responses.
        reference_chosen_logps: The same under the reference model. No gradient flows through it.
        reference_rejected_logps: The same for the rejected responses.
        delta: The constraint of each pair, shape (B,), or one number for all pairs, in units of
            z. As in `pcrm_loss`.
        beta: Scale from log-probability ratios to rewards, finite and greater than 0.
        label_smoothing: As in `pcrm_loss`.
        reduction: "mean", "sum" or "none".
        origin: As in `pcrm_loss`.

    Returns:
        A tuple (loss, chosen_rewards, rejected_rewards). The loss is as in `pcrm_loss`. The
        implicit rewards `beta * (policy - reference)` have shape (B,) and the dtype of the loss,
        and are detached.

    Raises:
        TypeError, ValueError: As in `pcrm_loss`. Also if `beta` is not finite and greater than 0.
    """
    check_alike(
        LOGPS, (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps), 1
    )
    label_smoothing, code = _check.label_smoothing(label_smoothing), _reduction_code(reduction)
    beta = _check.positive("beta", beta)
    delta = delta_per_pair(delta, policy_chosen_logps, LOGPS[0])
    reference_logps = (reference_chosen_logps.detach(), reference_rejected_logps.detach())
    arguments = (*reference_logps, delta, beta, label_smoothing, code)
    return evaluate(DPO, policy_chosen_logps, policy_rejected_logps, arguments, origin)


def cdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    label_smoothing: float,
    beta: float = 0.1,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """Conservative DPO loss, for data in which a fraction e of the labels is wrong.

        L = -(1 - e) log sigmoid(z) - e log sigmoid(-z)

    with z as in `pcrm_dpo_loss`. This is `pcrm_dpo_loss` with delta = inf. The loss is minimal
    at sigmoid(z) = 1 - e. Source: E. Mitchell, "A note on DPO with noisy preferences &
    relationship to IPO", 2023, equation 3.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        label_smoothing: e, in [0, 0.5); 0 gives the DPO loss.
        beta: Scale from log-probability ratios to rewards, finite and greater than 0.
        reduction: "mean", "sum" or "none".

    Returns:
        As `pcrm_dpo_loss`.

    Raises:
        TypeError, ValueError: As in `pcrm_dpo_loss`.
    """
    logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return pcrm_dpo_loss(*logps, math.inf, beta=beta, label_smoothing=label_smoothing, reduction=reduction)


def _reduction_code(reduction: str) -> int:
    return REDUCTION_CODES[_check.one_of("reduction", reduction, REDUCTIONS)]


__all__ = [
    "Reduction",
    "cdpo_loss",
    "ipo_loss",
    "l2_reward_loss",
    "llama2_margin_loss",
    "odpo_loss",
    "pcrm_dpo_loss",
    "pcrm_loss",
    "pcrm_token_loss",
    "rdpo_loss",
    "rpo_distance_loss",
]
