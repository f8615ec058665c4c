"""The recipes that need OpenRLHF or DeepSpeed, on tiny stand-ins: `make test-openrlhf` has what they need.

PPO is parsed and not run: it needs vLLM and GPUs.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from helpers.launching import CPU, cpu_environment
from helpers.project import ROOT
from helpers.workplace import RECIPES, kind_of, make_workplace, recorded
from pcrm.openrlhf import patch
from safetensors import safe_open
from safetensors.torch import load_file

from pcrm import cli

pytestmark = pytest.mark.openrlhf

MODELS = ("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct")
# A recipe and what comes before its flags.
RUNS = [
    (path, model)
    for path in sorted((RECIPES / "openrlhf").glob("*.sh"))
    for model in (MODELS if path.stem.startswith("ultrafeedback") else (None,))
]
NAMES = [f"{path.stem}{f'-{Path(model).name}' if model else ''}" for path, model in RUNS]
# What CI has time for: one reward model, one policy.
SHORT = ("ultrafeedback-reward-Qwen3-8B", "alpaca-farm-llama-2-7b-dpo")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return make_workplace(tmp_path_factory.mktemp("workplace"), monkeypatch)


def by_openrlhf(name, argv, monkeypatch):
    """The arguments as OpenRLHF's command line parses and checks them, which happens only under `__main__`."""
    source = Path(importlib.util.find_spec(f"openrlhf.cli.{name}").origin)
    (main,) = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.If)]
    found = []
    monkeypatch.setattr(sys, "argv", [name, *argv])
    names = {"argparse": argparse, "datetime": datetime, "train": found.append}
    exec(compile(ast.Module(main.body, []), source, "exec"), names)
    (arguments,) = found
    return arguments


@pytest.mark.parametrize(("recipe", "model"), RUNS, ids=NAMES)
def test_openrlhf_knows_every_flag(workplace, recipe, model, monkeypatch):
    monkeypatch.chdir(workplace)
    argv = recorded(recipe, workplace, *filter(None, [model]))
    if kind_of(recipe) == "ppo":
        assert argv[:2] == ["-m", "openrlhf.cli.train_ppo_ray"]
        name, argv = "train_ppo_ray", argv[2:]
    else:
        assert argv[:2] == ["--module", "pcrm.openrlhf"]
        monkeypatch.setenv("RANK", "0")  # the command would set it
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        monkeypatch.syspath_prepend(CPU)
        passed = []
        monkeypatch.setattr(patch, "run", lambda *arguments: passed.append(arguments))
        assert cli.main(["openrlhf", *argv[2:]]) == 0
        ((name, replaced, argv),) = passed
        assert "RewardDataset" in replaced
        assert name == {"reward": "train_rm", "dpo": "train_dpo"}[kind_of(recipe)]
    arguments = by_openrlhf(name, argv, monkeypatch)
    for word in argv:  # argparse takes the beginning of a flag for the flag
        if word.startswith("--"):
            functools.reduce(getattr, word.split("=")[0].removeprefix("--").split("."), arguments)
    assert "flash_attention" in arguments.ds.attn_implementation and arguments.ds.packing_samples
    if model:
        assert arguments.model.model_name_or_path == model


def run(*argv, folder):
    """A process and its children, with what it recorded in `trace` below the folder."""
    environment = cpu_environment(folder.parent.parent / "cache", folder / "trace")
    log = folder / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", *map(str, argv)],
            cwd=folder.parent.parent,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            code = process.wait(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, log.read_text()[-5000:]


def verified(folder, pairs, capsys):
    assert cli.main(["verify", str(folder / "trace")]) == 0
    assert f"{pairs} pairs: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        pytest.param(*each, id=name, marks=() if name in SHORT else pytest.mark.slow)
        for each, name in zip(RUNS, NAMES, strict=True)
        if kind_of(each[0]) != "ppo"
    ],
)
def test_one_step(workplace, recipe, model, capsys):
    """Everything comes from the recipe except length, output, and the stand-ins for CUDA and FlashAttention."""
    module, *argv = recorded(recipe, workplace, *filter(None, [model]))[1:]
    batch = int(argv[argv.index("--train.batch_size") + 1])
    folder = workplace / "out" / f"{recipe.stem}-{Path(model or '').name}"
    folder.mkdir(parents=True)
    dry = {
        "--data.max_samples": batch,
        "--ckpt.output_dir": folder / "model",
        "--ckpt.path": folder / "checkpoints",
        "--ds.attn_implementation": "flash_attention_on_cpu",
    }
    if "--eval.dataset" not in argv:  # of one batch OpenRLHF would take less than a pair
        dry["--eval.dataset"] = argv[argv.index("--data.dataset") + 1]
    run("on_cpu", module, *argv, *(x for pair in dry.items() for x in pair), folder=folder)
    steps = [load_file(path) for path in sorted((folder / "trace").glob("rank00000-*"))]
    assert sum(len(step["prior"]) for step in steps) == batch
    verified(folder, batch, capsys)
    prior = {prior for step in steps for prior in step["prior"].tolist()}
    assert len(prior) > batch / 4 and all(0 <= s <= 1 for s in prior)
    assert (folder / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "name", ["ultrafeedback-qwen3-8b-reward", pytest.param("alpaca-farm-llama-2-7b-dpo", marks=pytest.mark.slow)]
)
def test_one_step_of_trl_with_zero_3(workplace, name):
    """With the very configuration of accelerate that the recipe's command names, but for two things that they do
    not do without a GPU: bfloat16 is transformers', several processes are accelerate's."""
    recipe = RECIPES / "trl" / f"{name}.yaml"
    folder = workplace / "out" / f"zero3-{name}"
    folder.mkdir(parents=True)
    launcher = ["--config_file", ROOT / "examples" / "accelerate" / "zero3.yaml", "--num_processes", 1]
    launcher += ["--mixed_precision", "no", "--main_process_port", "0"]
    dry = {"max_steps": 1, "output_dir": folder / "model", "logging_steps": 1, "save_steps": 1, "eval_steps": 1}
    dry |= {"bf16": "false", "report_to": "none"}
    argv = [x for key, value in dry.items() for x in (f"--{key}", value)]
    run(
        *("accelerate.commands.launch", *launcher, "-m", "pcrm", kind_of(recipe), "--config", recipe, *argv),
        folder=folder,
    )
    # Only ZeRO-3 keeps the parameters of a checkpoint in parts.
    assert list((folder / "model" / "checkpoint-1").rglob("zero_pp_rank_0_*_model_states.pt"))
    state = json.loads((folder / "model" / "checkpoint-1" / "trainer_state.json").read_text())
    step = next(entry for entry in state["log_history"] if "loss" in entry)
    assert math.isfinite(step["loss"]) and step["pcrm/target"] > 0.6
    with safe_open(folder / "model" / "model.safetensors", "pt") as weights:
        shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
    assert all(math.prod(shape) for shape in shapes.values())  # a parameter that is elsewhere has no elements
    assert any("embed_tokens" in key for key in shapes)
