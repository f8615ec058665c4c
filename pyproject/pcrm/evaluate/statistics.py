"""The statistics of a report. The Go package stats computes them, and its documentation has the formulas.

Arguments are one-dimensional float64 arrays, finite unless stated otherwise; a ValueError names the first element that is
not finite. A RuntimeError means that the native library is not available.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._engine.native import address, call, library

Floats = NDArray[np.float64]

# A value and its 95% interval. An infinite end is None. Both ends are None if there is no interval.
Estimates = dict[str, tuple[float, float | None, float | None]]


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation in [-1, 1]. NaN for fewer than two points, and if x or y is constant."""
    return _call("Spearman", _same(x, y), x, y)


def kendall_tau_b(x: Floats, y: Floats) -> float:
    """Kendall's tau-b in [-1, 1]. NaN as in `spearman`."""
    return _call("KendallTauB", _same(x, y), x, y)


def quantiles(x: Floats, p: Floats) -> Floats:
    """Quantiles with NumPy's default interpolation. x must have at least one element; p is in [0, 1]."""
    dst = np.empty(len(p))
    _call("Quantiles", len(x), len(p), dst, x, p)
    return dst


def histogram(x: Floats, bins: int, low: float, high: float) -> NDArray[np.int64]:
    """Counts in equal bins of [low, high]. Values outside are not counted."""
    dst = np.empty(bins, np.int64)
    _call("Histogram", len(x), bins, dst, x, float(low), float(high))
    return dst


