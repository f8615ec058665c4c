"""A loss between torch and who computes it: Go, a CUDA kernel, or torch.

A `Form` is a loss in its three implementations. `evaluate` chooses one, and makes it part of
torch's graph by an `autograd.Function`, whose backward pass only scales the gradient that came
with the loss, or in a compiled graph by an operator. `functional` has the forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_type_hints

import torch

from .. import _check, backends
from . import cuda_check, trace
from .tensors import check_dense, is_addressable, is_readable, is_transformed, named_if_wrapped

Tensor = torch.Tensor
Reduction = Literal["mean", "sum", "none"]

NAMES = ("mean", "sum", "none")
_REDUCTIONS = {name: code for code, name in enumerate(NAMES)}  # the codes of the bridge

# What each dtype of the scores is computed in, and what the loss is returned in.
COMPUTE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
DTYPES = {dtype: code for code, dtype in enumerate(COMPUTE)}  # the codes of Go's package gpu

REWARDS = ("chosen_rewards", "rejected_rewards")
LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")


class Form(NamedTuple):
    """A form of the loss: its three implementations, and the names of what they take and give."""

    name: str
    go: Callable[..., tuple[Tensor, ...]]
    cuda: Callable[..., tuple[Tensor, ...]]
    plain: Callable[..., tuple[Tensor, ...]]
    scores: tuple[str, str]
    arguments: tuple[str, ...]
    more: tuple[str, ...] = ()


def evaluate(
    form: Form, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...], origin: trace.Origin = trace.UNKNOWN
) -> Any:
    """The loss, or the loss and what comes with it, by the backend that serves these tensors.

    `origin` is what delta was made from, for the trace.
    """
    gradient = torch.is_grad_enabled() and (chosen.requires_grad or rejected.requires_grad)
    if torch.compiler.is_compiling():
        if backends.has_kernels_for(chosen) and is_addressable(chosen, rejected, *arguments):
            # Whether there is a trace is known when the graph runs, not now.
            loss, _, _, *more = _OPERATORS[form.name](chosen, rejected, *arguments, *origin, gradient)
            more = [x.detach() for x in more]
        else:
            loss, *more = form.plain(chosen, rejected, *arguments)
        return (loss, *more) if more else loss
    if is_transformed() or not is_addressable(chosen, rejected, *arguments):
        _check_values(form, chosen, rejected, arguments)
        names = (*form.scores, *form.arguments)
        with named_if_wrapped(**dict(zip(names, (chosen, rejected, *arguments), strict=True))):
            loss, *more = form.plain(chosen, rejected, *arguments)
        return (loss, *more) if more else loss
    native = backends.loss_for(form.scores[0], chosen)
    if type(native) is backends.Device and not _is_right(form, native, chosen):
        native = None
    if native is None:
        _check_values(form, chosen, rejected, arguments)
        loss, *more = form.plain(chosen, rejected, *arguments)
        if gradient and (step := _next_step()) is not None:
            results = _plain_with_gradient(form, chosen, rejected, arguments)
            _record(step, form, "torch", chosen, rejected, arguments, (loss, *results[1:]), *origin)
    elif gradient:
        return _Loss.apply(chosen, rejected, form, native, arguments, origin)
    else:
        compute = form.cuda if type(native) is backends.Device else form.go
        loss, _, _, *more = compute(False, chosen, rejected, native, *arguments)
    return (loss, *more) if more else loss


def _is_right(form: Form, device: backends.Device, scores: Tensor) -> bool:
    """Whether the kernels of this form agree with torch on this device: compared at the first
    loss of the dtype, and remembered.

    Raises:
        RuntimeError: the backend is `cuda` and they do not; a CUDA graph is being captured, which
            allows no comparison.
    """
    key = (form.name, scores.dtype)
    if key in device.checked:
        return True
    kernel = f"the kernel of the {form.name} loss in {scores.dtype}".replace("torch.", "")
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{kernel} has not been compared with torch on cuda:{device.index} yet, which cannot be done while a "
            "CUDA graph is captured: call the loss once before"
        )
    try:
        # Whoever calls may be in an operator, under no_grad or in inference mode.
        with _autograd_in_operators(), torch.inference_mode(False), torch.enable_grad():
            compute = COMPUTE[scores.dtype]
            found = cuda_check.fault(form, device, scores.dtype, compute, scores.device, _cuda_scaled)
    except torch.cuda.OutOfMemoryError:  # which says nothing about the kernel
        raise
    except RuntimeError as error:
        found = str(error)
    if found is None:
        device.checked.add(key)
        return True
    backends.distrust(device, f"{kernel} failed its first use on cuda:{device.index}: {found}")
    return False


def _plain_with_gradient(
    form: Form, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """What `form.go` returns, from `form.plain`."""
    dtype = COMPUTE[chosen.dtype]
    with _autograd_in_operators(), torch.enable_grad():
        leaves = [x.detach().to(dtype).requires_grad_() for x in (chosen, rejected)]
        loss, *more = form.plain(*leaves, *arguments)
        return loss.detach(), *torch.autograd.grad(loss.sum(), leaves), *more


def _autograd_in_operators() -> Any:
    """A context in which torch makes a graph, as it does not inside of an operator, which it
    takes for one node of the caller's.
    """
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCPU)
    keys = keys | torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCUDA)
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return torch._C._ForceDispatchKeyGuard(included, excluded - keys)


def _name_of(native: Any) -> str:
    """Of the backend that `backends.loss_for` chose."""
    return "torch" if native is None else "cuda" if type(native) is backends.Device else "go"


def _next_step() -> trace.Step | None:
    """Where the trace wants this call recorded, if it does."""
    return trace.current.next_step() if trace.current is not None else None


def _record(
    step: trace.Step,
    form: Form,
    backend: str,
    chosen: Tensor,
    rejected: Tensor,
    arguments: tuple[Any, ...],
    results: Sequence[Any],
    prior: Tensor | None,
    constraint: str,
) -> None:
    """Write a step to the trace."""
    names = (*form.scores, *form.arguments, "loss", "grad_chosen", "grad_rejected", *form.more)
    values = dict(zip(names, (chosen, rejected, *arguments, *results), strict=True))
    tensors = {k: v.long() if k.endswith("_ids") else v for k, v in values.items() if isinstance(v, Tensor)}
    settings = {k: v for k, v in values.items() if k not in tensors and k != "check_finite"}
    settings |= {"backend": backend, "reduction": NAMES[settings["reduction"]]}
    settings = {"label_smoothing": 0.0, "center_rewards_coefficient": 0.0} | settings
    step.record(form.name, tensors, settings, prior, constraint)


# Whether the graph of the backward pass that is running will be kept. Not known before
# torch 2.5: then it may be.
_graph_is_kept: Callable[[], bool] = getattr(
    torch._C._autograd,  # pyright: ignore[reportAttributeAccessIssue]
    "_get_current_graph_task_keep_graph",
    lambda: True,
)


class _Loss(torch.autograd.Function):
    """A loss whose gradient was computed with it. Every microsecond here is felt: at eight
    pairs the loss itself takes one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chosen: Tensor,
        rejected: Tensor,
        form: Form,
        native: Any,
        arguments: tuple[Any, ...],
        origin: trace.Origin,
    ) -> Any:
        device = native if type(native) is backends.Device else None
        compute = form.go if device is None else form.cuda
        results = compute(True, chosen, rejected, native, *arguments)
        if (step := _next_step()) is not None:
            _record(step, form, _name_of(native), chosen, rejected, arguments, results, *origin)
        loss, by_chosen, by_rejected, *more = results
        # Not save_for_backward, which is slower: nobody else holds the gradients, and of the
        # scores only what they depend on is wanted, for _Twice.
        ctx.results, ctx.dtype, ctx.scores = (by_chosen, by_rejected, device), chosen.dtype, (chosen, rejected)
        if not more:
            return loss
        ctx.mark_non_differentiable(*more)
        return loss, *more

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.results is None:
            raise RuntimeError(
                "a pcrm loss was differentiated a second time: its gradient is gone, as the first time was "
                "without retain_graph=True"
            )
        chosen, rejected, device = ctx.results
        kept = _graph_is_kept()
        # vmap and is_grads_batched=True send several gradients at once, which do not fit in place,
        # and the values of a wrapper cannot be read.
        by_torch = (
            torch._C._functorch.is_legacy_batchedtensor(grad_loss)  # pyright: ignore[reportAttributeAccessIssue]
            or not is_readable(grad_loss)
        )
        if not kept and not by_torch:
            ctx.results = None  # nobody comes after us: they can be given away, and scaled in place
        if by_torch or (kept and device is None):
            chosen, rejected = _scaled(chosen, grad_loss, ctx.dtype), _scaled(rejected, grad_loss, ctx.dtype)
        elif device is not None:
            chosen, rejected = _cuda_scaled(device, (chosen, rejected), grad_loss, ctx.dtype, in_place=not kept)
        else:
            if grad_loss.dim() or grad_loss.item() != 1:  # on the CPU a look costs nothing
                grad_loss = _aligned(grad_loss, chosen)
                chosen, rejected = chosen.mul_(grad_loss), rejected.mul_(grad_loss)
            if ctx.dtype is not chosen.dtype:
                chosen, rejected = chosen.to(ctx.dtype), rejected.to(ctx.dtype)
        if torch.is_grad_enabled():  # create_graph=True: whoever differentiates again gets a clear error
            chosen, rejected = _Twice.apply(chosen.detach(), rejected.detach(), grad_loss, *ctx.scores)
        return chosen, rejected, None, None, None, None


