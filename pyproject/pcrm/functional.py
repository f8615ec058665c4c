"""The losses as functions of tensors: pcrm's own, and those of `pcrm.baselines` to compare with.

The forward pass computes the loss and its gradient in one go, and the backward pass only
scales that gradient by the one that comes in. Which code computes is `pcrm.backends`'
matter; the results agree to rounding. On a CUDA device all is queued on the current stream,
where a CUDA graph may capture it (after one call outside, which loads the kernels). Where
torch has to look into the computation (torch.func's transforms, forward-mode differentiation,
torch.jit.trace), torch computes.
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
    """The prior-constrained preference loss of a batch of pairs.

    With m = chosen - rejected,

        L = -log sigmoid(m) - log sigmoid(delta - m)

    which is least at the target m = delta / 2, where it is 2 softplus(-delta / 2) and not
    zero. With delta = +inf it is the Bradley-Terry loss -log sigmoid(m). (arXiv 2404.00978,
    equation 4.)

    Args:
        chosen_rewards: Scores of the preferred responses, shape (B,), float32, float64,
            bfloat16 or float16.
        rejected_rewards: Scores of the others, of the same shape, dtype and device.
        delta: The constraint of each pair, shape (B,), or one number for all. Greater than
            0; +inf leaves a pair unconstrained. No gradient flows through it.
        label_smoothing: Weight e of the swapped pair, in [0, 0.5). With a finite delta it
            adds e * delta and moves no gradient; with delta = +inf it gives
            -(1-e) log sigmoid(m) - e log sigmoid(-m).
        center_rewards_coefficient: c of c * (chosen + rejected)**2, added to each pair's
            loss, at least 0 (as TRL's option of that name; arXiv 2312.09244).
        reduction: "mean", "sum" or "none".
        check_finite: Refuse NaN and infinite scores. Without it they propagate to the loss,
            as they do in torch.
        origin: The prior and the constraint that made `delta`, for `pcrm.trace` to record.
            `PCRMLoss` and the trainers pass it.

    Returns:
        The loss: a scalar, or shape (B,) for "none". It has the dtype of the scores, and
        float32 for bfloat16 and float16, in which it is computed. The gradient has the
        scores' own dtype.

    Raises:
        TypeError: scores or delta are no floating-point tensors, or the dtypes differ.
        ValueError: another shape than (B,) or different shapes or devices, an empty batch,
            a delta that is not greater than 0 (a tensor's is named by its index, and looked
            at on the CPU, as elsewhere it would stall the device) or that requires a gradient, an option out
            of its range, with `check_finite` a score that is not finite (named by its index).
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
    """The loss in the form of the authors' released code, over the scores of all tokens.

    The pair loss of `pcrm_loss` at every position from the first at which the two rows of
    token ids differ to the end of the longer response, its mean over these positions, then
    the mean over the pairs. Two equal rows are compared at their last position. Positions
    where the shorter response is padded count, as they do in that code.

    The attention masks say where each response ends. Without masks, a response ends at the
    first `pad_token_id` at or after the first difference. That is wrong where the pad token
    also occurs inside responses, for example where it equals the end-of-turn token: pass the
    masks then.

    Args:
        chosen_rewards: A score for each position, shape (B, L), of the dtypes of `pcrm_loss`.
        rejected_rewards: The same of the other responses.
        chosen_ids: Token ids of prompt and response, shape (B, L), int64 or int32, padded on
            the right.
        rejected_ids: The same of the other responses.
        delta: The constraint of each pair, shape (B,), or one number for all.
        pad_token_id: The id of the padding, at least 0. Required without masks, ignored with them.
        chosen_mask: 1 or True at the tokens of the chosen row, 0 or False at its padding, shape
            (B, L): a tokenizer's `attention_mask`. Pass both masks or neither. With masks, the
            ids must be less than 2**31 - 1.
        rejected_mask: The same of the other responses.
        reduction: Over the pairs: "mean", "sum" or "none".
        origin: As in `pcrm_loss`.

    Returns:
        The loss: a scalar, or shape (B,) for "none". The gradient is 0 outside the spans.

    Raises:
        TypeError, ValueError: as in `pcrm_loss`; ids or masks of another shape, device or dtype;
            a negative pad id; neither a pad id nor masks; a mask that is not padded on the right
            (checked on the CPU only, to avoid a synchronization).
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
    """The prior-constrained DPO loss.

    The loss of `pcrm_loss` with the difference of the implicit rewards in the place of m:

        z = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
        L = -log sigmoid(z) - log sigmoid(delta - z)

    (arXiv 2404.00978, section 3.3, on arXiv 2305.18290.) With delta = +inf it is DPO's own.

    Args:
        policy_chosen_logps: Log probability of each preferred response under the policy,
            shape (B,), of the dtypes of `pcrm_loss`.
        policy_rejected_logps: The same of the other responses.
        reference_chosen_logps: The same under the reference; no gradient flows to it.
        reference_rejected_logps: The same of the other responses.
        delta: The constraint of each pair, shape (B,), or one number for all, in units of z.
        beta: Scales log-probability ratios to rewards, greater than 0.
        label_smoothing: As in `pcrm_loss`.
        reduction: "mean", "sum" or "none".
        origin: As in `pcrm_loss`.

    Returns:
        The loss as in `pcrm_loss`, and the implicit rewards `beta * (policy - reference)` of
        both responses, shape (B,), detached, in the loss's dtype.

    Raises:
        TypeError, ValueError: as in `pcrm_loss`; a beta that is not greater than 0 and finite.
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
    """Conservative DPO: DPO for labels of which a share e is wrong.

        L = -(1 - e) log sigmoid(z) - e log sigmoid(-z)

    with z as in `pcrm_dpo_loss`, of which it is the case delta = inf. It is least where
    sigmoid(z) = 1 - e. (E. Mitchell, "A note on DPO with noisy preferences & relationship to
    IPO", 2023, equation 3.)

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
            Log probabilities of the responses, shape (B,), as in `pcrm_dpo_loss`.
        label_smoothing: e, in [0, 0.5); 0 is DPO.
        beta: Scales log-probability ratios to rewards, greater than 0.
        reduction: "mean", "sum" or "none".

    Returns, raises: as `pcrm_dpo_loss` does.
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
