"""The losses as functions of tensors: pcrm's own, and those of `pcrm.rivals` to compare with.

The forward pass computes the loss and its gradient in one go, and the backward pass only
scales that gradient by the one that comes in. Which code computes is `pcrm.backends`'
matter; the results agree to rounding. On a CUDA device all is queued on the current stream,
where a CUDA graph may capture it (after one call outside, which loads the kernels). Where torch has to look into the computation
(torch.func's transforms, forward-mode differentiation, torch.jit.trace), torch computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_type_hints

import torch
from torch.autograd import forward_ad

from . import backends, reference, tracing

Tensor = torch.Tensor
Reduction = Literal["mean", "sum", "none"]

_NAMES = ("mean", "sum", "none")
_REDUCTIONS = {name: code for code, name in enumerate(_NAMES)}  # the codes of the bridge

# What each dtype of the scores is computed in, and what the loss is returned in.
_COMPUTE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def pcrm_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    delta: Tensor | float,
    *,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    check_finite: bool = False,
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
    _check_alike(_REWARDS, (chosen_rewards, rejected_rewards), 1)
    label_smoothing, code = _check_options(label_smoothing, reduction)
    center_rewards_coefficient = _number("center_rewards_coefficient", center_rewards_coefficient)
    if not 0 <= center_rewards_coefficient < math.inf:
        raise ValueError(f"center_rewards_coefficient is {center_rewards_coefficient:g}, must be at least 0 and finite")
    delta = _delta_of(delta, chosen_rewards)
    arguments = (delta, label_smoothing, center_rewards_coefficient, code, check_finite)
    return _evaluate(_PAIR, chosen_rewards, rejected_rewards, arguments)


def pcrm_token_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    delta: Tensor | float,
    *,
    pad_token_id: int,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss in the form of the authors' released code, over the scores of all tokens.

    The pair loss of `pcrm_loss` at every position from the first at which the two rows of
    token ids differ to the end of the longer response, its mean over these positions, then
    the mean over the pairs. A response ends at the first pad token at or after the first
    difference; two equal rows are compared at their last position. Positions where the
    shorter response is padded count, as they do in that code.

    Args:
        chosen_rewards: A score for each position, shape (B, L), of the dtypes of `pcrm_loss`.
        rejected_rewards: The same of the other responses.
        chosen_ids: Token ids of prompt and response, shape (B, L), int64 or int32, padded on
            the right.
        rejected_ids: The same of the other responses.
        delta: The constraint of each pair, shape (B,), or one number for all.
        pad_token_id: What ends a response, at least 0.
        reduction: Over the pairs: "mean", "sum" or "none".

    Returns:
        The loss: a scalar, or shape (B,) for "none". The gradient is 0 outside the spans.

    Raises:
        TypeError, ValueError: as in `pcrm_loss`; ids of another shape, device or dtype; a
            negative pad id.
    """
    _check_alike(_REWARDS, (chosen_rewards, rejected_rewards), 2)
    for name, ids in (("chosen_ids", chosen_ids), ("rejected_ids", rejected_ids)):
        if not isinstance(ids, Tensor):
            raise TypeError(f"{name} is a {type(ids).__name__}, must be a torch.Tensor")
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} has dtype {ids.dtype}, must be int64 or int32")
        if ids.shape != chosen_rewards.shape:
            raise ValueError(f"{name} has shape {tuple(ids.shape)}, chosen_rewards has {tuple(chosen_rewards.shape)}")
        if ids.device != chosen_rewards.device:
            raise ValueError(f"{name} is on {ids.device}, chosen_rewards is on {chosen_rewards.device}")
    pad_token_id = check_pad(pad_token_id)
    _, code = _check_options(0.0, reduction)
    delta = _delta_of(delta, chosen_rewards)
    return _evaluate(_TOKEN, chosen_rewards, rejected_rewards, (chosen_ids, rejected_ids, delta, pad_token_id, code))


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

    Returns:
        The loss as in `pcrm_loss`, and the implicit rewards `beta * (policy - reference)` of
        both responses, shape (B,), detached, in the loss's dtype.

    Raises:
        TypeError, ValueError: as in `pcrm_loss`; a beta that is not greater than 0 and finite.
    """
    _check_alike(
        _LOGPS, (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps), 1
    )
    label_smoothing, code = _check_options(label_smoothing, reduction)
    beta = _number("beta", beta)
    if not 0 < beta < math.inf:
        raise ValueError(f"beta is {beta:g}, must be greater than 0 and finite")
    delta = _delta_of(delta, policy_chosen_logps, _LOGPS[0])
    reference_logps = (reference_chosen_logps.detach(), reference_rejected_logps.detach())
    arguments = (*reference_logps, delta, beta, label_smoothing, code)
    return _evaluate(_DPO, policy_chosen_logps, policy_rejected_logps, arguments)


# What Go computes. Each returns the loss, its gradients by the chosen and the rejected
# argument, and what else there is. Without `gradient` these two are empty tensors, whose
# address is 0: Go's word for none. empty_like is the fastest way to memory from Python.

_NONE = torch.empty(0)
_SCALARS = {dtype: torch.empty((), dtype=dtype) for dtype in (torch.float32, torch.float64)}


def _in_memory(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as Go reads it: of that type, contiguous, and with no minus left to be done."""
    if x.dtype is not dtype:
        x = x.to(dtype)
    return (x.resolve_neg() if x.is_neg() else x).contiguous()


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
    delta = _in_memory(delta, dtype)
    chosen, rejected = _in_memory(chosen, dtype), _in_memory(rejected, dtype)
    n = chosen.numel()
    loss = torch.empty_like(delta if reduction == 2 else _SCALARS[dtype])
    by_chosen, by_rejected = (torch.empty_like(delta), torch.empty_like(delta)) if gradient else (_NONE, _NONE)
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
    delta = _in_memory(delta, dtype)
    chosen, rejected = _in_memory(chosen, dtype), _in_memory(rejected, dtype)
    chosen_ids, rejected_ids = chosen_ids.to(torch.int64).contiguous(), rejected_ids.to(torch.int64).contiguous()
    rows, width = chosen.shape
    loss = torch.empty_like(delta if reduction == 2 else _SCALARS[dtype])
    by_chosen, by_rejected = (torch.empty_like(chosen), torch.empty_like(chosen)) if gradient else (_NONE, _NONE)
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
    delta = _in_memory(delta, dtype)
    inputs = [_in_memory(x, dtype) for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)]
    n = policy_chosen.numel()
    loss = torch.empty_like(delta if reduction == 2 else _SCALARS[dtype])
    by_chosen, by_rejected = (torch.empty_like(delta), torch.empty_like(delta)) if gradient else (_NONE, _NONE)
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

