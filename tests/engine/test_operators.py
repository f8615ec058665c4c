"""The token form and DPO. `test_functional` has the same tests for the pair form."""

import math

import pytest
import torch
from helpers import hand_written
from helpers.cases import PAD, close, logps, precisions, refused, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from pcrm.functional import pcrm_dpo_loss, pcrm_token_loss
from torch.nn.functional import logsigmoid

import pcrm


@precisions
def test_golden_tokens(backend, golden, dtype, tolerance):
    for c in golden["token_batch"]:
        chosen, rejected = (
            torch.tensor(c[k], dtype=dtype, requires_grad=True) for k in ("chosen_rewards", "rejected_rewards")
        )
        ids = (torch.tensor(c[k]) for k in ("chosen_ids", "rejected_ids"))
        delta = torch.tensor(c["delta"], dtype=dtype)
        loss = pcrm_token_loss(chosen, rejected, *ids, delta, pad_token_id=c["pad_token_id"])
        loss.backward()
        close(loss, c["loss"], tolerance)
        # Gradients are differences of numbers up to 1, divided by the length of the span.
        close(chosen.grad, c["grad_chosen"], tolerance, 4 * torch.finfo(dtype).eps)
        assert torch.equal(chosen.grad, -rejected.grad)


@precisions
def test_golden_dpo(backend, golden, dtype, tolerance):
    for c in golden["dpo_batch"]:
        names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
        inputs = [torch.tensor(c[k], dtype=dtype) for k in names]
        inputs[0].requires_grad_(), inputs[1].requires_grad_()
        loss, chosen, rejected = pcrm_dpo_loss(
            *inputs, torch.tensor(c["delta"], dtype=dtype), beta=c["beta"], label_smoothing=c["label_smoothing"]
        )
        loss.backward()
        # The torch reference rounds each difference of log probabilities, which are up to
        # 200, and z with it; z moves the loss by at most as much.
        rounding = 0 if backend == "go" else 200 * c["beta"] * 2 * torch.finfo(dtype).eps
        close(loss, c["loss"], tolerance, rounding)
        close(inputs[0].grad, c["grad_policy_chosen"], tolerance, 4 * torch.finfo(dtype).eps * c["beta"] + rounding)
        close(inputs[1].grad, c["grad_policy_rejected"], tolerance, 4 * torch.finfo(dtype).eps * c["beta"] + rounding)
        for got, name in ((chosen, "chosen_rewards"), (rejected, "rejected_rewards")):
            close(got, c[name], tolerance, rounding)
            assert not got.requires_grad


