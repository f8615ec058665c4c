"""The CUDA path on machines without a GPU: without a driver, and with a fake one.

The fake driver (gpu/testdata/fakecuda) is a libcuda.so.1 that uses host memory and runs the kernels' own
code. Separate processes find it in the same way as the real one.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from helpers.processes import python
from helpers.project import ROOT

pytestmark = pytest.mark.slow


def pytest_again(environment, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_cases(fake_driver):
    """tests/engine/cuda_cases.py: the choice of the device, launches, errors, other devices."""
    assert " passed" in pytest_again(fake_driver | {"FAKECUDA_DEVICES": "8"}, "tests/engine/cuda_cases.py")


def test_everything_that_the_other_backends_pass(fake_driver):
    """The tests of the losses, with the backend `cuda`."""
    files = [
        *(f"tests/losses/test_{name}.py" for name in ("functional", "golden", "baselines")),
        *(f"tests/engine/test_{name}.py" for name in ("operators", "trace")),
    ]
    out = pytest_again(fake_driver, *files, "-k", "cuda")
    assert int(out.split(" passed")[0].split()[-1]) > 180


def test_not_before_it_is_needed(fake_driver, tmp_path):
    """Neither the import nor a loss on the CPU touches the driver, so a process may still fork."""
    log = tmp_path / "log"
    code = """
import torch, pcrm
x = torch.ones(2, requires_grad=True)
pcrm.functional.pcrm_loss(x, torch.zeros(2), 4.5).backward()
"""
    out = python(code, FAKECUDA_LOG=str(log), **fake_driver)
    assert out.returncode == 0, out.stderr
    # In the backward pass, torch itself only asks for the driver's version.
    assert not log.exists() or set(log.read_text().split()) == {"cuDriverGetVersion"}


LOOK = """
import warnings, torch, pcrm
from pcrm._engine import choice
warnings.simplefilter("always")
from torch._subclasses.fake_tensor import FakeTensorMode
torch.cuda.is_current_stream_capturing = lambda: False
with FakeTensorMode():
    x = torch.empty(2, device="cuda")
for _ in range(3):
    assert choice.native_for_loss("x", x) is None
try:
    pcrm.backends.set_backend("cuda")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"FAKECUDA_VERSION": "11080"}, "the driver must support CUDA 12.1 (driver 530) or newer, got CUDA 11.8"),
        ({"FAKECUDA_DEVICES": "0"}, "the CUDA driver finds no device"),
        (
            {"FAKECUDA_FAIL": "cuInit:803"},
            "cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803): system has unsupported display driver / cuda driver combination",
        ),
    ],
)
def test_no_usable_driver(fake_driver, environment, reason):
    """`auto`: torch and one warning. `cuda`: an error. Both with the reason."""
    out = python(LOOK, **fake_driver, **environment)
    assert out.stdout.strip() == f"backend 'cuda' is not available: {reason}", out.stderr
    warned = f"RuntimeWarning: pcrm computes with torch instead of its CUDA kernels: {reason}"
    assert out.stderr.count("RuntimeWarning") == 1 and warned in out.stderr


def test_no_driver(tmp_path):
    """A file of that name that is not a library simulates a missing driver, even if there is one."""
    (tmp_path / "libcuda.so.1").write_text("")
    out = python(LOOK, LD_LIBRARY_PATH=str(tmp_path))
    assert "backend 'cuda' is not available: there is no CUDA driver: " in out.stdout, out.stderr
    assert out.stderr.count("RuntimeWarning") == 1


def test_environment(fake_driver, tmp_path):
    """PCRM_BACKEND=cuda touches nothing at import; the first loss on the CPU is refused."""
    log = tmp_path / "log"
    code = """
import torch, pcrm
assert pcrm.backends.get_backend() == "cuda"
pcrm.functional.pcrm_loss(torch.ones(1), torch.zeros(1), 4.5)
"""
    out = python(code, PCRM_BACKEND="cuda", FAKECUDA_LOG=str(log), **fake_driver)
    assert "ValueError: chosen_rewards must be on a CUDA device for backend 'cuda', got cpu" in out.stderr
    assert not log.exists()


@pytest.mark.parametrize("device", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_assembles(tmp_path, device):
    """NVIDIA's assembler, which is part of the driver, accepts the PTX. Triton, which comes with torch,
    includes it, and a newer version for the newest devices.
    """
    spec = importlib.util.find_spec("triton")
    folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin" if spec and spec.origin else Path("/nowhere")
    assembler = folder / ("ptxas-blackwell" if device == "sm_100" else "ptxas")
    if not assembler.is_file():
        pytest.skip(f"triton's {assembler.name} is not installed")
    ptx = ROOT / "gpu" / "kernels.ptx"
    command = [assembler, f"-arch={device}", "-o", tmp_path / "out", ptx]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = re.findall(r"^\.visible \.entry (\w+)\(", ptx.read_text(), flags=re.M)
    with (tmp_path / "out").open("rb") as file:
        sections = {section.name for section in ELFFile(file).iter_sections()}
    assert kernels and {f".text.{kernel}" for kernel in kernels} <= sections
