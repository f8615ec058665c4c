"""`pcrm doctor`: its report on this machine, and that it detects wrong numbers."""

import math
import shutil

import pytest
import torch
from helpers.processes import python
from pcrm._engine import native
from pcrm.cli import main

import pcrm


def test_says_what_there_is(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    tier = native.library().bridge_Tier()
    assert f"pcrm      {pcrm.__version__}, torch {torch.__version__}" in out
    assert f"Go        tier {tier}, " in out and "CUDA      " in out
    assert "kernels   PTX 8.1, for CUDA" in out
    for backend in ("go", "torch"):
        for dtype in ("float32", "float64"):
            assert f"self-test {backend} on cpu, {dtype}: ok" in out
    assert pcrm.backends.get_backend() == "auto"


@pytest.mark.parametrize("factor", [1 + 1e-5, math.nan])
def test_notices_wrong_losses(capsys, monkeypatch, factor):
    right = pcrm._engine.torch_reference.pair_loss
    monkeypatch.setattr(pcrm._engine.torch_reference, "pair_loss", lambda *arguments: right(*arguments) * factor)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    for dtype in ("float32", "float64"):
        assert (
            f"self-test torch on cpu, {dtype}: loss at margin 0, delta inf, label_smoothing 0 must be 0.693147180559945"
            in out
        )
    assert "self-test go on cpu, float64: ok" in out


def test_notices_wrong_gradients(capsys, monkeypatch):
    right = pcrm._engine.torch_reference.pair_loss

    def wrong(margin, *arguments):
        loss = right(margin, *arguments)
        return loss + 1e-5 * (margin - margin.detach())  # 0, with a gradient

    monkeypatch.setattr(pcrm._engine.torch_reference, "pair_loss", wrong)
    assert main(["doctor"]) == 1
    assert "self-test torch on cpu, float32: grad at margin 0, " in capsys.readouterr().out


@pytest.mark.slow
def test_without_native_library(without_native):
    shutil.copy(native.FOLDER / "golden.json", without_native + "/pcrm/_native")
    out = python(COMMAND, PYTHONPATH=without_native)
    assert out.returncode == 0, out.stderr
    assert (
        "Go        none: this requires pcrm's native library, which is not available: the native extension"
        in out.stdout
    )
    assert "CUDA      none: this requires pcrm's native library" in out.stdout
    assert "self-test torch on cpu, float64: ok" in out.stdout and "self-test go" not in out.stdout


COMMAND = "import sys, pcrm.cli; sys.exit(pcrm.cli.main(['doctor']))"


@pytest.mark.slow
def test_driver(fake_driver):
    """With the fake driver, which torch's own runtime does not recognize."""
    out = python(COMMAND, **fake_driver)
    assert out.returncode == 0, out.stderr
    assert "CUDA      driver for 12.1, torch built for " in out.stdout
    assert "cuda:1    Fake 1, compute capability 9.0\nCUDA      torch found no device\n" in out.stdout
    out = python(COMMAND, FAKECUDA_VERSION="11080", **fake_driver)
    assert (
        out.returncode == 0
        and "CUDA      none: the driver must support CUDA 12.1 (driver 530) or newer, got CUDA 11.8" in out.stdout
    )