_DTYPES = {dtype: code for code, dtype in enumerate(_COMPUTE)}  # the codes of Go's package gpu


def _on_device(device: backends.Device, delta: Tensor, reduction: int, like: Tensor | None) -> tuple[Tensor, ...]:
    """Memory for the loss, both gradients (in the shape of `like`, or none) and the partial
    sums, from torch's allocator, which keeps it until the stream is done with it.
    """
    loss = torch.empty_like(delta) if reduction == 2 else delta.new_empty(())
    shape = None if like is None else like.shape
    gradients = (_NONE, _NONE) if shape is None else (delta.new_empty(shape), delta.new_empty(shape))
    partials = _NONE if reduction == 2 else delta.new_empty(device.partials, dtype=torch.float64)
    return loss, *gradients, partials


def _places(*tensors: Tensor) -> list[int]:
    """Address and strides of each."""
    return [number for x in tensors for number in (x.data_ptr(), *x.stride())]


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
        _check_finite(chosen_rewards=chosen, rejected_rewards=rejected)
    delta, chosen, rejected = _in_memory(delta, delta.dtype), chosen.resolve_neg(), rejected.resolve_neg()
    loss, by_chosen, by_rejected, _ = memory = _on_device(device, delta, reduction, chosen if gradient else None)
    backends.call(
        device.library.bridge_CUDARewardLoss,
        device.index,
        device.stream(),
        _DTYPES[chosen.dtype],
        chosen.numel(),
        *(x.data_ptr() for x in memory),
        *_places(chosen, rejected),
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
    delta, chosen, rejected = _in_memory(delta, delta.dtype), chosen.resolve_neg(), rejected.resolve_neg()
    loss, by_chosen, by_rejected, _ = memory = _on_device(device, delta, reduction, chosen if gradient else None)
    rows, width = chosen.shape
    ids = [number for x in (chosen_ids, rejected_ids) for number in (x.data_ptr(), x.element_size(), *x.stride())]
    backends.call(
        device.library.bridge_CUDATokenLoss,
        device.index,
        device.stream(),
        _DTYPES[chosen.dtype],
        rows,
        width,
        *(x.data_ptr() for x in memory),
        *_places(chosen, rejected),
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
    delta = _in_memory(delta, delta.dtype)
    inputs = [x.resolve_neg() for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)]
    loss, by_chosen, by_rejected, _ = memory = _on_device(device, delta, reduction, delta if gradient else None)
    chosen_rewards, rejected_rewards = torch.empty_like(delta), torch.empty_like(delta)
    backends.call(
        device.library.bridge_CUDADPOLoss,
        device.index,
        device.stream(),
        _DTYPES[policy_chosen.dtype],
        policy_chosen.numel(),
        *(x.data_ptr() for x in (*memory, chosen_rewards, rejected_rewards)),
        *_places(*inputs),
        delta.data_ptr(),
        beta,
        label_smoothing,
        reduction,
    )
    return loss, by_chosen, by_rejected, chosen_rewards, rejected_rewards


def _cuda_scaled(
    device: backends.Device, gradients: tuple[Tensor, Tensor], grad_loss: Tensor, dtype: torch.dtype, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Both gradients times the one that comes in, in the type of the scores."""
    chosen, rejected = gradients
    if in_place and dtype is chosen.dtype:
        by_chosen, by_rejected = gradients
    else:
        by_chosen, by_rejected = torch.empty_like(chosen, dtype=dtype), torch.empty_like(rejected, dtype=dtype)
    grad_loss = grad_loss.resolve_neg()
    backends.call(
        device.library.bridge_CUDAScale,
        device.index,
        device.stream(),
        _DTYPES[dtype],
        chosen.numel(),
        chosen.shape[1] if chosen.dim() == 2 else 1,
        by_chosen.data_ptr(),
        by_rejected.data_ptr(),
        chosen.data_ptr(),
        rejected.data_ptr(),
        grad_loss.data_ptr(),
        grad_loss.stride(0) if grad_loss.dim() else 0,
    )
    return by_chosen, by_rejected


# What torch computes: the same arguments, the loss and what else there is.


def _plain_reward(w: Tensor, l: Tensor, delta: Tensor, e: float, c: float, r: int, check: bool) -> tuple[Tensor]:  # noqa: E741
    return (reference.reward_loss(w, l, delta, e, c, _NAMES[r]),)


def _plain_token(w: Tensor, l: Tensor, ids_w: Tensor, ids_l: Tensor, delta: Tensor, pad: int, r: int) -> tuple[Tensor]:  # noqa: E741
    return (reference.token_loss(w, l, ids_w, ids_l, delta, pad, _NAMES[r]),)


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
    return reference.dpo_loss(w, l, ref_w, ref_l, delta, beta, e, _NAMES[r])


class _Form(NamedTuple):
    """A form of the loss: its three implementations, and the names of what they take and give."""

    name: str
    go: Callable[..., tuple[Tensor, ...]]
    cuda: Callable[..., tuple[Tensor, ...]]
    plain: Callable[..., tuple[Tensor, ...]]
    scores: tuple[str, str]
    arguments: tuple[str, ...]
    more: tuple[str, ...] = ()
    traced: bool = True


_REWARDS = ("chosen_rewards", "rejected_rewards")
_LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
_PAIR = _Form(
    "pair",
    _reward_loss,
    _cuda_reward_loss,
    _plain_reward,
    _REWARDS,
    ("delta", "label_smoothing", "center_rewards_coefficient", "reduction", "check_finite"),
)
_TOKEN = _Form(
    "token",
    _token_loss,
    _cuda_token_loss,
    _plain_token,
    _REWARDS,
    ("chosen_ids", "rejected_ids", "delta", "pad_token_id", "reduction"),
)
_DPO = _Form(
    "dpo",
    _dpo_loss,
    _cuda_dpo_loss,
    _plain_dpo,
    _LOGPS[:2],
    (*_LOGPS[2:], "delta", "beta", "label_smoothing", "reduction"),
    _REWARDS,
)


def _evaluate(form: _Form, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...]) -> Any:
    """The loss, or the loss and what comes with it, by the backend that serves these tensors."""
    gradient = torch.is_grad_enabled() and (chosen.requires_grad or rejected.requires_grad)
    if torch.compiler.is_compiling():
        if backends.has_kernels_for(chosen):
            loss, _, _, *more = _OPERATORS[form.name](chosen, rejected, *arguments)
            more = [x.detach() for x in more]
        else:
            loss, *more = form.plain(chosen, rejected, *arguments)
        return (loss, *more) if more else loss
    transformed = _transformed()
    native = None if transformed else backends.loss_for(form.scores[0], chosen)
    if native is None:
        if not transformed:
            _check_values(form, chosen, rejected, arguments)
        loss, *more = form.plain(chosen, rejected, *arguments)
        if gradient and not transformed and _is_wanted(form):
            results = _plain_with_gradient(form, chosen, rejected, arguments)
            _record(form, "torch", chosen, rejected, arguments, (loss, *results[1:]))
    elif gradient:
        return _Loss.apply(chosen, rejected, form, native, arguments)
    else:
        compute = form.cuda if type(native) is backends.Device else form.go
        loss, _, _, *more = compute(False, chosen, rejected, native, *arguments)
    return (loss, *more) if more else loss


def _plain_with_gradient(
    form: _Form, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """What `form.go` returns, from `form.plain`."""
    dtype = _COMPUTE[chosen.dtype]
    with _autograd_in_operators(), torch.enable_grad():
        leaves = [x.detach().to(dtype).requires_grad_() for x in (chosen, rejected)]
        loss, *more = form.plain(*leaves, *arguments)
        return loss.detach(), *torch.autograd.grad(loss.sum(), leaves), *more


def _autograd_in_operators() -> Any:
    """A context in which torch makes a graph, as it does not inside of an operator, which it
    takes for one node of the caller's.
    """
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCPU)
    keys = keys | torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCUDA)
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return torch._C._ForceDispatchKeyGuard(included, excluded - keys)


def _transformed() -> bool:
    """Whether torch is looking into the computation, which it cannot if Go does it: under
    torch.func's transforms, forward-mode differentiation or torch.jit.trace.
    """
    return (
        torch._C._are_functorch_transforms_active()  # pyright: ignore[reportAttributeAccessIssue]
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
    )


def _name_of(native: Any) -> str:
    """Of the backend that `backends.loss_for` chose."""
    return "torch" if native is None else "cuda" if type(native) is backends.Device else "go"


def _is_wanted(form: _Form) -> bool:
    """Whether the trace wants this call."""
    return tracing.current is not None and form.traced and tracing.current.wants()


def _record(
    form: _Form, backend: str, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...], results: Sequence[Any]
) -> None:
    """Write a step to the trace."""
    names = (*form.scores, *form.arguments, "loss", "grad_chosen", "grad_rejected", *form.more)
    values = dict(zip(names, (chosen, rejected, *arguments, *results), strict=True))
    tensors = {k: v.long() if k.endswith("_ids") else v for k, v in values.items() if isinstance(v, Tensor)}
    settings = {k: v for k, v in values.items() if k not in tensors and k != "check_finite"}
    settings |= {"backend": backend, "reduction": _NAMES[settings["reduction"]]}
    settings = {"label_smoothing": 0.0, "center_rewards_coefficient": 0.0} | settings
    assert tracing.current is not None
    tracing.current.record(form.name, tensors, settings)


# Whether the graph of the backward pass that is running will be kept. Not known before
# torch 2.5: then it may be.
_graph_is_kept: Callable[[], bool] = getattr(
    torch._C._autograd,  # pyright: ignore[reportAttributeAccessIssue]
    "_get_current_graph_task_keep_graph",
    lambda: True,
)


class _Loss(torch.autograd.Function):
    """A loss whose gradient was computed with it. Every microsecond here is felt: at eight
    pairs the loss itself takes one.
    """

    @staticmethod
    def forward(ctx: Any, chosen: Tensor, rejected: Tensor, form: _Form, native: Any, arguments: tuple) -> Any:
        device = native if type(native) is backends.Device else None
        compute = form.go if device is None else form.cuda
        results = compute(True, chosen, rejected, native, *arguments)
        if _is_wanted(form):
            _record(form, _name_of(native), chosen, rejected, arguments, results)
        loss, by_chosen, by_rejected, *more = results
        # Not save_for_backward, which is slower: nobody else holds the gradients, and of the
        # scores only what they depend on is wanted, for _Twice.
        ctx.results, ctx.dtype, ctx.scores = (by_chosen, by_rejected, device), chosen.dtype, (chosen, rejected)
        if not more:
            return loss
        ctx.mark_non_differentiable(*more)
        return loss, *more

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.results is None:
            raise RuntimeError(
                "a pcrm loss was differentiated a second time: its gradient is gone, as the first time was "
                "without retain_graph=True"
            )
        chosen, rejected, device = ctx.results
        kept = _graph_is_kept()
        # is_grads_batched=True sends several gradients at once, which do not fit in place.
        batched = torch._C._functorch.is_legacy_batchedtensor(grad_loss)  # pyright: ignore[reportAttributeAccessIssue]
        if not kept and not batched:
            ctx.results = None  # nobody comes after us: they can be given away, and scaled in place
        if batched or (kept and device is None):
            chosen, rejected = _scaled(chosen, grad_loss, ctx.dtype), _scaled(rejected, grad_loss, ctx.dtype)
        elif device is not None:
            chosen, rejected = _cuda_scaled(device, (chosen, rejected), grad_loss, ctx.dtype, in_place=not kept)
        else:
            if grad_loss.dim() or grad_loss.item() != 1:  # on the CPU a look costs nothing
                grad_loss = _aligned(grad_loss, chosen)
                chosen, rejected = chosen.mul_(grad_loss), rejected.mul_(grad_loss)
            if ctx.dtype is not chosen.dtype:
                chosen, rejected = chosen.to(ctx.dtype), rejected.to(ctx.dtype)
        if torch.is_grad_enabled():  # create_graph=True: whoever differentiates again gets a clear error
            chosen, rejected = _Twice.apply(chosen.detach(), rejected.detach(), grad_loss, *ctx.scores)
        return chosen, rejected, None, None, None


def _scaled(gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    return (gradient * _aligned(grad_loss, gradient)).to(dtype)


def _aligned(grad_loss: Tensor, gradient: Tensor) -> Tensor:
    """The incoming gradient, a scalar or of shape (B,), for gradients of shape (B,) or (B, L)."""
    return grad_loss[:, None] if 0 < grad_loss.dim() < gradient.dim() else grad_loss


_TWICE = (
    "the gradient of a pcrm loss was differentiated, which native backends do not support: "
    "use pcrm.backends.use_backend('torch') for second derivatives"
)


class _Twice(torch.autograd.Function):
    """Two gradients as they are, with an error in the place of their derivative by what
    they depend on.
    """

    @staticmethod
    def forward(ctx: Any, chosen: Tensor, rejected: Tensor, *depends_on: Tensor) -> tuple[Tensor, ...]:
        return chosen.view_as(chosen), rejected.view_as(rejected)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(_TWICE)


# torch.compile cannot look into an autograd.Function that calls native code; an operator
# that it knows, with a fake that tells it the shapes, stays in the graph. Which backend
# computes is decided when the operator runs: a compiled graph may run in a forked child.


def _differentiated(form: _Form, chosen: Tensor, rejected: Tensor, *arguments: Any) -> Any:
    """Loss, both gradients and what else there is, by native code or by torch."""
    native = backends.loss_for(form.scores[0], chosen)
    if native is not None:
        compute = form.cuda if type(native) is backends.Device else form.go
        results = compute(True, chosen, rejected, native, *arguments)
    else:
        _check_values(form, chosen, rejected, arguments)
        results = _plain_with_gradient(form, chosen, rejected, arguments)
    if _is_wanted(form):
        _record(form, _name_of(native), chosen, rejected, arguments, results)
    return results


def _custom_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`torch.library.custom_op`. torch 2.4 takes annotations as they stand, which is as strings here."""

    def register(function: Callable[..., Any]) -> Any:
        function.__annotations__ = get_type_hints(function)
        return torch.library.custom_op(name, function, mutates_args=(), device_types=("cpu", "cuda"))

    return register


@_custom_op("pcrm::reward_loss")
def _reward_op(
    chosen: Tensor,
    rejected: Tensor,
    delta: Tensor,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: int,
    check_finite: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    options = (label_smoothing, center_rewards_coefficient, reduction, check_finite)
    return _differentiated(_PAIR, chosen, rejected, delta, *options)


@_custom_op("pcrm::token_loss")
def _token_op(
    chosen: Tensor,
    rejected: Tensor,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    delta: Tensor,
    pad_token_id: int,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _differentiated(_TOKEN, chosen, rejected, chosen_ids, rejected_ids, delta, pad_token_id, reduction)


@_custom_op("pcrm::dpo_loss")
def _dpo_op(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    delta: Tensor,
    beta: float,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (reference_chosen, reference_rejected, delta, beta, label_smoothing, reduction)
    return _differentiated(_DPO, policy_chosen, policy_rejected, *arguments)


_OPERATORS: dict[str, Any] = {"pair": _reward_op, "token": _token_op, "dpo": _dpo_op}


def _fake(chosen: Tensor, delta: Tensor, reduction: int, more: int = 0) -> tuple[Tensor, ...]:
    loss = delta.new_empty(delta.shape if reduction == 2 else ())
    return loss, *(delta.new_empty(chosen.shape) for _ in range(2 + more))


@_reward_op.register_fake
def _(chosen, rejected, delta, label_smoothing, center_rewards_coefficient, reduction, check_finite):
    return _fake(chosen, delta, reduction)


@_token_op.register_fake
def _(chosen, rejected, chosen_ids, rejected_ids, delta, pad_token_id, reduction):
    return _fake(chosen, delta, reduction)


@_dpo_op.register_fake
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, delta, beta, label_smoothing, reduction):
    return _fake(policy_chosen, delta, reduction, more=2)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:3])
    ctx.dtype = inputs[0].dtype
    ctx.others = len(inputs) - 2
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, grad_loss: Tensor | None, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
    if any(g is not None for g in grad_outputs[:2]):
        raise RuntimeError(_TWICE)
    nothing = (None,) * ctx.others
    if grad_loss is None:
        return None, None, *nothing
    return *(_scaled(g, grad_loss, ctx.dtype) for g in ctx.saved_tensors), *nothing


for _operator in _OPERATORS.values():
    _operator.register_autograd(_scale_gradients, setup_context=_save_gradients)


def _check_alike(names: tuple[str, ...], tensors: tuple[Tensor, ...], dimensions: int) -> None:
    """Refuse scores or log probabilities that are not tensors of one shape, dtype and device."""
    first = tensors[0]
    if _are_alike(tensors, dimensions):
        return
    for name, x in zip(names, tensors, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}, must be a torch.Tensor")
        if x.dtype not in _COMPUTE:
            raise TypeError(f"{name} has dtype {x.dtype}, must be float32, float64, bfloat16 or float16")
        if x.dim() != dimensions:
            wanted = "(B,): squeeze the last dimension of (B, 1)" if dimensions == 1 else "(B, L)"
            raise ValueError(f"{name} has shape {tuple(x.shape)}, must be {wanted}")
        if x.shape != first.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, {names[0]} has {tuple(first.shape)}")
        if x.dtype != first.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}, {names[0]} has {first.dtype}")
        if x.device != first.device:
            raise ValueError(f"{name} is on {x.device}, {names[0]} is on {first.device}")
    raise ValueError(f"{names[0]} is empty, must hold at least one number")


def _are_alike(tensors: tuple[Tensor, ...], dimensions: int) -> bool:
    """Whether all is well, in as few looks as will do; if not, `_check_alike` says why."""
    first = tensors[0]
    if not isinstance(first, Tensor) or first.dtype not in _COMPUTE or first.dim() != dimensions or first.numel() == 0:
        return False
    shape, dtype, device = first.shape, first.dtype, first.device
    for x in tensors[1:]:
        if not isinstance(x, Tensor) or x.dtype is not dtype or x.shape != shape or x.device != device:
            return False
    return True


def _check_options(label_smoothing: float, reduction: str) -> tuple[float, int]:
    """The smoothing as a float, and the bridge's code of the reduction."""
    label_smoothing = _number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing:g}, must be in [0, 0.5)")
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, must be one of {', '.join(_REDUCTIONS)}")
    return label_smoothing, _REDUCTIONS[reduction]


