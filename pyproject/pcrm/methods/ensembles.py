"""Combine the scores of several reward models into one, discounting disagreement (arXiv 2310.02743).

This is torch code, not Go: three reductions that torch already has, differentiable on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import _check

if TYPE_CHECKING:
    import numpy as np

Method = Literal["mean", "min", "variance"]
_METHODS = ("mean", "min", "variance")


def ensemble(scores: torch.Tensor | np.ndarray, method: Method = "mean", *, coefficient: float | None = None) -> Any:
    """Combine the scores of several reward models for each response.

        mean      mean_k r_k
        min       min_k r_k, the worst case
        variance  mean_k r_k - c mean_k (r_k - mean r)**2

    All models must score on the same scale, otherwise the one with the widest scores dominates. See
    `pcrm report` for the scales, or standardize the scores of each model first. Source:
    arXiv 2310.02743, section 3 (mean, WCO and UWO).

    Args:
        scores: One row per model, shape (models, ...), a floating-point tensor or array.
        method: "mean", "min" or "variance".
        coefficient: c, finite and at least 0. Required for "variance" and not allowed otherwise. It
            has no default because its unit is 1 / score.

    Returns:
        The combined scores, a tensor or array like `scores`, with the shape of `scores` without the
        first dimension and the same dtype (float32 for 16-bit scores). A NaN from one model makes
        the combined score NaN.

    Raises:
        TypeError: The scores are not a floating-point tensor or array, an element is masked, or the
            coefficient is not a number.
        ValueError: There is no model, the method is unknown, or the coefficient is missing, not
            allowed, negative or not finite.
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    c = _coefficient(method, coefficient)
    if isinstance(scores, torch.Tensor):
        return _ensemble(scores, method, c)
    if not hasattr(scores, "__array_interface__"):
        raise TypeError(f"scores must be a torch.Tensor or a numpy.ndarray, got {type(scores).__name__}")
    import numpy as np

    return np.asarray(_ensemble(torch.from_numpy(np.array(_check.array("scores", scores))), method, c))


def _ensemble(scores: torch.Tensor, method: str, coefficient: float) -> torch.Tensor:
    if not scores.is_floating_point():
        raise TypeError(f"scores must be floating point, got dtype {scores.dtype}")
    if scores.dim() == 0 or len(scores) == 0:
        raise ValueError(f"scores must have shape (models, ...) with at least one model, got {tuple(scores.shape)}")
    if scores.dtype.itemsize < 4:
        scores = scores.float()
    if method == "min":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean if method == "mean" else mean - coefficient * scores.var(0, correction=0)


def _coefficient(method: str, value: Any) -> float:
    if method != "variance":
        if value is not None:
            raise ValueError(f"coefficient must be None for method {method!r}, got {value!r}")
        return 0.0
    if value is None:
        raise ValueError("coefficient is missing: method 'variance' requires one")
    return _check.at_least_0("coefficient", value)
