"""Check the CUDA path on a GPU, then measure its speed.

    make gpu-check        # or: python benchmarks/gpu_check.py; writes docs/gpu-results.{md,csv}

Needs an NVIDIA GPU and an installed pcrm with its extension, but no network. If something that a check
needs is missing (TRL, compute-sanitizer, the profiler's library), the check is skipped with the reason.
The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no requests to the Hub

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import losses  # noqa: E402
from helpers import hand_written  # noqa: E402
from pcrm._engine import choice, cuda, native  # noqa: E402
from pcrm._self_test import compare  # noqa: E402
from pcrm.functional import pcrm_dpo_loss, pcrm_loss, pcrm_token_loss  # noqa: E402

import pcrm  # noqa: E402

Tensor = torch.Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# The targets: a fraction of eager's time up to this many pairs, and of the bandwidth of a copy.
TARGET_OF_EAGER, TARGET_PAIRS = 0.35, 4096
TARGET_OF_COPY = 0.7

PAIRS = (8, 256, 4096, 65536, 1 << 20)
TOKENS = ((16, 1024), (64, 4096))


class NotHere(Exception):
    """This machine lacks something that a check needs."""


class Result(NamedTuple):
    name: str
    status: str  # ok, FAILED or not run
    detail: str


# The forms, as functions of leaves on a device. Random numbers are drawn on the CPU, so that they
# are the same on every device.


def pair(device: torch.device, dtype: torch.dtype, n: int = 1000, seed: int = 0) -> tuple[list[Tensor], Callable]:
    g = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(2, n, generator=g)
    delta = 1 + 9 * torch.rand(n, generator=g)
    delta[::3] = math.inf
    leaves = [x.to(dtype).to(device).requires_grad_() for x in scores]
    delta = delta.to(device)
    options = {"label_smoothing": 0.1, "center_rewards_coefficient": 0.01}
    return leaves, lambda *x, reduction="mean": pcrm_loss(*x, delta, **options, reduction=reduction)


def token(
    device: torch.device, dtype: torch.dtype, rows: int = 40, width: int = 1500, seed: int = 0
) -> tuple[list[Tensor], Callable]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 1000, (2, rows, width), generator=g)
    ids[1, :, : width // 3] = ids[0, :, : width // 3]
    for side in ids:
        for row in side:
            row[width - int(torch.randint(0, width // 3 + 1, (), generator=g)) :] = 0
    ids[1, 0] = ids[0, 0]
    scores = 3 * torch.randn(2, rows, width, generator=g)
    delta = (1 + 9 * torch.rand(rows, generator=g)).to(device)
    leaves = [x.to(dtype).to(device).requires_grad_() for x in scores]
    chosen_ids, rejected_ids = ids[0].to(device), ids[1].int().to(device)
    return leaves, lambda *x, reduction="mean": pcrm_token_loss(
        *x, chosen_ids, rejected_ids, delta, pad_token_id=0, reduction=reduction
    )


def dpo(device: torch.device, dtype: torch.dtype, n: int = 1000, seed: int = 0) -> tuple[list[Tensor], Callable]:
    g = torch.Generator().manual_seed(seed)
    policy = 8 * torch.randn(2, n, generator=g)
    reference = (policy + torch.randn(2, n, generator=g)).to(dtype).to(device)
    delta = (0.1 + torch.rand(n, generator=g)).to(device)
    leaves = [x.to(dtype).to(device).requires_grad_() for x in policy]
    return leaves, lambda *x, reduction="mean": pcrm_dpo_loss(*x, *reference, delta, reduction=reduction)[0]


FORMS = {"pair": pair, "token": token, "dpo": dpo}


def differentiated(leaves: list[Tensor], loss: Callable, reduction: str = "mean") -> list[Tensor]:
    """Return the loss and its gradients, for incoming gradients other than 1."""
    out = loss(*leaves, reduction=reduction)
    incoming = torch.linspace(0.5, 2, out.numel(), device=out.device, dtype=out.dtype).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, incoming)]


# Checks that also run on the CPU, with the fake driver of the tests.


def golden_vectors(device: torch.device) -> str:
    for dtype in (torch.float64, torch.float32):
        complaint = compare(device, dtype)
        assert complaint is None, f"{dtype}: {complaint}"
    return "losses and gradients of all pairs, float32 and float64"


def against_go(device: torch.device) -> str:
    """Each form, dtype and reduction against the Go core on the CPU, on the same numbers in float64."""
    worst = 0.0
    for name, make in FORMS.items():
        for dtype in DTYPES:
            for reduction in ("mean", "sum", "none"):
                got = differentiated(*make(device, dtype), reduction)
                with pcrm.backends.use_backend("go"):
                    leaves, _ = make(torch.device("cpu"), dtype)
                    # The same numbers in float64, with the same reduction and ids.
                    exact = [x.detach().double().requires_grad_() for x in leaves]
                    want = differentiated(exact, _in_float64(make, dtype), reduction)
                for what, a, b in zip(("loss", "gradient", "gradient"), got, want, strict=True):
                    # Rounded once to the stored dtype, and computed in float32 or float64 from sums of
                    # a few numbers of magnitude up to 30.
                    stored, computed = (torch.finfo(d) for d in (a.dtype, got[0].dtype))
                    scale = float(b.abs().max())
                    allowed = (stored.eps / 2 + 64 * computed.eps) * scale + stored.smallest_normal * stored.eps
                    error = float((a.cpu().double() - b).abs().max())
                    assert error <= allowed, (
                        f"{name}, {dtype}, {reduction}: {what} errs by {error:.2g}, may by {allowed:.2g}"
                    )
                    worst = max(worst, error / allowed)
    return f"3 forms, 4 dtypes, 3 reductions: at most {worst:.2f} of the tolerance"


def _in_float64(make: Callable, dtype: torch.dtype) -> Callable:
    """Return the form's loss for scores in float64, with the other inputs rounded to that dtype."""
    if make is not dpo:
        return make(torch.device("cpu"), torch.float64)[1]
    leaves, _ = dpo(torch.device("cpu"), dtype)
    g = torch.Generator().manual_seed(0)
    policy = 8 * torch.randn(2, len(leaves[0]), generator=g)
    reference = (policy + torch.randn(2, len(leaves[0]), generator=g)).to(dtype).double()
    delta = 0.1 + torch.rand(len(leaves[0]), generator=g)
    return lambda *x, reduction="mean": pcrm_dpo_loss(*x, *reference, delta, reduction=reduction)[0]


