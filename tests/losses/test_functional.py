"""`pcrm_loss`: the gradient, its place in a graph, valid and invalid arguments."""

import math
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers.cases import batch, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from pcrm._engine import choice
from pcrm.functional import pcrm_loss
from torch.nn.functional import logsigmoid

import pcrm

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradcheck(backend, reduction, smoothing):
    chosen, rejected, delta = batch()
    # Smoothing adds e * delta to the loss, so a missing exception for an infinite delta would show.
    assert torch.autograd.gradcheck(
        lambda a, b: pcrm_loss(
            a, b, delta, label_smoothing=smoothing, center_rewards_coefficient=0.01, reduction=reduction
        ),
        (chosen, rejected),
    )


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.floats(1e-3, 1e3)), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.1, 0.49]),
    st.sampled_from([0.0, 0.01]),
    st.sampled_from(["mean", "sum", "none"]),
)
@settings(max_examples=150, deadline=None)
def test_go_equals_torch(pairs, smoothing, center, reduction):
    results = []
    for name in ("go", "torch"):
        chosen, rejected, delta = (torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
        chosen.requires_grad_(), rejected.requires_grad_()
        with pcrm.backends.use_backend(name):
            loss = pcrm_loss(
                chosen,
                rejected,
                delta,
                label_smoothing=smoothing,
                center_rewards_coefficient=center,
                reduction=reduction,
            )
            loss.sum().backward()
        results.append((loss.detach(), chosen.grad, rejected.grad))
    for go, reference in zip(*results, strict=True):
        # Gradients are differences of numbers up to 1, times the pull of the centering.
        torch.testing.assert_close(go, reference, rtol=1e-12, atol=1e-14)


def test_infinite_delta_is_bradley_terry(backend):
    chosen, rejected, _ = batch(50)
    loss = pcrm_loss(chosen, rejected, math.inf)
    torch.testing.assert_close(loss, -logsigmoid(chosen - rejected).mean(), rtol=1e-14, atol=0)
    got = torch.autograd.grad(loss, (chosen, rejected))
    want = torch.autograd.grad(-logsigmoid(chosen - rejected).mean(), (chosen, rejected))
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-17)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_not_the_last_layer(backend, reduction):
    """The incoming gradient is not 1, and the scores come from a layer."""
    weight = torch.tensor([0.7, -0.3], dtype=torch.float64, requires_grad=True)
    features, other, delta = (*(x.detach() for x in batch()[:2]), batch()[2])

    def model(loss):
        scores = torch.stack([features, other]).T @ weight, torch.stack([other, features.sin()]).T @ weight
        return (loss(*scores, delta, reduction=reduction) ** 2 * 3).sum()

    def readable(a, b, d, reduction):
        loss = -logsigmoid(a - b) - logsigmoid(torch.where(d < math.inf, d - (a - b), math.inf))
        return loss.mean() if reduction == "mean" else loss

    (got,) = torch.autograd.grad(model(pcrm_loss), weight)
    (want,) = torch.autograd.grad(model(readable), weight)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(backend, dtype):
    chosen, rejected, delta = batch(64, dtype)
    loss = pcrm_loss(chosen, rejected, delta)
    loss.backward()
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == computed_in
    assert chosen.grad.dtype == rejected.grad.dtype == dtype
    exact = [x.detach().double().requires_grad_() for x in (chosen, rejected)]
    with pcrm.backends.use_backend("torch"):
        reference = pcrm_loss(*exact, delta.double())
        reference.backward()
    # The loss has the rounding of the compute dtype, the gradient that of its own dtype.
    torch.testing.assert_close(loss.double(), reference, rtol=4 * torch.finfo(computed_in).eps, atol=0)
    for got, want in zip((chosen, rejected), exact, strict=True):
        torch.testing.assert_close(
            got.grad.double(),
            want.grad,
            rtol=torch.finfo(dtype).eps,
            atol=4 * torch.finfo(computed_in).eps / 64 + torch.finfo(dtype).smallest_normal,
        )


