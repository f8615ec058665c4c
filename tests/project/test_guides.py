"""The guides' commands, configurations and Go, run as they are printed."""

import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from helpers.documents import blocks
from helpers.project import ROOT
from helpers.trainers import SETTINGS
from trl.scripts import dpo

import pcrm
from pcrm import cli

pytestmark = pytest.mark.usefixtures("trl_as_it_was")

# What makes a printed training run short enough for a test.
SHORT = SETTINGS | {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
SHORT_FLAGS = [word for key, value in SHORT.items() for word in (f"--{key}", str(value))]


def commands(page, *, having=""):
    """The lines `pcrm ...` of the page's blocks that contain `having`, split into words."""
    lines = [line for block in blocks(page, "") if having in block for line in joined(block)]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("pcrm ")]


def joined(block):
    return block.replace("\\\n", " ").splitlines()


def logged(out):
    return json.loads(Path(out, "checkpoint-1", "trainer_state.json").read_text())["log_history"][0]


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def pair_rows(n=30):
    rng = np.random.default_rng(0)
    return [
        {"chosen": "a" * int(a), "rejected": "b" * int(b), "chosen_score": x, "rejected_score": y, "prior": s}
        for a, b, x, y, s in zip(
            *rng.integers(1, 90, (2, n)), *rng.normal(size=(2, n)), rng.uniform(size=n), strict=True
        )
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def preferences(folder, rows, tiny):
    """The files that the pages about training name."""
    plain = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]
    for name in ("preferences.jsonl", "pairs.jsonl", "held-out.jsonl"):
        write(name, plain)
    (folder / "base").symlink_to(tiny)
    return plain


@pytest.mark.slow
def test_from_pairs_to_a_report(preferences, tiny):
    found = commands("docs/compare.md", having="pcrm prior")
    assert [command[0] for command in found] == ["prior", "prior", "fit", "reward", "score", "report"]
    for command in found:
        assert cli.main(command + (SHORT_FLAGS if command[0] == "reward" else [])) == 0, command
    summary = json.loads(Path("report/summary.json").read_text())
    assert "violation_rate" in summary, "the score file has kept the prior, so there is a ceiling for each pair"


@pytest.mark.slow
def test_trl_by_configuration(preferences, tiny):
    """The first yaml block and the commands of docs/trl.md but its launchers, which tests/trl/test_trl_commands.py starts."""
    reward = yaml.safe_load(blocks("docs/trl.md", "yaml")[0])
    assert reward["model_name_or_path"].startswith("Qwen/") and reward["dataset_name"].endswith(".jsonl.gz")
    reward |= {"model_name_or_path": str(tiny), "dataset_name": "preferences.jsonl"}
    Path("reward.yaml").write_text(yaml.safe_dump(reward | SHORT))
    (train, *launched) = commands("docs/trl.md", having="accelerate launch")
    assert train == ["reward", "--config", "reward.yaml"] and launched == []
    assert cli.main(train) == 0
    kept = pcrm.Constraint.from_toml("reward-model/pcrm.toml")
    assert (kept.floor, kept.cap) == (2, 6) and 2.0 <= logged("reward-model")["pcrm/delta"] <= 6.0
    for command in commands("docs/trl.md", having="pcrm fit"):
        assert cli.main(command) == 0, command
    from_file = {k: v for k, v in (reward | SHORT).items() if not k.startswith("pcrm_target")}
    from_file |= {"dataset_name": "with-prior.jsonl", "pcrm_config": "pcrm.toml", "output_dir": "from-file"}
    Path("reward.yaml").write_text(yaml.safe_dump(from_file))
    assert cli.main(train) == 0
    assert 2.0 <= logged("from-file")["pcrm/delta"] <= 6.0, "the last run took the margins of `pcrm fit`"


def test_a_dry_run(preferences, tiny, capsys):
    """The command of docs/trl.md prints what the page shows, and writes nothing."""
    reward = yaml.safe_load(blocks("docs/trl.md", "yaml")[0])
    reward |= {"model_name_or_path": str(tiny), "dataset_name": "preferences.jsonl"}
    Path("reward.yaml").write_text(yaml.safe_dump(reward | {"use_cpu": True, "bf16": False, "report_to": "none"}))
    (command,) = commands("docs/trl.md", having="--dry-run\n")
    before = sorted(os.listdir())
    assert cli.main(command) == 0
    (printed,) = [block for block in blocks("docs/trl.md", "") if block.startswith("Data\n")]
    assert capsys.readouterr().out == printed
    assert sorted(os.listdir()) == before


