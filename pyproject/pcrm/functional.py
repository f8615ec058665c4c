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
from numbers import Real
from typing import Any

import torch

from . import _check, backends
from ._engine import torch_reference
from ._engine.forms import (
    COMPUTE,
    DTYPES,
    LOGPS,
    NAMES,
    NONE,
    REWARDS,
    SCALARS,
    Form,
    Reduction,
    Tensor,
    check_alike,
    check_all_finite,
    check_options,
    check_where,
    differentiated,
    evaluate,
    fake,
    in_memory,
    on_device,
    operator,
    places,
    register,
)
from ._engine.tensors import check_dense, is_readable
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
    label_smoothing, code = check_options(label_smoothing, reduction)
    center_rewards_coefficient = _check.at_least_0("center_rewards_coefficient", center_rewards_coefficient)
    delta = _delta_of(delta, chosen_rewards)
    arguments = (delta, label_smoothing, center_rewards_coefficient, code, check_finite)
    return evaluate(_PAIR, chosen_rewards, rejected_rewards, arguments, origin)


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
    for name, ids in (("chosen_ids", chosen_ids), ("rejected_ids", rejected_ids)):
        if not isinstance(ids, Tensor):
            raise TypeError(f"{name} is a {type(ids).__name__}, must be a torch.Tensor")
        check_dense(name, ids)
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} has dtype {ids.dtype}, must be int64 or int32")
        if ids.shape != chosen_rewards.shape:
            raise ValueError(f"{name} has shape {tuple(ids.shape)}, chosen_rewards has {tuple(chosen_rewards.shape)}")
        if ids.device != chosen_rewards.device:
            raise ValueError(f"{name} is on {ids.device}, chosen_rewards is on {chosen_rewards.device}")
    if chosen_mask is not None or rejected_mask is not None:
        chosen_ids = _padded("chosen", chosen_ids, chosen_mask)
        rejected_ids = _padded("rejected", rejected_ids, rejected_mask)
        pad_token_id = _NO_TOKEN
    elif pad_token_id is None:
        raise TypeError("pad_token_id is missing: pass it, or chosen_mask and rejected_mask")
    pad_token_id = _check.integer("pad_token_id", pad_token_id)
    _, code = check_options(0.0, reduction)
    delta = _delta_of(delta, chosen_rewards)
    arguments = (chosen_ids, rejected_ids, delta, pad_token_id, code)
    return evaluate(_TOKEN, chosen_rewards, rejected_rewards, arguments, origin)


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
    label_smoothing, code = check_options(label_smoothing, reduction)
    beta = _check.positive("beta", beta)
    delta = _delta_of(delta, policy_chosen_logps, LOGPS[0])
    reference_logps = (reference_chosen_logps.detach(), reference_rejected_logps.detach())
    arguments = (*reference_logps, delta, beta, label_smoothing, code)
    return evaluate(_DPO, policy_chosen_logps, policy_rejected_logps, arguments, origin)


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


def _delta_of(delta: Tensor | float, scores: Tensor, name: str = "chosen_rewards") -> Tensor:
    """`delta` as a contiguous tensor of shape (B,) in the dtype that computes."""
    dtype = COMPUTE[scores.dtype]
    if not isinstance(delta, Tensor):
        if not isinstance(delta, Real):
            raise TypeError(f"delta is a {type(delta).__name__}, must be a torch.Tensor or a float")
        delta = _check.number("delta", delta)
        if not delta > 0:
            raise ValueError(f"delta is {delta:g}, must be greater than 0")
        # Half the least subnormal number is rounded to 0.
        if torch.finfo(dtype).max < delta < math.inf or (dtype is torch.float32 and delta <= 2.0**-150):
            raise ValueError(f"delta is {delta:g}, must be {_in_range(dtype)}")
        return scores.new_full(scores.shape[:1], delta, dtype=dtype)
    check_dense("delta", delta)
    if not delta.is_floating_point():
        raise TypeError(f"delta has dtype {delta.dtype}, must be floating point")
    if delta.requires_grad:
        raise ValueError("delta requires a gradient, but none flows through the constraint: pass delta.detach()")
    if delta.dim() == 0:
        delta = delta.to(scores.device).expand(scores.shape[:1])
    if delta.shape != scores.shape[:1]:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, must be {tuple(scores.shape[:1])} or one number")
    if delta.device != scores.device:
        raise ValueError(f"delta is on {delta.device}, {name} is on {scores.device}")
    if delta.dtype is dtype:
        return delta.contiguous()
    rounded = delta.to(dtype)
    # A float64 that is finite may be none in float32, and would mean no constraint at all.
    if delta.dtype is torch.float64 and delta.is_cpu and is_readable(delta):
        check_where("delta", delta, (delta > 0) & (rounded > 0) & (rounded.isinf() == delta.isinf()), _in_range(dtype))
    return rounded.contiguous()


