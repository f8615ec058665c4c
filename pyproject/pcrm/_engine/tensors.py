"""Tensors before anything is computed with them: whether native code may read them, and their checks."""

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
_NUMBERS = (float, int, bool)  # isinstance(1.0, Tensor) takes longer than this look


def is_transformed() -> bool:
    """Whether torch is looking into the computation, which it cannot do if Go computes: under
    torch.func's transforms, forward-mode differentiation, torch.jit.trace, or a mode that sees
    each operation (make_fx, FakeTensorMode).
    """
    return (
        torch._C._are_functorch_transforms_active()  # pyright: ignore[reportAttributeAccessIssue]
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0  # pyright: ignore[reportAttributeAccessIssue]
    )


def is_addressable(*values: Any) -> bool:
    """Whether the numbers of all tensors among the values are where `data_ptr()` says.

    They are elsewhere, or nowhere, for wrappers such as DTensor, AsyncCollectiveTensor,
    MaskedTensor and FakeTensor, and for zeros that torch has not written out. A subclass counts
    as a wrapper if it handles torch's operations itself (`__torch_dispatch__` or
    `__torch_function__`): what native code does would pass it by. `torch.nn.Parameter` and
    subclasses that handle nothing share their storage.
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
    """Whether code that takes addresses may read the tensors among the values, and whether their
    values can be looked at now, if they are on the CPU.
    """
    return not torch.compiler.is_compiling() and not is_transformed() and is_addressable(*values)


@contextlib.contextmanager
def named_if_wrapped(**values: Any) -> Iterator[None]:
    """Where torch cannot compute with a wrapper, say which argument is one."""
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
    """Refuse sparse and other layouts, which have no single block of numbers."""
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}: use {name}.to_dense()")


def check_alike(names: tuple[str, ...], tensors: tuple[Tensor, ...], dimensions: int) -> None:
    """Refuse scores or log probabilities that are not tensors of one shape, dtype and device."""
    first = tensors[0]
    if _are_alike(tensors, dimensions):
        return
    for name, x in zip(names, tensors, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}, must be a torch.Tensor")
        if x.dtype not in COMPUTE:
            raise TypeError(f"{name} has dtype {x.dtype}, must be float32, float64, bfloat16 or float16")
        check_dense(name, x)
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
    """Whether all is well, in as few looks as will do; if not, `check_alike` says why."""
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
        raise ValueError(f"{name}[{index}] is {x[index].item():g}, must be {wanted}")


def delta_per_pair(delta: Tensor | float, scores: Tensor, name: str) -> Tensor:
    """`delta` as a contiguous tensor of shape (B,) in the dtype that computes. `name` is what messages call the scores."""
    dtype = COMPUTE[scores.dtype]
    if not isinstance(delta, Tensor):
        if not isinstance(delta, Real):
            raise TypeError(f"delta is a {type(delta).__name__}, must be a torch.Tensor or a float")
        delta = _check.number("delta", delta)
        if not delta > 0:
            raise ValueError(f"delta is {delta:g}, must be greater than 0")
        # Half the least subnormal number is rounded to 0.
        if torch.finfo(dtype).max < delta < math.inf or (dtype is torch.float32 and delta <= 2.0**-150):
            raise ValueError(f"delta is {delta:g}, must be {_range_of(dtype)}")
        return scores.new_full(scores.shape[:1], delta, dtype=dtype)
    check_dense("delta", delta)
    if not delta.is_floating_point():
        raise TypeError(f"delta has dtype {delta.dtype}, must be floating point")
    if delta.requires_grad:
        raise ValueError("delta requires a gradient, but none flows through the constraint: pass delta.detach()")
    if delta.dim() == 0:
        delta = delta.to(scores.device).expand(scores.shape[:1])
    if delta.shape != scores.shape[:1]:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, must be {tuple(scores.shape[:1])} or one number")
    if delta.device != scores.device:
        raise ValueError(f"delta is on {delta.device}, {name} is on {scores.device}")
    if delta.dtype is dtype:
        return delta.contiguous()
    rounded = delta.to(dtype)
    # A float64 that is finite may be none in float32, and would mean no constraint at all.
    if delta.dtype is torch.float64 and delta.is_cpu and is_readable(delta):
        check_where("delta", delta, (delta > 0) & (rounded > 0) & (rounded.isinf() == delta.isinf()), _range_of(dtype))
    return rounded.contiguous()


def _range_of(dtype: torch.dtype) -> str:
    return f"greater than 0, and inf or at most {torch.finfo(dtype).max:g}, as numbers of {dtype} are"


def check_ids(name: str, ids: Tensor, scores: Tensor) -> None:
    """Refuse token ids that do not fit the scores."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} is a {type(ids).__name__}, must be a torch.Tensor")
    check_dense(name, ids)
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} has dtype {ids.dtype}, must be int64 or int32")
    if ids.shape != scores.shape:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, chosen_rewards has {tuple(scores.shape)}")
    if ids.device != scores.device:
        raise ValueError(f"{name} is on {ids.device}, chosen_rewards is on {scores.device}")


# An id that is in no vocabulary and fits into int32.
NO_TOKEN = 2**31 - 1


def with_marked_padding(name: str, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The ids with `NO_TOKEN` as their padding, which no token can be mistaken for."""
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
