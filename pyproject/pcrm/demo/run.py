"""Trains the models of the demo and writes what came out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.utils import logging

from .. import priors
from ..compare import flags, training
from ..settings import Constraint
from . import data, metrics, model, plot, world

_MARKER = "demo.json"


@dataclass(frozen=True)
class Settings:
    """What the trained models depend on. A model with other settings is trained again."""

    data: str | None = None
    model: str | None = None
    preset: str = "alpaca/length_ratio"
    target_alike: float = 1.0
    target_unlike: float = 3.0
    pairs: int = 5000
    held_out: int = 2000
    epochs: float = 4.0
    learning_rate: float | None = None
    batch_size: int = 16
    max_length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        flags.check(self, ("pairs", "held_out", "batch_size", "max_length", "epochs", "learning_rate"))


def run(settings: Settings, out: Path) -> dict[str, Any]:
    """Train plain, constrained and preset models, print the table, and write the picture.

    Write a folder for each model, `margins.png` and `summary.json` into `out`. A second call continues where the first
    was stopped: models that were trained with the same settings are kept.
    """
    threads = torch.get_num_threads()
    if settings.model is None:
        # Then the numbers do not depend on the number of cores, and the small models' threads do not wait for each
        # other when other processes are running.
        torch.set_num_threads(1)
    try:
        return _run(settings, out)
    finally:
        torch.set_num_threads(threads)


def _run(settings: Settings, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()  # of writing a model of one megabyte
    if settings.model is None:
        print("Training three small models on the CPU takes a few minutes. Nothing is downloaded.", flush=True)
    rows = (
        data.read_preferences(settings.data)
        if settings.data
        else world.generate(settings.pairs + settings.held_out, settings.seed)
    )
    rows = [data.with_prompt(row) for row in rows]
    train, held_out = data.split_by_prompt(rows, settings.pairs, settings.held_out, settings.seed)
    if settings.model:
        tokenizer = model.load_tokenizer(settings.model)
    else:
        tokenizer = model.make_tokenizer(text for row in train for text in data.texts(row))
    train, held_out = ([data.as_text(row, tokenizer) for row in part] for part in (train, held_out))
    encoder = model.Encoder(tokenizer, settings.max_length)
    train_ids, held_out_ids = ([encoder.pair(row) for row in part] for part in (train, held_out))
    similarities, prior = (priors.length_ratio(*map(list, zip(*ids, strict=True))) for ids in (train_ids, held_out_ids))
    constraint = Constraint.fit(similarities, target_alike=settings.target_alike, target_unlike=settings.target_unlike)
    models = {"plain": None, "constrained": constraint, settings.preset: Constraint.preset(settings.preset)}

    print(
        f"{len(train):,} pairs to train on, {len(held_out):,} held out; length-ratio prior, median {similarities.median():.2f}"
    )
    print(f"constrained: {describe(constraint)}\n{settings.preset}: {describe(models[settings.preset])}\n", flush=True)
    results, margins = {}, {}
    for number, (name, of) in enumerate(models.items(), 1):
        folder = out / name.replace("/", "-")
        print(f"[{number}/{len(models)}] {name}", flush=True)
        trained = _train(settings, folder, tokenizer, train_ids, of)
        chosen, rejected = (
            model.score(trained, list(side), tokenizer.pad_token_id, progress="scoring").numpy()
            for side in zip(*held_out_ids, strict=True)
        )
        results[name] = metrics.evaluate(held_out, chosen, rejected, constraint.delta(prior).numpy())
        margins[name] = chosen - rejected

    source = Path(settings.data).name if settings.data else "generated pairs with a known true reward"
    plot.plot_margins(
        out / "margins.png",
        prior.numpy(),
        {name: margins[name] for name in ("plain", "constrained")},
        constraint,
        f"{len(held_out)} held-out pairs: {source}",
    )
    summary = {
        "settings": dataclasses.asdict(settings),
        "train_pairs": len(train),
        "held_out_pairs": len(held_out),
        "constraints": {name: None if c is None else dataclasses.asdict(c) for name, c in models.items()},
        "ceiling": "constrained",
        "models": results,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"\n{metrics.headline(results['plain'], results['constrained'])}\n\n{metrics.table(results)}")
    print("\nAll numbers are of held-out prompts. The ceiling is the constrained model's.")
    print(f"Wrote margins.png, summary.json and the models to {out}")
    print("Next, compare models on your own pairs: pcrm compare PAIRS --model BASE")
    return summary


def describe(constraint: Constraint | None) -> str:
    """A constraint in one line, with its targets at both ends."""
    if constraint is None:
        return "no constraint"
    clip = "".join(f", {n} {v:g}" for n in ("floor", "cap") if (v := getattr(constraint, n)) is not None)
    return (
        f"delta = {constraint.beta1:.3g}/(s + {constraint.beta2:g}) {'+' if constraint.beta3 >= 0 else '-'} {abs(constraint.beta3):.3g}{clip}; "
        f"target margin {constraint.target(1.0):.3g} at s = 1, {constraint.target(0.5):.3g} at 0.5, {constraint.target(0.0):.3g} at 0"
    )


def _train(
    settings: Settings,
    folder: Path,
    tokenizer: Any,
    ids: list[tuple[list[int], list[int]]],
    constraint: Constraint | None,
) -> Any:
    """Train a reward model into the folder, or load the one that is there."""
    recipe = dataclasses.asdict(settings) | {
        "constraint": None if constraint is None else dataclasses.asdict(constraint)
    }
    if training.is_finished(folder, _MARKER, recipe):
        print("    finished earlier with the same settings: not trained again")
        return training.load_model(folder, settings.seed)
    reward_model = (
        training.load_model(settings.model, settings.seed, settings.max_length)
        if settings.model
        else model.make_model(tokenizer, settings.max_length, settings.seed)
    )
    columns = dict(zip(("chosen_ids", "rejected_ids"), map(list, zip(*ids, strict=True)), strict=True))
    return training.train(
        folder,
        _MARKER,
        recipe,
        reward_model,
        tokenizer,
        Dataset.from_dict(columns),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate or (2e-5 if settings.model else 1e-3),
        max_length=None,  # the encoder has cut them
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        seed=settings.seed,
        **training.constraint_fields(constraint),
    )