# An id that is in no vocabulary and fits into int32.
_NO_TOKEN = 2**31 - 1


def _padded(name: str, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The ids with `_NO_TOKEN` as their padding, which no token can be mistaken for."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}_mask must be a torch.Tensor, got {type(mask).__name__}: pass both masks or neither")
    check_dense(f"{name}_mask", mask)
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"{name}_mask must be bool or an integer dtype, got {mask.dtype}")
    if mask.shape != ids.shape:
        raise ValueError(f"{name}_mask must have the shape of {name}_ids, {tuple(ids.shape)}, got {tuple(mask.shape)}")
    if mask.device != ids.device:
        raise ValueError(f"{name}_mask must be on the device of {name}_ids, {ids.device}, got {mask.device}")
    mask = mask.bool()
    if ids.is_cpu and is_readable(ids, mask):
        for row in (mask[:, 1:] & ~mask[:, :-1]).any(1).nonzero()[:1, 0].tolist():
            raise ValueError(f"{name}_mask[{row}] must be padded on the right, got a 1 after a 0")
        for row in (mask & (ids >= _NO_TOKEN)).any(1).nonzero()[:1, 0].tolist():
            raise ValueError(f"{name}_ids[{row}] must be less than 2**31 - 1, got {ids[row][mask[row]].max().item()}")
    return torch.where(mask, ids, _NO_TOKEN)


def _in_range(dtype: torch.dtype) -> str:
    return f"greater than 0, and inf or at most {torch.finfo(dtype).max:g}, as numbers of {dtype} are"


# What Go computes. Each returns the loss, its gradients by the chosen and the rejected
# argument, and what else there is.


def _reward_loss(
    gradient: bool,
    chosen: Tensor,
    rejected: Tensor,
    native: Any,
    delta: Tensor,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: int,
    check_finite: bool,
) -> tuple[Tensor, ...]:
    dtype = delta.dtype
    delta = in_memory(delta, dtype)
    chosen, rejected = in_memory(chosen, dtype), in_memory(rejected, dtype)
    n = chosen.numel()
    loss = torch.empty_like(delta if reduction == 2 else SCALARS[dtype])
    by_chosen, by_rejected = (torch.empty_like(delta), torch.empty_like(delta)) if gradient else (NONE, NONE)
    backends.call(
        native.bridge_RewardLoss,
        delta.element_size(),
        n,
        loss.data_ptr(),
        by_chosen.data_ptr(),
        by_rejected.data_ptr(),
        chosen.data_ptr(),
        rejected.data_ptr(),
        delta.data_ptr(),
        label_smoothing,
        center_rewards_coefficient,
        reduction,
        check_finite,
    )
    return loss, by_chosen, by_rejected


def _token_loss(
    gradient: bool,
    chosen: Tensor,
    rejected: Tensor,
    native: Any,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    delta: Tensor,
    pad_token_id: int,
    reduction: int,
) -> tuple[Tensor, ...]:
    dtype = delta.dtype
    delta = in_memory(delta, dtype)
    chosen, rejected = in_memory(chosen, dtype), in_memory(rejected, dtype)
    chosen_ids, rejected_ids = chosen_ids.to(torch.int64).contiguous(), rejected_ids.to(torch.int64).contiguous()
    rows, width = chosen.shape
    loss = torch.empty_like(delta if reduction == 2 else SCALARS[dtype])
    by_chosen, by_rejected = (torch.empty_like(chosen), torch.empty_like(chosen)) if gradient else (NONE, NONE)
    backends.call(
        native.bridge_TokenLoss,
        dtype.itemsize,
        rows,
        width,
        loss.data_ptr(),
        by_chosen.data_ptr(),
        by_rejected.data_ptr(),
        chosen.data_ptr(),
        rejected.data_ptr(),
        chosen_ids.data_ptr(),
        rejected_ids.data_ptr(),
        delta.data_ptr(),
        pad_token_id,
        reduction,
    )
    return loss, by_chosen, by_rejected


