"""The metrics of the constraint without a trainer: tests/trl/test_trl_metrics.py has them with one."""

import math
import statistics

import mpmath
import numpy as np
import pytest
import torch
from pcrm.training.metrics import KEPT_VALUES, ConstraintMetrics, Demonstrations, PairSums, Sample
from torch.nn.functional import logsigmoid

MARGINS = [0.5, -1.25, 3.0, 2.0, -0.75]
DELTAS = [1.0, 2.0, 2.5, math.inf, 4.0]
PRIORS = [0.9, 0.5, 0.4, 0.0, 0.25]


def tensors(*parts):
    """The pairs of one batch, from the lists above."""
    return [torch.tensor([values[i] for i in parts]) for values in (MARGINS, DELTAS, PRIORS)]


def alone(rows):
    return rows


def pull(margins, deltas):
    """In 30 digits."""
    with mpmath.workdps(30):

        def sigmoid(x):
            return 1 / (1 + mpmath.exp(-x))

        pulls = (sigmoid(mpmath.mpf(m) - d) for m, d in zip(margins, deltas, strict=True))
        return float(mpmath.fsum(pulls) / mpmath.fsum(sigmoid(-mpmath.mpf(m)) for m in margins))


def test_means_are_over_the_pairs_of_all_batches():
    metrics = ConstraintMetrics()
    for batch in ((0, 1, 2), (3, 4)):
        metrics.add("train", *tensors(*batch), gather=alone)
    bounded = [(m, d) for m, d in zip(MARGINS, DELTAS, strict=True) if d < math.inf]
    want = {
        "pcrm/delta": statistics.mean(d for _, d in bounded),
        "pcrm/delta_median": (2.0 + 2.5) / 2,
        "pcrm/target": statistics.mean(d / 2 for _, d in bounded),
        "pcrm/target_median": (2.0 + 2.5) / 4,
        "pcrm/residual": statistics.mean(m - d / 2 for m, d in bounded),
        "pcrm/over_target": 1 / 4,  # 0.5 is at its target, and 2.0 has none
        "pcrm/violation": 1 / 5,
        "pcrm/pull": pull(MARGINS, DELTAS),
        "pcrm/prior": statistics.mean(PRIORS),
    }
    # The priors are not exact in float32.
    assert metrics.take_means("train") == pytest.approx(want, rel=1e-7)
    assert metrics.take_means("train") == {}


def test_training_and_evaluation_are_apart():
    metrics = ConstraintMetrics(keep_margins=True)
    metrics.add("eval", *tensors(4), gather=alone)  # of a prediction, which logs nothing
    metrics.add("train", *tensors(0), gather=alone)
    metrics.begin_evaluation("eval_short_one")
    metrics.add("eval", *tensors(1), gather=alone)
    assert metrics.take_means("eval")["pcrm/delta"] == DELTAS[1]
    assert metrics.take_means("train")["pcrm/delta"] == DELTAS[0]
    assert metrics.take_margins("eval").tolist() == [MARGINS[1]]
    assert metrics.take_margins("train").tolist() == [MARGINS[0]]
    assert metrics.evaluation == "eval_short_one"


def test_the_pairs_of_other_processes_count():
    metrics = ConstraintMetrics(keep_margins=True)
    other = torch.stack(tensors(2, 4), 1)
    metrics.add("train", *tensors(0, 1), gather=lambda rows: torch.cat([rows, other]))
    assert metrics.take_means("train")["pcrm/delta"] == statistics.mean(DELTAS[i] for i in (0, 1, 2, 4))
    assert metrics.take_margins("train").tolist() == [MARGINS[i] for i in (0, 1, 2, 4)]


def test_demonstrations_are_weighed_by_their_tokens():
    metrics = ConstraintMetrics()
    margin, delta, _ = tensors(0, 1)
    for nll, tokens in (([3.0, 1.0], [2, 1]), ([0.0, 8.0], [0, 5])):
        demonstrations = Demonstrations(torch.tensor(nll), torch.tensor(tokens))
        metrics.add("train", margin, delta, demonstrations=demonstrations, gather=alone)
    means = metrics.take_means("train")
    assert means["pcrm/nll"] == 12 / 8 and "pcrm/prior" not in means


@pytest.mark.parametrize("delta", [2.0, math.inf])
def test_one_delta_for_all(delta):
    """None of the pairs has a target where delta is infinite, and nothing pulls."""
    metrics = ConstraintMetrics()
    metrics.add("train", torch.tensor([1.0, 3.0]), delta, gather=alone)
    found = metrics.take_means("train")
    assert found.pop("pcrm/pull") == pytest.approx(pull([1, 3], [delta, delta]), rel=1e-14)
    bounded = {"pcrm/delta": 2.0, "pcrm/delta_median": 2.0, "pcrm/target": 1.0, "pcrm/target_median": 1.0}
    bounded |= {"pcrm/residual": 1.0, "pcrm/over_target": 0.5}
    assert found == {"pcrm/violation": float(delta < 3) / 2} | (bounded if delta < 3 else {})


