"""Tensors whose data is not at `data_ptr()`: torch computes, or the error names the type."""

import sys
import warnings

import pytest
import torch
from pcrm._engine import native
from pcrm.functional import llama2_margin_loss, pcrm_dpo_loss, pcrm_loss, pcrm_token_loss, rdpo_loss
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.testing._internal.two_tensor import TwoTensor

import pcrm

CONSTRAINT = pcrm.Constraint(10, 0.001, -5)


class Plain(torch.Tensor):
    """A subclass with ordinary storage that handles no operations."""


class Handles(torch.Tensor):
    """A subclass with ordinary storage that handles and counts torch's functions."""

    handled = 0

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        Handles.handled += 1
        return super().__torch_function__(function, types, arguments, options or {})


def pair(x):
    return pcrm.PCRMLoss(CONSTRAINT)(x, 2 * x, x)


def pair_with_one_delta(x):
    return pcrm_loss(x, 2 * x, 2.0, reduction="none")


def token(x):
    ids = (1000 * x).long()[:, None].expand(-1, 3)
    scores = x[:, None].expand(-1, 3)
    return pcrm_token_loss(scores, scores - 1, ids, ids + 1, x + 1, pad_token_id=0)


def dpo(x):
    return pcrm_dpo_loss(x, 2 * x, 3 * x, 5 * x, x + 1)[0]


def margin(x):
    return llama2_margin_loss(x, 2 * x, x)


def lengths(x):
    return rdpo_loss(x, 2 * x, 3 * x, 5 * x, 10 * x, 20 * x, alpha=0.1)[0]


def delta(x):
    return CONSTRAINT.delta(x)


def cosine(x):
    return pcrm.priors.cosine(torch.stack([x, 2 * x], 1), torch.stack([x + 1, x], 1))


ENTRIES = [pair, pair_with_one_delta, token, dpo, margin, lengths, delta, cosine]
NUMBERS = torch.tensor([0.1, 0.4, 0.7, 0.9])


@pytest.fixture
def mesh():
    """A device mesh with only this process."""
    from torch.distributed.device_mesh import DeviceMesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    torch.distributed.destroy_process_group()


@pytest.fixture(params=["two", "async", "dtensor"])
def wrapped(request):
    """Wrap numbers, and unwrap them."""
    if request.param == "dtensor":
        from torch.distributed.tensor import DTensor, Replicate

        mesh = request.getfixturevalue("mesh")
        return lambda x: DTensor.from_local(x, mesh, [Replicate()]), lambda x: x.to_local()
    return {
        "two": (lambda x: TwoTensor(x, x), lambda x: x.a),
        "async": (AsyncCollectiveTensor, lambda x: x),
    }[request.param]


