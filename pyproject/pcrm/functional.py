"""The losses as functions of tensors.

The forward pass computes the loss and its gradient in one go, and the backward pass only
scales that gradient by the one that comes in. Which code computes is `pcrm.backends`'
matter; the results agree to rounding.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from . import backends, reference

Tensor = torch.Tensor
Reduction = Literal["mean", "sum", "none"]

_REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}  # the codes of the bridge

# What each dtype of the scores is computed in, and what the loss is returned in.
_COMPUTE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}

_TWICE = (
    "the gradient of pcrm_loss was differentiated, which the Go backend does not support: "
    "use pcrm.backends.use_backend('torch') for second derivatives"
)


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
            a delta that is not greater than 0 (named by its index; looked at on the CPU, as
            elsewhere it would stall the device) or that requires a gradient, an option out
            of its range, with `check_finite` a score that is not finite (named by its index).
    """
    _check_scores(chosen_rewards, rejected_rewards)
    _check_options(label_smoothing, center_rewards_coefficient, reduction)
    delta = _delta_like(delta, chosen_rewards)
    arguments = (chosen_rewards, rejected_rewards, delta, label_smoothing, center_rewards_coefficient)
    if torch.compiler.is_compiling():
        if chosen_rewards.is_cpu and backends.get_backend() != "torch":
            return _reward_loss_op(*arguments, _REDUCTIONS[reduction], check_finite)[0]
        return reference.reward_loss(*arguments, reduction)
    native = backends.native_for("chosen_rewards", chosen_rewards)
    if native is None:
        _check_values(chosen_rewards, rejected_rewards, delta, check_finite)
        return reference.reward_loss(*arguments, reduction)
    code = _REDUCTIONS[reduction]
    if torch.is_grad_enabled() and (chosen_rewards.requires_grad or rejected_rewards.requires_grad):
        return _RewardLoss.apply(native, *arguments, code, check_finite)  # pyright: ignore[reportReturnType]
    return _reward_loss(native, *arguments, code, check_finite, gradient=False)[0]


def _reward_loss(
    native: Any,
    chosen: Tensor,
    rejected: Tensor,
    delta: Tensor,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: int,
    check_finite: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, if wanted, its gradient by both scores, in delta's dtype, from Go."""
    dtype = delta.dtype
    chosen, rejected = chosen.to(dtype).contiguous(), rejected.to(dtype).contiguous()
    n = chosen.numel()
    loss = torch.empty(n if reduction == 2 else (), dtype=dtype)
    gradients = torch.empty((2, n if gradient else 0), dtype=dtype)
    at = gradients.data_ptr() if gradient else 0
    try:
        native.bridge_RewardLoss(
            dtype.itemsize,
            n,
            loss.data_ptr(),
            at,
            at and at + n * dtype.itemsize,
            chosen.data_ptr(),
            rejected.data_ptr(),
            delta.data_ptr(),
            label_smoothing,
            center_rewards_coefficient,
            reduction,
            check_finite,
        )
    except RuntimeError as error:
        raise backends.exception_of(error) from None
    return loss, gradients[0], gradients[1]


class _RewardLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, native: Any, chosen: Tensor, rejected: Tensor, *settings: Any) -> Tensor:
        loss, *gradients = _reward_loss(native, chosen, rejected, *settings, gradient=True)
        ctx.save_for_backward(*gradients)
        ctx.dtype = chosen.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = _scaled(ctx.saved_tensors, grad_loss, ctx.dtype)
        if torch.is_grad_enabled():  # create_graph=True: whoever differentiates again gets a clear error
            gradients = _Twice.apply(*(g.detach().requires_grad_() for g in gradients))
        return (None, *gradients, None, None, None, None, None)  # pyright: ignore[reportGeneralTypeIssues]


