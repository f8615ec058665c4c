"""Does the constraint bind if you change only two lines of a script? Each prior on TL;DR and on generated pairs.

    python experiments/binding.py DATA --model ENCODER

trains small models from scratch with TRL: reward models on TL;DR and on the pairs of `pcrm demo`, and policies with DPO on
the pairs of `pcrm demo`. Each task is trained once with TRL's own trainer, and once per prior with pcrm's trainer, with only
`pcrm_prior` set. DATA is a folder with tldr_{train,test}_pairs.jsonl.gz. ENCODER is the folder or hub name of a text encoder
for the cosine prior. Each run is a row of binding.csv, and all rows are printed as a table. To resume an interrupted run, give
the same command again. To repeat a measurement, delete its row. All runs together take about 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import functools
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from numpy.typing import NDArray
from pcrm.demo import data, world
from pcrm.demo.model import make_model, make_tokenizer, score, small_llama
from pcrm.trl import PCRMDPOConfig, PCRMDPOTrainer, PCRMRewardConfig, PCRMRewardTrainer
from transformers import LlamaForCausalLM, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

import pcrm

HERE = Path(__file__).resolve().parent
PRIORS = ("length_ratio", "lexical", "cosine")
STOCK = "none (TRL's own trainer)"
METRICS = ("over_target", "violation", "pull", "residual")
COLUMNS = ("task", "prior", "accuracy", "margin_sd", "target_p10", "target_p90", *METRICS, "message")
HELD_OUT = 500  # pairs, about
PROMPT_CHARACTERS = 100  # of a post: a small model reads the summaries, and their posts cost most of the time
DPO_BETA = 0.1  # TRL's default

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Task:
    """A training task, without the prior.

    Attributes:
        train, held_out: The pairs. No prompt is in both.
        epochs, learning_rate: Typical values for a training script.
        policy: Whether the task is DPO.
    """

    train: list[Row]
    held_out: list[Row]
    epochs: int
    learning_rate: float
    policy: bool = False


def tldr(folder: Path, pairs: int, epochs: int, learning_rate: float) -> Task:
    """Pairs of TL;DR, with each post truncated."""
    read = {}
    for split, size in (("train", pairs), ("test", HELD_OUT)):
        rows = data.read_preferences(folder / f"tldr_{split}_pairs.jsonl.gz")
        read[split] = [
            {"prompt": row["prompt"][:PROMPT_CHARACTERS] + "\n\nTL;DR:"} | {k: row[k] for k in ("chosen", "rejected")}
            for row in random.Random(0).sample(rows, size)
        ]
    return Task(read["train"], read["test"], epochs, learning_rate)


def demo(pairs: int, epochs: int, learning_rate: float, *, policy: bool = False) -> Task:
    """Generated pairs, as in `pcrm demo`."""
    rows = [
        {k: row[k] for k in ("prompt", "chosen", "rejected")} for row in world.generate(pairs + 2 * HELD_OUT, seed=0)
    ]
    return Task(*data.split_by_prompt(rows, pairs, HELD_OUT, seed=0), epochs, learning_rate, policy)


@contextlib.contextmanager
def messages_of_pcrm() -> Iterator[list[str]]:
    """The warnings that pcrm logs."""
    handler, seen = logging.Handler(logging.WARNING), []
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("pcrm").addHandler(handler)
    try:
        yield seen
    finally:
        logging.getLogger("pcrm").removeHandler(handler)


def arguments(task: Task, scratch: str) -> dict[str, Any]:
    """The training arguments of a TRL script, with or without pcrm."""
    return {
        "output_dir": scratch,
        "num_train_epochs": task.epochs,
        "per_device_train_batch_size": 16,
        "learning_rate": task.learning_rate,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


@functools.cache
def start(task: Task) -> tuple[Any, Any]:
    """The tokenizer of a task, and the initial model of its runs.

    For DPO it is a small Llama trained for an epoch on the chosen responses with TRL's SFTTrainer.
    """
    tokenizer = make_tokenizer(text for row in task.train for text in row.values())
    if not task.policy:
        return tokenizer, make_model(tokenizer, max_length=512, seed=0)
    set_seed(0)
    model = LlamaForCausalLM(small_llama(tokenizer, 512))
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in task.train]
    with tempfile.TemporaryDirectory() as scratch:
        args = SFTConfig(**arguments(task, scratch) | {"num_train_epochs": 1, "learning_rate": 3e-3})
        trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    # TRL binds a forward method to the model; copies of the model would call it on the original.
    weights, model = model.state_dict(), LlamaForCausalLM(model.config)
    model.load_state_dict(weights)
    return tokenizer, model


def run(task: Task, prior: str | None, encoder: str) -> Row:
    """Train one model, with TRL's own trainer if `prior` is None, and return its row of binding.csv."""
    tokenizer, model = copy.deepcopy(start(task))
    reference = copy.deepcopy(model) if task.policy else None
    trainer_class, config_class = (DPOTrainer, DPOConfig) if task.policy else (RewardTrainer, RewardConfig)
    ours: dict[str, Any] = {}
    if prior is not None:
        trainer_class, config_class = (
            (PCRMDPOTrainer, PCRMDPOConfig) if task.policy else (PCRMRewardTrainer, PCRMRewardConfig)
        )
        ours = {"pcrm_prior": prior} | ({"pcrm_prior_model": encoder} if prior == "cosine" else {})
    with messages_of_pcrm() as messages, tempfile.TemporaryDirectory() as scratch:
        trainer: Any = trainer_class(
            model,
            args=config_class(**arguments(task, scratch), **ours),
            train_dataset=Dataset.from_list(task.train),
            eval_dataset=Dataset.from_list(task.held_out),
            processing_class=tokenizer,
            **({"ref_model": reference} if task.policy else {}),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    margins = _rewards(trainer.eval_dataset, model, reference, tokenizer.pad_token_id)
    margins = margins["chosen"] - margins["rejected"]
    row = {"accuracy": (margins > 0).mean(), "margin_sd": margins.std()}
    if prior is not None:
        target = np.asarray(trainer.constraint.target(_similarities(trainer.train_dataset)))
        row |= dict(zip(("target_p10", "target_p90"), np.quantile(target, (0.1, 0.9)), strict=True))
        last = [log for log in trainer.state.log_history if "pcrm/pull" in log][-1]  # over the last epoch
        row |= {name: last[f"pcrm/{name}"] for name in METRICS}
    found = [m for m in messages if "not binding" in m or "over their ceilings" in m]
    return {name: round(float(value), 5) for name, value in row.items()} | {"message": "; ".join(found)}


def _similarities(pairs: Dataset) -> NDArray[np.float64]:
    if "prior" in pairs.column_names:
        return np.asarray(pairs["prior"][:], np.float64)
    return pcrm.priors.length_ratio(pairs["chosen_ids"][:], pairs["rejected_ids"][:]).double().numpy()


def _rewards(pairs: Dataset, model: Any, reference: Any, pad: int) -> dict[str, NDArray[np.float64]]:
    """The rewards of both responses: scores, or DPO's beta times the log ratio to the reference."""
    if reference is None:
        return {side: score(model, pairs[f"{side}_ids"][:], pad).numpy() for side in ("chosen", "rejected")}
    rewards = {}
    for side in ("chosen", "rejected"):
        rows = list(zip(pairs["prompt_ids"][:], pairs[f"{side}_ids"][:], strict=True))
        rewards[side] = DPO_BETA * (_log_probabilities(model, rows) - _log_probabilities(reference, rows))
    return rewards


@torch.inference_mode()
def _log_probabilities(model: Any, rows: list[tuple[list[int], list[int]]]) -> NDArray[np.float64]:
    """Log probability of each response given its prompt. One row at a time, so that nothing is padded."""
    model.eval()
    found = []
    for prompt, response in rows:
        ids = torch.tensor([[*prompt, *response]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).double().sum().item())
    return np.array(found)


def kept(file: Path) -> list[Row]:
    """The rows measured so far."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def keep(rows: list[Row], file: Path) -> None:
    """Write all rows, atomically."""
    partial = file.with_suffix(".partial")
    with partial.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(file)


def table(rows: list[Row]) -> list[str]:
    """Format the rows as Markdown."""
    heads = ("task", "`pcrm_prior`", "accuracy", "margins, sd", "targets", "`pcrm/over_target`", "`pcrm/violation`")
    lines = ["| " + " | ".join((*heads, "`pcrm/pull`", "`pcrm/residual`", "warned")) + " |", "|---" * 10 + "|"]
    for row in rows:
        cells = [row["task"], row["prior"], f"{float(row['accuracy']):.3f}", f"{float(row['margin_sd']):.2f}"]
        if row["pull"] == "":
            cells += [""] * 6
        else:
            cells += [
                f"{float(row['target_p10']):.1f} to {float(row['target_p90']):.1f}",
                f"{float(row['over_target']):.1%}",
                f"{float(row['violation']):.2%}",
                f"{float(row['pull']):.2f}",
                f"{float(row['residual']):.1f}",
                row["message"] or "no",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, metavar="ENCODER")
    parser.add_argument("--out", type=Path, default=HERE / "binding.csv", help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the same bits however many cores there are
    warnings.simplefilter("ignore", FutureWarning)  # of names that TRL and transformers change between them
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    tasks = {
        "demo, reward": demo(2000, epochs=2, learning_rate=2e-3),
        "TL;DR, reward": tldr(args.data, 2000, epochs=2, learning_rate=2e-3),
        "demo, DPO": demo(1000, epochs=2, learning_rate=2e-3, policy=True),
    }
    order = [{"task": name, "prior": prior or STOCK} for name in tasks for prior in (None, *PRIORS)]
    place = {tuple(key.values()): i for i, key in enumerate(order)}
    rows = kept(args.out)
    for key, prior in zip(order, (None, *PRIORS) * len(tasks), strict=True):
        if any(key.items() <= row.items() for row in rows):
            continue
        print(f"{key['task']}: {key['prior']}", flush=True)
        rows.append(key | run(tasks[key["task"]], prior, args.model))
        keep(sorted(rows, key=lambda row: place[row["task"], row["prior"]]), args.out)
    print("", *table(kept(args.out)), sep="\n")


if __name__ == "__main__":
    main()