@pytest.mark.parametrize(
    ("margins", "deltas"),
    [
        ([0.4, -0.2, 1.1], [12.0, 16.0, 900.0]),  # far below: 1e-6 and less, with all digits
        ([2.0, 2.0], [4.0, 4.0]),  # at the target
        ([-700.0, 300.0, 690.0], [2.0, 2.0, 2.0]),
        ([60.0, 80.0], [2.0, 150.0]),  # all far over
        ([0.0, 5.0], [math.inf, 2.0]),
    ],
)
def test_pull_is_exact(margins, deltas):
    sums = PairSums()
    sums.add(np.array(margins), np.array(deltas))
    # Each exponential and each sum is rounded a few times.
    assert sums.metrics()["pcrm/pull"] == pytest.approx(pull(margins, deltas), rel=1e-14)


@pytest.mark.parametrize(
    ("margin", "delta", "want"),
    [(math.inf, 2.0, math.inf), (-math.inf, 2.0, 0.0), (math.inf, math.inf, 0.0), (800.0, 2000.0, 0.0)],
)
def test_pull_where_nothing_pushes(margin, delta, want):
    sums = PairSums()
    sums.add(np.array([margin]), np.array([delta]))
    assert sums.metrics()["pcrm/pull"] == want


def test_pull_is_the_ratio_of_both_terms_in_the_gradient():
    """Of a parameter that all margins share, here a number that is added to them."""
    generator = torch.Generator().manual_seed(0)
    margin = 2 * torch.randn(50, generator=generator, dtype=torch.float64)
    delta = 1 + 4 * torch.rand(50, generator=generator, dtype=torch.float64)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    terms = (-logsigmoid(margin + shift).sum(), -logsigmoid(delta - margin - shift).sum())
    push, back = (torch.autograd.grad(term, shift)[0].item() for term in terms)
    sums = PairSums()
    sums.add(margin.numpy(), delta.numpy())
    assert sums.metrics()["pcrm/pull"] == pytest.approx(-back / push, rel=1e-13)


def test_sums_merge_to_those_of_all():
    parts, whole = [PairSums(), PairSums()], PairSums()
    for at, where in enumerate((slice(3), slice(3, 5))):
        for sums in (parts[at], whole):
            sums.add(np.array(MARGINS[where]), np.array(DELTAS[where]))
    parts[0].merge(parts[1])
    assert parts[0].metrics() == pytest.approx(whole.metrics(), rel=1e-15)


def test_a_sample_is_exact_until_it_is_full_and_then_drawn_evenly():
    sample, values = Sample(), np.arange(3.0 * KEPT_VALUES)
    for part in np.split(values[:KEPT_VALUES], [7, 7, 1000]):
        sample.add(part)
    assert sorted(sample.values) == list(range(KEPT_VALUES))
    for part in np.split(values[KEPT_VALUES:], [5, 1000, 100_000]):
        sample.add(part)
    kept = sample.values
    assert sample.seen == len(values) and len(kept) == KEPT_VALUES == len(set(kept))
    # A third of each third is kept; the shares and the median within six standard errors.
    shares = np.bincount((kept // KEPT_VALUES).astype(int)) / KEPT_VALUES
    assert shares == pytest.approx([1 / 3] * 3, abs=6 * math.sqrt(2 / 9 / KEPT_VALUES))
    assert np.median(kept) / len(values) == pytest.approx(0.5, abs=6 * 0.5 / math.sqrt(KEPT_VALUES))


def test_a_random_number_is_no_similarity():
    metrics = ConstraintMetrics(log_prior=False)
    metrics.add("train", *tensors(0, 1), gather=alone)
    assert "pcrm/prior" not in metrics.take_means("train")


def test_margins_that_are_not_numbers():
    """They are in the means, and not in the histogram."""
    metrics = ConstraintMetrics(keep_margins=True)
    metrics.add("train", torch.tensor([math.nan, 1.0, -math.inf]), 2.0, gather=alone)
    means = metrics.take_means("train")
    assert means.pop("pcrm/delta") == means.pop("pcrm/delta_median") == 2
    assert means.pop("pcrm/target") == means.pop("pcrm/target_median") == 1
    assert means.keys() == {f"pcrm/{name}" for name in ("violation", "residual", "over_target", "pull")}
    assert all(map(math.isnan, means.values()))
    assert metrics.take_margins("train").tolist() == [1.0]


def test_margins_are_kept_only_for_their_histogram():
    metrics = ConstraintMetrics()
    metrics.add("train", *tensors(0, 1), gather=alone)
    assert metrics.take_margins("train").tolist() == []
