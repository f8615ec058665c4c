"""The constraint on tensors, in Go or torch: deltas of similarities, the fit, and win probabilities."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import torch

from .. import _check
from . import torch_reference
from .choice import native_for
from .dtypes import COMPUTE
from .native import address, call
from .tensors import check_dense, check_where, delta_per_pair, named_if_wrapped

Tensor = torch.Tensor


def delta(s: Tensor, numbers: Callable[[], array[float]], **curve: float | None) -> Tensor:
    """`Constraint.delta` of a tensor. See there.

    Args:
        numbers: Returns the constraint in Go's format. It is a function because torch.compile cannot trace it.
        curve: The same numbers by name, for torch: beta1, beta2, beta3, floor, cap, low and high.
    """
    check_dense("s", s)
    if not s.is_floating_point():
        raise TypeError(f"similarities must be floating point, got dtype {s.dtype}")
    s = s.detach()
    if s.dtype not in (torch.float32, torch.float64):
        s = s.float()
    if torch.compiler.is_compiling():
        return _by_torch(s, **curve)
    native = native_for("s", s)
    if native is None:
        if s.is_cpu:
            check_similarities(s)
        with named_if_wrapped(s=s):
            return _by_torch(s, **curve)
    s = s.resolve_neg().contiguous()
    result = torch.empty_like(s)
    addresses = (result.data_ptr(), s.data_ptr(), address(numbers()))
    call(native.bridge_Deltas, s.element_size(), s.numel(), *addresses)
    return result


def _by_torch(s: Tensor, *, low: float | None, high: float | None, **curve: Any) -> Tensor:
    if low is not None and high is not None:
        return torch_reference.random_delta(s, low, high)
    return torch_reference.delta(s, **curve)


def win_probability(margin: Any, delta: Any) -> Tensor:
    """`pcrm.win_probability` of tensors. See there. At least one of the two arguments is a tensor."""
    for name, x in (("margin", margin), ("delta", delta)):
        if not isinstance(x, Tensor):
            if hasattr(x, "__array__") and getattr(x, "shape", ()) != ():
                raise TypeError(f"{name} must be a number or a tensor, got {type(x).__name__}")
            continue
        check_dense(name, x)
        if x.dtype not in COMPUTE:
            raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got dtype {x.dtype}")
    if not isinstance(margin, Tensor):
        number = _check.number("margin", margin)
        margin = torch.full((), number, dtype=COMPUTE[delta.dtype], device=delta.device)
    if isinstance(delta, Tensor) and delta.dim():
        if margin.dim() == 0:
            margin = margin.expand(delta.shape)
        if delta.shape != margin.shape:
            raise ValueError(
                f"delta must be one number or have the shape of margin, {tuple(margin.shape)}, got {tuple(delta.shape)}"
            )
        delta = delta.reshape(-1)
    shape, margin = margin.shape, margin.detach().reshape(-1)
    margin = margin.to(COMPUTE[margin.dtype])
    with named_if_wrapped(margin=margin, delta=delta):
        delta = delta_per_pair(delta, margin, "margin")
        native = None if torch.compiler.is_compiling() else native_for("margin", margin, delta)
        if native is None:
            if margin.is_cpu:
                check_where("delta", delta, delta > 0, "greater than 0")
            return torch_reference.win_probability(margin, delta).reshape(shape)
    margin = margin.resolve_neg().contiguous()
    result = torch.empty_like(margin)
    addresses = (result.data_ptr(), margin.data_ptr(), delta.data_ptr())
    call(native.bridge_WinProbabilities, margin.element_size(), margin.numel(), *addresses)
    return result.reshape(shape)


def fit(similarities: Any, *targets: float) -> tuple[float, ...]:
    """Return the five numbers of `Constraint.fit`, for a tensor from `vector` or another float64 buffer."""
    is_tensor = isinstance(similarities, Tensor)
    s = similarities if is_tensor else torch.frombuffer(bytearray(similarities), dtype=torch.float64)
    native = native_for("similarities", s)
    if native is None:
        with named_if_wrapped(similarities=s):
            return torch_reference.fit(s, *targets)
    fitted = torch.empty(5, dtype=torch.float64, device="cpu")
    call(native.bridge_Fit, s.numel(), fitted.data_ptr(), s.data_ptr(), *targets)
    return tuple(fitted.tolist())


def vector(similarities: Tensor) -> Tensor:
    """Return a tensor of similarities as contiguous float64 on the CPU."""
    check_dense("similarities", similarities)
    if similarities.dtype == torch.bool or similarities.is_complex():
        raise TypeError(f"similarities must be real numbers, got dtype {similarities.dtype}")
    return similarities.detach().to("cpu", torch.float64).resolve_neg().contiguous()


def check_similarities(s: Tensor, name: str = "similarities") -> None:
    """Raise a ValueError that names the first similarity that is NaN or outside [0, 1]."""
    s = s.flatten()
    check_where(name, s, (s >= 0) & (s <= 1), "in [0, 1]")
