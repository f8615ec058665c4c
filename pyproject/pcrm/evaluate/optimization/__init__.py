"""Exact proxy and gold reward of policies that are optimized against a proxy, on pools of sampled responses.

A pool is a sample of a reference policy's responses to one prompt. Each response has a score by the proxy and a gold value
that is not optimized, such as the score of a larger model or a human rating. The Go package `pcrm/stats` computes the
results, and its documentation has formulas and special cases.

    curve = best_of_n(scores, ratings, counts=[1, 4, 16])
    curve.gold[:, 0]     # the expected rating of the best of 1, 4 and 16 by score
    curve.gold[:, 1:]    # its 95% intervals

All functions raise RuntimeError if the native library is not available.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ... import _check
from .. import statistics
from ..statistics import Floats

Pools = Sequence[ArrayLike]

# Coefficients of the KL penalty: for most reward models from hardly any optimization to nearly the maximum. TRL's defaults
# are 0.05 for RLOO and 0 for GRPO. All models get the same coefficients, so that differences in their scale show.
COEFFICIENTS = (10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True)
class Curve:
    """The results of k policies with increasing optimization.

    Attributes:
        at: The n or the coefficient of each policy, shape (k,).
        pools: The number of pools that each result averages, shape (k,).
        kl: KL divergence from the reference in nats. Shape (k, 3), like all that follow: the mean over pools and the ends
            of its 95% interval, by resampling pools.
        proxy, gold: Expected values.
        proxy_gain, gold_gain: Expected values minus those of the reference on the same pools.
    """

    at: NDArray[Any]
    pools: NDArray[np.int64]
    kl: Floats
    proxy: Floats
    gold: Floats
    proxy_gain: Floats
    gold_gain: Floats


@dataclass(frozen=True)
class Reference:
    """The results of the reference policy. Shape (3,) each: a value and the ends of its 95% interval.

    Standard deviations are within pools; they are NaN if no pool has two responses.
    """

    proxy_mean: Floats
    proxy_sd: Floats
    gold_mean: Floats
    gold_sd: Floats


def best_of_n(pools_scores: Pools, pools_gold: Pools, counts: Sequence[int] | None = None) -> Curve:
    """Results of best of n: draw n responses and keep the one with the highest proxy score.

    Expected values are exact over all subsets of n responses of a pool, and unbiased for the policy.
    kl = log n - (n - 1)/n.

    Args:
        pools_scores: For each prompt, the scores of its responses: at least one, finite.
        pools_gold: Their gold values, in the same order.
        counts: The values of n, from 1 to the size of the largest pool. Pools with fewer than n responses are left out at
            this n. By default the powers of 2 up to the size of the smallest pool, and that size.

    Raises:
        ValueError: There are no pools; scores and gold have different lengths; a number is not finite (the message has
            its pool and index); a count is out of range.
    """
    scores, gold, offsets = _flat(pools_scores, pools_gold)
    if counts is None:
        smallest = int(np.diff(offsets).min())
        counts = sorted({smallest, *(2**i for i in range(smallest.bit_length()))})
    at = np.array(counts)
    if at.ndim != 1 or (len(at) and at.dtype.kind not in "iu"):
        raise ValueError(f"counts must be a list of integers, got {counts!r:.80}")
    at = at.astype(np.int64)
    return _curve(at, statistics.best_of_n(scores, gold, offsets, at))


def softmax_policy(pools_scores: Pools, pools_gold: Pools, coefficients: Sequence[float] = COEFFICIENTS) -> Curve:
    """Results of the optimum of RL with a KL penalty of weight b, among the policies on a pool.

    For the uniform reference on the pool, the optimum is proportional to exp(score / b). Expected values and KL divergence
    are exact.

    Args:
        pools_scores, pools_gold: As in `best_of_n`.
        coefficients: The values of b, at least 0. 0 takes the highest score, infinity is the reference.

    Raises:
        TypeError: A coefficient is not a number, or an element is masked.
        ValueError: As from `best_of_n`; a coefficient is negative or NaN.
    """
    at = np.array([_check.number(f"coefficients[{i}]", b) for i, b in enumerate(coefficients)], np.float64)
    return _curve(at, statistics.softmax_policy(*_flat(pools_scores, pools_gold), at))


def reference(pools_scores: Pools, pools_gold: Pools) -> Reference:
    """Results of the reference policy, from which the pools were sampled. Arguments and errors are as in `best_of_n`."""
    found = statistics.reference(*_flat(pools_scores, pools_gold))
    return Reference(*(_triple(found, key) for key in ("proxy/mean", "proxy/sd", "gold/mean", "gold/sd")))


def _flat(pools_scores: Pools, pools_gold: Pools) -> tuple[Floats, Floats, NDArray[np.int64]]:
    if len(pools_scores) != len(pools_gold):
        raise ValueError(f"pools_gold must have {len(pools_scores)} pools like pools_scores, got {len(pools_gold)}")
    if not len(pools_scores):
        raise ValueError("pools_scores must have at least one pool, got none")
    flat = []
    for name, pools in (("scores", pools_scores), ("gold", pools_gold)):
        arrays = []
        for i, pool in enumerate(pools):
            array = _check.array(f"{name}[{i}]", pool)
            if array.ndim != 1 or array.dtype.kind not in "iuf":
                raise ValueError(f"{name}[{i}] must be a list of numbers, got {pool!r:.80}")
            arrays.append(array.astype(np.float64))
        flat.append(arrays)
    for i, (s, g) in enumerate(zip(*flat, strict=True)):
        if len(s) != len(g):
            raise ValueError(f"gold[{i}] must have {len(s)} elements like scores[{i}], got {len(g)}")
    sizes = [len(s) for s in flat[0]]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.concatenate(flat[0]), np.concatenate(flat[1]), offsets


def _curve(at: NDArray[Any], points: list[tuple[int, statistics.Estimates]]) -> Curve:
    pools, estimates = zip(*points, strict=True)
    columns = {
        name: np.stack([_triple(e, name) for e in estimates])
        for name in ("kl", "proxy", "gold", "proxy_gain", "gold_gain")
    }
    return Curve(at, np.array(pools, np.int64), **columns)


def _triple(estimates: statistics.Estimates, name: str) -> Floats:
    """An estimate as an array, NaN if it is undefined."""
    return np.array(estimates.get(name, (np.nan,) * 3), np.float64)