def gradcheck(device: torch.device) -> str:
    for name, make in FORMS.items():
        small = {"pair": (12,), "token": (3, 20), "dpo": (12,)}[name]
        leaves, loss = make(device, torch.float64, *small)
        for reduction in ("mean", "none"):
            torch.autograd.gradcheck(lambda *x, f=loss, r=reduction: f(*x, reduction=r), leaves)
    return "3 forms in float64"


def same_bits(device: torch.device) -> str:
    for make in FORMS.values():
        leaves, loss = make(device, torch.float32)
        first = differentiated(leaves, loss)
        for _ in range(10):
            assert all(map(torch.equal, first, differentiated(leaves, loss)))
    return "10 calls"


def views(device: torch.device) -> str:
    """Strided, transposed and expanded inputs."""
    wide = torch.randn(300, 5, device=device)
    for chosen, rejected in (
        (wide[:, 1], wide[:, 3]),
        (wide[:, 0], wide[:1, 0].expand(300)),
        (wide[5:, 2], wide[:-5, 2]),
    ):
        want = pcrm_loss(chosen.contiguous(), rejected.contiguous(), 4.5)
        assert torch.equal(pcrm_loss(chosen, rejected, 4.5), want)
    (chosen, rejected), loss = token(device, torch.float32, 30, 50)
    columns = [x.detach().t().contiguous().t() for x in (chosen, rejected)]
    assert torch.equal(loss(*columns), loss(chosen, rejected))
    return "strided, transposed, expanded"


def traced(device: torch.device) -> str:
    """Results recorded in a trace and recomputed by Go (docs/verify.md)."""
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise NotHere("safetensors is not installed") from None
    with tempfile.TemporaryDirectory() as folder:
        with pcrm.trace(folder):
            for make in FORMS.values():
                for dtype in DTYPES:
                    leaves, loss = make(device, dtype)
                    loss(*leaves)
        return _verified(folder)


def _verified(folder: str) -> str:
    report = json.loads(native.call(native.library().bridge_VerifyTrace, folder))
    assert report["ok"], report["text"]
    assert {row["backend"] for row in report["rows"]} == {"cuda"}, report["text"]
    return f"{report['files']} steps, {report['pairs']} pairs confirmed"


