"""LLaMA-Factory's own command line, for real, on tiny models: `make test-llamafactory` has what it needs.

The runs are made by four jobs, which start together. What a run logged, traced and saved is looked at by several tests.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.documents import blocks
from helpers.project import ROOT
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

import pcrm
from pcrm import cli

pytestmark = pytest.mark.framework

CPU = ROOT / "tests" / "llamafactory" / "cpu"
STEPS, BATCH, HELD = 6, 8, 16
BETAS = {"pcrm_beta1": 1.1, "pcrm_beta2": 0.001, "pcrm_beta3": 0.9}
FREE = {"pcrm_prior": "fixed", "pcrm_delta": "inf"}
COMMON = {
    "do_train": True,
    "finetuning_type": "full",
    "disable_gradient_checkpointing": True,  # with it LLaMA-Factory's rm fails with two processes
    "disable_shuffling": True,  # so that a step's pairs are known
    "template": "default",
    "cutoff_len": 256,
    "overwrite_output_dir": True,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": BATCH // 2,
    "learning_rate": 3e-3,
    "adam_epsilon": 1e-4,  # 1e-8 makes steps of the rounding of gradients that are truly zero
    "max_steps": STEPS,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": STEPS,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "preprocessing_num_workers": 1,
}
# The data set of a run is `prefs` unless it says another. A run that ends in an error has its message here.
RUNS = {
    "rm": {},
    "dpo": {},
    "rm-plain": {},  # under our command: the first of its job, before anything is replaced
    "rm-free": FREE,
    "dpo-free": FREE | {"pref_loss": "pcrm"},
    "rm-lexical": {"pcrm_prior": "lexical"},
    "rm-single": {"pcrm_prior": "lexical", "per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH},
    "rm-two": {"pcrm_prior": "lexical", "gradient_accumulation_steps": 1},
    "rm-cosine": BETAS | {"pcrm_prior": "cosine", "pcrm_prior_model": "bert"},
    "rm-column": BETAS | {"pref_loss": "pcrm", "dataset": "column", "eval_dataset": "column", "tokenized_path": "kept"},
    "rm-shared": {"pref_loss": "pcrm", "pcrm_prefix_sharing": True},
    "rm-idle": {"pcrm_prior": "fixed", "pcrm_delta": 60, "num_train_epochs": 14, "max_steps": -1, "logging_steps": 84},
    "dpo-length": {"pref_loss": "pcrm", "save_strategy": "steps", "save_steps": STEPS // 2},
    "dpo-resumed": {"pcrm_target_alike": 2, "pcrm_target_unlike": 5, "resume_from_checkpoint": "dpo-length"},
    "dpo-shared": {"pref_loss": "pcrm", "pcrm_prefix_sharing": True},
    "dpo-random": {"pcrm_prior": "random", "pcrm_low": 1.0, "pcrm_high": 2.0},
    "dpo-stream": {"pcrm_prior": "lexical", "streaming": True, "dataloader_num_workers": 1, "buffer_size": 1},
}
REFUSED = {
    "dpo-ipo": (BETAS | {"pref_loss": "ipo"}, "pref_loss must be 'pcrm' where pcrm_beta1 is set, got 'ipo'"),
    "kto-pcrm": ({"pref_loss": "pcrm"}, "stage must be rm or dpo where pref_loss is 'pcrm', got 'kto'"),
    "dpo-typo": ({"pref_loss": "pcmr"}, "pref_loss must be one of pcrm, sigmoid"),
    "rm-none": ({"pcrm_prior": "column"}, "prefs.json data set must have a column 'prior' with pcrm_prior='column'"),
    "rm-asked": (
        {"pcrm_prior": "length_ratio", "dataset": "column"},
        "must not have a column 'prior' with pcrm_prior='length_ratio'",
    ),
    "rm-mixed": ({"pref_loss": "pcrm", "dataset": "column,prefs"}, "two different priors would constrain their pairs"),
    "rm-text": ({"pcrm_beta1": "much"}, "pcrm_beta1 must be a number, got 'much'"),
    "rm-kept": (
        {"pcrm_prior": "lexical", "tokenized_path": "kept"},
        "must have a column 'prior: lexical' with pcrm_prior=",
    ),
    "rm-kept-asked": ({"pcrm_prior": "length_ratio", "tokenized_path": "kept"}, "or remove the folder tokenized_path"),
    "rm-evaluated": (
        {"pref_loss": "pcrm", "do_train": False, "do_eval": True, "dataset": None},
        "pcrm_config must be the pcrm.toml of",
    ),
}
JOBS = {
    "stock": ["rm", "dpo"],
    "pcrm": [name for name in RUNS if name not in ("rm", "dpo", "rm-two")] + list(REFUSED),
}


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A folder with a tiny language model, a tiny encoder and LLaMA-Factory's data sets, and their rows."""
    from helpers.models import make_tiny
    from pcrm.demo.world import generate
    from transformers import AutoTokenizer, BertConfig, BertModel, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llamafactory")
    rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in generate(STEPS * BATCH + HELD, seed=0)]
    make_tiny(folder / "tiny", rows, LlamaForCausalLM)
    # The dropout of TRL's value head, which would differ between batches of one and several pairs.
    config = json.loads((folder / "tiny" / "config.json").read_text())
    (folder / "tiny" / "config.json").write_text(json.dumps(config | {"summary_dropout_prob": 0.0}))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for part in (BertModel(BertConfig(vocab_size=len(tokenizer), **size)), tokenizer):
        part.save_pretrained(folder / "bert")
    rows, held = rows[: STEPS * BATCH], rows[STEPS * BATCH :]
    columns = {"ranking": True, "columns": {k: k for k in ("prompt", "chosen", "rejected")}}
    data = {"prefs": rows, "held": held, "column": [row | {"prior": (i % 5) / 4} for i, row in enumerate(rows)]}
    for name, kept in data.items():
        (folder / f"{name}.json").write_text(json.dumps(kept))
    info = {name: {"file_name": f"{name}.json", **columns} for name in data}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder, rows


