"""Similarities of any kind as numbers that Go reads: what `Constraint.fit` and `delta` take.

This module imports torch only once it is given a tensor, and NumPy only once it is given an array.
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
    """Whether it is a tensor, which only a process that has imported torch can have."""
    if "torch" not in sys.modules:
        return False
    import torch  # and not sys.modules["torch"], which another thread may still be importing

    return isinstance(value, torch.Tensor)


def vector(similarities: Any) -> Vector:
    """Similarities of any kind as a contiguous vector of float64 on the CPU.

    Raises:
        TypeError: an element is not a real number.
        ValueError: not one dimension.
    """
    if is_tensor(similarities):
        from .._engine import deltas

        s = deltas.vector(similarities)
    elif hasattr(similarities, "__array__"):
        s = _of_array(similarities)
    else:
        return _of_sequence(similarities)
    if s.ndim != 1:
        raise ValueError(f"similarities have shape {tuple(s.shape)}, must have one dimension")
    return s


def _of_array(similarities: Any) -> np.ndarray:
    import numpy as np

    values = _check.array("similarities", similarities)
    if values.dtype.kind == "O" and values.ndim == 1:
        return np.frombuffer(_of_sequence(values)) if len(values) else np.empty(0)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"similarities have dtype {values.dtype}, must be real numbers")
    return np.require(values, np.float64, "C")


def _of_sequence(similarities: Any) -> array[float]:
    # Of a mapping there would be the keys, of bytes their numbers.
    if isinstance(similarities, (str, bytes, bytearray, Mapping)) or not isinstance(similarities, Iterable):
        raise TypeError(f"similarities are {similarities!r:.80}, must be a sequence of numbers")
    values: Any = list(similarities)
    # The types first: there are few of them. What is wrong, or a tensor, is worth a longer look.
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
    """The median, NumPy's, without NumPy where it is not there yet."""
    if not isinstance(s, array) and not is_tensor(s):
        import numpy as np

        return float(np.median(s))
    ascending = s.sort().values if is_tensor(s) else sorted(s)
    return float(ascending[(len(s) - 1) // 2] + ascending[len(s) // 2]) / 2


def check_range(s: Vector | tuple[float]) -> None:
    """Refuse a similarity that is NaN or outside [0, 1]: a ValueError names the first one."""
    if isinstance(s, (array, tuple)):
        index = next((i for i, x in enumerate(s) if not 0 <= x <= 1), None)
    elif is_tensor(s):
        from .._engine import deltas

        return deltas.check_similarities(s)
    else:
        good = (s >= 0) & (s <= 1)
        index = None if good.all() else int(good.argmin())
    if index is not None:
        raise ValueError(f"similarities[{index}] is {s[index]:g}, must be in [0, 1]")