@pytest.mark.parametrize("entry", ENTRIES)
def test_wrappers_are_computed_by_torch(wrapped, entry, backend):
    wrap, unwrap = wrapped
    x = wrap(NUMBERS)
    if entry is token and type(x).__name__ == "DTensor":  # torch cannot mix plain positions with it
        with pytest.raises(TypeError, match=r"chosen_rewards must be .* got a DTensor .*full_tensor\(\)"):
            entry(x)
        return
    torch.testing.assert_close(unwrap(entry(x)) + 0, entry(NUMBERS), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("entry", [pair, pair_with_one_delta, token, dpo, margin, lengths, delta])
def test_zeros_that_are_not_written_out(entry, backend):
    torch.testing.assert_close(entry(torch._efficientzerotensor((4,))), entry(torch.zeros(4)))


def test_gradient_of_a_wrapper(backend):
    x, y = (NUMBERS.clone().requires_grad_() for _ in range(2))
    wrapper = TwoTensor(x.detach(), x.detach()).requires_grad_()
    pcrm.PCRMLoss(CONSTRAINT)(wrapper, 2 * wrapper.detach(), wrapper.detach()).backward()
    pcrm.PCRMLoss(CONSTRAINT)(y, 2 * y.detach(), NUMBERS).backward()
    torch.testing.assert_close(wrapper.grad.a, y.grad)


def test_compiled_wrappers():
    torch.compiler.reset()
    compiled = torch.compile(pair, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(TwoTensor(NUMBERS, NUMBERS)).a, pair(NUMBERS))


def test_values_of_wrappers_are_looked_at_where_they_can_be():
    bad = torch.where(torch.arange(4) == 2, torch.nan, NUMBERS)
    for call in (
        lambda x: pcrm_loss(NUMBERS, NUMBERS, x),
        lambda x: CONSTRAINT.delta(x),
        lambda x: llama2_margin_loss(NUMBERS, NUMBERS, x),
    ):
        with pytest.raises(ValueError, match=r"\[2\] must be .*, got nan"):
            call(AsyncCollectiveTensor(bad))


@pytest.mark.parametrize("entry", ENTRIES)
def test_fake_tensors_outside_of_their_mode(entry, backend):
    """Like torch's own functions: some accept them, some refuse to mix them with real tensors."""
    with FakeTensorMode():
        x = torch.empty(4)
    try:
        result = entry(x)
    except TypeError as error:
        assert "got a FakeTensor" in str(error)
    else:
        assert isinstance(result, FakeTensor)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("delta", lambda x: pcrm_loss(NUMBERS, NUMBERS, x)),
        ("rejected_rewards", lambda x: pcrm_loss(NUMBERS, x, 2.0)),
        ("similarities", lambda x: pcrm.Constraint.fit(x, target_alike=0.5, target_unlike=2)),
        ("chosen_ids", lambda x: pcrm.priors.length_ratio(x.long()[:, None], x.long()[:, None])),
        ("rejected_ids", lambda x: pcrm.priors.random_uniform([[1]] * 4, x.long()[:, None])),
    ],
)
def test_what_torch_cannot_compute_is_named(name, call, backend):
    with FakeTensorMode():
        x = torch.empty(4)
    with pytest.raises(TypeError, match=f"{name} must be .*FakeTensor"):
        call(x)


def test_masked_tensors_are_named(backend):
    from torch.masked import masked_tensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MaskedTensor is a prototype
        x = masked_tensor(NUMBERS, NUMBERS > 0.2)
        with pytest.raises(TypeError, match="MaskedTensor"):
            pcrm_loss(x, x, 2.0)
        with pytest.raises(TypeError, match=r"delta must be .*MaskedTensor"):
            pcrm_loss(NUMBERS, NUMBERS, x)


def test_wrappers_are_not_recorded(tmp_path, backend):
    with pcrm.trace(tmp_path):
        x = TwoTensor(NUMBERS, NUMBERS).requires_grad_()
        pair(x).backward()
        pcrm_loss(NUMBERS.clone().requires_grad_(), NUMBERS, AsyncCollectiveTensor(NUMBERS))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def calls(monkeypatch):
    """Record the calls of native functions."""
    made = []
    call = native.call
    for name, module in list(sys.modules.items()):
        if name.startswith("pcrm.") and getattr(module, "call", None) is call:
            monkeypatch.setattr(
                module, "call", lambda function, *a: made.append(function.__name__) or call(function, *a)
            )
    return made


def test_what_shares_its_storage_stays_native(calls):
    with pcrm.backends.use_backend("go"):
        want = pair(NUMBERS)
        calls.clear()
        for x in (
            torch.nn.Parameter(NUMBERS),
            NUMBERS.as_subclass(Plain),
            torch.nn.Parameter(NUMBERS.as_subclass(Plain)),
        ):
            assert torch.equal(pair(x).detach(), want)
            assert calls == ["bridge_Deltas", "bridge_RewardLoss"]
            calls.clear()


def test_what_handles_operations_is_asked(calls):
    """Native code would bypass the handler."""
    with pcrm.backends.use_backend("go"):
        before = Handles.handled
        loss = pair(NUMBERS.as_subclass(Handles))
        assert not calls and Handles.handled > before + 5
        torch.testing.assert_close(loss.as_subclass(torch.Tensor), pair(NUMBERS))


def test_cosine_under_transforms(backend):
    """vmap passes one row of many, with the address of the first row."""
    a, b = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    got = torch.vmap(pcrm.priors.cosine)(a, b)
    torch.testing.assert_close(got, torch.stack([pcrm.priors.cosine(x, y) for x, y in zip(a, b, strict=True)]))
