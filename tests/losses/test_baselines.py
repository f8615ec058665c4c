"""The losses of other papers against mpmath and against each other in limits. test_baselines_trl.py compares with TRL."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers.project import ROOT
from mpmath import mp, mpf
from pcrm._engine import choice, native
from pcrm.functional import (
    cdpo_loss,
    ipo_loss,
    l2_reward_loss,
    llama2_margin_loss,
    odpo_loss,
    pcrm_dpo_loss,
    pcrm_loss,
    rdpo_loss,
    rpo_distance_loss,
)

import pcrm


def softplus(x):
    return mp.log1p(mp.exp(x))


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def divergence(a, b):
    p, q = sigmoid(a), sigmoid(b)
    return p * mp.log(p / q) + (1 - p) * mp.log((1 - p) / (1 - q))


class Baseline(NamedTuple):
    """A loss with settings, called with scores and extra numbers (B,), and its formula for one pair."""

    call: Callable[..., Any]
    exact: Callable[[Any, Any, Any], Any]  # a function of both scores or log ratios and the pair's number
    scores: int = 4  # the number of leading tensors

    def loss(self, *arguments, **options):
        result = self.call(*arguments, **options)
        return result if self.scores == 2 else result[0]


# Settings are powers of 2, so that no product with such scores is rounded.
BASELINES = {
    "llama2": Baseline(llama2_margin_loss, lambda c, r, x: softplus(x - (c - r)), 2),
    "l2": Baseline(
        lambda c, r, x, **k: l2_reward_loss(c, r, coefficient=0.125, **k),
        lambda c, r, x: softplus(r - c) + (c**2 + r**2) / 8,
        2,
    ),
    "cdpo": Baseline(
        lambda a, b, c, d, x, **k: cdpo_loss(a, b, c, d, beta=0.25, label_smoothing=0.125, **k),
        lambda c, r, x: (7 * softplus((r - c) / 4) + softplus((c - r) / 4)) / 8,
    ),
    "ipo": Baseline(
        lambda a, b, c, d, x, **k: ipo_loss(a, b, c, d, beta=0.25, **k),
        lambda c, r, x: (c - r - 2) ** 2,
    ),
    "backward_kl": Baseline(
        lambda *a, **k: rpo_distance_loss(*a, beta=0.25, eta=0.5, **k),
        lambda c, r, x: divergence(x / 2, (c - r) / 4),
    ),
    "forward_kl": Baseline(
        lambda *a, **k: rpo_distance_loss(*a, beta=0.25, eta=0.5, distance="forward_kl", **k),
        lambda c, r, x: divergence((c - r) / 4, x / 2),
    ),
    "squared": Baseline(
        lambda *a, **k: rpo_distance_loss(*a, beta=0.25, eta=0.5, distance="squared", **k),
        lambda c, r, x: ((c - r) / 4 - x / 2) ** 2,
    ),
    "odpo": Baseline(lambda *a, **k: odpo_loss(*a, beta=0.25, **k), lambda c, r, x: softplus(x - (c - r) / 4)),
    "rdpo": Baseline(  # the positive and negative parts of the number are the two lengths
        lambda a, b, c, d, x, **k: rdpo_loss(
            a, b, c, d, x.clamp(min=0), (-x).clamp(min=0), alpha=0.125, beta=0.25, **k
        ),
        lambda c, r, x: softplus(-x / 8 - (c - r) / 4),
    ),
}
baselines = pytest.mark.parametrize("name", BASELINES)


def numbers(n=60, count=4, dtype=torch.float64, seed=0):
    """Scores and one number per pair, multiples of 1/64 up to 32, so that sums and products are exact."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-2048, 2049, (count + 1, n), generator=g).to(torch.float64) / 64
    values[-1] /= 4
    *scores, x = values
    scores = [s.to(dtype).requires_grad_(i < 2) for i, s in enumerate(scores)]
    return *scores, x.to(torch.float64 if dtype == torch.float64 else torch.float32)


