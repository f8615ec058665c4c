"""`pcrm.trace`: what it writes and when, and that it has no effect when it is off."""

import ast
import contextlib
import inspect
import io
import json
import math
import os
import re
import stat
import subprocess
import sys
import threading

import pytest
import torch
from helpers.cases import batch, logps, tokens
from pcrm._engine import trace
from pcrm.functional import pcrm_dpo_loss, pcrm_loss, pcrm_token_loss
from pcrm.losses import delta_of
from safetensors import safe_open

import pcrm
from pcrm import cli


def read(path):
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def steps(folder):
    """Return rank and step of each file. Every name also has a run."""
    found = [re.fullmatch(r"rank(\d{5})-run[0-9a-f]{12}-step(\d{8})\.safetensors", name) for name in files(folder)]
    return sorted((int(m[1]), int(m[2])) for m in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pair(tmp_path, backend, dtype):
    chosen, rejected, _ = batch(9, dtype)
    prior = torch.linspace(0, 1, 9)
    constraint = pcrm.Constraint(10, 0.001, -5, cap=math.inf)
    with pcrm.trace(tmp_path / "t"):
        loss = pcrm.PCRMLoss(constraint, center_rewards_coefficient=0.01)(chosen, rejected, prior)
        (7 * loss).backward()
    assert steps(tmp_path / "t") == [(0, 0)]
    tensors, metadata = read(tmp_path / "t" / files(tmp_path / "t")[0])
    assert torch.equal(tensors["chosen_rewards"], chosen) and tensors["chosen_rewards"].dtype == dtype
    assert torch.equal(tensors["loss"], loss.detach()) and torch.equal(tensors["prior"], prior)
    assert torch.equal(tensors["delta"], constraint.delta(prior).to(loss.dtype))
    # The gradient of the loss itself, before scaling by the incoming 7.
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


@pytest.mark.slow
@pytest.mark.parametrize("module", ["PCRMLoss", "PCRMDPOLoss"])
def test_compiled_records_the_prior_of_the_call(tmp_path, module):
    """Also in a smaller last batch and with a replaced constraint. An evaluation is not a step."""
    torch.compiler.reset()
    loss = getattr(pcrm, module)(pcrm.Constraint(10, 0.001, -5, cap=math.inf))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    scores = 2 if module == "PCRMLoss" else 4
    priors = [torch.rand(n) for n in (4, 4, 4, 3)]
    with pcrm.trace(tmp_path):
        for prior in priors:
            compiled(*torch.randn(scores, len(prior)).requires_grad_(), prior)
            with torch.no_grad():
                compiled(*torch.randn(scores, len(prior)), prior)
        for cap in (6.0, 7.0, 8.0):
            loss.constraint = pcrm.Constraint(10, 0.001, -5, 2, cap)
            compiled(*torch.randn(scores, 4).requires_grad_(), priors[0])
        torch.compiler.reset()
        loss.constraint = pcrm.Constraint.fixed(4.5)
        compiled(*torch.randn(scores, 4).requires_grad_())
    recorded = [read(tmp_path / name) for name in files(tmp_path)]
    assert len(recorded) == 8
    for prior, (tensors, _) in zip(priors, recorded, strict=False):
        assert torch.equal(tensors["prior"], prior)
    caps = [json.loads(metadata["constraint"])["cap"] for _, metadata in recorded]
    assert caps == ["inf"] * 4 + [6, 7, 8, None] and "prior" not in recorded[-1][0]
    code, text = verify(tmp_path)
    assert code == 0, text


def test_every_and_when(tmp_path, backend):
    chosen, rejected, delta = batch(3)
    trace = pcrm.trace(tmp_path, every=3)
    for _ in range(7):
        pcrm_loss(chosen, rejected, delta)
        with torch.no_grad():
            pcrm_loss(chosen, rejected, delta)  # an evaluation is not a step
    trace.stop()
    pcrm_loss(chosen, rejected, delta)
    assert steps(tmp_path) == [(0, 0), (0, 3), (0, 6)]
    # A second trace has its own files: nothing is overwritten.
    with pcrm.trace(tmp_path):
        pcrm_loss(chosen, rejected, delta)
    assert steps(tmp_path) == [(0, 0), (0, 0), (0, 3), (0, 6)]
    assert "2 runs of 1 ranks" in verify(tmp_path)[1]


def traced_in_a_process(folder, seed):
    """Two processes that both believe to be rank 0."""
    torch.manual_seed(seed)
    with pcrm.trace(folder):
        for _ in range(5):
            pcrm_loss(*batch(3, seed=seed))


@pytest.mark.slow
def test_processes_of_the_same_rank_keep_their_files(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=traced_in_a_process, args=(tmp_path, seed)) for seed in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert steps(tmp_path) == sorted([(0, i) for i in range(5)] * 2)
    code, text = verify(tmp_path)
    assert code == 0 and "10 files" in text and "2 runs of 1 ranks" in text, text


@pytest.mark.slow
def test_a_forked_child_keeps_its_files_apart(tmp_path):
    code = f"""
import os, sys, torch, pcrm
def step():
    pcrm.functional.pcrm_loss(torch.ones(2, requires_grad=True), torch.zeros(2), 4.5)
with pcrm.trace({str(tmp_path)!r}):
    step()
    child = os.fork()
    step()
    if child == 0:
        os._exit(0)
    sys.exit(os.waitpid(child, 0)[1])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert steps(tmp_path) == [(0, 0), (0, 0), (0, 1)]


def test_threads_record_their_own_priors(tmp_path, backend):
    """As under nn.DataParallel: every call is recorded once, with its own prior."""
    loss = pcrm.PCRMLoss(pcrm.Constraint(10, 0.001, -5))

    def train(n):
        for _ in range(10):
            loss(torch.randn(n, requires_grad=True), torch.randn(n), torch.rand(n)).backward()

    with pcrm.trace(tmp_path):
        threads = [threading.Thread(target=train, args=(n,)) for n in (3, 4, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert steps(tmp_path) == [(0, i) for i in range(30)]
    code, text = verify(tmp_path)
    assert code == 0, text


def test_a_prior_between_delta_and_the_loss_of_another_thread(tmp_path, backend):
    """The recorded prior is an argument of the call, so another thread cannot interfere."""
    chosen, rejected, _ = batch(3)
    constraint = pcrm.Constraint(10, 0.001, -5)
    first, second = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.7, 0.8, 0.9])
    with pcrm.trace(tmp_path):
        delta, origin = delta_of(constraint, first)
        pcrm.PCRMLoss(constraint)(chosen, rejected, second)
        pcrm_loss(chosen, rejected, delta, origin=origin)
    recorded = [read(tmp_path / name)[0]["prior"] for name in files(tmp_path)]
    assert torch.equal(recorded[0], second) and torch.equal(recorded[1], first)
    assert verify(tmp_path)[0] == 0


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
    """An evaluation and a failed call do not affect the next step."""
    chosen, rejected, delta = batch(3)
    loss = pcrm.PCRMLoss(pcrm.Constraint(10, 0.001, -5))
    with pcrm.trace(tmp_path):
        with torch.no_grad():
            loss(chosen, rejected, torch.rand(3))
        pcrm_loss(chosen, rejected, delta)
        with pytest.raises(ValueError, match="prior must have shape"):
            loss(chosen, rejected, torch.rand(2))
        pcrm_loss(chosen, rejected, delta)
        loss(chosen, rejected, torch.tensor(0.5))  # one prior for all
    first, second, third = (read(tmp_path / name)[0] for name in files(tmp_path))
    assert "prior" not in first and "prior" not in second and third["prior"].tolist() == [0.5] * 3
    assert verify(tmp_path)[0] == 0


def test_a_trace_that_was_stopped_does_not_go_on(tmp_path):
    """The outer trace stops before the inner one."""
    outer, inner = pcrm.trace(tmp_path / "outer"), pcrm.trace(tmp_path / "inner")
    outer.stop()
    pcrm_loss(*batch(2, torch.float32))
    inner.stop()
    pcrm_loss(*batch(2, torch.float32))
    assert not files(tmp_path / "outer") and len(files(tmp_path / "inner")) == 1


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with pcrm.trace("trace"):
        monkeypatch.chdir("elsewhere")
        pcrm_loss(*batch(2, torch.float32))
    assert len(files(tmp_path / "trace")) == 1 and not files(tmp_path / "elsewhere")


@pytest.mark.slow
@pytest.mark.parametrize("every", ["often", "1.5", ""])
def test_a_bad_variable_is_named(tmp_path, every):
    environment = os.environ | {"PCRM_TRACE": str(tmp_path), "PCRM_TRACE_EVERY": every}
    found = subprocess.run(
        [sys.executable, "-c", "import pcrm.functional"], env=environment, capture_output=True, text=True
    )
    assert f"PCRM_TRACE_EVERY must be an integer of at least 1, got {every!r}" in found.stderr


def test_nested(tmp_path):
    """The inner trace takes over, and the outer one continues afterwards."""
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
    """On a full disk, the error is raised, no partial file is left, and existing files are kept."""
    with pcrm.trace(tmp_path):
        pcrm_loss(*batch(3))

        def full(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(trace.os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            pcrm_loss(*batch(3))
    assert steps(tmp_path) == [(0, 0)]


@pytest.mark.slow
def test_environment(tmp_path):
    code = "import torch, pcrm; f = lambda: pcrm.functional.pcrm_loss(torch.ones(2, requires_grad=True), torch.zeros(2), 4.5); [f() for _ in range(4)]"
    environment = os.environ | {"PCRM_TRACE": str(tmp_path / "t"), "PCRM_TRACE_EVERY": "2", "RANK": "3"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert steps(tmp_path / "t") == [(3, 0), (3, 2)]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"every must be in \[1, 2\*\*63\), got 0"):
        pcrm.trace(tmp_path, every=0)
    with pytest.raises(TypeError, match=r"every must be an integer, got 2\.5"):
        pcrm.trace(tmp_path, every=2.5)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        pcrm.trace(tmp_path / "file")
    assert trace.current is None


def verify(folder):
    """Return the command's exit status and output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.main(["verify", str(folder)])
    return status, out.getvalue()


@pytest.mark.slow
def test_verify_what_was_traced(tmp_path, backend):
    """Every form, dtype, reduction and option of the functions."""
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
        assert code == 1 and what in text and path[name].name in text, text
    # A file with the name of another run's file.
    for _ in range(2):
        with pcrm.trace(tmp_path / "mixed"):
            pcrm_loss(*batch(3))
    first, second = sorted((tmp_path / "mixed").iterdir())
    second.rename(first)
    code, text = verify(tmp_path / "mixed")
    assert code == 1 and f"belong to a file named {second.name}" in text, text
    code, text = verify(tmp_path / "nothing")
    assert code == 1 and "nothing" in text


def test_what_a_trace_says_needs_no_other_module():
    """pcrm._engine.trace must not import the constraint or settings, and the constraint must not import the losses."""

    def imported(module):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and node.level:
                yield from [node.module] if node.module else [alias.name for alias in node.names]

    assert not {"constraint", "config", "dispatch", "functional"} & set(imported(trace))
    assert not {"_engine.dispatch", "_engine.trace", "functional"} & set(imported(pcrm.settings.constraint))