def test_memory_layouts(backend):
    chosen, rejected, delta = (x.detach() for x in batch(6))
    want = pcrm_loss(chosen, rejected, delta)
    wide = torch.zeros(6, 3, dtype=torch.float64)
    wide[:, 1] = chosen
    strided = wide[:, 1].requires_grad_()
    assert not strided.is_contiguous()
    got = pcrm_loss(strided, rejected.flip(0).flip(0), delta)
    assert torch.equal(got, want)
    got.backward()
    # One number seen six times: an expanded tensor must get the sum of the gradients.
    one = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    pcrm_loss(one.expand(6), rejected, delta[1].expand(6), reduction="sum").backward()
    six = torch.full((6,), 0.5, dtype=torch.float64, requires_grad=True)
    pcrm_loss(six, rejected, torch.full((6,), delta[1].item(), dtype=torch.float64), reduction="sum").backward()
    torch.testing.assert_close(one.grad, six.grad.sum())


def test_one_side_needs_no_gradient(backend):
    chosen, rejected, delta = batch()
    both = torch.autograd.grad(pcrm_loss(chosen, rejected, delta), (chosen, rejected))
    assert torch.equal(torch.autograd.grad(pcrm_loss(chosen, rejected.detach(), delta), chosen)[0], both[0])
    assert torch.equal(torch.autograd.grad(pcrm_loss(chosen.detach(), rejected, delta), rejected)[0], both[1])
    assert not pcrm_loss(chosen.detach(), rejected.detach(), delta).requires_grad
    with torch.no_grad():
        assert not pcrm_loss(chosen, rejected, delta).requires_grad


def test_retained_graph(backend):
    """A second backward pass gives the same gradient, or an error without retain_graph."""
    chosen, rejected, delta = batch()
    loss = 3 * pcrm_loss(chosen, rejected, delta)
    loss.backward(retain_graph=True)
    once = chosen.grad.clone()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(chosen.grad, 2 * once)
    loss.backward()
    torch.testing.assert_close(chosen.grad, 3 * once)
    with pytest.raises(RuntimeError, match=r"a second time|gradient is gone"):
        loss.backward()


def test_gradients_do_not_share_memory(backend):
    """Changing one gradient in place, as clipping does, does not change the other."""
    chosen, rejected, delta = batch()
    pcrm_loss(chosen, rejected, delta).backward()
    before = rejected.grad.clone()
    chosen.grad.zero_()
    assert torch.equal(rejected.grad, before)


def test_one_delta_for_all(backend):
    chosen, rejected, _ = batch()
    want = pcrm_loss(chosen, rejected, torch.full((8,), 4.5, dtype=torch.float64))
    assert torch.equal(pcrm_loss(chosen, rejected, 4.5), want)
    assert torch.equal(pcrm_loss(chosen, rejected, torch.tensor(4.5)), want)


def test_nan_and_infinities_propagate(backend):
    """NaN propagates through the extension too, so it was not compiled with -ffast-math."""
    chosen = torch.tensor([math.nan, math.inf, -math.inf, 1.0], requires_grad=True)
    loss = pcrm_loss(chosen, torch.zeros(4), 4.0, reduction="none")
    assert loss.isnan().tolist() == [True, False, False, False]
    assert loss[1:3].tolist() == [math.inf, math.inf]
    loss.sum().backward()
    assert chosen.grad.isnan().tolist() == [True, False, False, False]
    assert chosen.grad[1:3].tolist() == [1.0, -1.0]
    assert pcrm_loss(chosen, torch.zeros(4), 4.0).isnan()


