"""The losses as operators of torch.library, for graphs of torch.compile.

torch.compile cannot trace an autograd.Function that calls native code. A registered operator, with a
fake version for the shapes, stays in the graph. The backend is chosen when the operator runs, because
a compiled graph may run in a forked child.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

import torch

from . import choice, cuda
from .autograd import NO_SECOND_DERIVATIVE, scaled
from .cuda_check import is_right
from .dtypes import NONE
from .losses import DPO, PAIR, TOKEN, Loss, check_values, next_step, record, torch_with_gradient
from .tensors import is_addressable

Tensor = torch.Tensor


def _with_gradient(
    loss: Loss,
    chosen: Tensor,
    rejected: Tensor,
    *arguments: Any,
    prior: Tensor | None = None,
    constraint: str = "",
    traced: bool = False,
) -> Any:
    """Return the loss, both gradients and any further results, from native code or torch.

    `prior` and `constraint` are the origin of delta. `traced` says whether this is a training step,
    which a trace records.
    """
    readable = is_addressable(chosen, rejected, *arguments)
    served = choice.native_for_loss(loss.scores[0], chosen) if readable else None
    if type(served) is cuda.Device and not is_right(loss, served, chosen):
        served = None
    if served is not None:
        results = loss.native(served)(served, True, chosen, rejected, *arguments)
    else:
        check_values(loss, chosen, rejected, arguments)
        results = torch_with_gradient(loss, chosen, rejected, arguments)
    if traced and readable and (step := next_step()) is not None:
        record(step, loss, served, chosen, rejected, arguments, results, prior, constraint)
    return results


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Call `torch.library.custom_op` with resolved annotations. torch 2.4 does not resolve string annotations itself."""

    def of(function: Callable[..., Any]) -> Any:
        function.__annotations__ = get_type_hints(function)
        return torch.library.custom_op(name, function, mutates_args=(), device_types=("cpu", "cuda"))

    return of


def _shapes(chosen: Tensor, delta: Tensor, reduction: int, more: int = 0) -> tuple[Tensor, ...]:
    """Return empty results of an operator, with `more` tensors after the gradients."""
    loss = delta.new_empty(delta.shape if reduction == NONE else ())
    return loss, *(delta.new_empty(chosen.shape) for _ in range(2 + more))


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:3])
    ctx.dtype = inputs[0].dtype
    ctx.others = len(inputs) - 2
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, grad_loss: Tensor | None, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
    if any(g is not None for g in grad_outputs[:2]):
        raise RuntimeError(NO_SECOND_DERIVATIVE)
    nothing = (None,) * ctx.others
    if grad_loss is None:
        return None, None, *nothing
    return *(scaled(g, grad_loss, ctx.dtype) for g in ctx.saved_tensors), *nothing


@_operator("pcrm::reward_loss")
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
    return _with_gradient(PAIR, chosen, rejected, *arguments, prior=prior, constraint=constraint, traced=traced)


@_operator("pcrm::token_loss")
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
    return _with_gradient(TOKEN, chosen, rejected, *arguments, prior=prior, constraint=constraint, traced=traced)


@_operator("pcrm::dpo_loss")
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
    return _with_gradient(DPO, chosen, rejected, *arguments, prior=prior, constraint=constraint, traced=traced)


@_reward_op.register_fake
def _(chosen, rejected, delta, label_smoothing, center_rewards_coefficient, reduction, *_):
    return _shapes(chosen, delta, reduction)


@_token_op.register_fake
def _(chosen, rejected, chosen_ids, rejected_ids, delta, pad_token_id, reduction, *_):
    return _shapes(chosen, delta, reduction)


@_dpo_op.register_fake
def _(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, delta, beta, label_smoothing, reduction, *_
):
    return _shapes(policy_chosen, delta, reduction, more=2)


OPERATORS = {PAIR.name: _reward_op, TOKEN.name: _token_op, DPO.name: _dpo_op}
for _op in OPERATORS.values():
    _op.register_autograd(_scale_gradients, setup_context=_save_gradients)
