"""Checks of tensors before any computation, and whether native code may read them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

import torch
from torch.autograd import forward_ad

from .. import _check
from .dtypes import COMPUTE

Tensor = torch.Tensor
_NUMBERS = (float, int, bool)  # faster to check than isinstance(1.0, Tensor)


def is_transformed() -> bool:
    """Whether torch is tracing the computation, so that Go must not compute: under torch.func's
    transforms, forward-mode differentiation, torch.jit.trace, or a mode that intercepts each
    operation (make_fx, FakeTensorMode).
    """
    return (
        torch._C._are_functorch_transforms_active()  # pyright: ignore[reportAttributeAccessIssue]
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0  # pyright: ignore[reportAttributeAccessIssue]
    )


def is_addressable(*values: Any) -> bool:
    """Whether the data of all tensors among the values is at `data_ptr()`.

    It is elsewhere, or nowhere, for wrappers such as DTensor, AsyncCollectiveTensor,
    MaskedTensor and FakeTensor, and for zeros that torch has not materialized. A subclass counts
    as a wrapper if it handles torch's operations itself (`__torch_dispatch__` or
    `__torch_function__`), because native code would bypass it. `torch.nn.Parameter` and
    subclasses that handle no operations use ordinary storage.
    """
    for x in values:
        kind = type(x)
        if kind is Tensor:
            if not torch.compiler.is_compiling() and x._is_zerotensor():
                return False
        elif (
            kind not in _NUMBERS
            and isinstance(x, Tensor)
            and kind is not torch.nn.Parameter
            and _handles_operations(kind)
        ):
            return False
    return True


def _handles_operations(kind: type) -> bool:
    return (
        kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl  # pyright: ignore[reportAttributeAccessIssue]
        or (
            kind.__torch_function__ is not torch._C._disabled_torch_function_impl  # pyright: ignore[reportAttributeAccessIssue]
            and getattr(kind.__torch_function__, "__func__", None) is not Tensor.__torch_function__.__func__
        )
    )


def is_readable(*values: Any) -> bool:
    """Whether code that takes addresses may read the tensors among the values. If they are on the
    CPU, their values can then be inspected as well.
    """
    return not torch.compiler.is_compiling() and not is_transformed() and is_addressable(*values)


@contextlib.contextmanager
def named_if_wrapped(**values: Any) -> Iterator[None]:
    """If torch cannot compute with a wrapper, raise an error that names the argument."""
    try:
        yield
    except Exception as error:
        for name, x in values.items():
            if not is_addressable(x):
                raise TypeError(
                    f"{name} must be a tensor that torch can compute with here, got a {type(x).__name__} "
                    f"({type(error).__name__}: {str(error).splitlines()[0]}). Pass a plain tensor, such as a "
                    "DTensor's full_tensor()"
                ) from error
        raise


def check_dense(name: str, x: Tensor) -> None:
    """Refuse sparse and other layouts that do not store all numbers in one block."""
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}: use {name}.to_dense()")


def check_alike(names: tuple[str, ...], tensors: tuple[Tensor, ...], dimensions: int) -> None:
    """Refuse scores or log probabilities that are not tensors of the same shape, dtype and device."""
    first = tensors[0]
    if _are_alike(tensors, dimensions):
        return
    for name, x in zip(names, tensors, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in COMPUTE:
            raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got dtype {x.dtype}")
        check_dense(name, x)
        if x.dim() != dimensions:
            wanted, hint = ("(B,)", ": squeeze the last dimension of (B, 1)") if dimensions == 1 else ("(B, L)", "")
            raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}{hint}")
        if x.shape != first.shape:
            raise ValueError(f"{name} must have the shape of {names[0]}, {tuple(first.shape)}, got {tuple(x.shape)}")
        if x.dtype != first.dtype:
            raise TypeError(f"{name} must have the dtype of {names[0]}, {first.dtype}, got {x.dtype}")
        if x.device != first.device:
            raise ValueError(f"{name} must be on the device of {names[0]}, {first.device}, got {x.device}")
    raise ValueError(f"{names[0]} must hold at least one number, got an empty tensor")


def _are_alike(tensors: tuple[Tensor, ...], dimensions: int) -> bool:
    """Whether all checks of `check_alike` pass, as fast as possible. `check_alike` then finds what is wrong."""
    first = tensors[0]
    if (
        not isinstance(first, Tensor)
        or first.layout is not torch.strided
        or first.dtype not in COMPUTE
        or first.dim() != dimensions
        or first.numel() == 0
    ):
        return False
    shape, dtype, device = first.shape, first.dtype, first.device
    for x in tensors[1:]:
        if not isinstance(x, Tensor) or x.dtype is not dtype or x.shape != shape or x.device != device:
            return False
        if x.layout is not torch.strided:
            return False
    return True


def check_all_finite(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        check_where(name, x, x.isfinite(), "finite")


def check_where(name: str, x: Tensor, good: Tensor, wanted: str) -> None:
    if is_readable(good) and not good.all():
        index = int((~good).nonzero()[0])
        raise ValueError(f"{name}[{index}] must be {wanted}, got {x[index].item():g}")


def delta_per_pair(delta: Tensor | float, scores: Tensor, name: str) -> Tensor:
    """Return `delta` as a contiguous tensor of shape (B,) in the compute dtype. Messages call the scores `name`."""
    dtype = COMPUTE[scores.dtype]
    if not isinstance(delta, Tensor):
        if not isinstance(delta, Real):
            raise TypeError(f"delta must be a torch.Tensor or a float, got {type(delta).__name__}")
        delta = _check.number("delta", delta)
        if not delta > 0:
            raise ValueError(f"delta must be greater than 0, got {delta:g}")
        # Half the smallest subnormal number is rounded to 0.
        if torch.finfo(dtype).max < delta < math.inf or (dtype is torch.float32 and delta <= 2.0**-150):
            raise ValueError(f"delta must be {_range_of(dtype)}, got {delta:g}")
        return scores.new_full(scores.shape[:1], delta, dtype=dtype)
    check_dense("delta", delta)
    if not delta.is_floating_point():
        raise TypeError(f"delta must be floating point, got dtype {delta.dtype}")
    if delta.requires_grad:
        raise ValueError("delta must not require a gradient, because none flows through it: pass delta.detach()")
    if delta.dim() == 0:
        delta = delta.to(scores.device).expand(scores.shape[:1])
    if delta.shape != scores.shape[:1]:
        raise ValueError(
            f"delta must have shape {tuple(scores.shape[:1])} or be one number, got shape {tuple(delta.shape)}"
        )
    if delta.device != scores.device:
        raise ValueError(f"delta must be on the device of {name}, {scores.device}, got {delta.device}")
    if delta.dtype is dtype:
        return delta.contiguous()
    rounded = delta.to(dtype)
    # A finite float64 may be infinite in float32, which would mean no constraint at all.
    if delta.dtype is torch.float64 and delta.is_cpu and is_readable(delta):
        check_where("delta", delta, (delta > 0) & (rounded > 0) & (rounded.isinf() == delta.isinf()), _range_of(dtype))
    return rounded.contiguous()


def _range_of(dtype: torch.dtype) -> str:
    return f"greater than 0 and at most {torch.finfo(dtype).max:g} (the range of {dtype}), or inf"


def check_ids(name: str, ids: Tensor, scores: Tensor) -> None:
    """Refuse token ids that do not fit the scores."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(ids).__name__}")
    check_dense(name, ids)
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got dtype {ids.dtype}")
    if ids.shape != scores.shape:
        raise ValueError(f"{name} must have the shape of chosen_rewards, {tuple(scores.shape)}, got {tuple(ids.shape)}")
    if ids.device != scores.device:
        raise ValueError(f"{name} must be on the device of chosen_rewards, {scores.device}, got {ids.device}")


# An id that fits into int32 and occurs in no vocabulary.
NO_TOKEN = 2**31 - 1


def with_marked_padding(name: str, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return the ids with their padding replaced by `NO_TOKEN`, which equals no token."""
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
        for row in (mask & (ids >= NO_TOKEN)).any(1).nonzero()[:1, 0].tolist():
            raise ValueError(f"{name}_ids[{row}] must be less than 2**31 - 1, got {ids[row][mask[row]].max().item()}")
    return torch.where(mask, ids, NO_TOKEN)
