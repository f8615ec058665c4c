"""Trains the models of `pcrm compare` and says how they compare."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from transformers.utils import logging as transformers_logging

from .. import _pretrained, priors
from .._printable import printable
from ..data.sources import open_source
from ..evaluate import scores
from ..evaluate.report import summary
from ..evaluate.reward_model import RewardModel, identity_of
from ..evaluate.score_rows import add_scores
from ..evaluate.temperature import fit_temperature
from ..settings import COMPUTED_PRIORS, Constraint
from ..settings.fitted import fit_line, write_toml
from . import flags, pairs, table, training

_MARKER = "compare.json"
# Training pairs that are scored for the training accuracy.
_TRAIN_SCORED = 2000
_SAMPLE = "train-sample"
TEMPERED = "plain + temperature"


@dataclass(frozen=True)
class Settings:
    """What the models and the report depend on. The names are those of the flags.

    Attributes:
        data, split: The user's pairs.
        model: The checkpoint to start from.
        eval_data, eval_split: Pairs to evaluate on; by default some of `data`.
        prior: "lexical", "length_ratio" or "column"; None is "column" where the rows have one, else "lexical".
        target_alike, target_unlike: Target margins that the constraint is fitted to.
        pairs: Most pairs to train on.
        lora: Rank of a LoRA adapter to train; None trains all weights.
        cpu: Train on the CPU where there is a GPU, too.
    """

    data: str
    model: str
    eval_data: str | None = None
    split: str = "train"
    eval_split: str | None = None
    prior: str | None = None
    target_alike: float = 1.0
    target_unlike: float = 3.0
    epochs: float = 2.0
    learning_rate: float = 2e-5
    batch_size: int = 16
    max_length: int | None = None
    pairs: int | None = None
    lora: int | None = None
    seed: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        flags.check(self, ("epochs", "learning_rate", "batch_size", "max_length", "pairs", "lora"))


def run(settings: Settings, out: Path) -> dict[str, Any]:
    """Train a plain and a constrained model, print the table, write the report.

    A second call continues where the first was stopped: a model that is finished is not trained again.

    Args:
        out: The folder to write into.

    Returns:
        The summary of the report.

    Raises:
        OSError, ValueError: The data or the model cannot be read, or do not fit each other; bad settings.
    """
    _adapter(settings)  # without peft it ends before anything takes time
    _say(f"reading {settings.data}")
    split = _split(settings)
    _say(
        f"{len(split.train):,} pairs to train on, {len(split.temperature):,} to fit the temperature on, {len(split.test):,} to "
        f"evaluate on; no prompt is in two of these"
    )
    if split.dropped:
        _say(
            f"{split.dropped:,} pairs of {settings.data} are not trained on: their prompts are in {settings.eval_data}"
        )
    _say(f"reading {settings.model}")
    tokenizer = _tokenizer(settings.model, split.train[0])
    name, prior, constraint = _constraint(settings, split, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    line = fit_line(prior["train"], constraint, name)
    write_toml(
        out / "pcrm.toml", constraint, name, [f"Made by pcrm compare of {printable(settings.data)}", printable(line)]
    )
    _say(line)

    folder = out / "pairs"
    folder.mkdir(exist_ok=True)
    for part, rows in split.parts().items():
        rows = [row | {"prior": p} for row, p in zip(rows, prior[part].tolist(), strict=True)]
        pairs.write_pairs(folder / f"{part}.jsonl", rows)
        if part == "train":
            pairs.write_pairs(folder / f"{_SAMPLE}.jsonl", rows[:_TRAIN_SCORED])
    with _quiet_libraries():
        for number, (kind, of) in enumerate({"plain": None, "constrained": constraint}.items(), 1):
            _say(f"[{number}/2] {kind}")
            _train(settings, out, kind, of, split, prior["train"], tokenizer)
            _score(settings, out, kind)
    return _compare(settings, out, constraint, tokenizer.eos_token)


def _say(text: str) -> None:
    print("\n".join(map(printable, text.split("\n"))), flush=True)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without the libraries' progress bars for what takes seconds."""
    bars, others = not datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            datasets.enable_progress_bars()
        if others:
            transformers_logging.enable_progress_bar()


def _split(settings: Settings) -> pairs.Split:
    rows = pairs.read_pairs(settings.data, settings.split)
    test = None
    if settings.eval_data is not None:
        test = pairs.read_pairs(settings.eval_data, settings.eval_split or settings.split)
        kinds = [{key: type(row.get(key)) for key in ("prompt", "chosen", "prior")} for row in (rows[0], test[0])]
        for key in kinds[0]:
            if kinds[0][key] is not kinds[1][key]:
                raise ValueError(
                    f"{key} must be of one kind in {settings.data} and {settings.eval_data}, got two kinds"
                )
    return pairs.split_pairs(rows, test, settings.seed, settings.pairs)


