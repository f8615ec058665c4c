"""The prior `cosine`: of the embeddings of two responses."""

from __future__ import annotations

import torch

from .._engine import torch_reference
from .._engine.choice import native_for
from .._engine.native import call
from .._engine.tensors import check_dense, is_readable, named_if_wrapped

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor, angular: bool = True) -> torch.Tensor:
    """Cosine of the embeddings of two responses, as an angle or raw.

        c = a.b / (|a| |b|) clamped to [0, 1]
        s = (pi - acos(c)) / pi, in [0.5, 1], or c itself where `angular` is False

    (arXiv 2404.00978, section 3.2.2; the raw cosine is what the authors' DPO code takes.)

    Args:
        a: Embeddings of the chosen responses, shape (B, D), float16, bfloat16, float32 or
            float64.
        b: Those of the others, of the same shape, dtype and device.
        angular: Whether to turn the cosine into an angle.

    Returns:
        Shape (B,), float64 for float64, else float32. No gradient flows through it.

    Raises:
        TypeError: no floating-point tensors, or different dtypes.
        ValueError: another shape than (B, D), different shapes or devices; a row that is all
            zeros or has a NaN, named by its index (looked at on the CPU).
    """
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, torch.Tensor) or x.dtype not in _FLOATS:
            raise TypeError(
                f"{name} is {x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}, must be a floating-point tensor"
            )
        check_dense(name, x)
        if x.dim() != 2 or x.shape[1] == 0:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, must be (B, D)")
    if a.shape != b.shape or a.device != b.device:
        raise ValueError(f"b has shape {tuple(b.shape)} on {b.device}, a has {tuple(a.shape)} on {a.device}")
    if a.dtype != b.dtype:
        raise TypeError(f"b has dtype {b.dtype}, a has {a.dtype}")
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    a, b = a.detach(), b.detach()
    native = native_for("a", a, b)
    if native is None:
        with named_if_wrapped(a=a, b=b):
            result = torch_reference.cosine(a, b, angular).to(dtype)
            norms = {"a": a.double().norm(dim=1), "b": b.double().norm(dim=1)} if a.is_cpu else {}
        for name, norm in norms.items():
            good = (norm > 0) & norm.isfinite()
            if is_readable(good) and not good.all():
                raise ValueError(
                    f"{name}[{int((~good).nonzero()[0])}] has the norm {norm[~good][0].item():g}: it has no direction"
                )
        return result
    if a.dtype == torch.bfloat16:
        a, b = a.float(), b.float()
    a, b = a.resolve_neg().contiguous(), b.resolve_neg().contiguous()
    result = torch.empty(len(a), dtype=dtype, device="cpu")
    call(native.bridge_Cosines, a.element_size(), *a.shape, result.data_ptr(), a.data_ptr(), b.data_ptr(), angular)
    return result
