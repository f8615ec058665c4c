"""The CUDA path on a fake driver. test_cuda.py runs these cases in a process that has one."""

import importlib.util
import os
import warnings

import pytest
import torch
from helpers.cases import batch, logps, tokens
from helpers.project import ROOT
from pcrm._engine import choice, cuda, cuda_check, losses, native
from pcrm.functional import pcrm_dpo_loss, pcrm_loss, pcrm_token_loss
from torch._subclasses.fake_tensor import FakeTensorMode

from pcrm import backends, functional


@pytest.fixture
def log(tmp_path, monkeypatch):
    """The driver's calls since the last query, one per line."""
    path = tmp_path / "log"
    monkeypatch.setenv("FAKECUDA_LOG", str(path))

    def read():
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return read


def launches(lines):
    return [line.split(" ", 1)[1] for line in lines if line.startswith("cuLaunchKernel")]


@pytest.fixture
def no_devices(monkeypatch):
    """The initial state, before any device has been opened."""
    monkeypatch.setattr(choice, "devices", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.fixture
def known_kernels(fake_device, monkeypatch):
    """Mark kernels as already compared with torch, so that a loss launches nothing else."""

    class Everything(set):
        def __contains__(self, _):
            return True

    monkeypatch.setattr(choice, "devices", {0: choice.cuda_device(0)._replace(checked=Everything())})


def on(device):
    """A tensor that claims to be on that device; it has no memory."""
    with FakeTensorMode():
        return torch.empty(2, device=device)


def test_one_launch_forward_and_one_backward(known_kernels, log):
    def kernels():
        return [line.split()[0].removeprefix("pcrm_") for line in launches(log())]

    pcrm_loss(*batch(8)).backward()
    assert kernels() == ["pair_float64", "scale_float64"]
    pcrm_loss(*batch(5000)).backward()
    assert kernels() == ["pair_float64", "sum_float64", "scale_float64"]
    pcrm_token_loss(*tokens(dtype=torch.bfloat16), pad_token_id=0, reduction="none").sum().backward()
    assert kernels() == ["token_bfloat16", "scale_bfloat16"]
    pcrm_dpo_loss(*logps(dtype=torch.float16), reduction="sum")[0].backward()
    assert kernels() == ["dpo_float16", "scale_float16"]


def test_stream_and_context(fake_device, log):
    """Launches use torch's current stream, and push and pop the context."""
    pcrm_loss(*batch(8)).backward()
    lines = [line for line in log() if not line.startswith(("cuModule", "cuDevice", "cuInit", "cuDriver"))]
    assert all("stream=0x5eaf context=0" in line for line in launches(lines))
    kinds = [line.split()[0] for line in lines]
    assert kinds[-6:] == ["cuCtxPushCurrent", "cuLaunchKernel", "cuCtxPopCurrent"] * 2


def test_second_device(no_devices, log, monkeypatch):
    device = choice.native_for_loss("x", on("cuda:1"))
    assert type(device) is cuda.Device and device.index == 1
    assert choice.native_for_loss("x", on("cuda:1")) is device
    lines = log()
    assert lines.count("cuDevicePrimaryCtxRetain 1") == 1 and "cuDevicePrimaryCtxRetain 0" not in lines
    device.checked.add(("pair", torch.float64))
    monkeypatch.setattr(choice, "native_for_loss", lambda name, tensor: device)
    asked = []
    stream = type("Stream", (), {"cuda_stream": 0xB})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: asked.append(index) or stream)
    pcrm_loss(*batch(8)).backward()
    assert asked == [1, 1]
    assert all("stream=0xb context=1" in line for line in launches(log()))


def test_no_gradient_no_backward(known_kernels, log):
    with torch.no_grad():
        pcrm_loss(*batch(8))
    assert len(launches(log())) == 1


def test_strides_are_no_copies(known_kernels, monkeypatch):
    """Views go to the kernels without a copy."""
    wide = torch.randn(40, 6, dtype=torch.float64)
    copies = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(
        torch.Tensor, "contiguous", lambda x: copies.append(x) if not x.is_contiguous() else contiguous(x)
    )
    got = pcrm_loss(wide[:, 1], wide.t()[3], 4.5, reduction="none")
    assert not copies
    monkeypatch.undo()
    with backends.use_backend("torch"):
        want = pcrm_loss(wide[:, 1], wide[:, 3], 4.5, reduction="none")
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-15)