ANYWHERE = (golden_vectors, against_go, gradcheck, same_bits, views, traced)


# Checks that need a device.


def no_synchronization(device: torch.device) -> str:
    """Torch raises an error if anything waits for the device."""
    for make in FORMS.values():
        leaves, loss = make(device, torch.bfloat16)
        loss(*leaves).backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss(*leaves).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "torch.cuda.set_sync_debug_mode('error')"


def streams(device: torch.device) -> str:
    """On a side stream, after other work on it that the default stream does not wait for."""
    for make in FORMS.values():
        leaves, loss = make(device, torch.float32)
        others, _ = make(device, torch.float32, seed=1)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)  # cycles: a few tens of milliseconds
            with torch.no_grad():
                for x, y in zip(leaves, others, strict=True):
                    x.copy_(y)
            got = differentiated(leaves, loss)
        side.synchronize()
        want = differentiated([x.detach().clone().requires_grad_() for x in others], loss)
        assert all(map(torch.equal, got, want)), "a kernel did not run on the current stream"
    return "inputs written late on a side stream"


def threads(device: torch.device) -> str:
    """Forward and backward on a thread that has never used CUDA."""
    leaves, loss = pair(device, torch.float32)
    want, found = differentiated(leaves, loss), []

    def work() -> None:
        try:
            found.extend(differentiated(leaves, loss))
        except BaseException as error:  # re-raised in the calling thread
            found.append(error)

    for _ in range(3):
        found.clear()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if isinstance(found[0], BaseException):
            raise found[0]
        assert all(map(torch.equal, want, found))
    return "3 threads"


def graph_capture(device: torch.device) -> str:
    """Forward and backward in a CUDA graph, replayed with other numbers."""
    for make in FORMS.values():
        for dtype in (torch.float32, torch.bfloat16):
            leaves, loss = make(device, dtype)
            others, _ = make(device, dtype, seed=1)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    loss(*leaves).backward()
            torch.cuda.current_stream().wait_stream(side)
            for x in leaves:
                x.grad = None
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = loss(*leaves)
                out.backward()
            with torch.no_grad():
                for x, y in zip(leaves, others, strict=True):
                    x.copy_(y)
            graph.replay()
            torch.cuda.synchronize()
            fresh = [x.detach().clone().requires_grad_() for x in others]
            want = loss(*fresh)
            want.backward()
            assert torch.equal(out, want)
            assert all(torch.equal(x.grad, y.grad) for x, y in zip(leaves, fresh, strict=True))
    return "3 forms, float32 and bfloat16"


FIRST_USE = """
import torch, pcrm
x = torch.zeros(8, device="cuda")
torch.cuda.synchronize()
with torch.cuda.graph(torch.cuda.CUDAGraph()):
    pcrm.functional.pcrm_loss(x, x, torch.ones(8, device="cuda"))
"""


def first_use_in_a_capture(device: torch.device) -> str:
    out = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, timeout=120)
    assert "not loaded on cuda:0 yet" in out.stderr, out.stderr
    return "a clear error"


def compiled(device: torch.device) -> str:
    """torch.compile(fullgraph=True): no graph break."""
    for make in FORMS.values():
        leaves, loss = make(device, torch.float32)
        want = differentiated(leaves, loss)
        try:
            got = differentiated(leaves, torch.compile(loss, fullgraph=True))
        except Exception as error:
            if "compiler" in str(error).lower() and "graph break" not in str(error).lower():
                raise NotHere(f"torch.compile does not work here: {str(error).splitlines()[0]}") from None
            raise
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    return "fullgraph=True"


def second_device(device: torch.device) -> str:
    if torch.cuda.device_count() < 2:
        raise NotHere("there is only one device")
    for make in FORMS.values():
        a, b = (differentiated(*make(torch.device("cuda", i), torch.float32)) for i in range(2))
        assert all(x.device.index == 1 and torch.equal(x.cpu(), y.cpu()) for x, y in zip(b, a, strict=True))
    return "cuda:1 gives what cuda:0 gives"


def forked(device: torch.device) -> str:
    """DataLoader workers, forked after the driver was used, compute priors on the CPU."""
    loader = torch.utils.data.DataLoader(_Ratios(), num_workers=2, timeout=60, multiprocessing_context="fork")
    assert [float(x) for x in loader] == [0.5] * 8
    return "2 workers"