def _scaled(gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    return (gradient * _aligned(grad_loss, gradient)).to(dtype)


def _aligned(grad_loss: Tensor, gradient: Tensor) -> Tensor:
    """The incoming gradient, a scalar or of shape (B,), for gradients of shape (B,) or (B, L)."""
    return grad_loss[:, None] if 0 < grad_loss.dim() < gradient.dim() else grad_loss


_TWICE = (
    "the gradient of a pcrm loss was differentiated, which native backends do not support: "
    "use pcrm.backends.use_backend('torch') for second derivatives"
)


class _Twice(torch.autograd.Function):
    """Two gradients as they are, with an error in the place of their derivative by what
    they depend on.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(chosen: Tensor, rejected: Tensor, *depends_on: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return chosen.view_as(chosen), rejected.view_as(rejected)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(_TWICE)


# torch.compile cannot look into an autograd.Function that calls native code; an operator
# that it knows, with a fake that tells it the shapes, stays in the graph. Which backend
# computes is decided when the operator runs: a compiled graph may run in a forked child.

_OPERATORS: dict[str, Any] = {}  # by the name of a form


def differentiated(
    form: Form,
    chosen: Tensor,
    rejected: Tensor,
    *arguments: Any,
    prior: Tensor | None = None,
    constraint: str = "",
    traced: bool = False,
) -> Any:
    """Loss, both gradients and what else there is, by native code or by torch.

    `prior` and `constraint` are what delta was made from. `traced` is whether this is a step of
    training, which a trace records.
    """
    readable = is_addressable(chosen, rejected, *arguments)
    native = backends.loss_for(form.scores[0], chosen) if readable else None
    if type(native) is backends.Device and not _is_right(form, native, chosen):
        native = None
    if native is not None:
        compute = form.cuda if type(native) is backends.Device else form.go
        results = compute(True, chosen, rejected, native, *arguments)
    else:
        _check_values(form, chosen, rejected, arguments)
        results = _plain_with_gradient(form, chosen, rejected, arguments)
    if traced and readable and (step := _next_step()) is not None:
        _record(step, form, _name_of(native), chosen, rejected, arguments, results, prior, constraint)
    return results


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`torch.library.custom_op`. torch 2.4 takes annotations as they stand, which is as strings here."""

    def of(function: Callable[..., Any]) -> Any:
        function.__annotations__ = get_type_hints(function)
        return torch.library.custom_op(name, function, mutates_args=(), device_types=("cpu", "cuda"))

    return of


def fake(chosen: Tensor, delta: Tensor, reduction: int, more: int = 0) -> tuple[Tensor, ...]:
    """The shapes of what `differentiated` returns, `more` of which come after the gradients."""
    loss = delta.new_empty(delta.shape if reduction == 2 else ())
    return loss, *(delta.new_empty(chosen.shape) for _ in range(2 + more))


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:3])
    ctx.dtype = inputs[0].dtype
    ctx.others = len(inputs) - 2
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, grad_loss: Tensor | None, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
    if any(g is not None for g in grad_outputs[:2]):
        raise RuntimeError(_TWICE)
    nothing = (None,) * ctx.others
    if grad_loss is None:
        return None, None, *nothing
    return *(_scaled(g, grad_loss, ctx.dtype) for g in ctx.saved_tensors), *nothing


