"""What a policy that is optimized against a proxy reward model gets, exactly, on pools of sampled responses.

A pool is a sample of responses of a reference policy to one prompt, each with the score of the
proxy and a gold value that nobody optimized: a larger model's score, a person's rating. Formulas
and special cases are in the documentation of the Go package `pcrm/stats`, which computes them.

    curve = best_of_n(scores, ratings, counts=[1, 4, 16])
    curve.gold[:, 0]     # the expected rating of the best of 1, 4 and 16 by score
    curve.gold[:, 1:]    # its 95% intervals

RuntimeError of all functions: the native library is not there.
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

# Of the penalty on the KL divergence: from hardly any optimization of most reward models to
# nearly all that there is. TRL's own are 0.05 for RLOO and 0 for GRPO. The same for all models:
# a scale that suits each would hide theirs.
COEFFICIENTS = (10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True)
class Curve:
    """Policies that are more and more optimized, k of them.

    Attributes:
        at: The n or the coefficient of each, shape (k,).
        pools: How many pools each is the mean of, shape (k,).
        kl: Divergence from the reference in nats, shape (k, 3) as all that follow: the mean over
            pools and the ends of its 95% interval, which resamples pools.
        proxy, gold: Expected values.
        proxy_gain, gold_gain: The same less what the reference gets on the same pools.
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
    """What the reference policy gets: shape (3,) each, a value and the ends of its 95% interval.

    The standard deviations are those within a pool, NaN where no pool has two responses.
    """

    proxy_mean: Floats
    proxy_sd: Floats
    gold_mean: Floats
    gold_sd: Floats


def best_of_n(pools_scores: Pools, pools_gold: Pools, counts: Sequence[int] | None = None) -> Curve:
    """Draw n responses and keep the one that the proxy scores highest: expected values over all subsets
    of each pool, an unbiased estimate; kl = log n - (n - 1)/n.

    Args:
        pools_scores: For each prompt the scores of its responses, one at least, finite.
        pools_gold: Their gold values, in the same order.
        counts: The n, from 1 to the size of the largest pool; a smaller pool does not count at
            this n. By default the powers of 2 up to the size of the smallest pool, and this.

    Raises:
        ValueError: no pools; as many scores and gold values they are not; a number that is not
            finite, named by its pool and its place there; a count out of its range.
    """
    scores, gold, offsets = _flat(pools_scores, pools_gold)
    if counts is None:
        smallest = int(np.diff(offsets).min())
        counts = sorted({smallest, *(2**i for i in range(smallest.bit_length()))})
    at = np.array(counts)
    if at.ndim != 1 or (len(at) and at.dtype.kind not in "iu"):
        raise ValueError(f"counts is {counts!r:.80}, must be a list of integers")
    at = at.astype(np.int64)
    return _curve(at, statistics.best_of_n(scores, gold, offsets, at))


def softmax_policy(pools_scores: Pools, pools_gold: Pools, coefficients: Sequence[float] = COEFFICIENTS) -> Curve:
    """The optimum of RL with a KL penalty of weight b among the policies on a pool, in proportion to
    exp(score / b) over the uniform reference: exact expected values and KL divergence.

    Args:
        pools_scores, pools_gold: As for `best_of_n`.
        coefficients: The b, at least 0: 0 takes the highest score, infinity leaves the reference.

    Raises:
        TypeError: a coefficient that is not a number, or a masked element.
        ValueError: as `best_of_n`; a coefficient that is negative or NaN.
    """
    at = np.array([_check.number(f"coefficients[{i}]", b) for i, b in enumerate(coefficients)], np.float64)
    return _curve(at, statistics.softmax_policy(*_flat(pools_scores, pools_gold), at))


def reference(pools_scores: Pools, pools_gold: Pools) -> Reference:
    """What the reference policy gets, of which the pools are samples. Arguments and errors are those of `best_of_n`."""
    found = statistics.reference(*_flat(pools_scores, pools_gold))
    return Reference(*(_triple(found, key) for key in ("proxy/mean", "proxy/sd", "gold/mean", "gold/sd")))


def _flat(pools_scores: Pools, pools_gold: Pools) -> tuple[Floats, Floats, NDArray[np.int64]]:
    if len(pools_scores) != len(pools_gold):
        raise ValueError(f"pools_gold has {len(pools_gold)} pools, pools_scores has {len(pools_scores)}")
    if not len(pools_scores):
        raise ValueError("pools_scores is empty, must have at least one pool")
    flat = []
    for name, pools in (("scores", pools_scores), ("gold", pools_gold)):
        arrays = []
        for i, pool in enumerate(pools):
            array = _check.array(f"{name}[{i}]", pool)
            if array.ndim != 1 or array.dtype.kind not in "iuf":
                raise ValueError(f"{name}[{i}] is {pool!r:.80}, must be a list of numbers")
            arrays.append(array.astype(np.float64))
        flat.append(arrays)
    for i, (s, g) in enumerate(zip(*flat, strict=True)):
        if len(s) != len(g):
            raise ValueError(f"gold[{i}] has {len(g)} elements, scores[{i}] has {len(s)}")
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
    """NaN for what is not defined."""
    return np.array(estimates.get(name, (np.nan,) * 3), np.float64)
