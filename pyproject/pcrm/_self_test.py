"""Compare the losses of a backend with golden vectors."""

from __future__ import annotations

import json
import math

import torch

from ._engine import native
from .functional import pcrm_loss

# Tolerances of a loss L at margin m and constraint delta, in units of 1 + |m| + |delta| + |L|, and of a
# gradient. They are those of the Go package pcrmtest, which has the golden vectors.
TOLERANCES = {torch.float64: (3e-14, 1e-14), torch.float32: (2e-6, 4e-6)}


def compare(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the first error in the losses and gradients of the golden vectors on a device, or None."""
    vectors = json.loads((native.FOLDER / "golden.json").read_text(encoding="utf-8"))
    tolerance, gradient_tolerance = TOLERANCES[dtype]
    for smoothing in sorted({v["label_smoothing"] for v in vectors}):
        cases = [v for v in vectors if v["label_smoothing"] == smoothing]
        exact = {
            name: torch.tensor([v[name] for v in cases], dtype=torch.float64) for name in ("margin", "loss", "grad")
        }
        delta = torch.tensor([math.inf if v["delta"] is None else v["delta"] for v in cases], dtype=torch.float64)
        margin = exact["margin"].to(device, dtype).requires_grad_()
        loss = pcrm_loss(
            margin, torch.zeros_like(margin), delta.to(device, dtype), label_smoothing=smoothing, reduction="none"
        )
        (grad,) = torch.autograd.grad(loss.sum(), margin)
        size = 1 + exact["margin"].abs() + delta.nan_to_num(posinf=0.0) + exact["loss"]
        for name, got, allowed in (
            ("loss", loss, tolerance * size),
            ("grad", grad, torch.full_like(size, gradient_tolerance)),
        ):
            got = got.detach().cpu().double()
            wrong = ~((got - exact[name]).abs() <= allowed)  # a NaN is wrong
            if wrong.any():
                i = int(wrong.nonzero()[0])
                return (
                    f"{name} at margin {exact['margin'][i]:g}, delta {delta[i]:g}, label_smoothing {smoothing:g} must be "
                    f"{exact[name][i]:.17g}, got {got[i]:.17g}"
                )
    return None