@pytest.mark.parametrize("upstream", [False, True])
def test_double_backward_is_a_clear_error(upstream):
    """Every way to ask for a second derivative is an error. A silent zero would be worse."""
    chosen, rejected, delta = batch()
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    with pcrm.backends.use_backend("go"):
        (grad,) = torch.autograd.grad(scale * pcrm_loss(chosen, rejected, delta), chosen, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            if upstream:
                torch.autograd.grad(grad.sum(), scale)
            else:
                torch.autograd.grad((chosen**2).sum() + 10 * grad.pow(2).sum(), chosen)
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.functional.hessian(lambda a: pcrm_loss(a, rejected.detach(), delta), chosen.detach())
    with pcrm.backends.use_backend("torch"):
        assert torch.autograd.gradgradcheck(lambda a, b: pcrm_loss(a, b, delta), (chosen, rejected))


def test_transforms_take_the_torch_path():
    """A transform gets a traceable computation and the correct numbers."""
    chosen, rejected, delta = (x.detach() for x in batch())

    def loss(a):
        return pcrm_loss(a, rejected, delta)

    with pcrm.backends.use_backend("torch"):
        wanted = chosen.clone().requires_grad_()
        loss(wanted).backward()
        hessian = torch.autograd.functional.hessian(loss, chosen)
    with pcrm.backends.use_backend("go"):
        torch.testing.assert_close(torch.func.grad(loss)(chosen), wanted.grad)
        torch.testing.assert_close(torch.func.hessian(loss)(chosen), hessian)
        torch.testing.assert_close(torch.func.vmap(loss)(torch.stack([chosen, 2 * chosen]))[1], loss(2 * chosen))
        _, tangent = torch.func.jvp(loss, (chosen,), (torch.ones_like(chosen),))
        torch.testing.assert_close(tangent, wanted.grad.sum())
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(chosen, torch.ones_like(chosen))
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent, wanted.grad.sum())
        jacobian = torch.autograd.functional.jacobian(
            lambda a: pcrm_loss(a, rejected, delta, reduction="none"), chosen, vectorize=True
        )
        torch.testing.assert_close(jacobian.diag() / len(chosen), wanted.grad)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_vmap_over_the_gradient(backend, reduction, dtype):
    """PyTorch's own Jacobian: the loss is computed outside of vmap."""
    chosen, rejected, delta = batch(5, dtype)
    loss = pcrm_loss(chosen, rejected, delta, reduction=reduction)
    incoming = torch.eye(5, dtype=loss.dtype) if reduction == "none" else torch.arange(3, dtype=loss.dtype)
    expected = [torch.autograd.grad(loss, (chosen, rejected), v, retain_graph=True) for v in incoming]
    for kept in (True, False):
        if not kept:
            loss = pcrm_loss(chosen, rejected, delta, reduction=reduction)
        gradients = partial(torch.autograd.grad, loss, (chosen, rejected), retain_graph=kept)
        got = torch.vmap(lambda v, gradients=gradients: gradients(v))(incoming)
        for i, want in enumerate(zip(*expected, strict=True)):
            torch.testing.assert_close(got[i], torch.stack(want))
    if backend != "torch":
        loss = pcrm_loss(chosen, rejected, delta, reduction=reduction)
        (grad,) = torch.vmap(lambda v: torch.autograd.grad(loss, chosen, v, create_graph=True))(incoming)
        with pytest.raises(RuntimeError, match="second derivatives"):
            grad.sum().backward()


def test_negative_views(backend):
    """A tensor may be stored with the opposite sign, which its address does not show."""
    chosen = torch.tensor([0.2 + 1.2j]).conj().imag
    assert chosen.is_neg() and chosen.is_contiguous()
    torch.testing.assert_close(pcrm_loss(chosen, torch.zeros(1), 3.0), pcrm_loss(chosen.clone(), torch.zeros(1), 3.0))
    similarity = torch.tensor([0.2 - 0.9j]).conj().imag
    assert pcrm.Constraint(1, 0.001, 2).delta(similarity) == pcrm.Constraint(1, 0.001, 2).delta(similarity.clone())


def _compiled(compiler, backend_name, reduction="mean"):
    torch.compiler.reset()

    def function(chosen, rejected, delta):
        return 3 * pcrm_loss(2 * chosen, rejected, delta, center_rewards_coefficient=0.01, reduction=reduction)

    with pcrm.backends.use_backend(backend_name):
        chosen, rejected, delta = batch(33, torch.float32)
        results = []
        for f in (function, torch.compile(function, fullgraph=True, backend=compiler)):
            loss = f(chosen, rejected, delta)
            results.append((loss.detach(), *torch.autograd.grad(loss.sum(), (chosen, rejected))))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_without_graph_break(backend, reduction):
    _compiled("aot_eager", backend, reduction)


def test_compiled_for_native_code_that_is_not_there(monkeypatch):
    """In a forked child, or where the library cannot be loaded: the operator computes with torch."""

    def function(chosen, rejected, delta):
        return pcrm_loss(chosen, rejected, delta, center_rewards_coefficient=0.01, check_finite=True)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for f in (function, compiled):
        chosen, rejected, delta = batch(dtype=torch.bfloat16)
        f(chosen, rejected, delta).backward()
        results.append((chosen.grad, rejected.grad))
        monkeypatch.setattr(choice, "native_for_loss", lambda *_: None)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    with pytest.raises(ValueError, match=r"(?i)chosen_rewards\[2\] must be finite, got nan"):
        compiled(torch.where(torch.arange(8) == 2, math.nan, chosen), rejected, delta)
    with pytest.raises(ValueError, match=r"delta\[7\] must be greater than 0, got -1"):
        compiled(chosen, rejected, torch.where(torch.arange(8) == 7, -1.0, delta))