def test_other_reductions_than_one_thread(fake_device):
    """The incoming gradient is expanded, strided or not 1, for all forms."""
    for upstream in (lambda x: x.sum(), lambda x: (x * torch.arange(1.0, 1 + x.numel())).sum(), lambda x: x[::2].sum()):
        results = []
        for name in ("cuda", "torch"):
            chosen, rejected, *rest = tokens()
            with pytest.MonkeyPatch.context() as patch:
                if name == "torch":
                    patch.setattr(choice, "native_for_loss", lambda name, tensor: None)
                upstream(pcrm_token_loss(chosen, rejected, *rest, pad_token_id=0, reduction="none")).backward()
            results.append((chosen.grad, rejected.grad))
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_negative_gradient_comes_in(fake_device):
    """A view with a lazy negation, as complex numbers produce."""
    chosen, rejected, delta = batch(8)
    loss = pcrm_loss(chosen, rejected, delta, reduction="none")
    incoming = torch.arange(1.0, 9, dtype=torch.float64)
    negative = torch._neg_view(incoming)
    got = torch.autograd.grad(loss, chosen, negative, retain_graph=True)
    assert torch.equal(got[0], torch.autograd.grad(loss, chosen, -incoming)[0])


def test_scaling_happens_before_rounding(fake_device):
    """With a loss scale, as in mixed precision, numbers survive that float16 could not hold unscaled."""
    chosen = torch.zeros(4096, dtype=torch.float16, requires_grad=True)
    loss = pcrm_loss(chosen, torch.full_like(chosen, -12.0), torch.inf)  # gradients of 1.5e-9
    (loss * 2.0**16).backward()
    exact = -torch.sigmoid(torch.tensor(-12.0, dtype=torch.float64)) / 4096 * 2**16
    torch.testing.assert_close(chosen.grad, exact.half().expand(4096), rtol=2**-10, atol=0)


def test_loading_while_a_graph_is_captured(no_devices, log, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"not loaded on cuda:0, .*: call the loss once before the capture"):
        choice.native_for_loss("x", on("cuda:0"))
    assert not log()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert choice.native_for_loss("x", on("cuda:0")) is not None, "nothing was remembered"


@pytest.mark.parametrize("failure", ["cuModuleLoadDataEx:218", "cuDevicePrimaryCtxRetain:2"])
def test_what_cannot_be_loaded(no_devices, monkeypatch, failure):
    """`auto` warns once and computes with torch; `cuda` is an error, with CUDA's own words."""
    # A device that no other test has opened, because the library remembers them.
    monkeypatch.setenv("FAKECUDA_FAIL", failure)
    index = 2
    with pytest.warns(
        RuntimeWarning, match=rf"^pcrm computes with torch instead of its CUDA kernels: {failure[:6]}.*CUDA_ERROR"
    ) as found:
        for _ in range(3):
            assert choice.native_for_loss("x", on(f"cuda:{index}")) is None
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice.native_for_loss("x", on(f"cuda:{index + 1}")) is None, "one warning is enough for all devices"
    monkeypatch.setattr(native, "backend", "cuda")
    with pytest.raises(RuntimeError, match=f"backend 'cuda' is not available: {failure[:6]}.*CUDA_ERROR"):
        choice.native_for_loss("x", on(f"cuda:{index}"))


def test_launch_that_fails(fake_device, log, monkeypatch):
    """An error of the GPU, such as a delayed one from an earlier kernel, has CUDA's name."""
    chosen, rejected, delta = batch(8)
    loss = pcrm_loss(chosen, rejected, delta)
    monkeypatch.setenv("FAKECUDA_FAIL", "cuLaunchKernel:700")
    expected = r"^cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS \(700\): an illegal memory access was encountered$"
    for call in (lambda: pcrm_loss(chosen, rejected, delta), loss.backward):
        log()
        with pytest.raises(RuntimeError, match=expected):
            call()
        kinds = [line.split()[0] for line in log()]
        assert kinds[-3:] == ["cuCtxPushCurrent", "cuLaunchKernel", "cuCtxPopCurrent"]