def _dpo_loss(
    gradient: bool,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    native: Any,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    delta: Tensor,
    beta: float,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, ...]:
    dtype = delta.dtype
    delta = in_memory(delta, dtype)
    inputs = [in_memory(x, dtype) for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)]
    n = policy_chosen.numel()
    loss = torch.empty_like(delta if reduction == 2 else SCALARS[dtype])
    by_chosen, by_rejected = (torch.empty_like(delta), torch.empty_like(delta)) if gradient else (NONE, NONE)
    chosen_rewards, rejected_rewards = torch.empty_like(delta), torch.empty_like(delta)
    backends.call(
        native.bridge_DPOLoss,
        dtype.itemsize,
        n,
        loss.data_ptr(),
        by_chosen.data_ptr(),
        by_rejected.data_ptr(),
        chosen_rewards.data_ptr(),
        rejected_rewards.data_ptr(),
        *(x.data_ptr() for x in inputs),
        delta.data_ptr(),
        beta,
        label_smoothing,
        reduction,
    )
    return loss, by_chosen, by_rejected, chosen_rewards, rejected_rewards


# What our kernels compute on a CUDA device: the same, as soon as the stream comes to it.
# Nothing waits for the device, so nothing that lies there is looked at.


def _cuda_reward_loss(
    gradient: bool,
    chosen: Tensor,
    rejected: Tensor,
    device: backends.Device,
    delta: Tensor,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: int,
    check_finite: bool,
) -> tuple[Tensor, ...]:
    if check_finite:  # the one look at values that was asked for
        check_all_finite(chosen_rewards=chosen, rejected_rewards=rejected)
    delta, chosen, rejected = in_memory(delta, delta.dtype), chosen.resolve_neg(), rejected.resolve_neg()
    loss, by_chosen, by_rejected, _ = memory = on_device(device, delta, reduction, chosen if gradient else None)
    backends.call(
        device.library.bridge_CUDARewardLoss,
        device.index,
        device.stream(),
        DTYPES[chosen.dtype],
        chosen.numel(),
        *(x.data_ptr() for x in memory),
        *places(chosen, rejected),
        delta.data_ptr(),
        label_smoothing,
        center_rewards_coefficient,
        reduction,
    )
    return loss, by_chosen, by_rejected


def _cuda_token_loss(
    gradient: bool,
    chosen: Tensor,
    rejected: Tensor,
    device: backends.Device,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    delta: Tensor,
    pad_token_id: int,
    reduction: int,
) -> tuple[Tensor, ...]:
    delta, chosen, rejected = in_memory(delta, delta.dtype), chosen.resolve_neg(), rejected.resolve_neg()
    loss, by_chosen, by_rejected, _ = memory = on_device(device, delta, reduction, chosen if gradient else None)
    rows, width = chosen.shape
    ids = [number for x in (chosen_ids, rejected_ids) for number in (x.data_ptr(), x.element_size(), *x.stride())]
    backends.call(
        device.library.bridge_CUDATokenLoss,
        device.index,
        device.stream(),
        DTYPES[chosen.dtype],
        rows,
        width,
        *(x.data_ptr() for x in memory),
        *places(chosen, rejected),
        *ids,
        delta.data_ptr(),
        pad_token_id,
        reduction,
    )
    return loss, by_chosen, by_rejected


def _cuda_dpo_loss(
    gradient: bool,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    device: backends.Device,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    delta: Tensor,
    beta: float,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, ...]:
    delta = in_memory(delta, delta.dtype)
    inputs = [x.resolve_neg() for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)]
    loss, by_chosen, by_rejected, _ = memory = on_device(device, delta, reduction, delta if gradient else None)
    chosen_rewards, rejected_rewards = torch.empty_like(delta), torch.empty_like(delta)
    backends.call(
        device.library.bridge_CUDADPOLoss,
        device.index,
        device.stream(),
        DTYPES[policy_chosen.dtype],
        policy_chosen.numel(),
        *(x.data_ptr() for x in (*memory, chosen_rewards, rejected_rewards)),
        *places(*inputs),
        delta.data_ptr(),
        beta,
        label_smoothing,
        reduction,
    )
    return loss, by_chosen, by_rejected, chosen_rewards, rejected_rewards