def of(name, **options):
    return numbers(count=BASELINES[name].scores, **options)


@baselines
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact(backend, name, dtype):
    """Losses and gradients with 60 digits.

    A divergence is a difference of numbers up to |z| + |x| < 50. A gradient is a difference of numbers
    up to 1 or, for squares, twice the scores. Each has a few roundings of these.
    """
    baseline, inputs = BASELINES[name], of(name, dtype=dtype)
    loss = baseline.loss(*inputs, reduction="none")
    loss.sum().backward()
    *scores, x = (t.detach().double() for t in inputs)
    w, l = scores if baseline.scores == 2 else (scores[0] - scores[2], scores[1] - scores[3])  # noqa: E741
    losses, gradients = [], []
    with mp.workdps(60):
        for pair in zip(w.tolist(), l.tolist(), x.tolist(), strict=True):
            point = tuple(map(mpf, pair))
            losses.append(float(baseline.exact(*point)))
            gradients.append([float(mp.diff(baseline.exact, point, order)) for order in ((1, 0, 0), (0, 1, 0))])
    eps = torch.finfo(dtype).eps
    relative = 1e-12 if dtype == torch.float64 else 2e-6
    absolute = 4 * 50 * eps if name.endswith("_kl") else torch.finfo(dtype).tiny
    torch.testing.assert_close(
        loss.detach().double(), torch.tensor(losses, dtype=torch.float64), rtol=relative, atol=absolute
    )
    for got, want in zip(inputs[:2], torch.tensor(gradients, dtype=torch.float64).T, strict=True):
        # The gradient of forward KL is q (1-q) (z - x), with the rounding of a number up to 50.
        torch.testing.assert_close(
            got.grad.double(), want, rtol=relative, atol=4 * eps * (50 if name == "forward_kl" else 1)
        )


@baselines
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(backend, name, reduction):
    *inputs, x = of(name, n=7)
    rest = inputs[2:]
    assert torch.autograd.gradcheck(
        lambda a, b: BASELINES[name].loss(a, b, *rest, x, reduction=reduction), inputs[:2], atol=1e-5, rtol=1e-4
    )


@baselines
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backends_agree_and_another_gradient_comes_in(backend, name, reduction):
    """Many blocks, with layers before and after the loss."""
    results = []
    for now in (backend, "torch"):
        g = torch.Generator().manual_seed(1)
        scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        scores = [3 * torch.randn(5000, generator=g, dtype=torch.float64) for _ in range(BASELINES[name].scores + 1)]
        with pytest.MonkeyPatch.context() as patch:
            if now == "torch":
                patch.setattr(choice, "native_for_loss", lambda *_: None)
            loss = BASELINES[name].loss(scale * scores[0], scores[1] / scale, *scores[2:], reduction=reduction)
        (grad,) = torch.autograd.grad((loss**2).sum(), scale)
        results.append((loss.detach(), grad))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-14)


