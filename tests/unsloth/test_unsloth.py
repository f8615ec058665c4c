"""Unsloth's patched trainers and models with the constrained loss, and Liger's kernels; docs/unsloth.md. See cpu.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.models import make_tiny
from helpers.project import ROOT

pytestmark = pytest.mark.framework

KINDS = ("reward", "dpo")
SCRIPT = Path(__file__).with_name("runs.py")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, rows):
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(folder / "reward", rows, LlamaForSequenceClassification, num_labels=1)
    make_tiny(folder / "dpo", rows, LlamaForCausalLM)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def python(folder, *arguments, path=()):
    """Run Python in a folder, where Unsloth writes the trainers that it generates, and return the output."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT / "pyproject", ROOT / "tests"]))}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """The results of `runs.py`, by the way in which Unsloth is imported."""
    found = {}

    def run(way):
        if way not in found:
            out = tmp_path_factory.mktemp(way) / "found.json"
            python(out.parent, SCRIPT, way, folders, folders / "rows.json", out)
            found[way] = json.loads(out.read_text())
        return found[way]

    return run


def assert_same(ours, theirs, within=1e-5):
    """The same losses and gradients at each step. Rounding in float32 causes differences of 1e-5 in six steps."""
    assert len(ours) == len(theirs) >= 2
    for a, b in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=within, abs=within), name


def test_ours_are_subclasses_of_what_unsloth_generates(runs):
    assert runs("first")["bases"]["dpo"][:3] == ["PCRMDPOTrainer", "ConstrainedTrainer", "ConstraintHooks"]
    assert "_UnslothDPOTrainer" in runs("first")["bases"]["dpo"]
    assert "_UnslothRewardTrainer" in runs("first")["bases"]["reward"]
    assert not any("Unsloth" in name for way in ("last", "cpu") for name in runs(way)["bases"]["dpo"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["first", "last", "cpu"])
def test_unconstrained_is_unsloths_own(runs, way, kind):
    assert_same(runs(way)[kind]["infinite"], runs(way)[kind]["stock"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["first", "last"])
def test_constrained_is_that_of_trls_own_trainer(runs, way, kind):
    assert_same(runs(way)[kind]["constrained"], runs("cpu")[kind]["constrained"])
    # The constraint does something, as the gradient says.
    assert runs(way)[kind]["constrained"][0]["grad_norm"] != pytest.approx(
        runs(way)[kind]["stock"][0]["grad_norm"], rel=1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["first", "last", "cpu"])
def test_shared_prefixes_of_a_model_of_transformers(runs, way, kind):
    assert_same(runs(way)[kind]["shared"], runs(way)[kind]["constrained"], within=1e-4)


def test_a_model_of_unsloths_loader(runs):
    fast = runs("fast")
    assert_same(fast["infinite"], fast["stock"])
    assert fast["constrained"][0]["grad_norm"] != pytest.approx(fast["stock"][0]["grad_norm"], rel=1e-3)
    assert fast["constrained"][-1]["pcrm/pull"] > 0


def test_prefix_sharing_of_such_a_model_is_refused(runs):
    # Its attention drops the mask in training, and losses would be others without a word.
    wanted = (
        "got LlamaModel with Unsloth's attention, which ignores the mask in training: set pcrm_prefix_sharing=False"
    )
    assert wanted in runs("fast")["refused"] and runs("fast")["refused"].startswith("ValueError: ")
    assert wanted in runs("fast")["why not"]


def test_the_defaults_are_those_of_trl(runs):
    """As docs/unsloth.md says; Unsloth's configuration has its own."""
    assert runs("first")["defaults"]["stock"] == {"seed": 3407, "learning_rate": 5e-05, "optim": "adamw_8bit"}
    assert runs("first")["defaults"]["ours"] == {"seed": 42, "learning_rate": 1e-06, "optim": "adamw_torch_fused"}


def test_pcrm_run_imports_unsloth_first(tmp_path, folders):
    (tmp_path / "train.py").write_text(f"""\
import sys

import unsloth
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({str(folders / "dpo")!r})
rows = load_dataset("json", data_files={str(folders / "rows.json")!r}, split="train").select_columns(["prompt", "chosen", "rejected"])
options = dict(max_steps=2, logging_steps=1, bf16=False, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True)
trainer = DPOTrainer(
    model,
    args=DPOConfig("out", loss_type=["pcrm"], pcrm_beta1=1.1, pcrm_beta3=0.9, **options),
    train_dataset=rows,
    processing_class=AutoTokenizer.from_pretrained({str(folders / "dpo")!r}),
)
trainer.train()
print("ASKED FOR", *dict.fromkeys(sys.asked_for), trainer.state.log_history[0]["pcrm/target"] > 1)
""")
    # sys.modules would not tell: a module moves to its end when its import is over.
    (tmp_path / "sitecustomize.py").write_text("""\
import sys

class Recorder:
    def find_spec(name, path=None, target=None):
        if name in ("unsloth", "trl"):
            sys.asked_for.append(name)

sys.asked_for = []
sys.meta_path.insert(0, Recorder)
""")
    assert "ASKED FOR unsloth trl True" in python(tmp_path, "-m", "pcrm", "run", "train.py", path=[tmp_path])


@pytest.mark.parametrize("kind", KINDS)
def test_ligers_kernels(runs, kind):
    """Training with Liger's kernel for positions, in Triton's interpreter, is the same up to rounding."""
    assert_same(runs("liger")[kind]["with"], runs("liger")[kind]["without"], within=1e-4)


def test_trls_reward_trainer_fails_with_liger(runs):
    # So ours sets the option that TRL's DPO trainer sets: Liger would give a reward model a language model's forward pass.
    assert runs("liger")["stock reward"].startswith(
        "AttributeError: 'LlamaForSequenceClassification' object has no attribute 'lm_head'"
    )
