"""`pcrm doctor`: what this machine computes with, and whether it computes right."""

from __future__ import annotations

import argparse
import json
import math
import platform

import torch

from .. import backends
from .._engine import cuda, native
from .._version import __version__
from ..functional import pcrm_loss

# Of a loss L at margin m and constraint delta, times 1 + |m| + |delta| + |L|, and of a
# gradient: the table of the Go package pcrmtest, whose golden vectors these are.
_TOLERANCES = {torch.float64: (3e-14, 1e-14), torch.float32: (2e-6, 4e-6)}


def main(argv: list[str]) -> int:
    argparse.ArgumentParser(
        prog="pcrm doctor",
        description="Prints what there is to compute with (Go core, CUDA driver and devices) or why it is not there, and "
        "compares each backend with golden vectors. Exits with 1 where one of them does not reproduce these.",
    ).parse_args(argv)

    def line(name: str, text: str) -> None:
        print(f"{name:<10}{text}")

    line("pcrm", f"{__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    line("backend", backends.get_backend())
    contenders = [("torch", torch.device("cpu"))]
    try:
        library = backends.library()
    except RuntimeError as error:
        line("Go", f"none: {error}")
    else:
        line("Go", f"tier {backends.call(library.bridge_Tier)}, {backends.call(library.bridge_NumThreads)} threads")
        line("kernels", f"PTX {backends.call(library.bridge_PTXVersion)}, for CUDA")
        contenders.append(("go", torch.device("cpu")))
    contenders += _cuda(line)
    failed = False
    for backend, device in contenders:
        for dtype in _TOLERANCES:
            name = f"{backend} on {device}, {dtype}".replace("torch.", "")
            try:
                with backends.use_backend(backend):
                    complaint = compare(device, dtype)
            except RuntimeError as error:  # a driver that looked well, and was not
                complaint = str(error)
            line("self-test", f"{name}: {complaint or 'ok'}")
            failed |= complaint is not None
    return 1 if failed else 0


def _cuda(line) -> list[tuple[str, torch.device]]:
    """Print what there is of CUDA; return what to test."""
    reason = cuda.unavailable()
    if reason is not None:
        line("CUDA", f"none: {reason}")
        return []
    found = json.loads(backends.call(backends.library().bridge_CUDAProbe))
    line("CUDA", f"driver for {found['driver']}, torch built for {torch.version.cuda}")
    for index, device in enumerate(found["devices"]):
        line(f"cuda:{index}", f"{device['name']}, compute capability {device['capability']}")
    if not torch.cuda.is_available():
        line("CUDA", "torch finds no device")
        return []
    return [("cuda", torch.device("cuda", i)) for i in range(torch.cuda.device_count())]


def compare(device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with the losses and gradients of the golden vectors there, or None."""
    vectors = json.loads((native.FOLDER / "golden.json").read_text())
    tolerance, gradient_tolerance = _TOLERANCES[dtype]
    for smoothing in sorted({v["label_smoothing"] for v in vectors}):
        cases = [v for v in vectors if v["label_smoothing"] == smoothing]
        exact = {
            name: torch.tensor([v[name] for v in cases], dtype=torch.float64) for name in ("margin", "loss", "grad")
        }
        delta = torch.tensor([math.inf if v["delta"] is None else v["delta"] for v in cases], dtype=torch.float64)
        margin = exact["margin"].to(device, dtype).requires_grad_()
        loss = pcrm_loss(
            margin, torch.zeros_like(margin), delta.to(device, dtype), label_smoothing=smoothing, reduction="none"
        )
        (grad,) = torch.autograd.grad(loss.sum(), margin)
        size = 1 + exact["margin"].abs() + delta.nan_to_num(posinf=0.0) + exact["loss"]
        for name, got, allowed in (
            ("loss", loss, tolerance * size),
            ("grad", grad, torch.full_like(size, gradient_tolerance)),
        ):
            got = got.detach().cpu().double()
            wrong = ~((got - exact[name]).abs() <= allowed)  # a NaN is wrong
            if wrong.any():
                i = int(wrong.nonzero()[0])
                return (
                    f"{name} at margin {exact['margin'][i]:g}, delta {delta[i]:g}, label_smoothing {smoothing:g} is "
                    f"{got[i]:.17g}, should be {exact[name][i]:.17g}"
                )
    return None