@pytest.mark.slow
def test_trl_by_a_script_that_stays(preferences, tiny_policy, capsys):
    """`pcrm run` as docs/trl.md prints it, with TRL's own DPO script and the page's losses."""
    Path("train.py").write_text(Path(dpo.__file__).read_text())
    mixed = yaml.safe_load(blocks("docs/trl.md", "yaml")[1])
    settings = {
        "model_name_or_path": str(tiny_policy),
        "datasets": [{"path": "json", "data_files": "preferences.jsonl"}],
    }
    Path("dpo.yaml").write_text(yaml.safe_dump(settings | mixed | SHORT | {"output_dir": "dpo"}))
    (command,) = commands("docs/trl.md", having="pcrm run")[:1]
    assert command == ["run", "train.py", "--config", "dpo.yaml"]
    assert cli.main(command) == 0
    assert "pcrm/residual" in logged("dpo")


def test_two_lines_of_a_script(preferences, tiny):
    """What the diff of docs/trl.md leaves, on rows of ours."""
    (diff,) = blocks("docs/trl.md", "diff")
    script = "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))
    options = ", ".join(f"{key}={value!r}" for key, value in SHORT.items())
    for printed, ours in (
        ('"Qwen/Qwen3-0.6B"', repr(str(tiny))),
        ('output_dir="reward-model"', f'output_dir="out", {options}'),
    ):
        assert script.count(printed) == 1
        script = script.replace(printed, ours)
    names = {"load_dataset": lambda name, split: Dataset.from_list(preferences)}
    exec(compile(script, "docs/trl.md", "exec"), names)
    assert "pcrm/residual" in names["trainer"].state.log_history[0]


@pytest.mark.parametrize(
    ("page", "field"), [("docs/sft.md", "pcrm_sft_eta"), ("docs/prioritized.md", "pcrm_priority_alpha")]
)
def test_arguments_of_a_diff(folder, page, field):
    from pcrm import trl

    (diff,) = blocks(page, "diff")
    (line,) = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    on_cpu = {n: functools.partial(getattr(trl, n), bf16=False) for n in ("PCRMRewardConfig", "PCRMDPOConfig")}
    made = eval(f"dict({line})", on_cpu)
    assert getattr(made["args"], field) > 0


def test_average(folder, tiny):
    found = commands("docs/average.md")
    for name in {word for command in found for word in command if word.startswith("rm-")} - {"rm-warm", "rm-mixed"}:
        (folder / name).symlink_to(tiny)
    for command in found:
        assert cli.main(command) == 0, command
    assert (folder / "rm-warm" / "model.safetensors").is_file() and (folder / "rm-mixed" / "config.json").is_file()


def test_calibrate(folder, tiny):
    for name in ("pairs", "test", "valid"):
        write(f"{name}-scores.jsonl", pair_rows())
    (folder / "rm").symlink_to(tiny)
    for command in commands("docs/calibrate.md"):
        assert cli.main(command) == 0, command
    assert (folder / "rm-tempered" / "model.safetensors").is_file()
    assert "flip_rate" in json.loads((folder / "report" / "summary.json").read_text())


@pytest.mark.slow
def test_report(folder):
    for name in ("scores", "plain", "constrained"):
        write(f"{name}.jsonl", pair_rows())
    write("plain-ratings.jsonl", [{"scores": [1.0, 2.0, 0.5], "ratings": [3, 4, 5]}] * 3)
    found = [command for command in commands("docs/report.md") if command[0] == "report"]
    assert len(found) == 2
    for command in found:
        assert cli.main(command) == 0, command
        assert (folder / "report" / "report.html").is_file()


@pytest.mark.slow
def test_optimize(folder, monkeypatch, tiny, tiny_policy, rows):
    """Each command in a folder of its own, with few and short samples and one step of RL."""
    pool = {"prompt": rows[0]["prompt"], "responses": [rows[0]["chosen"], rows[0]["rejected"]]}
    short = {
        "--policy": ["--samples", "2", "--max-new-tokens", "4"],
        "--proxy": ["--device", "cpu"],
        "--rl": ["--steps", "1", "--prompts", "1", "--generations", "2"],
    }
    found = [command for command in commands("docs/optimize.md") if command[0] == "optimize"]
    assert len(found) == 4
    for i, command in enumerate(found):
        (folder / str(i)).mkdir()
        monkeypatch.chdir(folder / str(i))
        scores = {} if "--proxy" in command else {"scores": [0.5, 0.25]}
        for name in ("POOL.jsonl", "pool.jsonl"):
            write(name, [pool | scores | {"ratings": [1, 2]}] * 3)
        write("PROMPTS.jsonl", [{"prompt": r["prompt"]} for r in rows[:2]])
        Path("model").symlink_to(tiny_policy)
        for name in ("a", "b", "reward-model", "larger-model"):
            Path(name).symlink_to(tiny)
        more = [word for flag, words in short.items() if flag in command for word in words]
        assert cli.main(command + more) == 0, command
        assert Path(command[command.index("--out") + 1], "optimize.html").is_file()