def _scaled(gradients: tuple[Tensor, ...], grad_loss: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple((g * grad_loss).to(dtype) for g in gradients)


class _Twice(torch.autograd.Function):
    """The identity, with an error in the place of a derivative."""

    @staticmethod
    def forward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(g.view_as(g) for g in gradients)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(_TWICE)


# torch.compile cannot look into an autograd.Function that calls native code; an operator
# that it knows, with a fake that tells it the shapes, stays in the graph.
@torch.library.custom_op("pcrm::reward_loss", mutates_args=(), device_types="cpu")
def _reward_loss_op(
    chosen: Tensor,
    rejected: Tensor,
    delta: Tensor,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: int,
    check_finite: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    native = backends.native()
    if native is not None:
        loss, by_chosen, by_rejected = _reward_loss(
            native,
            chosen,
            rejected,
            delta,
            label_smoothing,
            center_rewards_coefficient,
            reduction,
            check_finite,
            gradient=True,
        )
        return loss, by_chosen.clone(), by_rejected.clone()  # an operator's outputs may share no memory
    _check_values(chosen, rejected, delta, check_finite)
    name = next(name for name, code in _REDUCTIONS.items() if code == reduction)
    with torch.enable_grad():
        w, l = (x.detach().to(delta.dtype).requires_grad_() for x in (chosen, rejected))  # noqa: E741
        loss = reference.reward_loss(w, l, delta, label_smoothing, center_rewards_coefficient, name)
        by_chosen, by_rejected = torch.autograd.grad(loss.sum(), (w, l))
    return loss.detach(), by_chosen, by_rejected


@_reward_loss_op.register_fake
def _(chosen, rejected, delta, label_smoothing, center_rewards_coefficient, reduction, check_finite):
    loss = delta.new_empty(delta.shape if reduction == 2 else ())
    return loss, torch.empty_like(delta), torch.empty_like(delta)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, grad_loss: Tensor | None, *grad_gradients: Tensor | None) -> tuple[Any, ...]:
    if any(g is not None for g in grad_gradients):
        raise RuntimeError(_TWICE)
    gradients = (None, None) if grad_loss is None else _scaled(ctx.saved_tensors, grad_loss, ctx.dtype)
    return (*gradients, None, None, None, None, None)


_reward_loss_op.register_autograd(_scale_gradients, setup_context=_save_gradients)


def _check_scores(chosen: Tensor, rejected: Tensor) -> None:
    for name, x in (("chosen_rewards", chosen), ("rejected_rewards", rejected)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}, must be a torch.Tensor")
        if x.dtype not in _COMPUTE:
            raise TypeError(f"{name} has dtype {x.dtype}, must be float32, float64, bfloat16 or float16")
        if x.dim() != 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, must be (B,): squeeze the last dimension of (B, 1)")
    if chosen.shape != rejected.shape:
        raise ValueError(
            f"rejected_rewards has shape {tuple(rejected.shape)}, chosen_rewards has {tuple(chosen.shape)}"
        )
    if chosen.dtype != rejected.dtype:
        raise TypeError(f"rejected_rewards has dtype {rejected.dtype}, chosen_rewards has {chosen.dtype}")
    if chosen.device != rejected.device:
        raise ValueError(f"rejected_rewards is on {rejected.device}, chosen_rewards is on {chosen.device}")
    if chosen.numel() == 0:
        raise ValueError("chosen_rewards is empty, must hold at least one score")


def _check_options(label_smoothing: float, center_rewards_coefficient: float, reduction: str) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, must be in [0, 0.5)")
    if not 0 <= center_rewards_coefficient < math.inf:
        raise ValueError(f"center_rewards_coefficient is {center_rewards_coefficient}, must be at least 0 and finite")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, must be one of {', '.join(_REDUCTIONS)}")


def _delta_like(delta: Tensor | float, chosen: Tensor) -> Tensor:
    """delta as a contiguous tensor of shape (B,) in the dtype that computes."""
    dtype = _COMPUTE[chosen.dtype]
    if isinstance(delta, (int, float)):
        return torch.full_like(chosen, delta, dtype=dtype, memory_format=torch.contiguous_format)
    if not isinstance(delta, Tensor):
        raise TypeError(f"delta is a {type(delta).__name__}, must be a torch.Tensor or a float")
    if not delta.is_floating_point():
        raise TypeError(f"delta has dtype {delta.dtype}, must be floating point")
    if delta.requires_grad:
        raise ValueError("delta requires a gradient, but none flows through the constraint: pass delta.detach()")
    if delta.shape not in (chosen.shape, ()):
        raise ValueError(f"delta has shape {tuple(delta.shape)}, must be {tuple(chosen.shape)} or one number")
    if delta.dim() and delta.device != chosen.device:
        raise ValueError(f"delta is on {delta.device}, chosen_rewards is on {chosen.device}")
    return delta.to(device=chosen.device, dtype=dtype).expand(chosen.shape).contiguous()


def _check_values(chosen: Tensor, rejected: Tensor, delta: Tensor, check_finite: bool) -> None:
    """What the Go core checks as it goes. On another device a look at a value stalls it,
    so there only what was asked for is checked.
    """
    checks = [("delta", delta, delta > 0, "greater than 0")] if delta.is_cpu else []
    if check_finite:
        checks += [
            (n, x, x.isfinite(), "finite") for n, x in (("chosen_rewards", chosen), ("rejected_rewards", rejected))
        ]
    for name, x, good, wanted in checks:
        if not good.all():
            index = int((~good).nonzero()[0])
            raise ValueError(f"{name}[{index}] is {x[index].item():g}, must be {wanted}")
