"""Convert the similarities that `Constraint.fit` and `delta` accept into numbers that Go can read.

This module imports torch only when given a tensor, and NumPy only when given an array.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping
from itertools import count
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeGuard

from .. import _check

if TYPE_CHECKING:
    import numpy as np
    import torch

    Vector = torch.Tensor | np.ndarray | array[float]


def is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether the value is a tensor. Without torch imported, it cannot be one."""
    if "torch" not in sys.modules:
        return False
    import torch  # not sys.modules["torch"]: another thread may still be importing it

    return isinstance(value, torch.Tensor)


def vector(similarities: Any) -> Vector:
    """Return similarities as a contiguous float64 vector on the CPU.

    Raises:
        TypeError: An element is not a real number.
        ValueError: The similarities are not one-dimensional.
    """
    if is_tensor(similarities):
        from .._engine import deltas

        s = deltas.vector(similarities)
    elif hasattr(similarities, "__array__"):
        s = _of_array(similarities)
    else:
        return _of_sequence(similarities)
    if s.ndim != 1:
        raise ValueError(f"similarities must have one dimension, got shape {tuple(s.shape)}")
    return s


def _of_array(similarities: Any) -> np.ndarray:
    import numpy as np

    values = _check.array("similarities", similarities)
    if values.dtype.kind == "O" and values.ndim == 1:
        return np.frombuffer(_of_sequence(values)) if len(values) else np.empty(0)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"similarities must be real numbers, got dtype {values.dtype}")
    return np.require(values, np.float64, "C")


def _of_sequence(similarities: Any) -> array[float]:
    # Iterating over a mapping would give its keys, and over bytes their numbers.
    if isinstance(similarities, (str, bytes, bytearray, Mapping)) or not isinstance(similarities, Iterable):
        raise TypeError(f"similarities must be a sequence of numbers, got {similarities!r:.80}")
    values: Any = list(similarities)
    # Check the few distinct types first. Only tensors and wrong elements take the slow path.
    is_plain = all(issubclass(kind, Real) and kind is not bool for kind in set(map(type, values)))
    try:
        return array("d", values if is_plain else map(_number, count(), values))
    except OverflowError:
        return array("d", map(_number, count(), values))


def _number(index: int, value: Any) -> float:
    if is_tensor(value) and value.dim() == 0:
        value = value.item()
    return _check.not_nan(f"similarities[{index}]", value)


def median(s: Vector) -> float:
    """Return the median as NumPy computes it, without importing NumPy for other sequences."""
    if not isinstance(s, array) and not is_tensor(s):
        import numpy as np

        return float(np.median(s))
    ascending = s.sort().values if is_tensor(s) else sorted(s)
    return float(ascending[(len(s) - 1) // 2] + ascending[len(s) // 2]) / 2


def check_range(s: Vector | tuple[float]) -> None:
    """Raise a ValueError that names the first similarity that is NaN or outside [0, 1]."""
    if isinstance(s, (array, tuple)):
        index = next((i for i, x in enumerate(s) if not 0 <= x <= 1), None)
    elif is_tensor(s):
        from .._engine import deltas

        return deltas.check_similarities(s)
    else:
        good = (s >= 0) & (s <= 1)
        index = None if good.all() else int(good.argmin())
    if index is not None:
        raise ValueError(f"similarities[{index}] must be in [0, 1], got {s[index]:g}")