def reliability(margins: Floats, delta: Floats | None = None) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Ten equal bins of the confidence max(P, 1 - P) over [0.5, 1].

    P is sigmoid(margin), or `pcrm.win_probability` where each pair's delta is given.

    Returns:
        For each bin: the number of pairs, their mean confidence, the fraction with a margin greater than 0, and the ends of
        its 95% interval. Shape (10,) each, NaN for a bin without pairs.
    """
    dst = np.empty((5, 10))
    if delta is not None:
        _same(margins, delta)
    _call("Reliability", len(margins), dst, margins, np.empty(0) if delta is None else delta)
    return dst[0], dst[1], dst[2], dst[3], dst[4]


def calibration_error(margins: Floats) -> tuple[float, float, float]:
    """The expected calibration error, corrected for bias, and the ends of its 95% interval. NaN without margins."""
    dst = np.empty(3)
    _call("CalibrationError", len(margins), dst, margins)
    return float(dst[0]), float(dst[1]), float(dst[2])


def lowess(x: Floats, y: Floats, *, frac: float = 2 / 3, iterations: int = 3, delta: float = 0.0) -> Floats:
    """Cleveland's lowess curve through the points, at each x.

    Args:
        x, y: The points, in any order.
        frac: The fraction of points that each local line is fitted to, in [0, 1].
        iterations: The number of robust iterations, which downweight outliers.
        delta: The distance in x within which the curve is interpolated. 0 for no interpolation.
    """
    dst = np.empty(len(x))
    _call("Lowess", _same(x, y), dst, x, y, float(frac), iterations, float(delta))
    return dst


def calibrate(
    scores: Floats,
    feature: Floats,
    *,
    method: str,
    alpha: float,
    frac: float = 2 / 3,
    iterations: int = 3,
    delta: float = 0.0,
) -> Floats:
    """Scores minus alpha times the score predicted from a feature: post-hoc calibration, arXiv 2409.17407.

    Args:
        scores, feature: The score and feature of each response, in any order, shape (n,).
        method: The prediction: "lowess" is the curve of `lowess`, "uniform" the mean score of the nearest points, "penalty"
            the feature itself.
        alpha: The fraction of the prediction to subtract. For a penalty, the cost of one unit of the feature.
        frac, iterations, delta: As in `lowess`. For "uniform", frac is the fraction of points in the window.
    """
    dst = np.empty(len(scores))
    how = method, float(alpha), float(frac), iterations, float(delta)
    _call("Calibrate", _same(scores, feature), dst, scores, feature, *how)
    return dst


def calibrated(margins: Floats, calibrated: Floats) -> Estimates:
    """Statistics of calibrated margins, among them the accuracy and the fraction of pairs whose margin changes sign."""
    return _estimates("Calibrated", _same(margins, calibrated), margins, calibrated)


def pairs(margins: Floats, difference: Floats | None = None, delta: Floats | None = None) -> Estimates:
    """All statistics of the margins of pairs, by key of summary.json. A slash in a key stands for a nested object.

    Args:
        margins: Chosen score minus rejected score, at least one.
        difference: Length of chosen minus length of rejected, in any unit.
        delta: The constraint of each pair, greater than 0, possibly infinite.
    """
    arrays = [margins, *(np.empty(0) if a is None else a for a in (difference, delta))]
    for a in (difference, delta):
        if a is not None:
            _same(margins, a)
    return _estimates("Pairs", len(margins), *arrays)


def rankings(scores: Floats, ratings: Floats, offsets: NDArray[np.int64]) -> tuple[Estimates, Floats, Floats]:
    """How scores rank responses compared with their ratings. Prompt i has the responses [offsets[i], offsets[i + 1]).

    Returns:
        The statistics over all prompts, and Spearman's and Kendall's correlation of each prompt, NaN where undefined.
    """
    by_prompt = np.empty(len(offsets) - 1), np.empty(len(offsets) - 1)
    n = _same(scores, ratings)
    return _estimates("Rankings", len(offsets) - 1, n, *by_prompt, scores, ratings, offsets), *by_prompt


def lengths(scores: Floats, lengths: Floats, offsets: NDArray[np.int64]) -> Estimates:
    """How scores correlate with lengths. Intervals resample units; unit i has the scores [offsets[i], offsets[i + 1])."""
    return _estimates("Lengths", len(offsets) - 1, _same(scores, lengths), scores, lengths, offsets)


def best_of_n(
    scores: Floats, gold: Floats, offsets: NDArray[np.int64], counts: NDArray[np.int64]
) -> list[tuple[int, Estimates]]:
    """The exact expected values of the best of n responses by score, for each n of counts.

    Pool i has the responses [offsets[i], offsets[i + 1]).

    Returns:
        For each n, the number of pools with at least n responses, and their statistics.
    """
    return _policies("BestOfN", scores, gold, offsets, counts)


def softmax_policy(
    scores: Floats, gold: Floats, offsets: NDArray[np.int64], coefficients: Floats
) -> list[tuple[int, Estimates]]:
    """The same for the policy proportional to exp(score / coefficient), for each of coefficients."""
    return _policies("SoftmaxPolicy", scores, gold, offsets, coefficients)


def reference(scores: Floats, gold: Floats, offsets: NDArray[np.int64]) -> Estimates:
    """Mean, and standard deviation within a pool, of scores and gold."""
    return _estimates("Reference", len(offsets) - 1, _same(scores, gold), scores, gold, offsets)


def _policies(
    name: str, scores: Floats, gold: Floats, offsets: NDArray[np.int64], at: NDArray[Any]
) -> list[tuple[int, Estimates]]:
    points = json.loads(_call(name, len(offsets) - 1, _same(scores, gold), len(at), scores, gold, offsets, at))
    return [(p["pools"], {key: tuple(numbers) for key, numbers in p["estimates"].items()}) for p in points]


def _same(x: Floats, y: Floats) -> int:
    """The length of both arrays. They must be equal, because Go reads both to this length."""
    if len(x) != len(y):
        raise ValueError(f"arrays must have the same length, got {len(x)} and {len(y)}")
    return len(x)


def _estimates(name: str, *arguments: Any) -> Estimates:
    return {key: tuple(numbers) for key, numbers in json.loads(_call(name, *arguments)).items()}


def _call(name: str, *arguments: Any) -> Any:
    """Call the bridge with the addresses of arrays."""
    held = [_contiguous(a) if isinstance(a, np.ndarray) else a for a in arguments]
    numbers = [address(a) if isinstance(a, np.ndarray) else a for a in held]
    return call(getattr(library(), f"bridge_{name}"), *numbers)


def _contiguous(a: NDArray[Any]) -> NDArray[Any]:
    """The array in the layout that Go reads. Not a copy if it has this layout already, as all outputs have."""
    return np.ascontiguousarray(a, np.int64 if a.dtype.kind == "i" else np.float64)
