"""Best of n and softmax policies through the bridge, against enumeration and scipy."""

import itertools
import re

import numpy as np
import pytest
import scipy.special
import scipy.stats
from pcrm.evaluate.optimization import COEFFICIENTS, best_of_n, reference, softmax_policy


def pools(n=30, seed=0, digits=8):
    random = np.random.default_rng(seed)
    scores = [random.normal(random.normal(), 2, random.integers(1, 8)).round(digits) for _ in range(n)]
    return scores, [s + random.normal(0, 3, len(s)) for s in scores]


def enumerated(scores, gold, n):
    """Expected score and gold value of the best of n over all subsets, ties shared."""
    proxy, golden = [], []
    for subset in itertools.combinations(range(len(scores)), n):
        best = scores[list(subset)].max()
        proxy.append(best)
        golden.append(np.mean([gold[i] for i in subset if scores[i] == best]))
    return np.mean(proxy), np.mean(golden)


@pytest.mark.parametrize("digits", [0, 8])
def test_best_of_n_against_enumeration(digits):
    scores, gold = pools(digits=digits)
    counts = [1, 2, 3, 5, 7]
    curve = best_of_n(scores, gold, counts)
    for k, n in enumerate(counts):
        counted = [(s, g) for s, g in zip(scores, gold, strict=True) if len(s) >= n]
        proxy, golden = np.mean([enumerated(s, g, n) for s, g in counted], axis=0)
        before, golden_before = np.mean([(s.mean(), g.mean()) for s, g in counted], axis=0)
        assert curve.pools[k] == len(counted)
        # Sums of 30 numbers of up to 20 in float64.
        assert curve.proxy[k, 0] == pytest.approx(proxy, abs=1e-13)
        assert curve.gold[k, 0] == pytest.approx(golden, abs=1e-13)
        assert curve.proxy_gain[k, 0] == pytest.approx(proxy - before, abs=1e-13)
        assert curve.gold_gain[k, 0] == pytest.approx(golden - golden_before, abs=1e-13)
        assert curve.kl[k] == pytest.approx([np.log(n) - (n - 1) / n] * 3, abs=1e-15)


def test_softmax_policy_against_scipy():
    scores, gold = pools()
    curve = softmax_policy(scores, gold)
    for k, b in enumerate(COEFFICIENTS):
        policies = [scipy.special.softmax(s / b) for s in scores]
        expected = {
            "kl": [scipy.stats.entropy(p, np.full(len(p), 1 / len(p))) for p in policies],
            "proxy": [p @ s for p, s in zip(policies, scores, strict=True)],
            "gold": [p @ g for p, g in zip(policies, gold, strict=True)],
            "gold_gain": [p @ g - g.mean() for p, g in zip(policies, gold, strict=True)],
        }
        for name, values in expected.items():
            assert getattr(curve, name)[k, 0] == pytest.approx(np.mean(values), abs=1e-13), (name, b)


def test_intervals_against_scipy():
    """Those of scipy's own percentile bootstrap, within four times what their 1000 and 9999 draws leave."""
    scores, gold = pools(200)
    curve = softmax_policy(scores, gold, [0.5])
    policies = [scipy.special.softmax(s / 0.5) for s in scores]
    values = [p @ g - g.mean() for p, g in zip(policies, gold, strict=True)]
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    sd = np.std(values) / np.sqrt(len(values))
    # An end is the 2.5% quantile of draws, whose standard error is sqrt(.025 .975 / 1000) / density .0585 = 0.084 sd.
    assert curve.gold_gain[0, 1:] == pytest.approx(theirs, abs=4 * 0.084 * 1.05 * sd)


def test_reference_and_defaults():
    scores, gold = pools()
    found = reference(scores, gold)
    within = np.sqrt(sum(((s - s.mean()) ** 2).sum() for s in scores) / sum(len(s) - 1 for s in scores))
    assert found.proxy_sd[0] == pytest.approx(within, rel=1e-13)
    assert found.proxy_sd[1] < within < found.proxy_sd[2]
    assert found.gold_mean[0] == pytest.approx(np.mean([g.mean() for g in gold]), rel=1e-13)
    assert np.isnan(reference([[1.0], [2.0]], [[1], [2]]).proxy_sd).all()
    assert best_of_n([range(6), range(7)], [range(6), range(7)]).at.tolist() == [1, 2, 4, 6]
    assert best_of_n([range(8)], [range(8)]).at.tolist() == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("scores", "gold", "at", "message"),
    [
        ([], [], [1], "pools_scores must have at least one pool, got none"),
        ([[1], [2]], [[1]], [1], "pools_gold must have 2 pools like pools_scores, got 1"),
        ([[1], [2, 3]], [[1], [2]], [1], "gold[1] must have 2 elements like scores[1], got 1"),
        ([[1], []], [[1], []], [1], "scores[1] must have at least one number, got none"),
        ([[1], [2, float("nan")]], [[1], [2, 3]], [1], "scores[1][1] must be finite, got NaN"),
        ([[1], [2, 3]], [[float("-inf")], [2, 3]], [1], "gold[0][0] must be finite, got -Inf"),
        ([[1], ["2"]], [[1], [2]], [1], "scores[1] must be a list of numbers, got ['2']"),
        ([[[1]]], [[1]], [1], "scores[0] must be a list of numbers, got [[1]]"),
        ([[1, None]], [[1, 2]], [1], "scores[0] must be a list of numbers, got [1, None]"),
        ([[1, 2]], [[1, 2]], [1, 3], "counts[1] must be from 1 to 2, the size of the largest pool, got 3"),
        ([[1, 2]], [[1, 2]], [0.5], "counts must be a list of integers, got [0.5]"),
        ([[1, 2]], [[1, 2]], [], "counts must have at least one number, got none"),
    ],
)  # fmt: skip
def test_bad_pools(scores, gold, at, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        best_of_n(scores, gold, at)


def test_bad_coefficients():
    with pytest.raises(ValueError, match=re.escape("coefficients[1] must be at least 0, got -0.5")):
        softmax_policy([[1]], [[1]], [1, -0.5])


def test_values_that_are_not_numbers():
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    with pytest.raises(TypeError, match=re.escape("scores[0][1] must be a number, got a masked value")):
        reference([masked], [[1, 2]])
    for bad in (True, "1", None, [1.0]):
        with pytest.raises(TypeError, match=re.escape(f"coefficients[0] must be a number, got {bad!r}")):
            softmax_policy([[1]], [[1]], [bad])


def test_unsigned_counts():
    assert best_of_n([[1, 2]], [[1, 2]], np.array([1, 2], np.uint8)).at.tolist() == [1, 2]