def test_reductions(backend):
    for name in BASELINES:
        inputs = of(name)
        each = BASELINES[name].loss(*inputs, reduction="none")
        assert each.shape == (60,)
        torch.testing.assert_close(BASELINES[name].loss(*inputs, reduction="sum"), each.sum(), rtol=1e-13, atol=0)
        torch.testing.assert_close(BASELINES[name].loss(*inputs), each.mean(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_without_its_word_it_is_dpo(dtype):
    """Offset 0, alpha 0 and label_smoothing 0: torch's DPO bit for bit, with the gradient and the rewards."""
    pc, pr, rc, rr, _ = numbers(n=200, dtype=dtype)
    lengths = torch.arange(200)

    def all_of(result):
        return *result, *torch.autograd.grad(result[0], (pc, pr))

    with pcrm.backends.use_backend("torch"):
        want = all_of(pcrm_dpo_loss(pc, pr, rc, rr, math.inf, beta=0.3))
        conservative = cdpo_loss(pc, pr, rc, rr, label_smoothing=0, beta=0.3)
    for got in (
        odpo_loss(pc, pr, rc, rr, 0, beta=0.3),
        odpo_loss(pc, pr, rc, rr, torch.zeros(200), beta=0.3),
        rdpo_loss(pc, pr, rc, rr, lengths, lengths.flip(0), alpha=0, beta=0.3),
        rdpo_loss(pc, pr, rc, rr, lengths, lengths, alpha=0.5, beta=0.3),
        conservative,
    ):
        assert all(torch.equal(a, b) for a, b in zip(all_of(got), want, strict=True))


def test_without_its_word_it_is_bradley_terry():
    """Margin 0 and coefficient 0: each pair's loss and gradient are torch's bit for bit."""
    chosen, rejected, _ = numbers(n=200, count=2)

    def all_of(loss):
        return loss, *torch.autograd.grad(loss.sum(), (chosen, rejected))

    with pcrm.backends.use_backend("torch"):
        want = all_of(pcrm_loss(chosen, rejected, math.inf, reduction="none"))
    for got in (
        llama2_margin_loss(chosen, rejected, 0, reduction="none"),
        llama2_margin_loss(chosen, rejected, torch.zeros(200, dtype=torch.int64), reduction="none"),
        l2_reward_loss(chosen, rejected, coefficient=0, reduction="none"),
    ):
        assert all(torch.equal(a, b) for a, b in zip(all_of(got), want, strict=True))


def test_a_margin_is_a_lower_score(backend):
    """A constant offset acts like one of the reference: this checks its sign."""
    chosen, rejected, x = numbers(count=2)
    torch.testing.assert_close(
        llama2_margin_loss(chosen, rejected, x), pcrm_loss(chosen - x, rejected, math.inf), rtol=1e-13, atol=0
    )
    pc, pr, rc, rr, x = numbers()
    want, *_ = pcrm_dpo_loss(pc, pr, rc + x / 0.25, rr, math.inf, beta=0.25)
    torch.testing.assert_close(odpo_loss(pc, pr, rc, rr, x, beta=0.25)[0], want, rtol=1e-13, atol=0)
    longer = rdpo_loss(pc, pr, rc, rr, torch.full((60,), 40), torch.full((60,), 10), alpha=0.1)[0]
    even = rdpo_loss(pc, pr, rc, rr, torch.full((60,), 10), torch.full((60,), 10), alpha=0.1)[0]
    assert longer < even, "a longer chosen response has to be less likely than it was"


def test_aims(backend):
    """The minimum of each loss. For a distance, the minimum is zero."""
    gap = torch.tensor([-2.0, 0.0, 0.5, 6.0], dtype=torch.float64)
    zeros = torch.zeros(4, dtype=torch.float64)
    for distance in ("squared", "forward_kl", "backward_kl"):
        policy = (gap * 0.5 / 0.25).requires_grad_()
        loss, *_ = rpo_distance_loss(
            policy, zeros, zeros, zeros, gap, beta=0.25, eta=0.5, distance=distance, reduction="none"
        )
        loss.sum().backward()
        torch.testing.assert_close(loss, zeros, rtol=0, atol=1e-15)
        torch.testing.assert_close(policy.grad, zeros, rtol=0, atol=1e-15)
    policy = torch.tensor([1 / (2 * 0.25), math.log(9) / 0.25], dtype=torch.float64, requires_grad=True)
    zeros = zeros[:2]
    (by_ipo,) = torch.autograd.grad(ipo_loss(policy, zeros, zeros, zeros, beta=0.25)[0], policy)
    (by_cdpo,) = torch.autograd.grad(cdpo_loss(policy, zeros, zeros, zeros, beta=0.25, label_smoothing=0.1)[0], policy)
    assert by_ipo[0] == 0 and by_ipo[1] > 0
    assert by_cdpo[0] < 0 and abs(by_cdpo[1]) < 1e-16


def test_rewards(backend):
    """beta * (policy - reference), for IPO too, detached, in the loss's dtype."""
    for name, baseline in BASELINES.items():
        if baseline.scores == 2:
            continue
        for dtype in (torch.float64, torch.bfloat16):
            pc, pr, rc, rr, x = numbers(dtype=dtype)
            loss, chosen, rejected = baseline.call(pc, pr, rc, rr, x)
            assert not chosen.requires_grad and not rejected.requires_grad and chosen.dtype == loss.dtype, name
            assert torch.equal(chosen, (0.25 * (pc.to(loss.dtype) - rc.to(loss.dtype))).detach()), name
            assert torch.equal(rejected, (0.25 * (pr.to(loss.dtype) - rr.to(loss.dtype))).detach()), name


@baselines
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend, name, dtype):
    inputs = of(name, dtype=dtype)
    loss = BASELINES[name].loss(*inputs)
    loss.backward()
    assert loss.dtype == torch.float32 and inputs[0].grad.dtype == inputs[1].grad.dtype == dtype
    exact = [t.detach().double().requires_grad_(i < 2) for i, t in enumerate(inputs)]
    want = BASELINES[name].loss(*exact)
    want.backward()
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=0)
    # A gradient is rounded once to its dtype; the smallest unit of float16 is 2^-24.
    torch.testing.assert_close(
        inputs[0].grad.double(), exact[0].grad, rtol=torch.finfo(dtype).eps, atol=2**-24 + 1e-6 / 60
    )


