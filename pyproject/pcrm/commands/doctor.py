"""`pcrm doctor`: show and test the backends of this machine."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

from .._engine.native import call, library
from .._version import __version__
from ._parser import Parser

if TYPE_CHECKING:
    import torch


_DESCRIPTION = """\
Show the available backends (Go core, CUDA driver and devices), or why one is not available, and
test each backend against golden vectors. The exit status is 1 if a backend does not reproduce them.
"""
_EXAMPLES = (
    "pcrm doctor",
    "PCRM_BACKEND=torch pcrm doctor",
)


def main(argv: list[str]) -> int:
    Parser("pcrm doctor", _DESCRIPTION, *_EXAMPLES).parse_args(argv)
    import torch

    from .. import backends
    from .._self_test import TOLERANCES, compare

    def line(name: str, text: str) -> None:
        print(f"{name:<10}{text}")

    line("pcrm", f"{__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    line("backend", backends.get_backend())
    contenders = [("torch", torch.device("cpu"))]
    try:
        native = library()
    except RuntimeError as error:
        line("Go", f"none: {error}")
    else:
        line("Go", f"tier {call(native.bridge_Tier)}, {call(native.bridge_NumThreads)} threads")
        line("kernels", f"PTX {call(native.bridge_PTXVersion)}, for CUDA")
        contenders.append(("go", torch.device("cpu")))
    contenders += _cuda(line)
    failed = False
    for backend, device in contenders:
        for dtype in TOLERANCES:
            name = f"{backend} on {device}, {dtype}".replace("torch.", "")
            try:
                with backends.use_backend(backend):
                    complaint = compare(device, dtype)
            except RuntimeError as error:  # a driver that looked fine but failed
                complaint = str(error)
            line("self-test", f"{name}: {complaint or 'ok'}")
            failed |= complaint is not None
    return 1 if failed else 0


def _cuda(line: Callable[[str, str], None]) -> list[tuple[str, torch.device]]:
    """Print the state of CUDA, and return the backends and devices to test."""
    import torch

    from .._engine import cuda

    reason = cuda.unavailable()
    if reason is not None:
        line("CUDA", f"none: {reason}")
        return []
    found = json.loads(call(library().bridge_CUDAProbe))
    line("CUDA", f"driver for {found['driver']}, torch built for {torch.version.cuda}")
    for index, device in enumerate(found["devices"]):
        line(f"cuda:{index}", f"{device['name']}, compute capability {device['capability']}")
    if not torch.cuda.is_available():
        line("CUDA", "torch found no device")
        return []
    return [("cuda", torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
