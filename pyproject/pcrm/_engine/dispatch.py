"""Compute a batch with Go, a CUDA kernel or torch, with or without torch's graph."""

from __future__ import annotations

from typing import Any

import torch

from . import choice, cuda, trace
from .autograd import LossWithGradient
from .cuda_check import is_right
from .losses import Loss, check_values, next_step, record, torch_with_gradient
from .operators import OPERATORS
from .tensors import is_addressable, is_transformed, named_if_wrapped

Tensor = torch.Tensor


def evaluate(
    loss: Loss, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...], origin: trace.Origin = trace.UNKNOWN
) -> Any:
    """Return the loss, or the loss and its further results, from the backend for these tensors.

    The trace records `origin`, the prior and constraint that delta comes from.
    """
    gradient = torch.is_grad_enabled() and (chosen.requires_grad or rejected.requires_grad)
    if torch.compiler.is_compiling():
        if choice.has_kernels_for(chosen) and is_addressable(chosen, rejected, *arguments):
            # Whether a trace is active is known only when the graph runs.
            value, _, _, *more = OPERATORS[loss.name](chosen, rejected, *arguments, *origin, gradient)
            more = [x.detach() for x in more]
        else:
            value, *more = loss.torch(chosen, rejected, *arguments)
        return (value, *more) if more else value
    if is_transformed() or not is_addressable(chosen, rejected, *arguments):
        check_values(loss, chosen, rejected, arguments)
        names = (*loss.scores, *loss.arguments)
        with named_if_wrapped(**dict(zip(names, (chosen, rejected, *arguments), strict=True))):
            value, *more = loss.torch(chosen, rejected, *arguments)
        return (value, *more) if more else value
    served = choice.native_for_loss(loss.scores[0], chosen)
    if type(served) is cuda.Device and not is_right(loss, served, chosen):
        served = None
    if served is None:
        check_values(loss, chosen, rejected, arguments)
        value, *more = loss.torch(chosen, rejected, *arguments)
        if gradient and (step := next_step()) is not None:
            results = torch_with_gradient(loss, chosen, rejected, arguments)
            record(step, loss, None, chosen, rejected, arguments, (value, *results[1:]), *origin)
    elif gradient:
        return LossWithGradient.apply(chosen, rejected, loss, served, arguments, origin)
    else:
        value, _, _, *more = loss.native(served)(served, False, chosen, rejected, *arguments)
    return (value, *more) if more else value
