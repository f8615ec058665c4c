"""One score of several reward models' (arXiv 2310.02743): what the models disagree on counts less.

In torch, and not in the Go core, as this is no loss: three reductions that torch has,
differentiable as they are, on any device.
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
    """The score of an ensemble for each response.

        mean      mean_k r_k
        min       min_k r_k, the worst case
        variance  mean_k r_k - c mean_k (r_k - mean r)**2

    (arXiv 2310.02743, section 3: mean, WCO and UWO.) The models' scores have to have one
    scale, or the widest one decides: see `pcrm report`, or standardize each first.

    Args:
        scores: A row a model, shape (models, ...), floating point, a tensor or an array.
        method: "mean", "min" or "variance".
        coefficient: c, at least 0, for "variance" alone, and without a default: it has the
            unit of 1 / score.

    Returns:
        The scores of the ensemble, a tensor or an array as the scores are, of their shape
        without its first dimension, and of their dtype (float32 for the 16-bit ones). A NaN
        of one model is one of the ensemble.

    Raises:
        TypeError: scores are neither a tensor nor an array, or not floating point; an
            element is masked; a coefficient that is no number.
        ValueError: there is no model; another method; a coefficient that is missing, not
            wanted, negative or not finite.
    """
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}, must be one of {', '.join(_METHODS)}")
    c = _coefficient(method, coefficient)
    if isinstance(scores, torch.Tensor):
        return _ensemble(scores, method, c)
    if not hasattr(scores, "__array_interface__"):
        raise TypeError(f"scores are a {type(scores).__name__}, must be a torch.Tensor or a numpy.ndarray")
    import numpy as np

    return np.asarray(_ensemble(torch.from_numpy(np.array(_check.array("scores", scores))), method, c))


def _ensemble(scores: torch.Tensor, method: str, coefficient: float) -> torch.Tensor:
    if not scores.is_floating_point():
        raise TypeError(f"scores have dtype {scores.dtype}, must be floating point")
    if scores.dim() == 0 or len(scores) == 0:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, must be (models, ...) with at least one model")
    if scores.dtype.itemsize < 4:
        scores = scores.float()
    if method == "min":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean if method == "mean" else mean - coefficient * scores.var(0, correction=0)


def _coefficient(method: str, value: Any) -> float:
    if method != "variance":
        if value is not None:
            raise ValueError(f"coefficient is {value!r}, which method {method!r} does not take")
        return 0.0
    if value is None:
        raise ValueError("coefficient is missing: method 'variance' needs one")
    return _check.at_least_0("coefficient", value)
