"""The first use of a CUDA kernel on a device: is it right there?

The kernels are tested on a driver that runs their code on the CPU, which shows nothing of a real
device, its driver or its compiler. So the first loss of each kind and dtype on a device is
preceded by a small batch, whose loss and gradients are compared with torch's on the same device.
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

_ROWS = 4100  # more than one block takes, so that the kernel that adds the blocks' sums runs too
_WIDTH = 40

# How far loss and gradient of a pair may be from torch's, in units of 1 + their size and of the
# rounding of the dtype that computes. The sample's numbers are eighths, so that margins and
# delta - margin are exact in every dtype. What is left is the rounding of exponentials and
# logarithms: the kernels are tested to 17 units in float32 and 45 in float64, and torch needs a few.
_UNITS = 64


def is_right(loss: Loss, device: cuda.Device, scores: Tensor) -> bool:
    """Whether the kernels of this loss agree with torch on this device: compared at the first
    loss of the dtype, and remembered.

    Raises:
        RuntimeError: the backend is `cuda` and they do not; a CUDA graph is being captured, which
            allows no comparison.
    """
    key = (loss.name, scores.dtype)
    if key in device.checked:
        return True
    kernel = f"the kernel of the {loss.name} loss in {scores.dtype}".replace("torch.", "")
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{kernel} has not been compared with torch on cuda:{device.index} yet, which cannot be done while a "
            "CUDA graph is captured: call the loss once before"
        )
    try:
        # Whoever calls may be in an operator, under no_grad or in inference mode.
        with autograd_in_operators(), torch.inference_mode(False), torch.enable_grad():
            found = fault(loss, device, scores.dtype, COMPUTE[scores.dtype], scores.device)
    except torch.cuda.OutOfMemoryError:  # which says nothing about the kernel
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
        device, where: The device, as the kernels and as torch know it.
        dtype: Of the scores.
        compute: The dtype that computes for them.

    Raises:
        RuntimeError: a launch that failed, or an error of the device.
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
        # A copy: the scaling may write into what it is given.
        backward = cuda.scale(device, (results[0].clone(), results[1].clone()), incoming, dtype, in_place=False)
        for which, gradient, passed, exact in zip(loss.scores, results, backward, by_scores, strict=False):
            exact = exact.double() * share
            allowed = unit * (share + exact.abs())
            found = found or _difference(f"the gradient by {which} (reduction {name})", gradient, exact, allowed)
            factor = incoming.double()[:, None] if exact.dim() > incoming.dim() > 0 else incoming.double()
            # Rounded once more, to the dtype of the scores, by each side.
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
    """What is wrong with a result, by its worst element; None if it is right."""
    off = (got.double() - want).abs()
    if bool((off <= allowed).all()):  # false for NaN
        return None
    at = int((off / allowed).nan_to_num(torch.inf, torch.inf).argmax())
    value, exact, limit = (x.flatten()[at].item() for x in (got.double(), want, allowed))
    return f"{what} is {value:.9g} at element {at}, torch computes {exact:.9g} (they may differ by {limit:.1g})"


def _sample(
    loss: Loss, dtype: torch.dtype, compute: torch.dtype, where: torch.device
) -> tuple[list[Tensor], dict[str, Any]]:
    """Scores for a loss, and a value for every argument that a loss may have."""
    token = "chosen_ids" in loss.arguments
    rows, width = (64, _WIDTH) if token else (_ROWS, 1)
    i = torch.arange(rows * width, device=where)
    row = torch.arange(rows, device=where)

    def eighths(factor: int, at: Tensor = i, span: int = 128) -> Tensor:
        """Numbers in [-span / 8, span / 8] in no order."""
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
    """Without torch's complaint about code that waits for the device, if somebody asked for it."""
    if where.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