def register(form: Form, operator: Any) -> None:
    """Let an operator stand for a form in compiled graphs."""
    operator.register_autograd(_scale_gradients, setup_context=_save_gradients)
    _OPERATORS[form.name] = operator


# Memory that native code reads and writes. Without a gradient its two are empty tensors, whose
# address is 0: Go's word for none. empty_like is the fastest way to memory from Python.

NONE = torch.empty(0, device="cpu")
SCALARS = {dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}


def in_memory(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as Go reads it: of that type, contiguous, and with no minus left to be done."""
    if x.dtype is not dtype:
        x = x.to(dtype)
    return (x.resolve_neg() if x.is_neg() else x).contiguous()


def on_device(device: backends.Device, delta: Tensor, reduction: int, like: Tensor | None) -> tuple[Tensor, ...]:
    """Memory for the loss, both gradients (in the shape of `like`, or none) and the partial
    sums, from torch's allocator, which keeps it until the stream is done with it.
    """
    loss = torch.empty_like(delta) if reduction == 2 else delta.new_empty(())
    shape = None if like is None else like.shape
    gradients = (NONE, NONE) if shape is None else (delta.new_empty(shape), delta.new_empty(shape))
    partials = NONE if reduction == 2 else delta.new_empty(device.partials, dtype=torch.float64)
    return loss, *gradients, partials


def places(*tensors: Tensor) -> list[int]:
    """Address and strides of each."""
    return [number for x in tensors for number in (x.data_ptr(), *x.stride())]


def _cuda_scaled(
    device: backends.Device, gradients: tuple[Tensor, Tensor], grad_loss: Tensor, dtype: torch.dtype, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Both gradients times the one that comes in, in the type of the scores."""
    chosen, rejected = gradients
    if in_place and dtype is chosen.dtype:
        by_chosen, by_rejected = gradients
    else:
        by_chosen, by_rejected = torch.empty_like(chosen, dtype=dtype), torch.empty_like(rejected, dtype=dtype)
    grad_loss = grad_loss.resolve_neg()
    backends.call(
        device.library.bridge_CUDAScale,
        device.index,
        device.stream(),
        DTYPES[dtype],
        chosen.numel(),
        chosen.shape[1] if chosen.dim() == 2 else 1,
        by_chosen.data_ptr(),
        by_rejected.data_ptr(),
        chosen.data_ptr(),
        rejected.data_ptr(),
        grad_loss.data_ptr(),
        grad_loss.stride(0) if grad_loss.dim() else 0,
    )
    return by_chosen, by_rejected


def check_alike(names: tuple[str, ...], tensors: tuple[Tensor, ...], dimensions: int) -> None:
    """Refuse scores or log probabilities that are not tensors of one shape, dtype and device."""
    first = tensors[0]
    if _are_alike(tensors, dimensions):
        return
    for name, x in zip(names, tensors, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}, must be a torch.Tensor")
        if x.dtype not in COMPUTE:
            raise TypeError(f"{name} has dtype {x.dtype}, must be float32, float64, bfloat16 or float16")
        check_dense(name, x)
        if x.dim() != dimensions:
            wanted = "(B,): squeeze the last dimension of (B, 1)" if dimensions == 1 else "(B, L)"
            raise ValueError(f"{name} has shape {tuple(x.shape)}, must be {wanted}")
        if x.shape != first.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, {names[0]} has {tuple(first.shape)}")
        if x.dtype != first.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}, {names[0]} has {first.dtype}")
        if x.device != first.device:
            raise ValueError(f"{name} is on {x.device}, {names[0]} is on {first.device}")
    raise ValueError(f"{names[0]} is empty, must hold at least one number")


