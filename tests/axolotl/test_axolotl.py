"""Axolotl's own command line on tiny models: `make test-axolotl` has what it needs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from helpers.documents import blocks
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

import pcrm
from pcrm import cli

pytestmark = pytest.mark.framework

STEPS, BATCH, EVALUATED = 6, 8, 16
TRAINED = STEPS * BATCH
# What makes a printed training run short enough for a test, on a CPU.
SHORT = {
    "base_model": "base",
    "sequence_len": 512,
    "micro_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,
    "optimizer": "sgd",  # Adam would amplify the rounding of gradients that are truly zero
    "lr_scheduler": "constant",
    "learning_rate": 0.1,
    "logging_steps": 1,
    "save_steps": STEPS,
    "bf16": False,
    "tf32": False,
    "attn_implementation": "eager",
    "gradient_checkpointing": False,
    "dataset_num_proc": 0,
    # One folder, so that Axolotl prepares the same data once. It starts a process for that.
    "dataset_prepared_path": "prepared",
    "chat_template": "chatml",
    "seed": 1,
}
DATA = {"path": "preferences.jsonl", "ds_type": "json", "split": "train"}
STOCK = {
    "dpo": {"rl": "dpo", "datasets": [DATA | {"type": "chat_template.default", "field_messages": "prompt"}]},
    "reward": {"reward_model": True, "datasets": [DATA | {"type": "bradley_terry.chat_template"}]},
}
FREE = {"pcrm_prior": "fixed", "pcrm_delta": float("inf")}


class Run(NamedTuple):
    code: int
    output: str
    folder: Path

    def steps(self) -> list[dict[str, float]]:
        """The log of each training step."""
        return [entry for entry in self._history() if "loss" in entry]

    def evaluations(self) -> list[dict[str, float]]:
        return [entry for entry in self._history() if "eval_loss" in entry]

    def _history(self) -> list[dict[str, float]]:
        assert self.code == 0, self.output[-5000:]
        return json.loads((self.folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]

    def trace(self) -> list[dict[str, torch.Tensor]]:
        """The trace of each step."""
        return [load_file(path) for path in sorted((self.folder / "trace").glob("rank00000-*"))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, rows):
    """A folder with a tiny language model and the preferences that the page uses."""
    from helpers.models import make_tiny
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("axolotl")
    make_tiny(folder / "base", rows, LlamaForCausalLM)
    texts = [
        {key: row[key] for key in ("prompt", "chosen", "rejected")} | {"system": "", "input": row["prompt"]}
        for row in rows
    ]
    columns = [row | {"prior": (i % 5) / 4} for i, row in enumerate(texts)]
    for name, lines in (("preferences", texts), ("column", columns)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def train(workplace):
    """A function that runs `axolotl train` with a configuration, once for each name."""
    done = {}

    def run(name: str, configuration: dict) -> Run:
        if name not in done:
            folder = workplace / f"out-{name}"
            folder.mkdir()
            made = SHORT | configuration | {"output_dir": str(folder)}
            (workplace / f"{name}.yaml").write_text(yaml.dump(made))
            done[name] = execute(workplace, folder, *TRAIN, f"{name}.yaml")
        return done[name]

    return run


# As modules: of the scripts some are those of .venv.
TRAIN = ("-m", "axolotl.cli.main", "train", "--launcher", "python")


def execute(workplace: Path, folder: Path, *command: str) -> Run:
    environment = os.environ | {
        "HF_HOME": str(workplace / "cache"),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "PCRM_TRACE": str(folder / "trace"),
    }
    process = subprocess.run(
        [sys.executable, *command],
        cwd=workplace,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return Run(process.returncode, process.stdout, folder)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_without_constraint_it_is_axolotls_own(train, kind):
    """Each metric of each step. DPO mixes the loss with TRL's, which is then the same."""
    mixed = {"dpo_loss_type": ["pcrm", "sigmoid"], "dpo_loss_weights": [0.75, 0.25]} if kind == "dpo" else {}
    stock = train(f"{kind}-stock", STOCK[kind]).steps()
    free = train(f"{kind}-free", STOCK[kind] | FREE | mixed)
    names = stock[0].keys()
    assert {"loss", "grad_norm", "learning_rate"} < names and len(stock) == len(free.steps()) == STEPS
    for want, found in zip(stock, free.steps(), strict=True):
        # Weights that are apart by some roundings of float32, after steps of 0.1 times the gradient.
        assert {name: found[name] for name in names} == pytest.approx({name: want[name] for name in names}, abs=2e-5)
    assert sum(len(step["prior"]) if "prior" in step else BATCH for step in free.trace()) == TRAINED
    assert len({step["loss"] for step in stock}) == STEPS  # it did train


BETAS = {"beta1": 1.1, "beta2": 0.001, "beta3": 0.9}


def fitted(run: Run) -> dict[str, float]:
    """The constraint that the trainer fitted and saved."""
    assert (run.folder / f"checkpoint-{STEPS}" / "pcrm.toml").is_file()
    return tomllib.loads((run.folder / "pcrm.toml").read_text())["constraint"]