def test_principles():
    texts = ("Be brief.", "Be kind.", "Be clear.")
    undecided, decided = (
        {"prompt": "p", "chosen": "c", "rejected": "r", "principles": [{"text": t, "score": s} for t in texts]}
        for s in (0.0, 1.0)
    )
    (block,) = blocks("docs/principles.md", "python")
    names = {"data": Dataset.from_list([undecided, decided])}
    exec(compile(block, "docs/principles.md", "exec"), names)
    (kept,) = names["data"]
    assert kept["preference"] in ("kept", "swapped") and all(t.split()[1] in kept["prompt"] for t in texts)


def test_openrlhf_in_a_script():
    """The loss that the page puts into OpenRLHF's trainer, called as that trainer calls it."""
    (block,) = blocks("docs/openrlhf.md", "python")
    trainer = SimpleNamespace()
    exec(compile(block, "docs/openrlhf.md", "exec"), {"trainer": trainer})
    chosen, rejected, prior = torch.randn(3, 8).double()
    prior = prior.sigmoid()
    delta = pcrm.Constraint.preset("alpaca/length_ratio").delta(prior)
    want = pcrm.functional.pcrm_loss(chosen.float(), rejected.float(), delta.float())
    torch.testing.assert_close(trainer.loss_fn(chosen.float(), rejected.float(), prior.float()), want)


@pytest.fixture
def shell(folder):
    """Runs a block with `python` and `pcrm` being those of the tests."""
    (folder / "bin").mkdir()
    for name, module in (("python", ""), ("pcrm", "-m pcrm")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (folder / "bin" / name).chmod(0o755)

    def run(block):
        environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-e", "-c", block], capture_output=True, text=True, timeout=200, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_trace(shell, folder):
    """Of the plain loop of docs/frameworks.md."""
    Path("train.py").write_text(blocks("docs/frameworks.md", "python")[0])
    (block,) = [block for block in blocks("docs/verify.md", "") if "PCRM_TRACE" in block]
    out = shell(block)
    # The page records every tenth of 8 steps.
    assert len(list(folder.glob("trace/**/*.safetensors"))) == 1
    assert "pair" in out and "float32" in out


def test_trace_in_a_script(folder):
    (block,) = blocks("docs/verify.md", "python")
    loss = pcrm.PCRMLoss(pcrm.Constraint.fixed(4.0))
    scores = torch.zeros(2, 3, requires_grad=True)
    exec(block, {"pcrm": pcrm, "trainer": SimpleNamespace(train=lambda: [loss(*scores) for _ in range(11)])})
    assert len(list(folder.glob("trace/**/*.safetensors"))) == 2
    assert cli.main(["verify", "trace"]) == 0


@pytest.fixture
def go(folder):
    """Compiles a file, as if it lay in the module, and runs it in the test's folder; its output."""
    found = subprocess.run(
        [sys.executable, str(ROOT / "buildtools" / "pcrm_build.py"), "go"], capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip(found.stderr.splitlines()[-1])
    program = found.stdout.strip()

    def run(source, *, test=False):
        name = "block_test.go" if test else "main.go"
        (folder / name).write_text(source)
        (folder / "overlay.json").write_text(json.dumps({"Replace": {str(ROOT / "block" / name): str(folder / name)}}))
        what = ["test", "-c", "-vet=off"] if test else ["build"]
        command = [program, *what, "-overlay", str(folder / "overlay.json"), "-o", str(folder / "block"), "./block"]
        environment = os.environ | {"CGO_ENABLED": "0"}
        built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, env=environment)
        assert built.returncode == 0, built.stderr
        arguments = ["-test.v"] if test else []
        done = subprocess.run([str(folder / "block"), *arguments], capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_go_program(go):
    (program,) = blocks("docs/go.md", "go")
    (printed,) = [block for block in blocks("docs/go.md", "") if block[0].isdigit()]
    assert go(program) == printed


@pytest.mark.slow
def test_go_tests(go, folder):
    """Both tests of docs/verify.md, on a trace and on a right loss."""
    first, second = blocks("docs/verify.md", "go")
    with pcrm.trace("testdata/trace"):
        pcrm.functional.pcrm_loss(torch.zeros(3, requires_grad=True), torch.zeros(3), 4.0)
    out = go(
        f"""package block

import (
	"testing"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/pcrmtest"
	"github.com/pcrm-project/pcrm/pcrm/trace"
)

func ourLoss(margin, delta float64) (loss, grad float64) {{ return pcrm.PairLoss(margin, delta, 0) }}

{first}
{second}""",
        test=True,
    )
    assert "--- PASS: TestOurRun" in out and "--- PASS: TestOurLoss" in out