def test_golden_spans(golden):
    for c in golden["span"]:
        ids = (torch.tensor([c[k]]) for k in ("chosen_ids", "rejected_ids"))
        assert [x.item() for x in pcrm._engine.torch_reference.spans(*ids, c["pad_token_id"])] == [c["start"], c["end"]]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(backend, reduction):
    chosen, rejected, *rest = tokens()
    assert torch.autograd.gradcheck(
        lambda a, b: pcrm_token_loss(a, b, *rest, pad_token_id=PAD, reduction=reduction), (chosen, rejected)
    )
    chosen, rejected, *rest = logps()
    assert torch.autograd.gradcheck(
        lambda a, b: pcrm_dpo_loss(a, b, *rest, label_smoothing=0.1, reduction=reduction)[0], (chosen, rejected)
    )


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 10**6), st.sampled_from(["mean", "sum", "none"]))
@settings(max_examples=150, deadline=None)
def test_go_equals_torch_on_tokens(rows, width, seed, reduction):
    """With few distinct ids, so that starts, pads and equal rows occur everywhere."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 3, (2, rows, width), generator=g)
    scores = 5 * torch.randn(2, rows, width, generator=g, dtype=torch.float64)
    delta = 1 + torch.rand(rows, generator=g, dtype=torch.float64)
    results = []
    for name in ("go", "torch"):
        chosen, rejected = (s.clone().requires_grad_() for s in scores)
        with pcrm.backends.use_backend(name):
            loss = pcrm_token_loss(chosen, rejected, *ids, delta, pad_token_id=PAD, reduction=reduction)
        loss.sum().backward()
        results.append((loss.detach(), chosen.grad, rejected.grad))
    for go, reference in zip(*results, strict=True):
        torch.testing.assert_close(go, reference, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_masks_end_responses_where_the_pad_token_also_ends_turns(backend, dtype, reduction):
    """The same turns with a separate pad token give the same loss and gradient."""
    end, alone = 2, 49
    chosen_ids = [[7, 8, end, 9, 10, end], [7, 8, end], [5, 6]]
    rejected_ids = [[7, 3, end, 4, end], [7, 8, end, 9, end], [5, 6, end]]  # the last two differ where one ends
    width = 8

    def padded(rows, pad):
        return torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=dtype)

    masks = {
        f"{name}_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        for name, rows in (("chosen", chosen_ids), ("rejected", rejected_ids))
    }
    results = []
    for pad, named in ((end, masks), (alone, {"pad_token_id": alone})):
        scores = [s.requires_grad_() for s in torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))]
        ids = padded(chosen_ids, pad), padded(rejected_ids, pad)
        loss = pcrm_token_loss(*scores, *ids, 1.5, reduction=reduction, **named)
        loss.sum().backward()
        results.append((loss.detach(), *(s.grad for s in scores)))
    for with_masks, with_its_own_pad in zip(*results, strict=True):
        assert torch.equal(with_masks, with_its_own_pad)
    # From the first difference to the end of the longer response, its last token included.
    inside = [row.nonzero()[:, 0].tolist() for row in results[0][1]]
    assert inside == [[1, 2, 3, 4, 5], [3, 4], [2]]


@pytest.mark.parametrize(
    ("error", "message", "masks"),
    [
        (TypeError, "pad_token_id is missing: pass it, or chosen_mask and rejected_mask", {}),
        (
            TypeError,
            "rejected_mask must be a torch.Tensor, got NoneType: pass both",
            {"chosen_mask": torch.ones(1, 3) > 0},
        ),
        (
            TypeError,
            "chosen_mask must be bool or an integer dtype, got torch.float32",
            {"chosen_mask": torch.ones(1, 3)},
        ),
        (
            ValueError,
            r"chosen_mask must have the shape of chosen_ids, \(1, 3\), got \(3,\)",
            {"chosen_mask": torch.ones(3).int()},
        ),
        (
            ValueError,
            r"chosen_mask\[0\] must be padded on the right, got a 1 after a 0",
            {"chosen_mask": torch.tensor([[0, 1, 1]])},
        ),
    ],
)
def test_bad_masks(backend, error, message, masks):
    scores, ids = torch.zeros(2, 1, 3), torch.tensor([[[1, 2, 3]], [[1, 2, 4]]])
    with pytest.raises(error, match=message):
        pcrm_token_loss(*scores, *ids, 1.0, **masks)


def test_ids_that_masks_cannot_tell_from_padding(backend):
    ids, mask = torch.tensor([[1, 2**31 - 1]]), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"rejected_ids\[0\] must be less than 2\*\*31 - 1, got 2147483647"):
        pcrm_token_loss(*torch.zeros(2, 1, 2), mask.long(), ids, 1.0, chosen_mask=mask, rejected_mask=mask)


def test_dpo_with_infinite_delta_is_dpo(backend):
    chosen, rejected, ref_chosen, ref_rejected, _ = logps(50)
    loss, *_ = pcrm_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, math.inf, beta=0.3)
    want = -logsigmoid(0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))).mean()
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (chosen, rejected)),
        torch.autograd.grad(want, (chosen, rejected)),
        rtol=1e-10,
        atol=1e-14,
    )


def test_scores_outside_the_span_do_not_matter(backend):
    chosen, rejected, *rest = tokens()
    start, end = pcrm._engine.torch_reference.spans(*rest[:2], PAD)
    position = torch.arange(chosen.shape[1])
    outside = (position < start[:, None]) | (position >= end[:, None])
    want = pcrm_token_loss(chosen, rejected, *rest, pad_token_id=PAD)
    noisy = torch.where(outside, math.nan, chosen.detach()).requires_grad_()
    got = pcrm_token_loss(noisy, rejected, *rest, pad_token_id=PAD)
    got.backward()
    torch.testing.assert_close(got, want)
    assert (noisy.grad[outside] == 0).all() and (noisy.grad[~outside] != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend, dtype):
    for make, function in (
        (tokens, lambda *a: pcrm_token_loss(*a, pad_token_id=PAD)),
        (logps, lambda *a: pcrm_dpo_loss(*a)[0]),
    ):
        inputs = make(dtype=dtype)
        loss = function(*inputs)
        loss.backward()
        assert loss.dtype == torch.float32 and inputs[0].grad.dtype == dtype
        exact = [x.detach().double() if x.is_floating_point() else x for x in inputs]
        torch.testing.assert_close(loss.double(), function(*exact), rtol=1e-5, atol=1e-5)


def test_layouts(backend):
    chosen, rejected, ids_c, ids_r, delta = (x.detach() for x in tokens())
    want = pcrm_token_loss(chosen, rejected, ids_c, ids_r, delta, pad_token_id=PAD)
    strided = [x.T.contiguous().T for x in (chosen, rejected, ids_c.int(), ids_r.int())]
    assert not strided[0].is_contiguous()
    assert torch.equal(pcrm_token_loss(*strided, delta, pad_token_id=PAD), want)


def test_double_backward_is_a_clear_error():
    with pcrm.backends.use_backend("go"):
        chosen, *rest = logps()
        (grad,) = torch.autograd.grad(pcrm_dpo_loss(chosen, *rest)[0], chosen, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            grad.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("form", ["tokens", "dpo"])
def test_compile_without_graph_break(backend, form, reduction):
    torch.compiler.reset()

    def function(a, b, *rest):
        if form == "tokens":
            return 3 * pcrm_token_loss(2 * a, b, *rest, pad_token_id=PAD, reduction=reduction)
        loss, chosen, rejected = pcrm_dpo_loss(2 * a, b, *rest, label_smoothing=0.1, reduction=reduction)
        return 3 * loss + (chosen - rejected).mean()

    inputs = (tokens if form == "tokens" else logps)()
    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        loss = f(*inputs)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), inputs[:2])))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_other_devices_take_the_torch_path():
    for make, function in (
        (tokens, lambda *a: pcrm_token_loss(*a, pad_token_id=PAD)),
        (logps, lambda *a: pcrm_dpo_loss(*a)[0]),
    ):
        inputs = [x.detach().to("meta") for x in make()]
        loss = function(inputs[0].requires_grad_(), *inputs[1:])
        loss.backward()
        assert inputs[0].grad.device.type == "meta"


def changed(make, index, value):
    inputs = [x.detach() for x in make()]
    inputs[index] = value(inputs[index])
    return inputs


@pytest.mark.parametrize(
    ("error", "message", "index", "value"),
    [
        (ValueError, r"chosen_rewards must have shape \(B, L\), got \(4,\)", 0, lambda x: x[:, 0]),
        (
            ValueError,
            r"rejected_rewards must have the shape of chosen_rewards, \(4, 9\), got \(4, 8\)",
            1,
            lambda x: x[:, 1:],
        ),
        (ValueError, r"chosen_ids must have the shape of chosen_rewards, \(4, 9\), got \(3, 9\)", 2, lambda x: x[1:]),
        (TypeError, r"rejected_ids must be int64 or int32, got dtype torch\.float32", 3, lambda x: x.float()),
        (TypeError, "chosen_ids must be a torch.Tensor, got list", 2, lambda x: x.tolist()),
        (ValueError, "rejected_ids must be on the device of chosen_rewards, cpu, got meta", 3, lambda x: x.to("meta")),
        (
            ValueError,
            r"delta must have shape \(4,\) or be one number, got shape \(4, 9\)",
            4,
            lambda x: x[:, None].expand(4, 9),
        ),
        (
            ValueError,
            r"delta\[2\] must be greater than 0, got -1",
            4,
            lambda x: torch.where(torch.arange(4) == 2, -1.0, x),
        ),
    ],
)
def test_bad_tokens(backend, error, message, index, value):
    with refused(backend, error, message):
        pcrm_token_loss(*changed(tokens, index, value), pad_token_id=PAD)


def test_bad_pad(backend):
    with pytest.raises(ValueError, match="pad_token_id must be in"):
        pcrm_token_loss(*tokens(), pad_token_id=-1)


@pytest.mark.parametrize(
    ("error", "message", "index", "value"),
    [
        (ValueError, r"policy_rejected_logps must have shape \(B,\), got \(6, 1\)", 1, lambda x: x[:, None]),
        (
            TypeError,
            r"reference_chosen_logps must have the dtype of policy_chosen_logps, torch\.float64, got torch\.float32",
            2,
            lambda x: x.float(),
        ),
        (
            ValueError,
            "reference_rejected_logps must be on the device of policy_chosen_logps, cpu, got meta",
            3,
            lambda x: x.to("meta"),
        ),
        (ValueError, r"delta\[0\] must be greater than 0, got 0", 4, lambda x: x * 0),
    ],
)
def test_bad_logps(backend, error, message, index, value):
    with refused(backend, error, message):
        pcrm_dpo_loss(*changed(logps, index, value))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("beta must be .*, got 0", {"beta": 0}),
        ("label_smoothing must be .*, got 0.6", {"label_smoothing": 0.6}),
        ("reduction must be .*, got 'all'", {"reduction": "all"}),
    ],
)
def test_bad_dpo_options(backend, message, options):
    with pytest.raises(ValueError, match=message):
        pcrm_dpo_loss(*logps(), **options)


def test_dpo_module(backend):
    *inputs, _ = logps(3)
    constraint = pcrm.Constraint.preset("dpo/length_ratio")
    prior = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    got = pcrm.PCRMDPOLoss(constraint, beta=0.2)(*inputs, prior)
    want = pcrm_dpo_loss(*inputs, constraint.delta(prior), beta=0.2)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with pytest.raises(ValueError, match="prior is missing"):
        pcrm.PCRMDPOLoss(constraint)(*inputs)
    with pytest.raises(TypeError, match=r"constraint must be a pcrm\.Constraint, got float"):
        pcrm.PCRMDPOLoss(4.5)
    assert "beta=0.2" in repr(pcrm.PCRMDPOLoss(constraint, beta=0.2))


def test_baselines_of_the_benchmarks(backend):
    """They compute the same as pcrm. Otherwise the benchmark would be meaningless."""
    chosen, rejected, ids_c, ids_r, delta = tokens(rows=5)
    delta = delta.clamp(max=50)
    ours = pcrm_token_loss(chosen, rejected, ids_c, ids_r, delta, pad_token_id=PAD)
    start, end = pcrm._engine.torch_reference.spans(ids_c, ids_r, PAD)
    position = torch.arange(chosen.shape[1])
    inside = (position >= start[:, None]) & (position < end[:, None])
    torch.testing.assert_close(hand_written.eager_tokens(chosen, rejected, delta, inside, end - start), ours)
    torch.testing.assert_close(hand_written.loop_tokens(chosen, rejected, ids_c, ids_r, delta, PAD), ours)
    pairs = chosen[:, 3], rejected[:, 3], delta
    torch.testing.assert_close(hand_written.eager_pairs(*pairs), pcrm.functional.pcrm_loss(*pairs))