class _Ratios(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return pcrm.priors.length_ratio([[1, 2]], [[1, 3, 4]])


def _kernels(step: Callable[[], object]) -> list[str]:
    """Return the names of the kernels that a step launches."""
    from torch.profiler import ProfilerActivity, profile

    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    return [e.name for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA]


def launches(device: torch.device) -> str:
    """One kernel for the forward pass, two if several blocks are added up; one for the backward pass."""
    found = {}
    for name, make, sizes in (
        ("pair", pair, (8,)),
        ("pair", pair, (1 << 20,)),
        ("token", token, (16, 1024)),
        ("dpo", dpo, (64,)),
    ):
        leaves, loss = make(device, torch.float32, *sizes)
        forward = _kernels(lambda f=loss, x=leaves: f(*x))
        out = loss(*leaves)
        backward = _kernels(lambda o=out, x=leaves: torch.autograd.grad(o, x, retain_graph=True))
        if not forward and not backward:
            raise NotHere("the profiler recorded no kernel")
        ours = [[k for k in kernels if "pcrm_" in k] for kernels in (forward, backward)]
        found[f"{name} {'x'.join(map(str, sizes))}"] = f"{len(ours[0])} forward, {len(ours[1])} backward"
        several = sizes != (8,) and name != "dpo"
        assert len(ours[0]) == (2 if several else 1) and len(ours[1]) == 1, (forward, backward)
        others = [k for k in forward if "pcrm_" not in k]
        assert not others, f"the forward pass also launches {others}"
    return "; ".join(f"{k}: {v}" for k, v in found.items())


def sanitizer(device: torch.device) -> str:
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        raise NotHere("compute-sanitizer is not installed")
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, str(Path(__file__)), "--workload"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        except subprocess.TimeoutExpired:
            raise NotHere(f"{check} took more than 240 seconds") from None
        out = done.stdout + done.stderr
        if "SUMMARY" not in out:
            raise NotHere(f"{check} did not run: {(out.strip().splitlines() or ['no output'])[-1]}")
        assert done.returncode == 0, out[-3000:]
    return "memcheck and racecheck of all forms and dtypes"


def workload(device: torch.device) -> None:
    """The workload for the sanitizer: each kernel, with one block and with several."""
    for make, sizes in ((pair, ((33,), (5000,))), (dpo, ((33,), (5000,))), (token, ((3, 70), (300, 50), (2, 5000)))):
        for size in sizes:
            for dtype in DTYPES:
                leaves, loss = make(device, dtype, *size)
                differentiated(leaves, loss)
                differentiated(leaves, loss, "none")
    torch.cuda.synchronize()


def trl_steps(device: torch.device) -> str:
    """Five steps of PCRMRewardTrainer on the GPU, traced and verified."""
    try:
        from datasets import Dataset
        from pcrm.demo.model import make_model, make_tokenizer
        from pcrm.demo.world import generate
        from pcrm.trl import PCRMRewardConfig, PCRMRewardTrainer
    except ImportError as error:
        raise NotHere(str(error)) from None
    rows = generate(64, seed=0)
    tokenizer = make_tokenizer(r["prompt"] + r["chosen"] + r["rejected"] for r in rows)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PCRMRewardTrainer(
            make_model(tokenizer, 512, seed=0),
            PCRMRewardConfig(
                output_dir=folder, max_steps=5, per_device_train_batch_size=8, bf16=False, report_to="none",
                save_strategy="no", logging_steps=1, disable_tqdm=True, gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]),
            processing_class=tokenizer,
        )  # fmt: skip
        with pcrm.trace(folder + "/trace"):
            trainer.train()
        found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(found) == 5 and all(map(math.isfinite, found)), found
        return _verified(folder + "/trace")


CHECKS = (
    *ANYWHERE, no_synchronization, streams, threads, graph_capture, first_use_in_a_capture, compiled, second_device,
    forked, launches, sanitizer, trl_steps,
)  # fmt: skip


