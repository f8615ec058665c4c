"""Checks of arguments: one verdict on each kind of value, for every function and every setting.

Each check takes the argument's name for its message and returns the value in the form that the
rest of the code works with. A bool is never a number here: `True` in the place of a number is a
slip of the caller's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from decimal import Decimal
from numbers import Integral, Real
from typing import Any


def number(name: str, value: Any) -> float:
    """A real number, infinities and NaN included.

    Raises:
        TypeError: not a real number. bool, str, complex, masked and missing values are not.
        ValueError: a finite number that float64 cannot hold, a signaling NaN.
    """
    if type(value) is float:  # not of a subclass, as NumPy's, whose repr is another
        return value
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise TypeError(f"{name} must be a number, got {value!r:.80}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    except ValueError:
        raise ValueError(f"{name} must be a number, got {value!r:.80}") from None
    # A Decimal becomes infinite where an integer overflows.
    if math.isinf(result) and value not in (math.inf, -math.inf):
        # Without the number: Python refuses to print one of over 4300 digits.
        raise ValueError(f"{name} must be a number of at most {sys.float_info.max:g}")
    return result


def not_nan(name: str, value: Any) -> float:
    """A real number or an infinity."""
    value = number(name, value)
    if math.isnan(value):
        raise ValueError(f"{name} must be a number, got nan")
    return value


def finite(name: str, value: Any) -> float:
    """A finite number."""
    value = number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def positive(name: str, value: Any) -> float:
    """A finite number greater than 0."""
    value = number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and greater than 0, got {value:g}")
    return value


def at_least_0(name: str, value: Any) -> float:
    """A finite number of at least 0."""
    value = number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value:g}")
    return value


def label_smoothing(value: Any) -> float:
    """The share of wrong labels, in [0, 0.5)."""
    value = number("label_smoothing", value)
    if not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {value:g}")
    return value


def integer(name: str, value: Any, low: int = 0, high: int = 2**63) -> int:
    """An integer in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r:.80}")
    value = int(value)
    if not low <= value < high:
        raise ValueError(f"{name} must be in [{low}, 2**{high.bit_length() - 1}), got {value}")
    return value


def array(name: str, values: Any) -> Any:
    """A NumPy array or scalar in this machine's byte order, which is the only one that torch reads.

    Raises:
        TypeError: an element is masked: what lies under a mask is no number.
    """
    import numpy as np

    if isinstance(values, np.ma.MaskedArray) and (masked := np.ma.getmaskarray(values).ravel()).any():
        raise TypeError(f"{name}[{masked.argmax()}] is masked, must be a number")
    values = np.asarray(values)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """One of some names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r:.80}")
    return value