@pytest.mark.slow
def test_compile_with_inductor(backend):
    compiler = os.environ.get("CXX", "g++")  # inductor's own choice
    if shutil.which(compiler) is None:
        pytest.skip(f"inductor needs a C++ compiler, and {compiler} is not on PATH")
    _compiled("inductor", backend)


def test_compiled_double_backward_is_a_clear_error():
    chosen, rejected, delta = batch()
    with pcrm.backends.use_backend("go"):
        op = torch.ops.pcrm.reward_loss(chosen, rejected, delta, 0.0, 0.0, 0, False)
        (grad,) = torch.autograd.grad(op[0], chosen, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            grad.sum().backward()


def test_operator_is_what_torch_expects():
    """Its fake, its schema and its autograd registration, by torch's own checks.

    Without `test_aot_dispatch_dynamic`, which sends a gradient into every output: two of our outputs
    are gradients and refuse it. The compile tests above cover the same ground.
    """
    chosen, rejected, delta = batch()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for arguments in ((0.1, 0.01, 0, False), (0.0, 0.0, 2, False)):
        torch.library.opcheck(
            torch.ops.pcrm.reward_loss.default, (chosen, rejected, delta, *arguments), test_utils=checks
        )


def test_modes_that_see_each_operation_get_some_to_see():
    """A graph of make_fx must not hold the numbers of the inputs that it was made with."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    chosen, rejected, delta = (x.detach() for x in batch())
    with pcrm.backends.use_backend("go"):
        for mode in ("real", "fake"):
            graph = make_fx(lambda *x: pcrm_loss(*x), tracing_mode=mode)(chosen, rejected, delta)
            torch.testing.assert_close(graph(2 * chosen, rejected, delta), pcrm_loss(2 * chosen, rejected, delta))
        with FakeTensorMode():
            assert pcrm_loss(torch.empty(3), torch.empty(3), 2.0).shape == ()


@pytest.mark.slow
def test_another_default_device():
    """The default device must not affect the buffers that Go writes to, whenever it is set."""
    code = """
import torch
torch.set_default_device("meta")
import pcrm
with torch.device("cpu"):
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
chosen.requires_grad_()
for backend in ("go", "torch"):
    with pcrm.backends.use_backend(backend):
        loss = pcrm.functional.pcrm_loss(chosen, rejected, torch.full((2,), 4.5, device="cpu"))
        (gradient,) = torch.autograd.grad(loss, chosen)
        print(f"{loss.item():.6f} {gradient.sum().item():.6f}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    chosen, rejected = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.5, 0.0])
    loss = pcrm_loss(chosen, rejected, 4.5)
    loss.backward()
    assert done.stdout.splitlines() == [f"{loss.item():.6f} {chosen.grad.sum().item():.6f}"] * 2


def test_a_delta_that_is_none_of_float32(backend):
    """In float32, 1e300 would be inf, which is no constraint at all, and 1e-60 would be 0."""
    scores = torch.zeros(2), torch.zeros(2)
    for value in (1e300, 1e-60, -1.0, math.nan):
        for delta, name in ((torch.tensor([2.0, value], dtype=torch.float64), r"delta\[1\]"), (value, "delta")):
            with pytest.raises(
                ValueError, match=rf"{name} must be greater than 0.*, got {value:g}".replace("+", r"\+")
            ):
                pcrm_loss(*scores, delta)
    least = torch.tensor([2.0**-149, math.inf], dtype=torch.float64)
    assert pcrm_loss(*scores, least).isfinite()
    with pytest.raises(ValueError, match=r"delta must be a number of at most 1\.79769e\+308"):
        pcrm_loss(*scores, 10**400)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_numbers_beside_the_scores(backend, layout):
    sparse = torch.eye(3).to_sparse(layout=layout) if layout is torch.sparse_csr else torch.ones(3).to_sparse()
    scores, wide = torch.zeros(3), torch.zeros(3, 3)
    ids = torch.ones(3, 3, dtype=torch.int64).to_sparse(layout=layout)
    for name, call in {
        "delta": lambda: pcrm_loss(scores, scores, sparse),
        "margin": lambda: pcrm.functional.llama2_margin_loss(scores, scores, sparse),
        "s": lambda: pcrm.Constraint.fixed(2.0).delta(sparse),
        "similarities": lambda: pcrm.Constraint.fit(sparse, target_alike=1, target_unlike=2),
        "b": lambda: pcrm.priors.cosine(wide, wide.to_sparse(layout=layout)),
        "chosen_ids": lambda: pcrm.functional.pcrm_token_loss(wide, wide, ids, ids, 2.0, pad_token_id=0),
        "rejected_ids": lambda: pcrm.priors.length_ratio(torch.ones(3, 3, dtype=torch.int64), ids),
    }.items():
        with pytest.raises(TypeError, match=f"^{name} must be a dense tensor, got layout torch.sparse"):
            call()


def test_a_truth_value_is_no_delta(backend):
    for delta in (True, torch.ones(2, dtype=torch.bool)):
        with pytest.raises(
            TypeError, match=r"^delta must be (a number, got True|floating point, got dtype torch\.bool)"
        ):
            pcrm_loss(torch.zeros(2), torch.zeros(2), delta)


def test_sparse_scores(backend):
    sparse = torch.ones(2).to_sparse()
    for scores, name in (((sparse, sparse), "chosen_rewards"), ((torch.ones(2), sparse), "rejected_rewards")):
        with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got layout torch.sparse_coo"):
            pcrm_loss(*scores, 2.0)


def test_other_devices_take_the_torch_path():
    """`meta` represents any device that the native code does not support."""
    chosen, rejected, delta = (x.detach().to("meta") for x in batch())
    with pcrm.backends.use_backend("auto"):
        loss = pcrm_loss(chosen.requires_grad_(), rejected, delta)
        loss.backward()
    assert loss.device.type == chosen.grad.device.type == "meta"
    assert pcrm.Constraint(10, 0.001, -5).delta(delta).device.type == "meta"
    with (
        pcrm.backends.use_backend("go"),
        pytest.raises(ValueError, match="chosen_rewards must be on the CPU for backend 'go', got meta"),
    ):
        pcrm_loss(chosen, rejected, delta)


ONE, TWO = torch.ones(1), torch.ones(2)


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (TypeError, "chosen_rewards must be a torch.Tensor, got list", ([1.0], ONE, 4.0), {}),
        (
            TypeError,
            "rejected_rewards must be float32, float64, bfloat16 or float16, got dtype torch.int64",
            (ONE, ONE.long(), 4.0),
            {},
        ),
        (
            TypeError,
            "rejected_rewards must have the dtype of chosen_rewards, torch.float32, got torch.float64",
            (ONE, ONE.double(), 4.0),
            {},
        ),
        (ValueError, r"chosen_rewards must have shape \(B,\), got \(2, 1\)", (TWO[:, None], TWO, 4.0), {}),
        (ValueError, r"rejected_rewards must have shape \(B,\), got \(2, 1\)", (TWO, TWO[:, None], 4.0), {}),
        (
            ValueError,
            r"rejected_rewards must have the shape of chosen_rewards, \(2,\), got \(1,\)",
            (TWO, ONE, 4.0),
            {},
        ),
        (
            ValueError,
            "rejected_rewards must be on the device of chosen_rewards, cpu, got meta",
            (ONE, ONE.to("meta"), 4.0),
            {},
        ),
        (ValueError, "chosen_rewards must hold at least one number, got an empty tensor", (ONE[:0], ONE[:0], 4.0), {}),
        (TypeError, "delta must be .*, got str", (ONE, ONE, "4"), {}),
        (TypeError, "delta must be floating point, got dtype torch.int64", (ONE, ONE, ONE.long()), {}),
        (ValueError, r"delta must have shape \(1,\) or be one number, got shape \(2,\)", (ONE, ONE, TWO), {}),
        (
            ValueError,
            r"delta must have shape \(2,\) or be one number, got shape \(2, 1\)",
            (TWO, TWO, TWO[:, None]),
            {},
        ),
        (ValueError, "delta must be on the device of chosen_rewards, cpu, got meta", (ONE, ONE, ONE.to("meta")), {}),
        (ValueError, "delta must not require a gradient", (ONE, ONE, torch.ones(1, requires_grad=True)), {}),
        (ValueError, r"delta\[1\] must be greater than 0, got -3", (TWO, TWO, torch.tensor([1.0, -3.0])), {}),
        (ValueError, r"^delta must be greater than 0, got 0", (TWO, TWO, 0.0), {}),
        (ValueError, r"(?i)^delta must be greater than 0, got nan", (TWO, TWO, math.nan), {}),
        (ValueError, r"(?i)delta\[1\] must be greater than 0, got nan", (TWO, TWO, torch.tensor([1.0, math.nan])), {}),
        (ValueError, r"label_smoothing must be in \[0, 0.5\), got 0.5", (ONE, ONE, 4.0), {"label_smoothing": 0.5}),
        (ValueError, "label_smoothing must be .*, got -0.1", (ONE, ONE, 4.0), {"label_smoothing": -0.1}),
        (
            ValueError,
            "center_rewards_coefficient must be .*, got -1",
            (ONE, ONE, 4.0),
            {"center_rewards_coefficient": -1},
        ),
        (
            ValueError,
            "reduction must be one of mean, sum, none, got 'average'",
            (ONE, ONE, 4.0),
            {"reduction": "average"},
        ),
        (
            ValueError,
            r"(?i)chosen_rewards\[1\] must be finite, got \+?inf",
            (torch.tensor([0.0, math.inf]), TWO, 4.0),
            {"check_finite": True},
        ),
        (
            ValueError,
            r"(?i)rejected_rewards\[0\] must be finite, got nan",
            (TWO, torch.tensor([math.nan, 0.0]), 4.0),
            {"check_finite": True},
        ),
    ],
)
def test_bad_input(backend, error, message, arguments, options):
    with refused(backend, error, message):
        pcrm_loss(*arguments, **options)


