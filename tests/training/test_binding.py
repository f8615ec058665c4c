"""Messages about a constraint that has no effect, and about one that most margins exceed."""

import math

import numpy as np
import pytest
from pcrm.training.binding import BindingCheck
from pcrm.training.metrics import PairSums

from pcrm import Constraint

CURVE = Constraint(1.1, 0.001, 0.9)
ENOUGH = 300


def sums(margin, delta, n=ENOUGH):
    found = PairSums()
    found.add(np.resize(np.array(margin, float), n), np.resize(np.array(delta, float), n))
    return found


IDLE = (0.4, [12.0, 14.0, 16.0])
OVER = ([5.0, 7.0, 1.0], [2.0, 4.0, 6.0])
MESSAGES = {
    "idle": (
        "the constraint is not binding: over 300 {} pairs the mean margin is 0.4 and the targets are 6 to 8 (10th to 90th "
        "percentile). The model trains as if unconstrained. Set lower targets with pcrm_target_alike and "
        "pcrm_target_unlike, or train longer"
    ),
    "over": (
        "67% of the margins exceed their ceilings: over 300 {} pairs the mean margin is 4.33 and the ceilings are 2 to 6 "
        "(10th to 90th percentile). The loss mostly pulls margins down. Set higher targets with pcrm_target_alike and "
        "pcrm_target_unlike"
    ),
}


@pytest.mark.parametrize(("mode", "of"), [("train", "training"), ("eval", "evaluation")])
def test_each_message_comes_once(mode, of):
    check = BindingCheck(CURVE)
    assert check.look(sums(*IDLE), mode, 0.5) == MESSAGES["idle"].format(of)
    assert check.look(sums(*IDLE), mode, 0.6) is None
    assert check.look(sums(*OVER), "eval", 1.0) == MESSAGES["over"].format("evaluation")
    assert check.look(sums(*OVER), "eval", 1.0) is None


@pytest.mark.parametrize(
    ("margin", "delta"),
    [
        ([-0.5, 0.5, 1.2], [2.0, 4.0, 6.0]),  # the third of the pairs over a target
        (0.5, 4.0),  # none is, but the second term is a sixth of the first: it holds them there
        ([0.1] * 98 + [6.1] * 2, [12.0] * 100),  # few pairs are, and pull is 2e-4, but these it holds
        ([1.0, 3.0], [2.0, 2.0]),  # a half over the ceiling
        (0.4, math.inf),  # the stock loss was asked for
        (math.nan, 12.0),
    ],
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_no_message_when_all_is_well(mode, margin, delta):
    assert BindingCheck(CURVE).look(sums(margin, delta), mode, 1.0) is None


def test_no_message_before_it_is_known():
    check = BindingCheck(CURVE)
    for mode in ("train", "eval"):
        assert check.look(sums(*IDLE), mode, 0.0) is None, "an untrained model has no margins"
        assert check.look(sums(*IDLE), mode, 0.49) is None
        assert check.look(sums(*IDLE, n=ENOUGH - 1), mode, 0.5) is None
    # An evaluation is judged alone, the pairs of training since its half together.
    assert check.look(sums(*IDLE, n=1), "eval", 0.6) is None
    assert check.look(sums(*IDLE, n=1), "train", 0.6) == MESSAGES["idle"].format("training")


def test_pairs_without_a_ceiling_do_not_count():
    delta = np.where(np.arange(2 * ENOUGH) % 2, 12.0, math.inf)
    found = BindingCheck(CURVE).look(sums(np.where(delta < math.inf, 0.5, 90.0), delta, 2 * ENOUGH), "eval", 1.0)
    assert found is not None and "over 300 evaluation pairs the mean margin is 0.5 and the target is 6." in found


@pytest.mark.parametrize(
    ("constraint", "prefix", "idle", "over"),
    [
        (Constraint.fixed(9.0), "pcrm_", "Set a lower pcrm_delta, or train longer", "Set a higher pcrm_delta"),
        (
            Constraint.random(2.0, 9.0),
            "--pcrm.",
            "Set lower values of --pcrm.low and --pcrm.high, or train longer",
            "Set higher values of --pcrm.low and --pcrm.high",
        ),
    ],
)
def test_what_to_do_names_the_setting(constraint, prefix, idle, over):
    check = BindingCheck(constraint, prefix)
    for values, remedy in ((IDLE, idle), (OVER, over)):
        message = check.look(sums(*values), "eval", 1.0)
        assert message is not None and message.endswith(f". {remedy}")