def recomputed(step: dict[str, torch.Tensor], constraint: dict[str, float]) -> float:
    """The loss of a recorded step by the formula, in float64, from scores and priors alone."""
    step = {name: x.double() for name, x in step.items()}
    if "chosen_rewards" in step:
        m = step["chosen_rewards"] - step["rejected_rewards"]
    else:
        policy = step["policy_chosen_logps"] - step["policy_rejected_logps"]
        m = 0.1 * (policy - (step["reference_chosen_logps"] - step["reference_rejected_logps"]))
    delta = constraint["beta1"] / (step["prior"] + constraint["beta2"]) + constraint["beta3"]
    delta = delta.clamp(constraint.get("floor", -math.inf), constraint.get("cap", math.inf))
    return (-logsigmoid(m) - logsigmoid(delta - m)).mean().item()


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_the_page(train, workplace, kind, rows, capsys):
    """docs/axolotl.md: its configurations, with a tiny model and for six steps."""
    page = "docs/axolotl.md"
    (command,) = [line for block in blocks(page, "") for line in block.splitlines() if f"train {kind}" in line]
    assert command.split()[:2] == ["axolotl", "train"]
    (printed,) = [
        made for block in blocks(page, "yaml") if ("rl" in (made := yaml.safe_load(block))) == (kind == "dpo")
    ]
    assert set(STOCK[kind]) <= set(printed) and Path(command.split()[2]).stem == printed["output_dir"]
    run = train(f"page-{kind}", printed | SHORT)
    steps, trace, constraint = run.steps(), run.trace(), fitted(run)
    assert len(steps) == len(trace) == STEPS
    for logged, step in zip(steps, trace, strict=True):
        # Some ten roundings of float32 (2**-24) to numbers up to 4: priors, deltas, terms, a mean.
        assert logged["loss"] == pytest.approx(recomputed(step, constraint), abs=2.4e-6)
    assert {"pcrm/prior", "pcrm/pull", "pcrm/over_target"} < set(steps[0])
    # The prior is that of the texts, which Axolotl's tokenization of reward models drops. DPO's have the end of a turn.
    end = "<|im_end|>" if kind == "dpo" else ""
    texts = [(row["chosen"] + end, row["rejected"] + end) for row in rows]
    lexical = pcrm.priors.lexical(*zip(*texts, strict=True))
    for step in trace:
        assert (step["prior"][:, None] - lexical).abs().min(1).values.max() < 1e-6
    assert cli.main(["verify", str(run.folder / "trace")]) == 0
    assert f"{TRAINED} pairs: ok" in capsys.readouterr().out


def test_a_column(train):
    """And an evaluation, of data that several workers tokenized."""
    configuration = STOCK["reward"] | {
        "datasets": [DATA | {"path": "column.jsonl", "type": "bradley_terry.chat_template"}],
        "dataset_num_proc": 2,
        "val_set_size": EVALUATED,
        "eval_steps": STEPS,
        "pcrm_prior": "column",
        **{f"pcrm_{name}": value for name, value in BETAS.items()},
    }
    run = train("column", configuration)
    steps, trace = run.steps(), run.trace()
    assert len(steps) == len(trace) == STEPS
    for logged, step in zip(steps, trace, strict=True):
        assert logged["loss"] == pytest.approx(recomputed(step, BETAS), abs=2.4e-6)
        assert logged["pcrm/prior"] == pytest.approx(step["prior"].mean().item(), abs=1e-6)
    assert {s for step in trace for s in step["prior"].tolist()} == {0, 0.25, 0.5, 0.75, 1}
    # Axolotl evaluates before the first step, too.
    assert all(0 < entry["eval_pcrm/prior"] < 1 for entry in run.evaluations()) and run.evaluations()


def test_a_wrong_key_ends_the_command(train):
    run = train("wrong", STOCK["reward"] | {"pcrm_target_alke": 1})
    assert run.code != 0 and "pcrm_target_alke is not a key of pcrm: did you mean pcrm_target_alike?" in run.output
    assert {path.name for path in run.folder.iterdir()} <= {"trace"}


SCRIPT = """
import sys
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault

manager = PluginManager.get_instance()
plugin = manager.plugins["pcrm.axolotl.plugin.PCRMPlugin"]
stock = DictDefault(rl="dpo", dpo_loss_type=["sigmoid"])
plugin.register(stock)
assert plugin.get_input_args() is plugin.get_trainer_cls(stock) is None and stock.trainer_cls is None
print("loaded:", *sorted(name for name in sys.modules if name.startswith("pcrm.")))

import axolotl.prompt_strategies.bradley_terry.chat_template as strategies
own = strategies.BTChatTemplateStrategy
plugin.register(DictDefault(reward_model=True, pcrm_prior="lexical"))
assert strategies.BTChatTemplateStrategy is not own and plugin.get_input_args() == "pcrm.axolotl.arguments.PCRMKeys"
plugin.register(stock)
assert strategies.BTChatTemplateStrategy is own and plugin.get_input_args() is None
plugin.register(DictDefault(rl="dpo", dpo_loss_type=["pcrm"]))
try:
    plugin.add_callbacks_post_trainer(stock, object())
except RuntimeError as error:
    print(error)
"""


def test_the_plugin_is_found_and_does_nothing_unasked(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True
    )
    loaded, refused = done.stdout.splitlines()[-2:]
    assert loaded == "loaded: pcrm.axolotl pcrm.axolotl.named pcrm.axolotl.plugin"
    assert refused.startswith("the trainer must be pcrm's, got builtins.object, which has a different loss")
