"""What can be said of tensors before anything is computed with them.

This module imports nothing of pcrm, so that all others may import it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import forward_ad

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
