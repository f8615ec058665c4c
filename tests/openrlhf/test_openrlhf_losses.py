"""OpenRLHF's losses with the constraint, against the formulas of OpenRLHF's own, in float64."""

import math

import pytest
import torch
from pcrm.openrlhf import PCRMDPOLoss, PCRMPairWiseLoss
from torch.nn.functional import logsigmoid

from pcrm import Constraint

CURVE = Constraint(1.1, 0.001, 0.9)
FREE = Constraint.fixed(math.inf)


def pairs(n=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (3 * torch.randn(2, n, generator=generator, dtype=torch.float64)).to(dtype)
    return chosen.requires_grad_(), rejected.requires_grad_(), torch.rand(n, generator=generator)


def gradients(loss, *scores):
    return torch.cat(torch.autograd.grad(loss, scores))


def check(ours, expected, *scores):
    # A mean of 7 terms below 30, each rounded a few times: some 30 * 2**-53 = 3e-15 each.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradients(ours, *scores), gradients(expected, *scores), rtol=0, atol=1e-13)


def test_pairwise_is_the_formula(backend):
    chosen, rejected, prior = pairs()
    m = chosen - rejected
    delta = 1.1 / (prior.double() + 0.001) + 0.9
    expected = (-logsigmoid(m) - logsigmoid(delta - m)).mean()
    check(PCRMPairWiseLoss(CURVE)(chosen, rejected, prior.double()), expected, chosen, rejected)


def test_pairwise_without_constraint_is_openrlhfs(backend):
    chosen, rejected, _ = pairs()
    expected = -logsigmoid(chosen - rejected).mean()
    check(PCRMPairWiseLoss(FREE)(chosen, rejected), expected, chosen, rejected)


def test_pairwise_centers_and_smooths(backend):
    chosen, rejected, prior = pairs()
    m, delta = chosen - rejected, 1.1 / (prior.double() + 0.001) + 0.9
    expected = (-logsigmoid(m) - logsigmoid(delta - m) + 0.1 * delta + 0.01 * (chosen + rejected) ** 2).mean()
    loss_fn = PCRMPairWiseLoss(CURVE, label_smoothing=0.1, center_rewards_coefficient=0.01)
    check(loss_fn(chosen, rejected, prior.double()), expected, chosen, rejected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pairwise_subtracts_half_precision_in_float32(backend, dtype):
    chosen, rejected, prior = pairs(dtype=dtype)
    chosen.data += 100  # the difference has 5 bits of bfloat16 left, where both have 8
    rejected.data += 100
    loss = PCRMPairWiseLoss(CURVE)(chosen, rejected, prior)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, PCRMPairWiseLoss(CURVE)(chosen.float(), rejected.float(), prior))
    stock = -logsigmoid(chosen - rejected).mean()
    free = PCRMPairWiseLoss(FREE)(chosen, rejected)
    exact = -logsigmoid(chosen.double() - rejected.double()).mean()
    assert abs(free - exact) < 1e-6 < abs(stock - exact)
    assert gradients(loss, chosen, rejected).dtype == dtype


def test_pairwise_takes_whole_numbers_for_what_they_are(backend):
    chosen, rejected, _ = pairs(2)
    loss = PCRMPairWiseLoss(CURVE)(chosen, rejected, torch.tensor([0, 1]))  # int64, as OpenRLHF hands it over
    assert torch.equal(loss, PCRMPairWiseLoss(CURVE)(chosen, rejected, torch.tensor([0.0, 1.0], dtype=torch.float64)))


@pytest.mark.parametrize(
    ("margin", "error", "message"),
    [
        (
            None,
            ValueError,
            r"margin must be the prior of each pair, got None: .*--model\.margin_loss_enable .*column 'margin'",
        ),
        (torch.tensor([0.5, 1.5]), ValueError, r"margin\[1\] must be in \[0, 1\], got 1\.5: .*column 'margin'"),
        (torch.tensor([-0.1, 0.5]), ValueError, r"margin\[0\] must be in \[0, 1\], got -0\.1"),
        (torch.tensor([0.5, math.nan]), ValueError, r"margin\[1\] must be in \[0, 1\], got nan"),
        (torch.tensor([1, 3]), ValueError, r"margin\[1\] must be in \[0, 1\], got 3: .* whole numbers such as ratings"),
        (
            torch.tensor([[0.5], [0.5]]),
            ValueError,
            r"margin must have the shape of chosen_reward, \(2,\), got \(2, 1\)",
        ),
        (torch.tensor(0.5), ValueError, r"margin must have the shape of chosen_reward, \(2,\), got \(\)"),
        (torch.tensor([True, False]), TypeError, r"margin must be a tensor of numbers in \[0, 1\], got torch\.bool"),
        ([0.5, 0.5], TypeError, r"margin must be a tensor of numbers in \[0, 1\], got list"),
    ],
)
def test_pairwise_refuses(margin, error, message):
    chosen, rejected, _ = pairs(2)
    with pytest.raises(error, match=message):
        PCRMPairWiseLoss(CURVE)(chosen, rejected, margin)


def test_pairwise_refuses_rewards_that_would_broadcast():
    chosen, rejected, prior = pairs(4)
    with pytest.raises(ValueError, match=r"chosen_rewards must have shape \(B,\), got \(4, 1\)"):
        PCRMPairWiseLoss(CURVE)(chosen[:, None], rejected[:, None], prior[:, None])


def test_a_fixed_constraint_checks_a_prior_and_leaves_it():
    chosen, rejected, prior = pairs(4)
    loss_fn = PCRMPairWiseLoss(Constraint.fixed(4.5))
    assert loss_fn(chosen, rejected, prior) == loss_fn(chosen, rejected)
    with pytest.raises(ValueError, match=r"margin\[0\] must be in \[0, 1\], got 3"):  # a rating that would do nothing
        loss_fn(chosen, rejected, torch.full((4,), 3))


@pytest.mark.parametrize("batch", [1, 5, 64, 100])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_pairwise_refuses_the_zeros_of_a_missing_column(batch, dtype):
    loss_fn = PCRMPairWiseLoss(CURVE)
    chosen, rejected, _ = pairs(batch)
    margin = torch.zeros(batch, dtype=dtype)
    before = (64 - 1) // batch  # so many batches have fewer than 64 pairs
    for _ in range(before):
        loss_fn(chosen, rejected, margin)
    with pytest.raises(
        ValueError, match=rf"margin must not be 0 for all pairs, got 0 for the first {(before + 1) * batch}\..*column"
    ):
        loss_fn(chosen, rejected, margin)


def test_pairwise_takes_zeros_once_it_saw_a_prior():
    loss_fn = PCRMPairWiseLoss(CURVE)
    chosen, rejected, _ = pairs(32)
    zeros, one = torch.zeros(32), torch.zeros(32)
    one[31] = 0.5
    for prior in (zeros, one, zeros, zeros, zeros):
        m, delta = chosen - rejected, 1.1 / (prior.double() + 0.001) + 0.9
        check(
            loss_fn(chosen, rejected, prior.double()), (-logsigmoid(m) - logsigmoid(delta - m)).mean(), chosen, rejected
        )


def logps(n=7):
    generator = torch.Generator().manual_seed(1)
    policy_chosen, policy_rejected, *reference = -50 * torch.rand(4, n, generator=generator, dtype=torch.float64)
    return policy_chosen.requires_grad_(), policy_rejected.requires_grad_(), *reference


def stock_dpo(pc, pr, rc, rr, beta, label_smoothing):
    """What OpenRLHF's DPOLoss documents: equation 7 of arXiv 2305.18290, smoothed as in cDPO."""
    z = beta * ((pc - pr) - (rc - rr))
    return (-(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)).mean()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_dpo_without_constraint_is_openrlhfs(backend, label_smoothing):
    batch = logps()
    loss, chosen_rewards, rejected_rewards = PCRMDPOLoss(FREE, 0.1, label_smoothing)(*batch)
    check(loss, stock_dpo(*batch, 0.1, label_smoothing), *batch[:2])
    for rewards, policy, reference in ((chosen_rewards, *batch[::2]), (rejected_rewards, *batch[1::2])):
        assert not rewards.requires_grad
        torch.testing.assert_close(rewards, 0.1 * (policy - reference).detach(), rtol=0, atol=1e-13)


def test_dpo_is_the_formula(backend):
    batch = logps()
    prior = torch.rand(7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loss_fn = PCRMDPOLoss(CURVE, 0.3)
    loss_fn.prior = prior
    pc, pr, rc, rr = batch
    z = 0.3 * ((pc - rc) - (pr - rr))
    expected = (-logsigmoid(z) - logsigmoid(1.1 / (prior + 0.001) + 0.9 - z)).mean()
    check(loss_fn(*batch)[0], expected, pc, pr)


def test_dpo_takes_a_prior_once():
    loss_fn = PCRMDPOLoss(CURVE)
    with pytest.raises(ValueError, match=r"prior must be set before each call.*got None.*PCRMDPOTrainer"):
        loss_fn(*logps())
    loss_fn.prior = torch.rand(7)
    loss_fn(*logps())
    with pytest.raises(ValueError, match="prior must be set before each call"):
        loss_fn(*logps())


def test_dpo_refuses():
    with pytest.raises(ValueError, match=r"ipo must be False.* got True: remove --model\.ipo_enable"):
        PCRMDPOLoss(CURVE, 0.1, 0.0, True)
    loss_fn = PCRMDPOLoss(CURVE)
    loss_fn.prior = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"prior must have the shape of policy_chosen_logps, \(7,\), got \(\)"):
        loss_fn(*logps())
    loss_fn.prior = torch.full((7,), 1.5)
    with pytest.raises(ValueError, match=r"1\.5"):
        loss_fn(*logps())


@pytest.mark.parametrize("loss", [PCRMPairWiseLoss, PCRMDPOLoss])
def test_losses_want_a_constraint(loss):
    with pytest.raises(TypeError, match=r"constraint must be a pcrm\.Constraint, got float"):
        loss(4.5)