def test_infinities_and_huge_numbers(backend):
    def of_rpo(distance):
        return lambda z: rpo_distance_loss(z, x, x, x, 0.5, beta=1, distance=distance, reduction="none")[0]

    x = torch.zeros(6, dtype=torch.float64)
    at = torch.tensor([math.inf, -math.inf, 1e300, -1e300, 800.0, -800.0], dtype=torch.float64)
    down = [0, math.inf, 0, 1e300, 0, 800]
    p = 1 / (1 + math.exp(-0.5))
    # The remaining terms of p log(p / q) + (1 - p) log((1 - p) / (1 - q)); at 800 also the entropy.
    entropy = p * math.log(p) + (1 - p) * math.log(1 - p)
    apart = [math.inf, math.inf, (1 - p) * 1e300, p * 1e300, (1 - p) * 800 + entropy, p * 800 + entropy]
    for call, losses, gradients in (
        (lambda z: llama2_margin_loss(z, x, 0.0, reduction="none"), down, [0, -1] * 3),
        (lambda z: odpo_loss(z, x, x, x, 0.0, beta=1, reduction="none")[0], down, [0, -1] * 3),
        (of_rpo("squared"), [math.inf] * 4 + [799.5**2, 800.5**2], [math.inf, -math.inf, 2e300, -2e300, 1599, -1601]),
        (of_rpo("forward_kl"), [-math.log(p), -math.log(1 - p)] * 3, [0] * 6),
        (of_rpo("backward_kl"), apart, [1 - p, -p] * 3),
    ):
        z = at.clone().requires_grad_()
        loss = call(z)
        loss.sum().backward()
        for got, want in ((loss.detach(), losses), (z.grad, gradients)):
            torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-13, atol=1e-300)


@baselines
def test_nan_propagates(backend, name):
    *inputs, x = of(name, n=3)
    broken = inputs[0].detach().clone()
    broken[1] = math.nan
    broken.requires_grad_()
    loss = BASELINES[name].loss(broken, *inputs[1:], x, reduction="none")
    loss.sum().backward()
    assert loss.isnan().tolist() == broken.grad.isnan().tolist() == [False, True, False]
    assert BASELINES[name].loss(broken, *inputs[1:], x).isnan()


