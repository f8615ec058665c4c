"""The golden vectors (computed by mpmath with 60 digits) on both backends and in both precisions."""

import math

import torch
from helpers.cases import close, precisions
from pcrm.functional import pcrm_loss

import pcrm


@precisions
def test_pairs(backend, golden, dtype, tolerance):
    """Each pair separately, with `reduction="none"`, and its gradient.

    About the absolute tolerances: the gradient is a difference of two numbers up to 1, so near its
    zero it has their rounding error. Margins in float32 are exact here. The torch reference rounds
    delta - margin, which costs the loss half an ulp of |delta| + |margin|.
    """
    epsilon = torch.finfo(dtype).eps
    for smoothing in (0.0, 0.1):
        cases = [c for c in golden["pair"] if c["label_smoothing"] == smoothing]
        margin = torch.tensor([c["margin"] for c in cases], dtype=dtype, requires_grad=True)
        delta = torch.tensor([math.inf if c["delta"] is None else c["delta"] for c in cases], dtype=dtype)
        loss = pcrm_loss(margin, torch.zeros_like(margin), delta, label_smoothing=smoothing, reduction="none")
        loss.sum().backward()
        # The smallest losses are denormal in float32 or vanish there.
        tiny = torch.finfo(dtype).tiny
        close(loss, [c["loss"] for c in cases], tolerance, tiny)
        close(margin.grad, [c["grad"] for c in cases], tolerance, 4 * epsilon)


@precisions
def test_batches(backend, golden, dtype, tolerance):
    for c in golden["reward_batch"]:
        chosen, rejected = (torch.tensor(c[k], dtype=dtype, requires_grad=True) for k in ("chosen", "rejected"))
        loss = pcrm_loss(
            chosen,
            rejected,
            torch.tensor(c["delta"], dtype=dtype),
            center_rewards_coefficient=c["center_rewards_coefficient"],
        )
        loss.backward()
        close(loss, c["loss"], tolerance)
        for x, name in ((chosen, "grad_chosen"), (rejected, "grad_rejected")):
            close(x.grad, c[name], tolerance, 4 * torch.finfo(dtype).eps / len(x))


def test_delta(backend, golden):
    for c in golden["delta"]:
        constraint = pcrm.Constraint(c["beta1"], c["beta2"], c["beta3"])
        # beta1 / (s + beta2) and beta3 cancel: the error is that of the larger one.
        assert math.isclose(
            constraint.delta(c["similarity"]), c["delta"], rel_tol=1e-15, abs_tol=1e-15 * abs(c["beta3"])
        )


def test_length_ratio(backend, golden):
    cases, padded = golden["length_ratio"], golden["span"]
    want = torch.tensor([c["ratio"] for c in cases], dtype=torch.float64).float()
    got = pcrm.priors.length_ratio([c["chosen_ids"] for c in cases], [c["rejected_ids"] for c in cases])
    assert torch.equal(got, want)
    for c, ratio in zip(padded, want, strict=True):
        row = [torch.tensor([c[k]]) for k in ("chosen_ids", "rejected_ids")]
        assert pcrm.priors.length_ratio(*row, pad_token_id=c["pad_token_id"]) == ratio
