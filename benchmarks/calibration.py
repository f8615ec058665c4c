"""Measure the coverage of the interval of the calibration error, and the bias of the estimates.

    python benchmarks/calibration.py [--draws 400]

The models have a known calibration error (ECE). P(chosen is better) is sigmoid(k |margin|) with k <= 1 for an
overconfident model ("everywhere"), or the confidence minus a constant in the sixth of the ten bins ("one bin").
Margins are normal with standard deviation 1.5. For each true error and number of pairs, the script prints the mean
of the estimate and of the plug-in estimate, and the coverage of the 95% interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pcrm.evaluate import statistics

Floats = NDArray[np.float64]

ERRORS = (0.0, 0.02, 0.05, 0.1)
PAIRS = (200, 500, 2000)
SPREAD = 1.5


def everywhere(size: Floats, k: float) -> Floats:
    return 1 / (1 + np.exp(-(1 - k) * size))


def one_bin(size: Floats, gap: float) -> Floats:
    confidence = 1 / (1 + np.exp(-size))
    return np.where((confidence >= 0.75) & (confidence < 0.8), np.maximum(confidence - gap, 0), confidence)


def true_error(accuracy: Callable[[Floats, float], Floats], parameter: float) -> float:
    """Return the true error, by integration over margins."""
    size = np.linspace(0, 6 * SPREAD, 100_001)[1:]
    weight = np.exp(-0.5 * (size / SPREAD) ** 2)
    confidence = 1 / (1 + np.exp(-size))
    bins = np.minimum(((confidence - 0.5) * 20).astype(int), 9)
    gaps = np.bincount(bins, weight * (accuracy(size, parameter) - confidence), 10)
    return float(np.abs(gaps).sum() / weight.sum())


def parameter_of(accuracy: Callable[[Floats, float], Floats], error: float) -> float:
    """Return the parameter that gives a true error, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if true_error(accuracy, middle) < error else (low, middle)
    return high if error else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400, help="data sets per row (default: %(default)s)")
    draws = parser.parse_args().draws
    print(
        "| errors | true ECE | pairs | mean `ece` | mean `ece_plugin` | coverage of `ece_ci` |\n|---|---|---|---|---|---|"
    )
    for name, accuracy in (("everywhere", everywhere), ("one bin", one_bin)):
        for error in ERRORS:
            parameter = parameter_of(accuracy, error)
            if true_error(accuracy, parameter) < error - 1e-6:  # a single bin cannot contribute this much
                continue
            if error == 0 and accuracy is one_bin:  # the calibrated model again
                continue
            for n in PAIRS:
                random = np.random.default_rng([n, round(1000 * error)])
                found = []
                for _ in range(draws):
                    size = np.abs(SPREAD * random.normal(size=n))
                    margins = np.where(random.random(n) < accuracy(size, parameter), size, -size)
                    count, confidence, right, *_ = statistics.reliability(margins)
                    plugin = np.nansum(count * np.abs(right - confidence)) / n
                    found.append((*statistics.calibration_error(margins), plugin))
                value, low, high, plugins = np.array(found).T
                covered = np.mean((low <= error) & (error <= high))
                print(
                    f"| {name if error else 'none'} | {error:g} | {n:,} | {value.mean():.3f} | {plugins.mean():.3f} | {covered:.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
