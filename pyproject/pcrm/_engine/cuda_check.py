"""Check a CUDA kernel against torch at its first use on a device.

The kernels are tested on a driver that runs their code on the CPU. That says nothing about a real
device, its driver or its compiler. So before the first loss of each kind and dtype on a device, the
loss and gradients of a small batch are compared with torch's on the same device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from . import choice, cuda
from .dtypes import COMPUTE, MEAN, NONE
from .losses import Loss, autograd_in_operators

Tensor = torch.Tensor

_ROWS = 4100  # more than one block's worth, so that the kernel that adds the sums of blocks runs too
_WIDTH = 40

# The allowed difference from torch, in units of (1 + size of the value) and of the rounding error of
# the compute dtype. The sample's numbers are eighths, so margins and delta - margin are exact in
# every dtype. What remains is the rounding of exponentials and logarithms: the kernels are tested to
# 17 units in float32 and 45 in float64, and torch itself needs a few.
_UNITS = 64


def is_right(loss: Loss, device: cuda.Device, scores: Tensor) -> bool:
    """Whether the kernels of this loss agree with torch on this device. The comparison runs at the
    first loss of each dtype, and its result is kept.

    Raises:
        RuntimeError: The backend is `cuda` and the kernels do not agree, or a CUDA graph is being
            captured, which makes the comparison impossible.
    """
    key = (loss.name, scores.dtype)
    if key in device.checked:
        return True
    kernel = f"the kernel of the {loss.name} loss in {scores.dtype}".replace("torch.", "")
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{kernel} has not been compared with torch on cuda:{device.index}, and it cannot be while a CUDA graph is "
            "captured: call the loss once before the capture"
        )
    try:
        # The caller may be inside an operator, under no_grad or in inference mode.
        with autograd_in_operators(), torch.inference_mode(False), torch.enable_grad():
            found = fault(loss, device, scores.dtype, COMPUTE[scores.dtype], scores.device)
    except torch.cuda.OutOfMemoryError:  # says nothing about the kernel
        raise
    except RuntimeError as error:
        found = str(error)
    if found is None:
        device.checked.add(key)
        return True
    choice.distrust(device, f"{kernel} failed its first use on cuda:{device.index}: {found}")
    return False


def fault(
    loss: Loss,
    device: cuda.Device,
    dtype: torch.dtype,
    compute: torch.dtype,
    where: torch.device,
) -> str | None:
    """Return what is wrong with the kernels of a loss on a device, or None. Waits for the device.

    Args:
        loss: The loss.
        device, where: The same device, for the kernels and for torch.
        dtype: The dtype of the scores.
        compute: The compute dtype for these scores.

    Raises:
        RuntimeError: A launch failed, or the device reported an error.
    """
    with _allowed_to_wait(where):
        scores, values = _sample(loss, dtype, compute, where)
        arguments = {name: values[name] for name in loss.arguments}
        return _compare(loss, device, dtype, compute, scores, arguments)


def _compare(
    loss: Loss,
    device: cuda.Device,
    dtype: torch.dtype,
    compute: torch.dtype,
    scores: list[Tensor],
    arguments: dict[str, Any],
) -> str | None:
    leaves = [x.to(compute).requires_grad_() for x in scores]
    pairs, *more = loss.torch(*leaves, *(arguments | {"reduction": NONE}).values())
    by_scores = torch.autograd.grad(pairs.sum(), leaves)
    pairs, rows = pairs.detach().double(), len(pairs)
    unit = _UNITS * torch.finfo(compute).eps
    stored = torch.finfo(dtype)
    for reduction, name, share in ((NONE, "none", 1.0), (MEAN, "mean", 1 / rows)):
        got, *results = loss.cuda(device, True, *scores, *(arguments | {"reduction": reduction}).values())
        want = pairs if reduction == NONE else pairs.mean()
        incoming = torch.linspace(0.5, 2, rows, dtype=compute, device=want.device)
        if reduction == MEAN:
            incoming = incoming[-1]
        found = _difference(f"the loss (reduction {name})", got, want, unit * (1 + want.abs()))
        # Copies: the scaling may write to its input.
        backward = cuda.scale(device, (results[0].clone(), results[1].clone()), incoming, dtype, in_place=False)
        for which, gradient, passed, exact in zip(loss.scores, results, backward, by_scores, strict=False):
            exact = exact.double() * share
            allowed = unit * (share + exact.abs())
            found = found or _difference(f"the gradient by {which} (reduction {name})", gradient, exact, allowed)
            factor = incoming.double()[:, None] if exact.dim() > incoming.dim() > 0 else incoming.double()
            # Both sides round once more, to the dtype of the scores.
            allowed = (allowed + stored.eps * exact.abs()) * factor + stored.smallest_normal * stored.eps
            found = found or _difference(
                f"the scaled gradient by {which} (reduction {name})", passed, exact * factor, allowed
            )
        for which, got, reward in zip(loss.results, results[2:], more, strict=True):
            found = found or _difference(which, got, reward.double(), unit * (1 + reward.double().abs()))
        if found is not None:
            return found
    return None


def _difference(what: str, got: Tensor, want: Tensor, allowed: Tensor) -> str | None:
    """Describe the worst element of a result that is wrong, or return None if it is right."""
    off = (got.double() - want).abs()
    if bool((off <= allowed).all()):  # False for NaN
        return None
    at = int((off / allowed).nan_to_num(torch.inf, torch.inf).argmax())
    value, exact, limit = (x.flatten()[at].item() for x in (got.double(), want, allowed))
    return f"{what} is {value:.9g} at element {at}, torch computes {exact:.9g} (they may differ by {limit:.1g})"


def _sample(
    loss: Loss, dtype: torch.dtype, compute: torch.dtype, where: torch.device
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return scores for a loss, and a value for every argument that any loss has."""
    token = "chosen_ids" in loss.arguments
    rows, width = (64, _WIDTH) if token else (_ROWS, 1)
    i = torch.arange(rows * width, device=where)
    row = torch.arange(rows, device=where)

    def eighths(factor: int, at: Tensor = i, span: int = 128) -> Tensor:
        """Return unordered numbers in [-span / 8, span / 8]."""
        return (at * factor % (2 * span + 1) - span) / 8

    scores = [eighths(37), eighths(91)]
    delta = (eighths(53, row, 64) + 8.125).masked_fill(row % 5 == 4, torch.inf)  # in [0.125, 16.125], or inf
    ids = i % 7 + 1
    start, pad = row * 3 % width, row * 5 % (width // 2) if token else row
    at = i % width
    changed = torch.where(at >= start.repeat_interleave(width), ids + 7, ids)
    shape = (rows, width) if token else (rows,)
    values: dict[str, Any] = {
        "delta": delta.to(compute),
        "chosen_ids": ids.masked_fill(at >= width - pad.repeat_interleave(width), 0).reshape(rows, width),
        "rejected_ids": changed.masked_fill(at >= width - pad.roll(1).repeat_interleave(width), 0).reshape(rows, width),
        "reference_chosen_logps": eighths(29).to(dtype),
        "reference_rejected_logps": eighths(71).to(dtype),
        "pad_token_id": 0,
        "label_smoothing": 0.125,
        "center_rewards_coefficient": 0.0625,
        "beta": 0.25,
        "reduction": NONE,
        "check_finite": False,
    }
    return [x.to(dtype).reshape(shape) for x in scores], values


@contextlib.contextmanager
def _allowed_to_wait(where: torch.device) -> Iterator[None]:
    """Suspend torch's sync debug mode, which warns about code that waits for the device."""
    if where.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