def _are_alike(tensors: tuple[Tensor, ...], dimensions: int) -> bool:
    """Whether all is well, in as few looks as will do; if not, `check_alike` says why."""
    first = tensors[0]
    if (
        not isinstance(first, Tensor)
        or first.layout is not torch.strided
        or first.dtype not in COMPUTE
        or first.dim() != dimensions
        or first.numel() == 0
    ):
        return False
    shape, dtype, device = first.shape, first.dtype, first.device
    for x in tensors[1:]:
        if not isinstance(x, Tensor) or x.dtype is not dtype or x.shape != shape or x.device != device:
            return False
        if x.layout is not torch.strided:
            return False
    return True


def check_options(label_smoothing: float, reduction: str) -> tuple[float, int]:
    """The smoothing as a float, and the bridge's code of the reduction."""
    return _check.label_smoothing(label_smoothing), _REDUCTIONS[_check.one_of("reduction", reduction, _REDUCTIONS)]


def _check_values(form: Form, chosen: Tensor, rejected: Tensor, arguments: tuple[Any, ...]) -> None:
    """What the Go core checks as it goes. On another device a look at a value would stall it."""
    for name, x in zip(form.arguments, arguments, strict=True):
        if name == "check_finite" and x:
            check_all_finite(chosen_rewards=chosen, rejected_rewards=rejected)
        if name == "delta" and x.is_cpu:
            check_where(name, x, x > 0, "greater than 0")


def check_all_finite(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        check_where(name, x, x.isfinite(), "finite")


def check_where(name: str, x: Tensor, good: Tensor, wanted: str) -> None:
    if is_readable(good) and not good.all():
        index = int((~good).nonzero()[0])
        raise ValueError(f"{name}[{index}] is {x[index].item():g}, must be {wanted}")