@pytest.mark.parametrize("name", ["llama2", "odpo"])
def test_layouts(backend, name):
    *inputs, x = of(name, n=6)
    inputs = [t.detach() for t in inputs]
    want = BASELINES[name].loss(*inputs, x)
    wide = torch.stack([*inputs, x], 1)
    views = wide.unbind(1)
    assert not views[0].is_contiguous()
    first = views[0].requires_grad_()
    got = BASELINES[name].loss(first, *views[1:])
    got.backward()
    assert torch.equal(got, want)
    negative = torch._neg_view(-inputs[0])
    assert torch.equal(BASELINES[name].loss(negative, *inputs[1:], torch._neg_view(-x)), want)
    one = torch.tensor(1.5, dtype=torch.float64)
    assert torch.equal(BASELINES[name].loss(*inputs, one), BASELINES[name].loss(*inputs, torch.full_like(x, 1.5)))
    assert torch.equal(BASELINES[name].loss(*inputs, 1.5), BASELINES[name].loss(*inputs, one))


TORCH = [name for name in BASELINES if name != "cdpo"]  # which is a case of pcrm_dpo_loss


@pytest.mark.parametrize("name", ["llama2", "backward_kl"])
def test_retained_graph(backend, name):
    *inputs, x = of(name)
    loss = BASELINES[name].loss(*inputs, x)
    loss.backward(retain_graph=True)
    once = inputs[0].grad.clone()
    loss.backward()
    torch.testing.assert_close(inputs[0].grad, 2 * once)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


@pytest.mark.parametrize("name", TORCH)
def test_second_derivatives(backend, name):
    *inputs, x = of(name, n=7)
    rest = inputs[2:]
    assert torch.autograd.gradgradcheck(
        lambda a, b: BASELINES[name].loss(a, b, *rest, x), inputs[:2], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", TORCH)
def test_torch_computes_whatever_is_chosen(backend, name, monkeypatch):
    inputs = of(name)
    monkeypatch.setattr(native, "call", None)
    BASELINES[name].loss(*inputs).backward()


def test_no_gradient(backend):
    for name in BASELINES:
        *inputs, x = of(name, n=6)
        with torch.no_grad():
            quiet = BASELINES[name].loss(*inputs, x)
        assert not quiet.requires_grad and torch.equal(quiet, BASELINES[name].loss(*inputs, x).detach())


def test_transforms_take_the_torch_path():
    with pcrm.backends.use_backend("go"):
        for name in ("llama2", "forward_kl"):
            *inputs, x = of(name, n=5)
            inputs = [t.detach() for t in inputs]
            wanted = inputs[0].clone().requires_grad_()
            BASELINES[name].loss(wanted, *inputs[1:], x).backward()
            got = torch.func.grad(lambda a, r=inputs[1:], n=name, y=x: BASELINES[n].loss(a, *r, y))(inputs[0])
            torch.testing.assert_close(got, wanted.grad)
            batched = torch.func.vmap(lambda y, i=inputs, n=name: BASELINES[n].loss(*i, y))(torch.stack([x, 2 * x]))
            torch.testing.assert_close(batched[1], BASELINES[name].loss(*inputs, 2 * x))


@pytest.mark.slow
@baselines
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_without_graph_break(backend, name, reduction):
    torch.compiler.reset()

    def function(a, *rest):
        return 3 * BASELINES[name].loss(2 * a, *rest, reduction=reduction)

    inputs = of(name)
    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        loss = f(*inputs)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), inputs[:2])))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_other_devices_take_the_torch_path():
    for name in BASELINES:
        inputs = [t.detach().to("meta") for t in of(name)]
        loss = BASELINES[name].loss(inputs[0].requires_grad_(), *inputs[1:])
        loss.backward()
        assert inputs[0].grad.device.type == "meta"