def _tokenizer(name: str, row: pairs.Row) -> Any:
    """The model's tokenizer, with what training and scoring need."""
    tokenizer = _pretrained.load_tokenizer(name)
    if tokenizer.eos_token is None:
        # TRL puts it at the end of texts. BERT's tokenizers have none.
        if tokenizer.sep_token is None:
            raise ValueError(
                f"--model {name} must have a tokenizer with an eos_token, got one without: set it and save it"
            )
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(row["chosen"], list) and tokenizer.chat_template is None:
        raise ValueError(
            f"--model {name} must have a chat template, since the rows hold messages, got none. Use the instruct version of "
            "the model, or write the rows as texts"
        )
    return tokenizer


def _constraint(
    settings: Settings, split: pairs.Split, tokenizer: Any
) -> tuple[str, dict[str, np.ndarray], Constraint]:
    """The prior's name, the prior of each pair of each part, and the constraint that is fitted to the training pairs."""
    has_column = "prior" in split.train[0]
    asked = settings.prior or ("column" if has_column else "lexical")
    if asked == "column":
        if not has_column:
            raise ValueError("--prior must be lexical or length_ratio for rows without a column 'prior', got column")
        record = open_source(settings.data, settings.split).prior
        name = record["prior"] if record is not None and _is_computed(record) else "column"
    elif has_column:
        raise ValueError(
            f"--prior must be column for rows with a column 'prior', got {asked}. Remove the column to compute another prior"
        )
    else:
        name = asked
    prior = {}
    for part, rows in split.parts().items():
        if asked == "column":
            prior[part] = np.array([row["prior"] for row in rows], np.float64)
            continue
        columns = {key: [row.get(key) for row in rows] for key in ("prompt", "chosen", "rejected")}
        how: dict[str, Any] = {"tokenizer": tokenizer} if asked == "length_ratio" else {}
        prior[part] = np.array(priors.annotate(columns, prior=asked, **how)["prior"], np.float64)
    try:
        constraint = Constraint.fit(
            prior["train"], target_alike=settings.target_alike, target_unlike=settings.target_unlike
        )
    except ValueError as error:
        raise ValueError(f"the prior {name} of {settings.data}: {error}") from None
    return name, prior, constraint


def _is_computed(record: dict[str, Any]) -> bool:
    """Whether trainers compute the same numbers."""
    return record["prior"] in COMPUTED_PRIORS and not record.get("with_prompt") and not record.get("raw")


