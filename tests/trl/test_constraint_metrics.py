"""The metrics of the constraint without a trainer: test_trl_metrics.py has them with one."""

import math
import statistics

import pytest
import torch
from pcrm.trl.metrics import ConstraintMetrics, Demonstrations

MARGINS = [0.5, -1.25, 3.0, 2.0, -0.75]
DELTAS = [1.0, 2.0, 2.5, math.inf, 4.0]
PRIORS = [0.9, 0.5, 0.4, 0.0, 0.25]


def tensors(*parts):
    """The pairs of one batch, from the lists above."""
    return [torch.tensor([values[i] for i in parts]) for values in (MARGINS, DELTAS, PRIORS)]


def alone(rows):
    return rows


def test_means_are_over_the_pairs_of_all_batches():
    metrics = ConstraintMetrics()
    for batch in ((0, 1, 2), (3, 4)):
        metrics.add("train", *tensors(*batch), gather=alone)
    bounded = [(m, d) for m, d in zip(MARGINS, DELTAS, strict=True) if d < math.inf]
    want = {
        "pcrm/delta": statistics.mean(d for _, d in bounded),
        "pcrm/target": statistics.mean(d / 2 for _, d in bounded),
        "pcrm/residual": statistics.mean(m - d / 2 for m, d in bounded),
        "pcrm/violation": 1 / 5,
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
    assert metrics.histogram_tag("train") == "pcrm/margins"
    assert metrics.histogram_tag("eval") == "eval/short_one/pcrm/margins"


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
    metrics = ConstraintMetrics()
    metrics.add("train", torch.tensor([1.0, 3.0]), delta, gather=alone)
    bounded = {"pcrm/delta": 2.0, "pcrm/target": 1.0, "pcrm/residual": 1.0}
    assert metrics.take_means("train") == {"pcrm/violation": float(delta < 3) / 2} | (bounded if delta < 3 else {})


def test_a_random_number_is_no_similarity():
    metrics = ConstraintMetrics(log_prior=False)
    metrics.add("train", *tensors(0, 1), gather=alone)
    assert "pcrm/prior" not in metrics.take_means("train")


def test_margins_that_are_not_numbers():
    """They are in the means, and not in the histogram."""
    metrics = ConstraintMetrics(keep_margins=True)
    metrics.add("train", torch.tensor([math.nan, 1.0, -math.inf]), 2.0, gather=alone)
    means = metrics.take_means("train")
    assert math.isnan(means["pcrm/violation"]) and math.isnan(means["pcrm/residual"]) and means["pcrm/delta"] == 2
    assert metrics.take_margins("train").tolist() == [1.0]


def test_margins_are_kept_only_for_their_histogram():
    metrics = ConstraintMetrics()
    metrics.add("train", *tensors(0, 1), gather=alone)
    assert metrics.take_margins("train").tolist() == []