def test_module(backend):
    chosen, rejected, _ = batch(3, torch.float32)
    constraint = pcrm.Constraint.preset("alpaca/length_ratio")
    prior = torch.tensor([0.0, 0.5, 1.0])
    loss_fn = pcrm.PCRMLoss(constraint, center_rewards_coefficient=0.01, reduction="sum")
    want = pcrm_loss(chosen, rejected, constraint.delta(prior), center_rewards_coefficient=0.01, reduction="sum")
    assert torch.equal(loss_fn(chosen, rejected, prior), want)
    assert torch.equal(loss_fn(chosen, rejected, prior.tolist()), want)
    assert "beta1=10.0" in repr(loss_fn) and "reduction='sum'" in repr(loss_fn)
    fixed = pcrm.PCRMLoss(pcrm.Constraint.fixed(4.5))
    assert torch.equal(fixed(chosen, rejected), pcrm_loss(chosen, rejected, 4.5))
    with pytest.raises(ValueError, match="prior is missing"):
        loss_fn(chosen, rejected)
    with pytest.raises(ValueError, match=r"similarities\[1\] must be in \[0, 1\], got 1.5"):
        loss_fn(chosen, rejected, torch.tensor([0.0, 1.5, 1.0]))
    with pytest.raises(ValueError, match=r"prior must have shape \(3,\) or be one number, got shape \(2,\)"):
        loss_fn(chosen, rejected, prior[:2])
    with pytest.raises(ValueError, match=r"prior must have shape \(3,\) or be one number, got shape \(3, 1\)"):
        pcrm.PCRMDPOLoss(constraint)(chosen, chosen, rejected, rejected, prior[:, None])
    with pytest.raises(TypeError, match=r"constraint must be a pcrm\.Constraint, got float"):
        pcrm.PCRMLoss(4.5)
    nan = torch.tensor([math.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"(?i)chosen_rewards\[0\] must be finite, got nan"):
        pcrm.PCRMLoss(constraint, check_finite=True)(nan, rejected, prior)


def test_a_sparse_mask(backend):
    scores, ids = torch.zeros(1, 2), torch.tensor([[1, 2]])
    mask = torch.ones_like(ids)
    with pytest.raises(TypeError, match="rejected_mask must be a dense tensor"):
        pcrm.functional.pcrm_token_loss(scores, scores, ids, ids, 3.0, chosen_mask=mask, rejected_mask=mask.to_sparse())
