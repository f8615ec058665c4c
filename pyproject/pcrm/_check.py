"""Checks of arguments, shared by all functions and settings.

Each check takes the argument's name for its message and returns the value in the form that the
rest of the code uses. A bool is never a number here: `True` in place of a number is a mistake.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from decimal import Decimal
from numbers import Integral, Real
from typing import Any


def number(name: str, value: Any) -> float:
    """Return a real number as a float. Infinities and NaN are allowed.

    Raises:
        TypeError: The value is not a real number (bool, str, complex, masked and missing values are rejected).
        ValueError: The value is finite and too large for float64, or a signaling NaN.
    """
    if type(value) is float:  # not a subclass such as NumPy's, which has another repr
        return value
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise TypeError(f"{name} must be a number, got {value!r:.80}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    except ValueError:
        raise ValueError(f"{name} must be a number, got {value!r:.80}") from None
    # A Decimal becomes infinite, unlike an integer, which raises OverflowError.
    if math.isinf(result) and value not in (math.inf, -math.inf):
        # The message leaves out the number: Python refuses to print one of over 4300 digits.
        raise ValueError(f"{name} must be a number of at most {sys.float_info.max:g}")
    return result


def not_nan(name: str, value: Any) -> float:
    """Return a number that is not NaN. Infinities are allowed."""
    value = number(name, value)
    if math.isnan(value):
        raise ValueError(f"{name} must be a number, got nan")
    return value


def finite(name: str, value: Any) -> float:
    """Return a finite number."""
    value = number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def positive(name: str, value: Any) -> float:
    """Return a finite number greater than 0."""
    value = number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and greater than 0, got {value:g}")
    return value


def at_least_0(name: str, value: Any) -> float:
    """Return a finite number of at least 0."""
    value = number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value:g}")
    return value


def label_smoothing(value: Any) -> float:
    """Return a label smoothing in [0, 0.5)."""
    value = number("label_smoothing", value)
    if not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {value:g}")
    return value


def integer(name: str, value: Any, low: int = 0, high: int = 2**63) -> int:
    """Return an integer in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r:.80}")
    value = int(value)
    if not low <= value < high:
        raise ValueError(f"{name} must be in [{low}, 2**{high.bit_length() - 1}), got {value}")
    return value


def path(name: str, value: Any) -> str:
    """Return a path, or a name that stands for one, as a string."""
    if isinstance(value, (str, os.PathLike)):
        return str(os.fspath(value))
    raise TypeError(f"{name} must be a str or a path, got {value!r:.80}")


def array(name: str, values: Any) -> Any:
    """Return a NumPy array in this machine's byte order, the only one that torch reads.

    Raises:
        TypeError: An element is masked.
    """
    import numpy as np

    if isinstance(values, np.ma.MaskedArray) and (masked := np.ma.getmaskarray(values).ravel()).any():
        raise TypeError(f"{name}[{masked.argmax()}] must be a number, got a masked value")
    values = np.asarray(values)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return a string that is one of the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r:.80}")
    return value