def run(checks: tuple[Callable[[torch.device], str], ...], device: torch.device) -> list[Result]:
    results = []
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            result = Result(name, "ok", check(device))
        except NotHere as reason:
            result = Result(name, "not run", str(reason))
        except Exception as error:
            traceback.print_exc()
            result = Result(name, "FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        print(f"{result.status:<8} {result.name}: {result.detail}", flush=True)
        results.append(result)
    return results


# The benchmark.


def pairs(n: int) -> dict[str, Callable[[], None]]:
    return losses.pairs(n)


def tokens(rows: int, width: int) -> dict[str, Callable[[], None]]:
    contenders = losses.tokens(rows, width)
    del contenders["loop"]  # it synchronizes at every row
    return contenders


def dpos(n: int) -> dict[str, Callable[[], None]]:
    """DPO against hand-written code, and against Liger's formula if Liger is installed."""
    chosen, rejected = (torch.randn(n, requires_grad=True) for _ in range(2))
    reference_chosen, reference_rejected, delta = torch.randn(n), torch.randn(n), 1 + torch.rand(n)
    columns = (chosen, rejected, reference_chosen, reference_rejected)
    compiled_dpo = torch.compile(hand_written.eager_dpo)
    contenders = {
        "pcrm": lambda: pcrm_dpo_loss(*columns, delta, beta=0.1)[0],
        "eager": lambda: hand_written.eager_dpo(*columns, delta, 0.1),
        "compiled": lambda: compiled_dpo(*columns, delta, 0.1),
    }
    try:
        from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction
    except ImportError:
        pass
    else:
        target = torch.empty(2 * n, 1)

        def liger() -> Tensor:
            out = LigerFusedLinearDPOFunction.preference_loss_fn(
                chosen, rejected, target, reference_chosen, reference_rejected, beta=0.1
            )
            return out[0] if isinstance(out, tuple) else out

        contenders["liger"] = liger
    return {name: losses.training_step(loss, chosen, rejected) for name, loss in contenders.items()}


def latencies(device: torch.device, sizes: dict[str, Callable[[], dict]], rounds: int, seconds: float) -> dict:
    """Return the microseconds of forward and backward by size and contender, one value per round."""
    results = {}
    for size, make in sizes.items():
        print(f"{size} ...", file=sys.stderr, flush=True)
        torch._dynamo.reset()
        with device:  # create the contenders' tensors there
            contenders = make()
        for name in list(contenders):
            try:
                contenders[name]()
            except Exception as error:
                if name == "pcrm":
                    raise
                print(f"{size}: {name} is left out: {' '.join(str(error).split())[:300]}", file=sys.stderr)
                del contenders[name]
        results[size] = measure(contenders, rounds, seconds, device)
    return results


def measure(
    contenders: dict[str, Callable], rounds: int, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Like losses.measure, but each turn synchronizes with the device once at its end."""

    def turn(step: Callable, count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    counts = {}
    for name, step in contenders.items():
        turn(step, 20)
        counts[name] = max(1, min(2000, int(seconds / turn(step, 5) * 5)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            times[name].append(turn(step, counts[name]) / counts[name] * 1e6)
    return times


def bandwidth(
    device: torch.device, rows: int, width: int, dtype: torch.dtype, batches: int = 16
) -> tuple[float, float, float]:
    """Return the GB/s of the token form's forward pass and of a copy of the same bytes, and their ratio.

    The spans are whole rows, so every score is read. Each position reads two scores and two int64 ids and
    writes two gradients. There are more batches than a cache can hold. A CUDA graph of all batches
    excludes the launch overhead of the host.
    """
    graphs, kept = [], []
    size = rows * width * (2 * dtype.itemsize + 2 * 8 + 2 * 4)
    made = []
    for _ in range(batches):
        ids = torch.randint(1, 1000, (2, rows, width), device=device)
        ids[0, :, 0], ids[1, :, 0] = 1001, 1002
        scores = [torch.randn(rows, width, device=device, dtype=dtype).requires_grad_() for _ in range(2)]
        copies = [torch.empty(size // 2, dtype=torch.uint8, device=device) for _ in range(2)]
        made.append((scores, ids, torch.full((rows,), 4.5, device=device), copies))
    steps = (
        lambda scores, ids, delta, copies: pcrm_token_loss(*scores, *ids, delta, pad_token_id=0),
        lambda scores, ids, delta, copies: copies[0].copy_(copies[1]),
    )
    for step in steps:
        step(*made[0])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept.extend(step(*batch) for batch in made)
        graphs.append(graph)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(30):
        for graph, found in zip(graphs, seconds, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(10):
                graph.replay()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3 / 10 / batches)
    ours, copy = (size / statistics.median(s) / 1e9 for s in seconds)
    return ours, copy, statistics.median(c / o for o, c in zip(*seconds, strict=True))


def machine(device: torch.device) -> str:
    bridge = native.library()
    info = json.loads(native.call(bridge.bridge_CUDAProbe))
    name = info["devices"][device.index or 0]["name"]
    return (
        f"{name}, driver for CUDA {info['driver']}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"pcrm {pcrm.__version__}, PTX {native.call(bridge.bridge_PTXVersion)}"
    )


def write(out: Path, where: str, results: list[Result], times: dict, shares: dict) -> None:
    """Write docs/gpu-results.md and its CSV."""
    with (out / "gpu-results.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["size", "contender", "median_us", "p20_us", "p80_us", "machine"])
        for size, contenders in times.items():
            for name, values in contenders.items():
                p20, *_, p80 = statistics.quantiles(values, n=5)
                rows.writerow([size, name, *(f"{v:.2f}" for v in (statistics.median(values), p20, p80)), where])
    lines = [
        "# The CUDA path on a GPU",
        "",
        f"Measured by `make gpu-check` on {where}.",
        "",
        "## Correctness",
        "",
        "| check | result | details |",
        "|---|---|---|",
        *(f"| {r.name} | {r.status} | {r.detail.replace('|', '/')} |" for r in results),
        "",
        "## Speed",
        "",
        "Time of the forward and backward passes from Python, in float32, relative to other implementations. A ratio below 1 means",
        "that pcrm is faster. Each ratio is a median over rounds of one interleaved run. The target is at most",
        f"{TARGET_OF_EAGER} of eager's time up to {TARGET_PAIRS} pairs. The times are in [gpu-results.csv](gpu-results.csv).",
        "",
        "| size | vs torch eager | vs torch.compile | vs Liger | pcrm, µs |",
        "|---|---|---|---|---|",
    ]
    for size, contenders in times.items():
        ratios = [
            f"{losses.ratio(contenders, 'pcrm', name):.2f}" if name in contenders else ""
            for name in ("eager", "compiled", "liger")
        ]
        lines.append(f"| {size} | {' | '.join(ratios)} | {statistics.median(contenders['pcrm']):.1f} |")
    lines += [
        "",
        "Liger's fused losses include the head of the language model. Its column is only the formula inside them, on log probabilities.",
        "The eager token form gets precomputed spans, while pcrm finds them.",
        "",
        f"The bandwidth of the token form's forward pass, compared with a device copy of the same bytes (target: {TARGET_OF_COPY}):",
        "",
        "| size | GB/s | GB/s of a copy | ratio |",
        "|---|---|---|---|",
        *(f"| {size} | {ours:.0f} | {copy:.0f} | {share:.2f} |" for size, (ours, copy, share) in shares.items()),
        "",
    ]
    (out / "gpu-results.md").write_text("\n".join(lines))
    print("\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds per contender (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.05, help="approximate seconds per round and contender (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="output folder (default: docs)")
    parser.add_argument("--checks-only", action="store_true", help="run only the checks and write nothing")
    parser.add_argument("--workload", action="store_true", help="run each kernel once, for the sanitizer")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this needs an NVIDIA GPU, but torch finds none")
    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    pcrm.backends.set_backend("cuda")
    if args.workload:
        workload(device)
        return 0
    where = machine(device)
    print(where)
    try:
        workload(
            device
        )  # the first use of each kernel; with auto, torch would replace a wrong kernel and pass the checks
    except RuntimeError as error:
        sys.exit(f"FAILED   first use: {error}")
    # auto, because the checks also compute with Go on the CPU. The kernels are known to be available by now.
    pcrm.backends.set_backend("auto")
    assert isinstance(choice.native_for_loss("x", torch.empty(1, device=device)), cuda.Device)
    results = run(CHECKS, device)
    failed = any(r.status == "FAILED" for r in results)
    if not args.checks_only:
        sizes = {
            **{f"{n} pairs": lambda n=n: pairs(n) for n in PAIRS},
            **{f"{r} x {w} tokens": lambda r=r, w=w: tokens(r, w) for r, w in TOKENS},
            **{f"{n} pairs, DPO": lambda n=n: dpos(n) for n in PAIRS[:3]},
        }
        times = latencies(device, sizes, args.rounds, args.seconds)
        shares = {
            f"{r} x {w} tokens, {dtype}".replace("torch.", ""): bandwidth(device, r, w, dtype)
            for r, w in TOKENS
            for dtype in (torch.float32, torch.bfloat16)
        }
        write(args.out, where, results, times, shares)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
