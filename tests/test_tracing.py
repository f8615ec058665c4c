"""`pcrm.trace`: what it writes, when, and that nothing of it shows where it is off."""

import json
import math
import os
import stat
import subprocess
import sys

import pytest
import torch
from cases import batch, logps, tokens
from pcrm.functional import pcrm_dpo_loss, pcrm_loss, pcrm_token_loss
from safetensors import safe_open

import pcrm
from pcrm import tracing


def read(path):
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


def files(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pair(tmp_path, backend, dtype):
    chosen, rejected, _ = batch(9, dtype)
    prior = torch.linspace(0, 1, 9)
    constraint = pcrm.Constraint(10, 0.001, -5, cap=math.inf)
    with pcrm.trace(tmp_path / "t"):
        loss = pcrm.PCRMLoss(constraint, center_rewards_coefficient=0.01)(chosen, rejected, prior)
        (7 * loss).backward()
    assert files(tmp_path / "t") == ["rank00000-step00000000.safetensors"]
    tensors, metadata = read(tmp_path / "t" / "rank00000-step00000000.safetensors")
    assert torch.equal(tensors["chosen_rewards"], chosen) and tensors["chosen_rewards"].dtype == dtype
    assert torch.equal(tensors["loss"], loss.detach()) and torch.equal(tensors["prior"], prior)
    assert torch.equal(tensors["delta"], constraint.delta(prior).to(loss.dtype))
    # The gradient is the loss's own, before the 7 that came from above.
    torch.testing.assert_close(
        7 * tensors["grad_chosen"], chosen.grad.to(loss.dtype), rtol=torch.finfo(dtype).eps, atol=1e-7
    )
    assert metadata["form"] == "pair" and metadata["backend"] == backend and metadata["reduction"] == "mean"
    assert metadata["dtype"] == str(dtype).removeprefix("torch.") and metadata["center_rewards_coefficient"] == "0.01"
    assert json.loads(metadata["constraint"])["cap"] == "inf" and "torch" in metadata["versions"]


def test_forms(tmp_path, backend):
    with pcrm.trace(tmp_path):
        chosen, rejected, ids_c, ids_r, delta = tokens()
        pcrm_token_loss(chosen, rejected, ids_c.int(), ids_r.int(), delta, pad_token_id=0, reduction="none")
        pcrm_dpo_loss(*logps(), beta=0.2, label_smoothing=0.1, reduction="sum")
    (token, about_token), (dpo, about_dpo) = (read(tmp_path / name) for name in files(tmp_path))
    assert token["chosen_ids"].dtype == torch.int64 and token["loss"].shape == (4,) and "prior" not in token
    assert about_token["pad_token_id"] == "0" and about_token["reduction"] == "none"
    assert about_dpo["beta"] == "0.2" and about_dpo["label_smoothing"] == "0.1" and "constraint" not in about_dpo
    assert {"policy_chosen_logps", "reference_rejected_logps", "chosen_rewards", "grad_rejected"} <= dpo.keys()


def test_compiled(tmp_path):
    torch.compiler.reset()
    chosen, rejected, delta = batch(9, torch.float32)
    function = torch.compile(lambda *a: pcrm_loss(*a) * 2, backend="aot_eager", fullgraph=True)
    with pcrm.trace(tmp_path):
        function(chosen, rejected, delta).backward()
    tensors, _ = read(tmp_path / files(tmp_path)[0])
    torch.testing.assert_close(2 * tensors["grad_chosen"], chosen.grad)


def test_every_and_when(tmp_path, backend):
    chosen, rejected, delta = batch(3)
    trace = pcrm.trace(tmp_path, every=3)
    for _ in range(7):
        pcrm_loss(chosen, rejected, delta)
        with torch.no_grad():
            pcrm_loss(chosen, rejected, delta)  # an evaluation is no step
    trace.stop()
    pcrm_loss(chosen, rejected, delta)
    assert files(tmp_path) == [f"rank00000-step{i:08d}.safetensors" for i in (0, 3, 6)]
    # A second run goes on: nothing is written over.
    with pcrm.trace(tmp_path):
        pcrm_loss(chosen, rejected, delta)
    assert files(tmp_path)[-1] == "rank00000-step00000007.safetensors" and len(files(tmp_path)) == 4


def test_prior_of_one_call_is_not_that_of_the_next(tmp_path, backend):
    chosen, rejected, delta = batch(3)
    with pcrm.trace(tmp_path, every=2):
        for _ in range(2):  # recorded, skipped
            pcrm.PCRMLoss(pcrm.Constraint(10, 0.001, -5))(chosen, rejected, torch.rand(3, dtype=torch.float64))
        pcrm_loss(chosen, rejected, delta)
    first, second = (read(tmp_path / name)[0] for name in files(tmp_path))
    assert "prior" in first and "prior" not in second


@pytest.mark.slow
def test_prior_of_a_call_that_came_to_nothing(tmp_path, backend):
    """An evaluation and a call that raised leave nothing behind for the next step."""
    chosen, rejected, delta = batch(3)
    loss = pcrm.PCRMLoss(pcrm.Constraint(10, 0.001, -5))
    with pcrm.trace(tmp_path):
        with torch.no_grad():
            loss(chosen, rejected, torch.rand(3))
        pcrm_loss(chosen, rejected, delta)
        with pytest.raises(ValueError, match="delta has shape"):
            loss(chosen, rejected, torch.rand(2))
        pcrm_loss(chosen, rejected, delta)
        loss(chosen, rejected, torch.tensor(0.5))  # one prior for all
    first, second, third = (read(tmp_path / name)[0] for name in files(tmp_path))
    assert "prior" not in first and "prior" not in second and third["prior"].tolist() == [0.5] * 3
    assert verify(tmp_path)[0] == 0


def test_nested(tmp_path):
    """The inner one takes over, and hands back."""
    with pcrm.trace(tmp_path / "a"):
        with pcrm.trace(tmp_path / "b"):
            pcrm_loss(*batch(3))
        pcrm_loss(*batch(3))
    assert len(files(tmp_path / "a")) == len(files(tmp_path / "b")) == 1


def test_private(tmp_path):
    with pcrm.trace(tmp_path / "a" / "b"):
        pcrm_loss(*batch(3))
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / "b" / files(tmp_path / "a" / "b")[0]).stat().st_mode) == 0o600


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    """A full disk: the error is told, no part is left, and what is there stays."""
    with pcrm.trace(tmp_path):
        pcrm_loss(*batch(3))

        def full(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tracing.os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            pcrm_loss(*batch(3))
    assert files(tmp_path) == ["rank00000-step00000000.safetensors"]


@pytest.mark.slow
def test_environment(tmp_path):
    code = "import torch, pcrm; f = lambda: pcrm.functional.pcrm_loss(torch.ones(2, requires_grad=True), torch.zeros(2), 4.5); [f() for _ in range(4)]"
    environment = os.environ | {"PCRM_TRACE": str(tmp_path / "t"), "PCRM_TRACE_EVERY": "2", "RANK": "3"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert files(tmp_path / "t") == ["rank00003-step00000000.safetensors", "rank00003-step00000002.safetensors"]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="every is 0, must be at least 1"):
        pcrm.trace(tmp_path, every=0)
    with pytest.raises(TypeError, match=r"every is 2\.5, must be an integer"):
        pcrm.trace(tmp_path, every=2.5)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        pcrm.trace(tmp_path / "file")
    assert tracing.current is None


def verify(folder):
    out = subprocess.run([sys.executable, "-m", "pcrm.cli", "verify", str(folder)], capture_output=True, text=True)
    return out.returncode, out.stdout + out.stderr


@pytest.mark.slow
def test_verify_what_was_traced(tmp_path, backend):
    """Every form, dtype, reduction and option that the functions have."""
    with pcrm.trace(tmp_path):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            for reduction in ("mean", "sum", "none"):
                chosen, rejected, delta = batch(50, dtype)
                options = {"label_smoothing": 0.1, "center_rewards_coefficient": 0.01, "reduction": reduction}
                pcrm_loss(chosen, rejected, delta, **options)
                pcrm_token_loss(*tokens(dtype=dtype), pad_token_id=0, reduction=reduction)
                pcrm_dpo_loss(*logps(20, dtype=dtype), label_smoothing=0.1, reduction=reduction)
        chosen, rejected, _ = batch(50, torch.float32)
        for constraint in (
            pcrm.Constraint(10, 0.001, -5, 6, 100),
            pcrm.Constraint.random(4, 5),
            pcrm.Constraint.fixed(math.inf),
        ):
            pcrm.PCRMLoss(constraint)(chosen, rejected, torch.rand(50))
    code, text = verify(tmp_path)
    assert code == 0, text
    assert "39 files" in text and backend in text, text


@pytest.mark.slow
def test_verify_notices(tmp_path):
    for name in ("good", "element", "missing", "short"):
        with pcrm.trace(tmp_path / name):
            pcrm_loss(*batch(9, torch.float32))
    assert verify(tmp_path / "good")[0] == 0
    from safetensors.torch import save_file

    path = {name: tmp_path / name / files(tmp_path / name)[0] for name in ("element", "missing", "short")}
    tensors, metadata = read(path["element"])
    tensors["grad_chosen"][4] += 1e-3
    save_file(tensors, path["element"], metadata)
    tensors, metadata = read(path["missing"])
    del tensors["delta"]
    save_file(tensors, path["missing"], metadata)
    path["short"].write_bytes(path["short"].read_bytes()[:-1])
    for name, what in (("element", "grad_chosen"), ("missing", "delta"), ("short", "step00000000")):
        code, text = verify(tmp_path / name)
        assert code == 1 and what in text and "rank00000-step00000000.safetensors" in text, text
    code, text = verify(tmp_path / "nothing")
    assert code == 1 and "nothing" in text