FORMS = {
    "pair": lambda dtype: pcrm_loss(*batch(8, dtype)),
    "token": lambda dtype: pcrm_token_loss(*tokens(dtype=dtype), pad_token_id=0, reduction="none"),
    "dpo": lambda dtype: pcrm_dpo_loss(*logps(dtype=dtype))[0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_first_use_is_compared_with_torch(fake_device, no_devices, log, form, dtype):
    """Once for each form and dtype, in any mode of torch, and never again."""
    kernel = f"pcrm_{form}_{dtype}".replace("torch.", "")
    with torch.inference_mode():
        FORMS[form](dtype)
    first = [line.split()[0] for line in launches(log())]
    assert first.count(kernel) > 2 and f"{kernel}".replace(form, "scale") in first
    with torch.no_grad():
        FORMS[form](dtype)
    assert [line.split()[0] for line in launches(log())] == [kernel]


@pytest.mark.parametrize("result", ["loss", "grad_chosen", "grad_rejected"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_wrong_kernel(fake_device, no_devices, log, monkeypatch, form, dtype, result):
    """`auto` warns once and computes with torch from then on; `cuda` is an error."""
    kernel = f"pcrm_{form}_{dtype}".replace("torch.", "")
    monkeypatch.setenv("FAKECUDA_WRONG", f"{kernel}:{result}")
    message = (
        (
            rf"the kernel of the {form} loss in {dtype} failed its first use on cuda:0: the .* is .*, torch computes .*"
            r"differ by .* Please report"
        )
        .replace("torch.f", "f")
        .replace("torch.b", "b")
    )
    with backends.use_backend("torch"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "native_for_loss", lambda *_: None)
        want = FORMS[form](dtype)
    with pytest.warns(RuntimeWarning, match=message) as found:
        got = [FORMS[form](dtype) for _ in range(3)]
    assert len(found) == 1 and found[0].filename == __file__
    assert all(torch.equal(x, want) for x in got)
    log()
    FORMS["pair"](torch.float32).backward()
    assert not launches(log()), "another form is not trusted there either"
    monkeypatch.setattr(choice, "devices", {})
    monkeypatch.setattr(native, "backend", "cuda")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^backend 'cuda' is not available: the kernel of the"):
            FORMS[form](dtype)


def test_wrong_kernel_in_a_compiled_graph(fake_device, no_devices, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setenv("FAKECUDA_WRONG", "pcrm_pair_float64:loss")
    compiled = torch.compile(pcrm_loss, backend="aot_eager", fullgraph=True)
    with pytest.warns(RuntimeWarning, match="the pair loss in float64 failed its first use on cuda:0"):
        got = compiled(*batch(8))
    with backends.use_backend("torch"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "native_for_loss", lambda *_: None)
        torch.testing.assert_close(got, pcrm_loss(*batch(8)), rtol=0, atol=0)


def test_kernel_that_fails_to_launch_at_first_use(fake_device, no_devices, monkeypatch):
    monkeypatch.setenv("FAKECUDA_FAIL", "cuLaunchKernel:1")
    message = "failed its first use on cuda:0: cuLaunchKernel: CUDA_ERROR_INVALID_VALUE"
    with pytest.warns(RuntimeWarning, match=message) as found:
        for _ in range(2):
            pcrm_loss(*batch(8)).backward()
    assert len(found) == 1
    with (
        pytest.raises(RuntimeError, match=f"'cuda' is not available: .*{message}"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(native, "backend", "cuda")
        pcrm_loss(*batch(8))


def test_out_of_memory_at_first_use_says_nothing_of_the_kernel(fake_device, no_devices, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(cuda_check, "fault", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            pcrm_loss(*batch(8))
    assert type(choice.cuda_device(0)) is cuda.Device
    pcrm_loss(*batch(8))


def test_first_use_while_a_graph_is_captured(fake_device, no_devices, log, monkeypatch):
    """The comparison cannot run then; a loss that was called before can be captured."""
    choice.cuda_device(0)
    pcrm_loss(*batch(8))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    log()
    pcrm_loss(*batch(8))
    assert len(launches(log())) == 1
    with pytest.raises(
        RuntimeError, match=r"the pair loss in float32 has not been compared .*: call the loss once before"
    ):
        pcrm_loss(*batch(8, torch.float32))
    assert not launches(log())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    pcrm_loss(*batch(8, torch.float32))


def test_choice(no_devices):
    with backends.use_backend("cuda"):
        assert type(choice.native_for_loss("x", on("cuda:0"))) is cuda.Device
        with pytest.raises(
            ValueError,
            match="chosen_rewards must be on a CUDA device for backend 'cuda', got cpu: use backend 'auto' or 'go'",
        ):
            pcrm_loss(*batch())
        assert native.chosen_library() is not None, "priors and constraints are Go's as before"
    with backends.use_backend("torch"):
        assert choice.native_for_loss("x", on("cuda:0")) is None
    with (
        backends.use_backend("go"),
        pytest.raises(
            ValueError, match="x must be on the CPU for backend 'go', got cuda:0: use backend 'auto' or 'torch'"
        ),
    ):
        choice.native_for_loss("x", on("cuda:0"))


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_other_devices(no_devices, log, device):
    x = torch.empty(2, device="meta") if device == "meta" else on(device)
    assert choice.native_for_loss("x", x) is None and not choice.has_kernels_for(x)
    refusal = pytest.raises(ValueError, match=f"x must be on a CUDA device for backend 'cuda', got {device}")
    with backends.use_backend("cuda"), refusal:
        choice.native_for_loss("x", x)


def test_rocm(no_devices, log, monkeypatch):
    """ROCm devices are called cuda in torch: take the torch path, without a warning or a probe."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert choice.native_for_loss("x", on("cuda:0")) is None and not choice.has_kernels_for(on("cuda:0"))
    assert not log()
    with pytest.raises(RuntimeError, match="backend 'cuda' is not available: this torch is built for ROCm"):
        backends.set_backend("cuda")
    monkeypatch.setattr(native, "backend", "cuda")
    with pytest.raises(RuntimeError, match="this torch is built for ROCm"):
        choice.native_for_loss("x", on("cuda:0"))


def test_forked_child(fake_device):
    """It does not touch the driver that its parent used."""
    assert type(choice.cuda_device(0)) is cuda.Device
    child = os.fork()
    if child == 0:
        os._exit(0 if choice.cuda_device(0) is None else 3)
    assert os.waitpid(child, 0)[1] == 0


def test_threads(fake_device):
    from concurrent.futures import ThreadPoolExecutor

    def compute(_):
        chosen, rejected, delta = batch(500)
        loss = pcrm_loss(chosen, rejected, delta)
        loss.backward()
        return loss.item(), chosen.grad.sum().item()

    want = compute(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(result == want for result in pool.map(compute, range(40)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_doctor(known_kernels, log, dtype):
    """The self-test of `pcrm doctor` on each device."""
    from pcrm._self_test import compare

    assert compare(torch.device("cpu"), dtype) is None
    assert len(launches(log())) == 4, "forward and backward, with and without smoothing"


@pytest.fixture(scope="module")
def gpu_check():
    """benchmarks/gpu_check.py, which must work the first time on a GPU."""
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_checks_for_a_gpu(fake_device, gpu_check):
    """The checks that a CPU can run, and the loads that the sanitizer sees."""
    results = gpu_check.run(gpu_check.ANYWHERE, torch.device("cpu"))
    assert [r.status for r in results] == ["ok"] * 6, results


def test_checks_notice(known_kernels, gpu_check, monkeypatch):
    def off(*arguments, right=losses.PAIR.cuda):
        loss, *gradients = right(*arguments)
        return loss * 1.01, *gradients

    monkeypatch.setattr(functional, "PAIR", losses.PAIR._replace(cuda=off))
    results = gpu_check.run(gpu_check.ANYWHERE, torch.device("cpu"))
    statuses = {r.name: r.status for r in results}
    assert [statuses[name] for name in ("golden vectors", "against go", "gradcheck", "traced")] == ["FAILED"] * 4


def test_page_of_results(gpu_check, tmp_path):
    times = {"8 pairs": {"pcrm": [1.0, 2.0, 3.0], "eager": [4.0, 8.0, 12.0], "liger": [2.0, 4.0, 6.0]}}
    results = [gpu_check.Result("streams", "ok", "a | b")]
    gpu_check.write(tmp_path, "a GPU", results, times, {"1 x 2 tokens": (70.0, 100.0, 0.7)})
    page = (tmp_path / "gpu-results.md").read_text()
    assert "| streams | ok | a / b |" in page and "| 8 pairs | 0.25 |  | 0.50 | 2.0 |" in page
    assert "| 1 x 2 tokens | 70 | 100 | 0.70 |" in page
    assert len((tmp_path / "gpu-results.csv").read_text().splitlines()) == 4


def test_benchmark_runs(fake_device, gpu_check):
    """On the CPU, where its timings mean nothing."""
    cpu = torch.device("cpu")
    for size, make in (
        ("pairs", lambda: gpu_check.pairs(8)),
        ("tokens", lambda: gpu_check.tokens(2, 12)),
        ("dpo", lambda: gpu_check.dpos(8)),
    ):
        with cpu:
            contenders = make()
        assert {"pcrm", "eager", "compiled"} <= set(contenders) <= {"pcrm", "eager", "compiled", "liger"}
        del contenders["compiled"]  # takes seconds
        times = gpu_check.latencies(cpu, {size: lambda c=contenders: c}, 2, 1e-4)[size]
        assert all(len(values) == 2 and min(values) > 0 for values in times.values())
