"""The win probability that a margin implies under the constrained loss.

As in `constraint`, torch is imported with the first tensor and NumPy with the first array.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, overload

from .. import _check
from .similarities import is_tensor

if TYPE_CHECKING:
    import numpy as np
    import torch


@overload
def win_probability(margin: float, delta: float) -> float: ...
@overload
def win_probability(margin: torch.Tensor, delta: torch.Tensor | float) -> torch.Tensor: ...
@overload
def win_probability(margin: Any, delta: Any) -> Any: ...
def win_probability(margin: Any, delta: Any) -> Any:
    """Return the probability that the chosen response is preferred, as implied by a constrained model's margin.

    It is the probability P for which the margin m minimizes the expected loss
    P L(m) + (1 - P) L(-m), where L(m) = -log sigmoid(m) - log sigmoid(delta - m):

        A = sigmoid(m) - sigmoid(-m - delta)
        B = sigmoid(-m) - sigmoid(m - delta)
        P = A / (A + B)    for |m| < delta / 2

    P is 1 at the target m = delta / 2 and above, and 0 at -delta / 2 and below. An infinite delta
    gives sigmoid(m). A finite delta gives more than sigmoid(m) for m > 0 and less for m < 0. Label
    smoothing does not change P where delta is finite.

    Args:
        margin: The chosen score minus the rejected score: a float, a NumPy array or a tensor of any
            shape. NaN gives NaN.
        delta: The constraint of each pair: the same kind and shape as `margin`, or one number for
            all pairs. Greater than 0, possibly infinite. A single margin may have several deltas.

    Returns:
        Probabilities in [0, 1], of the type of `margin`. If `margin` is one number and there are
        several deltas, of the type of `delta`. Arrays and tensors of float16 and bfloat16 give
        float32. No gradient flows through the result.

    Raises:
        TypeError: The arguments are not floating-point numbers, or one is an array and the other a
            tensor.
        ValueError: A delta is not greater than 0 (the message names its index; tensors are checked
            on the CPU only, to avoid a synchronization) or requires a gradient, or the shapes or
            devices differ.
    """
    if is_tensor(margin) or is_tensor(delta):
        from .._engine import deltas

        return deltas.win_probability(margin, delta)
    if hasattr(margin, "__array__") or hasattr(delta, "__array__"):
        return _of_arrays(margin, delta)
    m, d = array("d", [_check.number("margin", margin)]), array("d", [_positive(delta)])
    return _of_vectors(m, d)[0]


def _positive(delta: Any) -> float:
    delta = _check.number("delta", delta)
    if not delta > 0:  # NaN too
        raise ValueError(f"delta must be greater than 0, got {delta:g}")
    return delta


def _of_vectors(margin: Any, delta: Any) -> Any:
    """Compute the probabilities of two float64 vectors of the same length, NumPy arrays or `array`s."""
    from .._engine.native import address, call, chosen_library

    native = chosen_library()
    if native is None:
        import torch

        from .._engine import deltas

        tensors = (torch.frombuffer(x, dtype=torch.float64) if len(x) else torch.empty(0) for x in (margin, delta))
        return deltas.win_probability(*tensors).tolist()
    result = array("d", bytes(8 * len(margin)))
    call(native.bridge_WinProbabilities, 8, len(margin), address(result), address(margin), address(delta))
    return result


def _of_arrays(margin: Any, delta: Any) -> Any:
    import numpy as np

    m, d = _floating("margin", margin), _floating("delta", delta)
    if m.ndim and d.ndim and m.shape != d.shape:
        raise ValueError(f"delta must be one number or have the shape of margin, {m.shape}, got {d.shape}")
    kind = m.dtype if hasattr(margin, "__array__") else d.dtype
    is_array = any(isinstance(x, np.ndarray) for x in (margin, delta))
    m, d = (np.ascontiguousarray(x, np.float64).ravel() for x in np.broadcast_arrays(m, d))
    shape = np.broadcast_shapes(np.shape(margin), np.shape(delta))
    # Computed in float64 and rounded once, as in Go.
    result = np.array(_of_vectors(m, d)).reshape(shape).astype(np.float64 if kind == np.float64 else np.float32)
    return result if is_array else result[()]


def _floating(name: str, value: Any) -> np.ndarray:
    """Return a number or an array as a floating-point array."""
    import numpy as np

    if not hasattr(value, "__array__"):
        return np.asarray(_positive(value) if name == "delta" else _check.number(name, value), np.float64)
    values = _check.array(name, value)
    if values.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"{name} must be floating point of at most 64 bits, got dtype {values.dtype}")
    return values