def _train(
    settings: Settings,
    out: Path,
    kind: str,
    constraint: Constraint | None,
    split: pairs.Split,
    prior: np.ndarray,
    tokenizer: Any,
) -> None:
    recipe = {
        "pairs": split.digest(),
        "model": [settings.model, identity_of(settings.model, _pretrained.load_config(settings.model))],
        "constraint": None if constraint is None else dataclasses.asdict(constraint),
        **{
            name: getattr(settings, name)
            for name in ("epochs", "learning_rate", "batch_size", "max_length", "lora", "seed", "cpu")
        },
    }
    recipe = json.loads(json.dumps(recipe))
    if training.is_finished(out / kind, _MARKER, recipe):
        _say("    finished earlier with the same settings: not trained again")
        return
    for old in (out / "scores").glob(f"{kind}-*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    model = training.load_model(settings.model, settings.seed, settings.max_length)
    takes = _pretrained.longest(settings.model, model, None, None)
    length = settings.max_length or min(1024, takes or 1024)
    columns = [{k: v for k, v in row.items() if k != "prior"} for row in split.train]
    if constraint is not None:
        columns = [row | {"prior": p} for row, p in zip(columns, prior.tolist(), strict=True)]

    def checked(trainer: Any) -> None:
        left = len(trainer.train_dataset)
        if not left:
            raise ValueError(f"--max-length must leave pairs to train on, got {length}: all pairs are longer")
        if left < len(columns):
            _say(f"    {len(columns) - left:,} pairs have more than {length} tokens and are left out")

    on_gpu = torch.cuda.is_available() and not settings.cpu
    # What is wrong with the pairs was said for the plain model, which has the same.
    data_check = logging.getLogger("pcrm.trl.data_check")
    data_check.disabled = constraint is not None
    try:
        training.train(
            out / kind,
            _MARKER,
            recipe,
            model,
            tokenizer,
            Dataset.from_list(columns),
            checked,
            _adapter(settings),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            max_length=length,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            gradient_checkpointing=on_gpu,
            seed=settings.seed,
            **training.constraint_fields(constraint, pcrm_prior="column"),
        )
    finally:
        data_check.disabled = False
    del model
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()


def _adapter(settings: Settings) -> Any:
    """The configuration of the LoRA adapter to train, if there is one."""
    if settings.lora is None:
        return None
    try:
        from peft import LoraConfig, TaskType
    except ModuleNotFoundError:
        raise ValueError("--lora requires peft: pip install peft") from None
    return LoraConfig(
        task_type=TaskType.SEQ_CLS, r=settings.lora, lora_alpha=2 * settings.lora, target_modules="all-linear"
    )


def _score(settings: Settings, out: Path, kind: str) -> None:
    """Score the parts that the table needs, those that are not scored already."""
    folder = out / "scores"
    folder.mkdir(exist_ok=True)
    missing = [
        part
        for part in ("test", _SAMPLE, "temperature")
        if (part != "temperature" or kind == "plain") and not (folder / f"{kind}-{part}.jsonl").is_file()
    ]
    if not missing:
        return
    on_gpu = torch.cuda.is_available() and not settings.cpu
    model = RewardModel(
        out / kind,
        device=None if on_gpu else "cpu",
        dtype="bfloat16" if on_gpu else "float32",
        batch_size=settings.batch_size,
        max_length=settings.max_length,
    )
    for part in missing:
        _say(f"    scoring {part} pairs")
        source = open_source(out / "pairs" / f"{part}.jsonl")
        written = add_scores(source, folder / f"{kind}-{part}.jsonl", model, ("chosen", "rejected"), skip=True)
        if written.skipped:
            _say(f"    {written.skipped:,} pairs left out: {written.skipped_path}")


def _compare(settings: Settings, out: Path, constraint: Constraint, eos: str) -> dict[str, Any]:
    found = {
        (kind, part): scores.read([f"{kind}={out / 'scores' / f'{kind}-{part}.jsonl'}"], "train")[0]
        for kind in ("plain", "constrained")
        for part in ("test", _SAMPLE)
    }
    constrained = found["constrained", "test"]
    # Both score files have the same rows. The plain model's may be older, and have another prior.
    plain = dataclasses.replace(found["plain", "test"], prior=constrained.prior)
    prompts = [pairs.prompt_of(row) for row in pairs.read_pairs(os.fspath(out / "scores" / "plain-test.jsonl"))]
    shown, notes = {"plain": plain}, []
    temperature = None
    try:
        fit = fit_temperature(out / "scores" / "plain-temperature.jsonl")
    except ValueError as error:
        notes.append(f"There is no plain + temperature: {str(error).rstrip('.')}.")
    else:
        temperature = fit.temperature, fit.low, fit.high
        shown[TEMPERED] = dataclasses.replace(
            plain, name=TEMPERED, chosen=plain.chosen / fit.temperature, rejected=plain.rejected / fit.temperature
        )
    shown["constrained"] = constrained
    models = {
        name: table.Model(
            s.margins,
            found["constrained" if name == "constrained" else "plain", _SAMPLE].margins,
            temperature if name == TEMPERED else None,
        )
        for name, s in shown.items()
    }
    summary.write(list(shown.values()), out / "report", constraint)

    assert constrained.prior is not None
    notes += table.warnings(models, np.asarray(constraint.delta(constrained.prior)))
    _say(f"\n{table.headline(models['plain'], models['constrained'], prompts)}\n")
    _say(table.table(models))
    _say(
        f"\nAll numbers but the training accuracy are of {len(prompts):,} test pairs, whose prompts no model was trained on."
    )
    if TEMPERED in models:
        _say(table.calibration(models[TEMPERED], models["constrained"], prompts))
    for note in notes:
        _say(f"Warning: {note}")
    _say(
        f"\nThe report: {out / 'report' / 'report.html'}\nNext, train on all pairs with the same constraint:\n{_next(settings, out, eos)}"
    )
    return json.loads((out / "report" / "summary.json").read_text(encoding="utf-8"))


def _next(settings: Settings, out: Path, eos: str) -> str:
    """The command that trains a reward model on all of the user's pairs.

    Args:
        eos: What ended texts here.
    """
    options = {
        "--model_name_or_path": settings.model,
        "--dataset_name": settings.data,
        "--pcrm_config": str(out / "pcrm.toml"),
        "--num_train_epochs": f"{settings.epochs:g}",
        "--learning_rate": f"{settings.learning_rate:g}",
        "--per_device_train_batch_size": str(settings.batch_size),
    }
    if settings.max_length is not None:
        options["--max_length"] = str(settings.max_length)
    if _pretrained.load_tokenizer(settings.model).eos_token != eos:
        options["--eos_token"] = eos
    if settings.lora is not None:
        options |= {"--use_peft": "true", "--lora_r": str(settings.lora), "--lora_alpha": str(2 * settings.lora)}
        options |= {"--lora_target_modules": "all-linear", "--lora_task_type": "SEQ_CLS"}
    if settings.cpu or not torch.cuda.is_available():
        options |= {"--use_cpu": "true", "--bf16": "false"}  # TRL's default is bfloat16, also on a CPU
    words = " ".join(f"{option} {shlex.quote(value)}" for option, value in options.items())
    return f"  pcrm reward {words} --output_dir reward-model"
