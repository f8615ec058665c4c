"""Train models whose parameters are sharded over two processes, on a CPU.

Processes and imports take longer than the training, so one launch trains several models one after another: `Runs`
starts it, and `main` runs in each process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import DistributedType, PartialState
from datasets import Dataset
from pcrm.demo.world import generate
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, training_args

from helpers.models import make_tiny
from helpers.project import ROOT
from helpers.trainers import build, joint, launch

PROCESSES = 2
_WEIGHTS = {False: "model.safetensors", True: "adapter_model.safetensors"}  # by Case.lora


@dataclass
class Case:
    """One training run.

    Attributes:
        name: The folder of its results.
        kind: "reward" or "dpo".
        options: Fields of the trainer's configuration. Batch sizes are those of all processes together.
        lora: Whether an adapter is trained instead of the weights.
        resume: The checkpoint to resume from, such as "fitted/checkpoint-2".
        state_dict: How FSDP writes checkpoints, "FULL_STATE_DICT" or "SHARDED_STATE_DICT". The final model is always complete.
    """

    name: str
    kind: str = "reward"
    options: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    resume: str | None = None
    state_dict: str = "FULL_STATE_DICT"


# Adam's state is in checkpoints. A small epsilon would amplify the rounding of gradients that are truly zero.
LEARN = {"optim": "adamw_torch", "adam_epsilon": 1e-4, "learning_rate": 0.01}
FIXED = {**LEARN, "pcrm_prior": "fixed", "pcrm_delta": 1.0}
SAVE = {"save_strategy": "steps", "save_steps": 2}
SHARED = {**LEARN, "pcrm_prefix_sharing": True}
ACCUMULATED = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
PARTS = "SHARDED_STATE_DICT"

# What trains in float32. A run that goes on from a checkpoint must come after the one that wrote it.
EXACT = [
    Case("fitted", options=LEARN | SAVE, state_dict=PARTS),
    Case("fitted-resumed", options=LEARN, state_dict=PARTS, resume="fitted/checkpoint-2"),
    Case("dpo-fixed", "dpo", FIXED | SAVE),
    Case("dpo-fixed-resumed", "dpo", FIXED, resume="dpo-fixed/checkpoint-2"),
    Case("shared", options=SHARED | ACCUMULATED | {"gradient_checkpointing": True}),
    Case("dpo-shared", "dpo", SHARED),
    Case("lora", options=LEARN, lora=True),
]
# Adam's first steps are nearly signs of gradients, which bfloat16 turns.
ROUNDED = {"optim": "sgd", "learning_rate": 1.0, "bf16": True}
BFLOAT16 = [Case("bf16", options=ROUNDED | {"pcrm_prefix_sharing": True}), Case("dpo-bf16", "dpo", ROUNDED)]
DEMONSTRATIONS = Case("demonstrations", options=LEARN | {"pcrm_sft_eta": 0.5})
TOKEN = Case("token", options=LEARN | {"pcrm_form": "token"})


def make_workplace(folder: Path) -> Path:
    """Write the models `reward` and `dpo` and the preferences `rows.jsonl` to a folder; return the folder."""
    rows = generate(64, seed=0)
    for row in rows:
        row["prompt"] *= 3  # some fifty tokens, so that shared prefixes are worth while
    fields = ("prompt", "chosen", "rejected")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({name: row[name] for name in fields}) for row in rows))
    make_tiny(folder / "reward", rows, LlamaForSequenceClassification, num_labels=1)
    make_tiny(folder / "dpo", rows, LlamaForCausalLM)
    return folder


def trainer_of(case: Case, folder: Path, processes: int = 1) -> Any:
    """A trainer of the case.

    Args:
        case: What to train.
        folder: Of `make_workplace`. The results come into a folder below it.
        processes: How many share a batch.
    """
    rows = Dataset.from_json(str(folder / "rows.jsonl"), cache_dir=str(folder / "cache"))
    options = {"max_steps": 4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 4, **case.options}
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        options[name] //= processes
    torch.manual_seed(0)  # for the adapter
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if case.lora else None
    demonstrates = "pcrm_sft_eta" in case.options  # by the head of the language model
    return build(
        case.kind,
        str(folder / ("dpo" if demonstrates else case.kind)),
        folder / case.name,
        rows.select(range(32)),
        eval_data=rows.select(range(32, 41)),  # two processes repeat pairs at the end
        model=joint(folder / "dpo") if demonstrates else None,
        trainer={"peft_config": lora} if lora else None,
        use_cpu=processes == 1,  # with more, accelerate would shard nothing
        **options,
    )


def train(trainer: Any, case: Case, folder: Path) -> None:
    """Train, evaluate and save the model."""
    trainer.train(resume_from_checkpoint=str(folder / case.resume) if case.resume else None)
    trainer.evaluate()
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder / case.name / "model"))


class Runs:
    """The cases as two processes trained them, and as one process trains them.

    Attributes:
        folder: Where the results are.
        found: What each process reported about each case.
    """

    def __init__(self, cases: list[Case], folder: Path, *launcher: str, **environment: str) -> None:
        """Let two processes train the cases, in this order.

        Args:
            cases: What to train.
            folder: Of `make_workplace`.
            launcher: Arguments of `accelerate launch`.
            environment: Variables of the processes.
        """
        self.folder = folder
        self._cases = {case.name: case for case in cases}
        (folder / "cases.json").write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
        launcher = ("-m", "accelerate.commands.launch", *launcher, "--num_processes", str(PROCESSES))
        path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
        environment = {"ACCELERATE_USE_CPU": "false", "PYTHONPATH": path, **environment}
        script = ("--main_process_port", "0", "-m", "helpers.sharded", str(folder))
        launch(*launcher, *script, timeout=900, **environment)
        of_ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
        self.found = {case.name: [of_rank[case.name] for of_rank in of_ranks] for case in cases}

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """The saved model or adapter."""
        return load_file(self.folder / name / "model" / _WEIGHTS[self._cases[name].lora])


class Alone:
    """Cases in one process, each once: plain, and without an interruption."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, tuple[Any, dict[str, torch.Tensor]]] = {}

    def train(self, case: Case) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return the trainer and the weights that it saved."""
        options = {
            k: v for k, v in case.options.items() if k not in ("pcrm_prefix_sharing", "save_strategy", "save_steps")
        }
        plain = Case("", case.kind, options, case.lora)
        key = repr(plain)
        if key not in self._found:
            plain.name = f"run{len(self._found)}"
            trainer = trainer_of(plain, self._folder)
            train(trainer, plain, self._folder)
            self._found[key] = trainer, load_file(self._folder / plain.name / "model" / _WEIGHTS[case.lora])
        return self._found[key]


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two models' weights."""
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def assert_as_one_process(runs: Runs, alone: Alone, case: Case, *, saved: bool = True) -> None:
    """Two processes trained what one trains plain and without an interruption, and logged the same.

    Args:
        runs, alone: Of the two processes and of the one.
        case: What was trained.
        saved: Whether the model that was saved is compared too.
    """
    trainer, weights = alone.train(case)
    # Rounding after four steps of 0.01.
    assert not saved or apart(runs.weights(case.name), weights) < 5e-6
    assert [found["constraint"] for found in runs.found[case.name]] == [trainer.constraint.recorded] * PROCESSES
    _assert_same_log(runs.found[case.name][0]["log"], trainer.state.log_history, 1e-4)


