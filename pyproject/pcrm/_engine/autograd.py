"""Native losses in torch's graph: forward also computes the gradient, and backward only scales it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import cuda, trace
from .losses import Loss, next_step, record
from .tensors import is_readable

Tensor = torch.Tensor

# Whether the graph of the running backward pass will be kept. Before torch 2.5 this is not known,
# so assume that it will.
_graph_is_kept: Callable[[], bool] = getattr(
    torch._C._autograd,  # pyright: ignore[reportAttributeAccessIssue]
    "_get_current_graph_task_keep_graph",
    lambda: True,
)


class LossWithGradient(torch.autograd.Function):
    """A loss and its gradient, computed together. Every microsecond counts here: for eight pairs the
    loss itself takes one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chosen: Tensor,
        rejected: Tensor,
        loss: Loss,
        served: Any,
        arguments: tuple[Any, ...],
        origin: trace.Origin,
    ) -> Any:
        device = served if type(served) is cuda.Device else None
        results = loss.native(served)(served, True, chosen, rejected, *arguments)
        if (step := next_step()) is not None:
            record(step, loss, served, chosen, rejected, arguments, results, *origin)
        value, by_chosen, by_rejected, *more = results
        # Not save_for_backward, which is slower: nothing else holds the gradients, and the scores
        # are needed only for their graph, in _OnceDifferentiable.
        ctx.results, ctx.dtype, ctx.scores = (by_chosen, by_rejected, device), chosen.dtype, (chosen, rejected)
        if not more:
            return value
        ctx.mark_non_differentiable(*more)
        return value, *more

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.results is None:
            raise RuntimeError(
                "a pcrm loss was differentiated a second time, but its gradient was freed: pass retain_graph=True to the "
                "first backward pass"
            )
        chosen, rejected, device = ctx.results
        kept = _graph_is_kept()
        # vmap and is_grads_batched=True send several gradients at once, which cannot be scaled in
        # place, and native code cannot read the values of a wrapper.
        by_torch = (
            torch._C._functorch.is_legacy_batchedtensor(grad_loss)  # pyright: ignore[reportAttributeAccessIssue]
            or not is_readable(grad_loss)
        )
        if not kept and not by_torch:
            ctx.results = None  # the gradients are not needed again: they can be scaled in place and given away
        if by_torch or (kept and device is None):
            chosen, rejected = scaled(chosen, grad_loss, ctx.dtype), scaled(rejected, grad_loss, ctx.dtype)
        elif device is not None:
            chosen, rejected = cuda.scale(device, (chosen, rejected), grad_loss, ctx.dtype, in_place=not kept)
        else:
            if grad_loss.dim() or grad_loss.item() != 1:  # reading a value is free on the CPU
                grad_loss = _aligned(grad_loss, chosen)
                chosen, rejected = chosen.mul_(grad_loss), rejected.mul_(grad_loss)
            if ctx.dtype is not chosen.dtype:
                chosen, rejected = chosen.to(ctx.dtype), rejected.to(ctx.dtype)
        if torch.is_grad_enabled():  # create_graph=True: differentiating again gives a clear error
            chosen, rejected = _OnceDifferentiable.apply(chosen.detach(), rejected.detach(), grad_loss, *ctx.scores)
        return chosen, rejected, None, None, None, None


def scaled(gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    return (gradient * _aligned(grad_loss, gradient)).to(dtype)


def _aligned(grad_loss: Tensor, gradient: Tensor) -> Tensor:
    """Shape the incoming gradient, a scalar or of shape (B,), for gradients of shape (B,) or (B, L)."""
    return grad_loss[:, None] if 0 < grad_loss.dim() < gradient.dim() else grad_loss


NO_SECOND_DERIVATIVE = (
    "the gradient of a pcrm loss was differentiated, but native backends do not support second derivatives: "
    "compute the loss under pcrm.backends.use_backend('torch')"
)


class _OnceDifferentiable(torch.autograd.Function):
    """Pass two gradients through unchanged, and raise an error if they are differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(chosen: Tensor, rejected: Tensor, *depends_on: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return chosen.view_as(chosen), rejected.view_as(rejected)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(NO_SECOND_DERIVATIVE)
