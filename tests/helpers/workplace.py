"""A folder in which the recipes run unmodified: tiny models and data have the names that the recipes use."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

from helpers.models import make_tiny
from helpers.project import ROOT

RECIPES = ROOT / "recipes"
# Of each model its class. The tokenizers of the Llamas have no padding token.
_MODELS = {
    "meta-llama/Llama-2-7b-hf": "LlamaForCausalLM",
    "runs/alpaca-farm-llama-2-7b-sft": "LlamaForCausalLM",
    "runs/tldr-llama-2-7b-sft": "LlamaForCausalLM",
    "meta-llama/Llama-3.1-8B-Instruct": "LlamaForCausalLM",
    "Qwen/Qwen3-8B": "Qwen3ForCausalLM",
    "Qwen/Qwen3-0.6B": "Qwen3ForCausalLM",
}
ROWS = 140  # more than the greatest batch


def make_workplace(folder, monkeypatch):
    """Fill the folder, and make its data by the recipes' own scripts.

    The columns of the data sets are those of the hub's, as their cards and scripts have them.
    """
    from pcrm.demo.world import generate

    rows = generate(ROWS, seed=0)
    _make_models(folder, rows)
    instructions = [
        {"instruction": r["prompt"], "input": "" if i % 2 else "an input", "output": r["chosen"]}
        for i, r in enumerate(rows)
    ]
    farm = folder / "alpaca_farm"
    (farm / "alpaca_instructions").mkdir(parents=True)
    for name in ("sft", "unlabeled"):
        (farm / "alpaca_instructions" / f"{name}.json").write_text(json.dumps(instructions))
    preferences = [
        {
            "instruction": r["prompt"],
            "input": "" if i % 2 else "an input",
            "output_1": r["rejected"] if i % 3 else r["chosen"],
            "output_2": r["chosen"] if i % 3 else r["rejected"],
            "preference": 2 if i % 3 else 1,
            "raw_preference": 3,
        }
        for i, r in enumerate(rows)
    ]
    (farm / "alpaca_human_preference.json").write_text(json.dumps(preferences))

    def messages(row, key):
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[key]}]

    hub = {
        "tldr/train": [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows],
        "tldr-preference/train": [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows],
        "ultrafeedback_binarized/train": [
            {
                "chosen": messages(r, "chosen"),
                "rejected": messages(r, "rejected"),
                "score_chosen": 8.0,
                "score_rejected": 5.5,
            }
            for r in rows
        ],
    }
    hub["ultrafeedback_binarized/test"] = hub["ultrafeedback_binarized/train"][:16]
    for name, lines in hub.items():
        path = folder / "trl-lib" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HOME", str(folder / "cache"))
    prepare_alpaca_farm(monkeypatch, "alpaca_farm")
    run_script(RECIPES / "prepare" / "ultrafeedback.sh", folder, pcrm=f'exec "{sys.executable}" -m pcrm "$@"')
    return folder


def _make_models(folder, rows):
    import transformers
    from pcrm.demo.model import make_tokenizer

    for name, model_class in _MODELS.items():
        tokenizer = make_tokenizer(r["prompt"] + r["chosen"] + r["rejected"] for r in rows)
        if model_class.startswith("Llama"):
            tokenizer.pad_token = None
        make_tiny(folder / name, rows, getattr(transformers, model_class), tokenizer, num_key_value_heads=2)


def prepare_alpaca_farm(monkeypatch, source):
    monkeypatch.setattr(sys, "argv", ["alpaca_farm.py", "--source", source])
    runpy.run_path(str(RECIPES / "prepare" / "alpaca_farm.py"), run_name="__main__")


def run_script(script, folder, *arguments, **commands):
    """Run a shell script in the folder, with commands of ours, each a line of shell, before the machine's."""
    bin = folder / "bin"
    bin.mkdir(exist_ok=True)
    for name, line in commands.items():
        (bin / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(script), *arguments]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def recorded(script, folder, *arguments):
    """The arguments that a recipe for OpenRLHF passes to its launcher, deepspeed or python."""
    record = "printf '%s\\0' \"$@\""
    return run_script(script, folder, *arguments, deepspeed=record, python=record).split("\0")[:-1]


def kind_of(recipe: Path) -> str:
    return recipe.stem.rsplit("-", 1)[1]
