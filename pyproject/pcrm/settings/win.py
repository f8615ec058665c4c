"""What a margin means to the constrained loss: the probability of the choice.

As in `constraint`, torch is imported with the first tensor, and NumPy with the first array.
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
    """The probability of the choice, as the constrained loss reads a margin.

    It is the P at which the margin m is where the expected loss P L(m) + (1 - P) L(-m) is
    least, L(m) = -log sigmoid(m) - log sigmoid(delta - m):

        A = sigmoid(m) - sigmoid(-m - delta)
        B = sigmoid(-m) - sigmoid(m - delta)
        P = A / (A + B)    for |m| < delta / 2

    From the target m = delta / 2 on P is 1, and from -delta / 2 down it is 0. An infinite delta
    gives sigmoid(m); a finite one gives more than sigmoid(m) for m > 0 and less for m < 0. Label
    smoothing does not change P where delta is finite.

    Args:
        margin: Chosen less rejected score: a float, a NumPy array or a tensor of any shape. NaN gives NaN.
        delta: The constraint of each pair, of margin's kind and shape, or one number for all.
            Greater than 0; it may be infinite. One margin may also have several deltas.

    Returns:
        Probabilities in [0, 1], of the type of the margin: of a number with several deltas, of
        theirs. Arrays and tensors of float16 and bfloat16 give float32. No gradient flows through it.

    Raises:
        TypeError: no floating-point numbers, or an array beside a tensor.
        ValueError: a delta that is not greater than 0, named by its index (a tensor's is checked on the CPU
            only, to avoid a synchronization) or that requires a gradient; different shapes or devices.
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
    """Of two arrays of as many float64: one of NumPy's, or of `array` where they are."""
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
    # In float64, rounded once, as Go does it.
    result = np.array(_of_vectors(m, d)).reshape(shape).astype(np.float64 if kind == np.float64 else np.float32)
    return result if is_array else result[()]


def _floating(name: str, value: Any) -> np.ndarray:
    """An array of a number, or of an array's numbers."""
    import numpy as np

    if not hasattr(value, "__array__"):
        return np.asarray(_positive(value) if name == "delta" else _check.number(name, value), np.float64)
    values = _check.array(name, value)
    if values.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"{name} must be floating point of at most 64 bits, got dtype {values.dtype}")
    return values