def _number(name: str, value: Any) -> float:
    if isinstance(value, float):
        return value
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, must be a number")
    return float(value)


def check_pad(pad_token_id: Any) -> int:
    """The id of the padding as an int that is no error."""
    if not isinstance(pad_token_id, Integral):
        raise TypeError(f"pad_token_id is {pad_token_id!r}, must be an integer")
    pad = int(pad_token_id)
    if not 0 <= pad < 2**63:
        raise ValueError(f"pad_token_id is {pad}, must be at least 0 and less than 2**63")
    return pad


def _delta_of(delta: Tensor | float, scores: Tensor, name: str = "chosen_rewards") -> Tensor:
    """`delta` as a contiguous tensor of shape (B,) in the dtype that computes."""
    if tracing.current is not None:
        tracing.current.confirm(delta)
    dtype = _COMPUTE[scores.dtype]
    if not isinstance(delta, Tensor):
        if not isinstance(delta, Real):
            raise TypeError(f"delta is a {type(delta).__name__}, must be a torch.Tensor or a float")
        delta = float(delta)
        if not delta > 0:
            raise ValueError(f"delta is {delta:g}, must be greater than 0")
        if torch.finfo(dtype).max < delta < math.inf:
            raise ValueError(
                f"delta is {delta:g}, must be inf or at most {torch.finfo(dtype).max:g}, the greatest {dtype}"
            )
        return torch.full(scores.shape[:1], delta, dtype=dtype, device=scores.device)
    if not delta.is_floating_point():
        raise TypeError(f"delta has dtype {delta.dtype}, must be floating point")
    if delta.requires_grad:
        raise ValueError("delta requires a gradient, but none flows through the constraint: pass delta.detach()")
    if delta.dim() == 0:
        return delta.to(device=scores.device, dtype=dtype).expand(scores.shape[:1]).contiguous()
    if delta.shape != scores.shape[:1]:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, must be {tuple(scores.shape[:1])} or one number")
    if delta.device != scores.device:
        raise ValueError(f"delta is on {delta.device}, {name} is on {scores.device}")
    return (delta if delta.dtype is dtype else delta.to(dtype)).contiguous()


def _check_values(form: _Form, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...]) -> None:
    """What the Go core checks as it goes. On another device a look at a value would stall it."""
    for name, x in zip(form.arguments, arguments, strict=True):
        if name == "check_finite" and x:
            _check_finite(chosen_rewards=chosen, rejected_rewards=rejected)
        if name == "delta" and x.is_cpu:
            _check_where(name, x, x > 0, "greater than 0")
        if name == "offset" and x.is_cpu:
            _check_where(name, x, x.isfinite(), "finite")


def _check_finite(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        _check_where(name, x, x.isfinite(), "finite")


def _check_where(name: str, x: Tensor, good: Tensor, wanted: str) -> None:
    if not good.all():
        index = int((~good).nonzero()[0])
        raise ValueError(f"{name}[{index}] is {x[index].item():g}, must be {wanted}")


# At the end, as they are built of what is above.
from .rivals import (  # noqa: E402
    cdpo_loss,
    ipo_loss,
    l2_reward_loss,
    llama2_margin_loss,
    odpo_loss,
    rdpo_loss,
    rpo_distance_loss,
)

__all__ = [
    "Reduction",
    "cdpo_loss",
    "check_pad",
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
