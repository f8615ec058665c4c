"""The prior `cosine`: the cosine of the embeddings of two responses."""

from __future__ import annotations

import torch

from .._engine import torch_reference
from .._engine.choice import native_for
from .._engine.native import call
from .._engine.tensors import check_dense, is_readable, named_if_wrapped

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor, angular: bool = True) -> torch.Tensor:
    """Cosine similarity of the embeddings of two responses, as an angle or raw.

        c = a.b / (|a| |b|) clamped to [0, 1]
        s = (pi - acos(c)) / pi, in [0.5, 1], or s = c, in [0, 1], if `angular` is False

    Source: arXiv 2404.00978, section 3.2.2. The authors' DPO code uses the raw cosine.

    Args:
        a: Embeddings of the chosen responses, shape (B, D), float16, bfloat16, float32 or
            float64.
        b: Embeddings of the rejected responses, with the same shape, dtype and device.
        angular: Whether to convert the cosine to an angle.

    Returns:
        Shape (B,), float64 for float64 embeddings, else float32. No gradient flows through it.

    Raises:
        TypeError: The embeddings are not floating-point tensors, or their dtypes differ.
        ValueError: The shape is not (B, D); shapes or devices differ; or a row is all zeros or
            has a NaN or an infinity (checked on the CPU only; the message names the row).
    """
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, torch.Tensor) or x.dtype not in _FLOATS:
            raise TypeError(
                f"{name} must be a floating-point tensor, got "
                f"{x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}"
            )
        check_dense(name, x)
        if x.dim() != 2 or x.shape[1] == 0:
            raise ValueError(f"{name} must have shape (B, D), got {tuple(x.shape)}")
    if a.shape != b.shape or a.device != b.device:
        raise ValueError(
            f"b must have the shape and device of a, {tuple(a.shape)} on {a.device}, got {tuple(b.shape)} on {b.device}"
        )
    if a.dtype != b.dtype:
        raise TypeError(f"b must have the dtype of a, {a.dtype}, got {b.dtype}")
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
                    f"{name}[{int((~good).nonzero()[0])}] must have a finite norm greater than 0, got norm "
                    f"{norm[~good][0].item():g}: its direction is undefined"
                )
        return result
    if a.dtype == torch.bfloat16:
        a, b = a.float(), b.float()
    a, b = a.resolve_neg().contiguous(), b.resolve_neg().contiguous()
    result = torch.empty(len(a), dtype=dtype, device="cpu")
    call(native.bridge_Cosines, a.element_size(), *a.shape, result.data_ptr(), a.data_ptr(), b.data_ptr(), angular)
    return result