def assert_bfloat16(runs: Runs, alone: Alone, case: Case, tolerance: float = 1e-2) -> None:
    """The run has the rounding of bfloat16, and is otherwise that of float32."""
    trainer, weights = alone.train(dataclasses.replace(case, options={**case.options, "bf16": False}))
    assert 1e-5 < apart(runs.weights(case.name), weights) < 5e-2
    same = {"loss", *(f"{at}pcrm/{name}" for at in ("", "eval_") for name in ("target", "residual"))}
    _assert_same_log(runs.found[case.name][0]["log"], trainer.state.log_history, tolerance, same)


def assert_written_once(runs: Runs) -> None:
    """Only the main process writes each `pcrm.toml`, also for sharded checkpoints; without a fit there is none."""
    folders = ("", "checkpoint-2/", "checkpoint-4/", "model/")
    written, *others = [found["written"] for found in runs.found["fitted"]]
    assert written == sorted(f"fitted/{folder}pcrm.toml" for folder in folders) and others == [[]]
    assert [found["written"] for found in runs.found["dpo-fixed"]] == [[], []]


def _assert_same_log(found: list[Any], expected: list[Any], tolerance: float, names: set[str] | None = None) -> None:
    """Evaluations agree on the pairs: TRL's own metrics there count twice what a process repeats at the end."""
    for ours, theirs in zip(found, expected, strict=True):
        same = {
            name for name in theirs if "pcrm/" in name or ("loss" in theirs and name not in ("epoch", "num_tokens"))
        }
        for name in same if names is None else same & names:
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance, abs=tolerance / 10), (theirs["step"], name)


def _pretend_gpus() -> None:
    """Make accelerate treat the processes as two GPUs: on a CPU it ignores FSDP and rejects bfloat16."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    training_args.is_torch_bf16_gpu_available = lambda: True


def _held(parameter: torch.Tensor) -> int:
    """The number of a parameter's elements that this process holds."""
    if hasattr(parameter, "ds_tensor"):  # DeepSpeed's
        return parameter.ds_tensor.numel()
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel()


def _describe(trainer: Any) -> dict[str, Any]:
    wrapped = trainer.model_wrapped
    return {
        "wrapper": [each.__name__ for each in type(wrapped).__mro__],
        "held": sum(_held(parameter) for parameter in wrapped.parameters()),
        "log": trainer.state.log_history,
        "constraint": trainer.constraint.recorded,
    }


def main() -> None:
    _pretend_gpus()
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    written: list[str] = []  # each pcrm.toml

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(arguments[1]).name == "pcrm.toml":
            written.append(str(Path(arguments[1]).relative_to(folder)))

    sys.addaudithook(note)
    found = {}
    for fields in json.loads((folder / "cases.json").read_text()):
        case = Case(**fields)
        os.environ["FSDP_STATE_DICT_TYPE"] = case.state_dict
        written.clear()
        try:
            trainer = trainer_of(case, folder, PROCESSES)
        except ValueError as error:
            found[case.name] = {"error": str(error)}
            continue
        parameters = sum(getattr(each, "ds_numel", each.numel()) for each in trainer.model.parameters())
        train(trainer, case, folder)
        found[case.name] = _describe(trainer) | {"parameters": parameters, "written": sorted(written)}
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