# What torch computes: the same arguments, the loss and what else there is.


def _plain_reward(w: Tensor, l: Tensor, delta: Tensor, e: float, c: float, r: int, check: bool) -> tuple[Tensor]:  # noqa: E741
    return (torch_reference.reward_loss(w, l, delta, e, c, NAMES[r]),)


def _plain_token(w: Tensor, l: Tensor, ids_w: Tensor, ids_l: Tensor, delta: Tensor, pad: int, r: int) -> tuple[Tensor]:  # noqa: E741
    return (torch_reference.token_loss(w, l, ids_w, ids_l, delta, pad, NAMES[r]),)


def _plain_dpo(
    w: Tensor,
    l: Tensor,  # noqa: E741
    ref_w: Tensor,
    ref_l: Tensor,
    delta: Tensor,
    beta: float,
    e: float,
    r: int,
) -> tuple[Tensor, ...]:
    return torch_reference.dpo_loss(w, l, ref_w, ref_l, delta, beta, e, NAMES[r])


_PAIR = Form(
    "pair",
    _reward_loss,
    _cuda_reward_loss,
    _plain_reward,
    REWARDS,
    ("delta", "label_smoothing", "center_rewards_coefficient", "reduction", "check_finite"),
)
_TOKEN = Form(
    "token",
    _token_loss,
    _cuda_token_loss,
    _plain_token,
    REWARDS,
    ("chosen_ids", "rejected_ids", "delta", "pad_token_id", "reduction"),
)
_DPO = Form(
    "dpo",
    _dpo_loss,
    _cuda_dpo_loss,
    _plain_dpo,
    LOGPS[:2],
    (*LOGPS[2:], "delta", "beta", "label_smoothing", "reduction"),
    REWARDS,
)


@operator("pcrm::reward_loss")
def _reward_op(
    chosen: Tensor,
    rejected: Tensor,
    delta: Tensor,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: int,
    check_finite: bool,
    prior: Tensor | None = None,
    constraint: str = "",
    traced: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (delta, label_smoothing, center_rewards_coefficient, reduction, check_finite)
    return differentiated(_PAIR, chosen, rejected, *arguments, prior=prior, constraint=constraint, traced=traced)


@operator("pcrm::token_loss")
def _token_op(
    chosen: Tensor,
    rejected: Tensor,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    delta: Tensor,
    pad_token_id: int,
    reduction: int,
    prior: Tensor | None = None,
    constraint: str = "",
    traced: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (chosen_ids, rejected_ids, delta, pad_token_id, reduction)
    return differentiated(_TOKEN, chosen, rejected, *arguments, prior=prior, constraint=constraint, traced=traced)


@operator("pcrm::dpo_loss")
def _dpo_op(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    delta: Tensor,
    beta: float,
    label_smoothing: float,
    reduction: int,
    prior: Tensor | None = None,
    constraint: str = "",
    traced: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    chosen, rejected = policy_chosen, policy_rejected
    arguments = (reference_chosen, reference_rejected, delta, beta, label_smoothing, reduction)
    return differentiated(_DPO, chosen, rejected, *arguments, prior=prior, constraint=constraint, traced=traced)


@_reward_op.register_fake
def _(chosen, rejected, delta, label_smoothing, center_rewards_coefficient, reduction, *_):
    return fake(chosen, delta, reduction)


@_token_op.register_fake
def _(chosen, rejected, chosen_ids, rejected_ids, delta, pad_token_id, reduction, *_):
    return fake(chosen, delta, reduction)


@_dpo_op.register_fake
def _(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, delta, beta, label_smoothing, reduction, *_
):
    return fake(policy_chosen, delta, reduction, more=2)


for _form, _operator in ((_PAIR, _reward_op), (_TOKEN, _token_op), (_DPO, _dpo_op)):
    register(_form, _operator)


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