def test_they_are_not_traced(tmp_path, backend):
    """`pcrm verify` has no formula for these losses, so they are not recorded and do not count as steps."""
    chosen, rejected, x = numbers(count=2)
    with pcrm.trace(tmp_path, every=2):
        for _ in range(2):
            llama2_margin_loss(chosen, rejected, x).backward()
            odpo_loss(*numbers()[:4], 0.5)
            pcrm_loss(chosen, rejected, 4.5).backward()
    assert [p.name.rpartition("-")[2] for p in tmp_path.iterdir()] == ["step00000000.safetensors"]


ONE, TWO = torch.ones(1), torch.ones(2)
NAN = torch.tensor([0.0, math.nan])
INF = torch.tensor([math.inf, 0.0])


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "chosen_rewards must be a torch.Tensor, got list", lambda: llama2_margin_loss([1.0], ONE, 0)),
        (
            ValueError,
            r"rejected_rewards must have shape \(B,\), got \(2, 1\)",
            lambda: l2_reward_loss(TWO, TWO[:, None], coefficient=0.1),
        ),
        (
            ValueError,
            "chosen_rewards must hold at least one number, got an empty tensor",
            lambda: llama2_margin_loss(ONE[:0], ONE[:0], 0),
        ),
        (
            TypeError,
            "reference_rejected_logps must have the dtype of policy_chosen_logps, torch.float32, got torch.float64",
            lambda: odpo_loss(TWO, TWO, TWO, TWO.double(), 0),
        ),
        (
            ValueError,
            r"policy_rejected_logps must have the shape of policy_chosen_logps, \(2,\), got \(1,\)",
            lambda: ipo_loss(TWO, ONE, TWO, TWO),
        ),
        (TypeError, "margin must be a torch.Tensor or a float, got str", lambda: llama2_margin_loss(ONE, ONE, "3")),
        (
            TypeError,
            "margin must be floating point or integer, got dtype torch.bool",
            lambda: llama2_margin_loss(ONE, ONE, ONE.bool()),
        ),
        (
            ValueError,
            r"margin must have shape \(2,\) or be one number, got shape \(2, 1\)",
            lambda: llama2_margin_loss(TWO, TWO, TWO[:, None]),
        ),
        (
            ValueError,
            "margin must be on the device of chosen_rewards, cpu, got meta",
            lambda: llama2_margin_loss(TWO, TWO, TWO.to("meta")),
        ),
        (
            ValueError,
            r"margin must not require a gradient, because none flows through it: pass margin.detach\(\)",
            lambda: llama2_margin_loss(ONE, ONE, torch.ones(1, requires_grad=True)),
        ),
        (ValueError, r"^margin\[1\] must be finite, got nan", lambda: llama2_margin_loss(TWO, TWO, NAN)),
        (ValueError, r"^margin must be finite, got inf", lambda: llama2_margin_loss(TWO, TWO, math.inf)),
        (ValueError, r"^margin must be finite, got 1e\+300", lambda: llama2_margin_loss(TWO, TWO, 1e300)),
        (
            ValueError,
            r"^margin\[0\] must be finite, got 1e\+300",
            lambda: llama2_margin_loss(ONE, ONE, torch.tensor([1e300], dtype=torch.float64)),
        ),
        (ValueError, r"^offset\[0\] must be finite, got inf", lambda: odpo_loss(TWO, TWO, TWO, TWO, INF)),
        (ValueError, r"^offset must be finite, got -inf", lambda: odpo_loss(TWO, TWO, TWO, TWO, -math.inf)),
        (ValueError, r"^gold_gap\[1\] must be finite, got nan", lambda: rpo_distance_loss(TWO, TWO, TWO, TWO, NAN)),
        (
            ValueError,
            r"gold_gap must have shape \(2,\) or be one number, got shape \(1,\)",
            lambda: rpo_distance_loss(TWO, TWO, TWO, TWO, ONE),
        ),
        (
            ValueError,
            "distance must be one of squared, forward_kl, backward_kl, got 'kl'",
            lambda: rpo_distance_loss(ONE, ONE, ONE, ONE, ONE, distance="kl"),
        ),
        (
            ValueError,
            "distance must be one of .*, got 'offset'",
            lambda: rpo_distance_loss(ONE, ONE, ONE, ONE, ONE, distance="offset"),
        ),
        (
            ValueError,
            "eta must be .*, got 0",
            lambda: rpo_distance_loss(ONE, ONE, ONE, ONE, ONE, eta=0),
        ),
        (ValueError, "beta must be .*, got 0", lambda: ipo_loss(ONE, ONE, ONE, ONE, beta=0)),
        (ValueError, "beta must be .*greater than 0, got nan", lambda: odpo_loss(ONE, ONE, ONE, ONE, 0, beta=math.nan)),
        (TypeError, "beta must be a number, got '1'", lambda: rpo_distance_loss(ONE, ONE, ONE, ONE, 0, beta="1")),
        (
            ValueError,
            "beta must be .*, got inf",
            lambda: cdpo_loss(ONE, ONE, ONE, ONE, label_smoothing=0.1, beta=math.inf),
        ),
        (
            ValueError,
            r"label_smoothing must be in \[0, 0.5\), got 0.5",
            lambda: cdpo_loss(ONE, ONE, ONE, ONE, label_smoothing=0.5),
        ),
        (
            ValueError,
            "coefficient must be .*, got -1",
            lambda: l2_reward_loss(ONE, ONE, coefficient=-1),
        ),
        (
            ValueError,
            "alpha must be .*, got -0.1",
            lambda: rdpo_loss(ONE, ONE, ONE, ONE, ONE, ONE, alpha=-0.1),
        ),
        (
            ValueError,
            r"chosen_lengths\[1\] must be finite and at least 0, got -3",
            lambda: rdpo_loss(TWO, TWO, TWO, TWO, torch.tensor([2, -3]), TWO, alpha=0.1),
        ),
        (
            ValueError,
            r"rejected_lengths must have shape \(2,\) or be one number, got shape \(1,\)",
            lambda: rdpo_loss(TWO, TWO, TWO, TWO, TWO, ONE, alpha=0.1),
        ),
        (
            TypeError,
            "rejected_lengths must be a torch.Tensor or a float, got list",
            lambda: rdpo_loss(TWO, TWO, TWO, TWO, TWO, [1, 2], alpha=0.1),
        ),
        (
            ValueError,
            "reduction must be one of mean, sum, none, got 'average'",
            lambda: llama2_margin_loss(ONE, ONE, 0, reduction="average"),
        ),
        (
            ValueError,
            "reduction must be one of mean, sum, none, got 'all'",
            lambda: odpo_loss(ONE, ONE, ONE, ONE, 0, reduction="all"),
        ),
    ],
)
def test_bad_input(backend, error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_lengths_of_any_integer_type(backend):
    """Including uint8, whose differences would wrap."""
    *logps, _ = numbers(n=3)
    want = rdpo_loss(*logps, torch.tensor([3.0, 200, 0]), torch.tensor([250.0, 1, 7]), alpha=0.1)[0]
    for dtype in (torch.uint8, torch.int32, torch.int64):
        lengths = torch.tensor([[3, 200, 0], [250, 1, 7]]).to(dtype)
        assert torch.equal(rdpo_loss(*logps, *lengths, alpha=0.1)[0], want)


def test_the_guide_runs_as_it_is_printed(capsys):
    page = (ROOT / "docs" / "baselines.md").read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.S | re.M)
    script, ensembles = (block for language, block in found if language == "python")
    (table,) = (block for language, block in found if not language)
    exec(compile(script, "docs/baselines.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    without_figures = [re.sub(r"\d\.\d+", "", line) for line in printed]
    assert without_figures == [re.sub(r"\d\.\d+", "", line) for line in table.splitlines()]
    exec(compile(ensembles, "docs/baselines.md", "exec"), {})
    # Each function is in the page's table.
    assert all(f"`{name}" in page for name in pcrm.functional.__all__ if name.endswith("_loss") and "token" not in name)
