"""The three native losses, each in Go, CUDA and torch, and the code shared by all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch

from . import cuda, go, torch_reference, trace
from .dtypes import COMPUTE, REDUCTIONS
from .tensors import check_all_finite, check_where

Tensor = torch.Tensor

REWARDS = ("chosen_rewards", "rejected_rewards")
LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")


class Loss(NamedTuple):
    """A loss: its three implementations, and the names of their arguments and results.

    `go` and `cuda` take the library or the device, whether the gradient is wanted, both scores
    and the arguments. They return the loss, both gradients and the further results. `torch` takes
    the scores and arguments and returns the loss and the further results.
    """

    name: str
    go: Callable[..., tuple[Tensor, ...]]
    cuda: Callable[..., tuple[Tensor, ...]]
    torch: Callable[..., tuple[Tensor, ...]]
    scores: tuple[str, str]
    arguments: tuple[str, ...]
    results: tuple[str, ...] = ()

    def native(self, served: ModuleType | cuda.Device) -> Callable[..., tuple[Tensor, ...]]:
        """Return the implementation for a result of `choice.native_for_loss`."""
        return self.cuda if type(served) is cuda.Device else self.go


def _torch_pair(w: Tensor, l: Tensor, delta: Tensor, e: float, c: float, r: int, check: bool) -> tuple[Tensor]:  # noqa: E741
    return (torch_reference.reward_loss(w, l, delta, e, c, REDUCTIONS[r]),)


def _torch_token(w: Tensor, l: Tensor, ids_w: Tensor, ids_l: Tensor, delta: Tensor, pad: int, r: int) -> tuple[Tensor]:  # noqa: E741
    return (torch_reference.token_loss(w, l, ids_w, ids_l, delta, pad, REDUCTIONS[r]),)


def _torch_dpo(
    w: Tensor,
    l: Tensor,  # noqa: E741
    ref_w: Tensor,
    ref_l: Tensor,
    delta: Tensor,
    beta: float,
    e: float,
    r: int,
) -> tuple[Tensor, ...]:
    return torch_reference.dpo_loss(w, l, ref_w, ref_l, delta, beta, e, REDUCTIONS[r])


PAIR = Loss(
    "pair",
    go.reward_loss,
    cuda.reward_loss,
    _torch_pair,
    REWARDS,
    ("delta", "label_smoothing", "center_rewards_coefficient", "reduction", "check_finite"),
)
TOKEN = Loss(
    "token",
    go.token_loss,
    cuda.token_loss,
    _torch_token,
    REWARDS,
    ("chosen_ids", "rejected_ids", "delta", "pad_token_id", "reduction"),
)
DPO = Loss(
    "dpo",
    go.dpo_loss,
    cuda.dpo_loss,
    _torch_dpo,
    LOGPS[:2],
    (*LOGPS[2:], "delta", "beta", "label_smoothing", "reduction"),
    REWARDS,
)


def check_values(loss: Loss, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...]) -> None:
    """Check what the Go core checks as it computes. On other devices, reading a value would stall the device."""
    for name, x in zip(loss.arguments, arguments, strict=True):
        if name == "check_finite" and x:
            check_all_finite(chosen_rewards=chosen, rejected_rewards=rejected)
        if name == "delta" and x.is_cpu:
            check_where(name, x, x > 0, "greater than 0")


def torch_with_gradient(loss: Loss, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Return the same results as `loss.go`, computed by `loss.torch`."""
    dtype = COMPUTE[chosen.dtype]
    with autograd_in_operators(), torch.enable_grad():
        leaves = [x.detach().to(dtype).requires_grad_() for x in (chosen, rejected)]
        value, *more = loss.torch(*leaves, *arguments)
        return value.detach(), *torch.autograd.grad(value.sum(), leaves), *more


def autograd_in_operators() -> Any:
    """Return a context in which torch builds a graph. Inside an operator it does not do so by itself,
    because the operator is a single node of the caller's graph.
    """
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCPU)
    keys = keys | torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCUDA)
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return torch._C._ForceDispatchKeyGuard(included, excluded - keys)


def next_step() -> trace.Step | None:
    """Return the step to record this call in, or None."""
    return trace.current.next_step() if trace.current is not None else None


def record(
    step: trace.Step,
    loss: Loss,
    served: ModuleType | cuda.Device | None,
    chosen: Tensor,
    rejected: Tensor,
    arguments: tuple[Any, ...],
    results: Sequence[Any],
    prior: Tensor | None,
    constraint: str,
) -> None:
    """Write a step to the trace. `served` is the library or device that computed it, or None for torch."""
    backend = "torch" if served is None else "cuda" if type(served) is cuda.Device else "go"
    names = (*loss.scores, *loss.arguments, "loss", "grad_chosen", "grad_rejected", *loss.results)
    values = dict(zip(names, (chosen, rejected, *arguments, *results), strict=True))
    tensors = {k: v.long() if k.endswith("_ids") else v for k, v in values.items() if isinstance(v, Tensor)}
    settings = {k: v for k, v in values.items() if k not in tensors and k != "check_finite"}
    settings |= {"backend": backend, "reduction": REDUCTIONS[settings["reduction"]]}
    settings = {"label_smoothing": 0.0, "center_rewards_coefficient": 0.0} | settings
    step.record(loss.name, tensors, settings, prior, constraint)