def write(folder, name, options):
    import yaml

    options = COMMON | {"dataset": "prefs", "eval_dataset": "held"} | options
    if "resume_from_checkpoint" in options:
        options["resume_from_checkpoint"] = str(folder / options["resume_from_checkpoint"] / f"checkpoint-{STEPS // 2}")
    for key in ("pcrm_prior_model", "tokenized_path"):
        if key in options:
            options[key] = str(folder / options[key])
    options |= {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_dir": str(folder),
        "output_dir": str(folder / name),
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"stage": name.partition("-")[0]} | options))


@pytest.fixture(scope="session")
def runs(material):
    """The folder with every run, and the output of each job."""
    folder, _ = material
    for name, options in (RUNS | {name: options for name, (options, _) in REFUSED.items()}).items():
        write(folder, name, options)
    write(folder, "rm-wrong", {"pcrm_betal": 1.1})
    for page, name in zip(blocks("docs/llamafactory.md", "yaml"), ("reward", "policy"), strict=True):
        of_the_page(folder, name, page)
    # The script torchrun on PATH may be that of another environment.
    (folder / "bin").mkdir()
    torchrun = folder / "bin" / "torchrun"
    torchrun.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(CPU)])),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(folder / "cache"),
    }
    two = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "PCRM_TRACE": str(folder / "rm-two-trace")}
    command = [sys.executable, "-m", "pcrm.cli", "llamafactory", "train"]
    several = [sys.executable, str(CPU / "several.py")]
    jobs = {
        "stock": ([*several, "stock", *(f"{name}.yaml" for name in JOBS["stock"])], {}),
        "pcrm": ([*several, "pcrm", *(f"{name}.yaml" for name in [*JOBS["pcrm"], "reward", "policy"])], {}),
        "two": ([*command, "rm-two.yaml"], two),
        "wrong": ([*command, "rm-wrong.yaml"], {"ALLOW_EXTRA_ARGS": "1"}),
    }
    started = {}
    for name, (line, variables) in jobs.items():
        with (folder / f"{name}.log").open("w") as log:
            started[name] = subprocess.Popen(
                line, cwd=folder, env=environment | variables, stdout=log, stderr=subprocess.STDOUT
            )
    try:
        codes = {name: process.wait(timeout=900) for name, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
    logs = {name: (folder / f"{name}.log").read_text() for name in jobs}
    for name, code in codes.items():
        assert code == (name == "wrong"), logs[name][-5000:]
    return folder, logs


def of_the_page(folder, name, page):
    """A configuration of the page, with a tiny model and data, on the CPU."""
    import yaml

    small = {key: COMMON[key] for key in ("max_steps", "use_cpu", "bf16", "report_to", "preprocessing_num_workers")}
    small |= {"model_name_or_path": str(folder / "tiny"), "dataset_dir": str(folder), "dataset": "prefs"}
    small |= {"template": "default", "output_dir": str(folder / name), "logging_steps": 1}
    options = yaml.safe_load(page)
    assert options.keys() >= small.keys() - {
        "dataset_dir",
        "use_cpu",
        "report_to",
        "max_steps",
        "preprocessing_num_workers",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(options | small))


class Run:
    """The results of a run."""

    def __init__(self, folder: Path, name: str) -> None:
        error = folder / f"{name}-error"
        assert not error.exists(), error.read_text()
        self.folder, self.name = folder / name, name
        self.history = json.loads((self.folder / "trainer_state.json").read_text())["log_history"]

    @property
    def losses(self) -> list[float]:
        return self.logged("loss")

    def logged(self, name: str) -> list[float]:
        return [entry[name] for entry in self.history if name in entry]

    def traces(self, rank: int = 0) -> list[dict[str, torch.Tensor]]:
        folder = self.folder.with_name(f"{self.name}-trace")
        return [load_file(path) for path in sorted(folder.glob(f"rank{rank:05d}-*"))]

    def steps(self) -> list[dict[str, torch.Tensor]]:
        """The trace of each step, in the order of the data, in float64."""
        parts = self.traces()
        each = len(parts) // STEPS
        return [
            {
                key: torch.cat([part[key].double() for part in parts[i : i + each]])
                for key in parts[i]
                if parts[i][key].dim()
            }
            for i in range(0, len(parts), each)
        ]


def margin(step):
    if "policy_chosen_logps" not in step:
        return step["chosen_rewards"] - step["rejected_rewards"]
    policy = step["policy_chosen_logps"] - step["policy_rejected_logps"]
    return 0.1 * (policy - (step["reference_chosen_logps"] - step["reference_rejected_logps"]))


def formula(m, delta):
    return (-logsigmoid(m) - logsigmoid(delta - m)).mean().item()


def length_ratios(folder, rows):
    """By the definition, of the ids of LLaMA-Factory's template `default`: the response, the end, and a new line."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    found = []
    for row in rows:
        a, b = ([*ids(row[side]), tokenizer.eos_token_id, *ids("\n")] for side in ("chosen", "rejected"))
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        short, long = sorted((len(a) - same, len(b) - same))
        found.append(short / long if long else 1.0)
    return torch.tensor(found)


def priors_of(name, folder, rows):
    """The expected prior of each row, in the order of the data."""
    texts = [row["chosen"] for row in rows], [row["rejected"] for row in rows]
    if "lexical" in name or "single" in name or "two" in name or "stream" in name:
        return pcrm.priors.of_texts(*texts, prior="lexical")
    if "cosine" in name:
        return pcrm.priors.of_texts(*texts, prior="cosine", model=folder / "bert")
    if "column" in name:
        return torch.tensor([(i % 5) / 4 for i in range(len(rows))])
    return length_ratios(folder, rows)


def expected_constraint(name, s):
    """The constraint that the configuration asks for: betas, or the default targets on the priors of the data."""
    if "pcrm_beta1" in RUNS[name]:
        return pcrm.Constraint(*BETAS.values())
    return pcrm.Constraint.fit(s.double(), target_alike=1, target_unlike=3)


@pytest.mark.parametrize("stage", ["rm", "dpo"])
def test_free_is_stock(runs, stage):
    stock, free = Run(runs[0], stage), Run(runs[0], f"{stage}-free")
    assert len(stock.losses) == STEPS and max(stock.losses) - min(stock.losses) > 0.01
    assert free.losses == pytest.approx(stock.losses, abs=2e-5)
    assert free.logged("eval_loss") == pytest.approx(stock.logged("eval_loss"), abs=2e-5)
    # What LLaMA-Factory logs and writes stays there.
    assert {key for entry in stock.history for key in entry} <= {key for entry in free.history for key in entry}
    results = [json.loads((run.folder / "all_results.json").read_text()) for run in (stock, free)]
    assert results[0].keys() <= results[1].keys()


def test_what_does_not_ask_trains_stock_and_says_so(runs):
    folder, logs = runs
    assert Run(folder, "rm-plain").losses == pytest.approx(Run(folder, "rm").losses, abs=1e-6)
    assert not Run(folder, "rm-plain").logged("pcrm/pull")
    assert (
        logs["pcrm"].count("the configuration does not ask for the constraint, so LLaMA-Factory trains its own loss")
        == 1
    )


@pytest.mark.parametrize("name", ["rm-lexical", "rm-single", "rm-cosine", "rm-column", "dpo-length", "dpo-stream"])
def test_the_logged_loss_is_ours(runs, material, name, capsys):
    """The loss equals the formula in float64, with priors and a constraint that are computed here."""
    folder, rows = material
    run = Run(folder, name)
    s = priors_of(name, folder, rows)
    constraint = expected_constraint(name, s)
    steps = run.steps()
    assert len(steps) == len(run.losses) == STEPS
    for i, (step, logged) in enumerate(zip(steps, run.losses, strict=True)):
        here = s[i * BATCH : (i + 1) * BATCH].double()
        torch.testing.assert_close(step["prior"], here, rtol=1e-5, atol=1e-6)
        want = formula(margin(step), constraint.delta(here))
        assert logged == pytest.approx(want, abs=1e-5)
    assert cli.main(["verify", str(folder / f"{name}-trace")]) == 0
    assert "ok" in capsys.readouterr().out
    if "pcrm_beta1" in RUNS[name]:
        assert not (run.folder / "pcrm.toml").exists()
    else:
        written = pcrm.Constraint.from_toml(run.folder / "pcrm.toml")
        probe = np.linspace(0, 1, 11)
        np.testing.assert_allclose(written.delta(probe), constraint.delta(probe), rtol=1e-4)


@pytest.mark.parametrize("name", ["rm-lexical", "dpo-length"])
def test_the_logged_metrics_are_those_of_the_pairs(runs, name):
    run = Run(runs[0], name)
    for i, step in enumerate(run.steps()):
        m, delta = margin(step), step["delta"]
        want = {
            "pcrm/prior": step["prior"].mean().item(),
            "pcrm/delta": delta.mean().item(),
            "pcrm/target_median": delta.quantile(0.5).item() / 2,
            "pcrm/over_target": (m > delta / 2).double().mean().item(),
            "pcrm/pull": (torch.sigmoid(m - delta).sum() / torch.sigmoid(-m).sum()).item(),
        }
        assert {key: run.logged(key)[i] for key in want} == pytest.approx(want, rel=1e-4)
    assert len(run.logged("eval_pcrm/pull")) == len(run.logged("eval_pcrm/delta")) == 1


def test_batches_of_one_pair_and_two_processes_are_the_same(runs, material):
    folder, _ = material
    run = Run(folder, "rm-lexical")
    for name in ("rm-single", "rm-two"):
        other = Run(folder, name)
        assert other.losses == pytest.approx(run.losses, abs=1e-5), name
        assert other.logged("pcrm/delta") == pytest.approx(run.logged("pcrm/delta"), rel=1e-5), name
        texts = [(r.folder / "pcrm.toml").read_text() for r in (run, other)]
        assert texts[0] == texts[1], name
    traces = [Run(folder, "rm-two").traces(rank) for rank in (0, 1)]
    assert [len(t) for t in traces] == [STEPS, STEPS] and {len(t["delta"]) for rank in traces for t in rank} == {
        BATCH // 2
    }
    assert {len(t["delta"]) for t in Run(folder, "rm-single").traces()} == {1}


def test_random_deltas(runs):
    run = Run(runs[0], "dpo-random")
    delta = torch.cat([step["delta"] for step in run.steps()])
    assert 1 <= delta.min() < 1.2 and 1.8 < delta.max() <= 2 and len(delta.unique()) == STEPS * BATCH
    for step, logged in zip(run.steps(), run.losses, strict=True):
        assert logged == pytest.approx(formula(margin(step), step["delta"]), abs=1e-5)


def test_a_resumed_run_keeps_its_constraint(runs):
    folder, logs = runs
    whole, resumed = Run(folder, "dpo-length"), Run(folder, "dpo-resumed")
    half = STEPS // 2
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-5)
    assert len(resumed.traces()) == len(whole.traces()) // 2
    assert f"Resuming with the constraint of {whole.folder / f'checkpoint-{half}' / 'pcrm.toml'}" in logs["pcrm"]
    constraints = [pcrm.Constraint.from_toml(run.folder / "pcrm.toml") for run in (whole, resumed)]
    assert constraints[0] == constraints[1]


@pytest.mark.parametrize("stage", ["rm", "dpo"])
def test_shared_prefixes_train_the_same(runs, stage):
    shared = Run(runs[0], f"{stage}-shared")
    assert shared.losses == pytest.approx([formula(margin(s), s["delta"]) for s in shared.steps()], abs=1e-5)
    if stage == "dpo":
        assert shared.losses == pytest.approx(Run(runs[0], "dpo-length").losses, abs=2e-5)


def test_a_constraint_that_does_not_bind_is_said_to(runs):
    assert "the constraint is not binding: over 672 training pairs" in runs[1]["pcrm"]


def test_a_fit_is_said_once(runs):
    assert runs[1]["two"].count("Fitted to the prior lexical of 48 pairs") == 1


@pytest.mark.parametrize("name", REFUSED)
def test_refused(runs, name):
    error = runs[0] / f"{name}-error"
    assert error.exists() and REFUSED[name][1] in error.read_text()
    assert not (runs[0] / f"{name}-trace").exists() or not list((runs[0] / f"{name}-trace").iterdir())


def test_a_wrong_key_is_one_line(runs):
    lines = runs[1]["wrong"].splitlines()
    assert lines[-1].startswith(
        "pcrm llamafactory: pcrm_betal is not a key of this configuration: did you mean pcrm_beta"
    )
    assert "Traceback" not in runs[1]["wrong"]


def test_the_page(runs):
    """docs/llamafactory.md: its configurations train with the constraint that they ask for."""
    for name in ("reward", "policy"):
        run = Run(runs[0], name)
        assert len(run.losses) == len(run.logged("pcrm/pull")) == STEPS
        assert (run.folder / "pcrm.toml").exists()
