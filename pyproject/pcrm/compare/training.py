"""A reward model trained into a folder: once, and with progress from the first step."""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, PrinterCallback, TrainerCallback
from transformers.utils import logging

from .. import _pretrained
from .._printable import printable
from ..settings import Constraint
from ..trl import PCRMRewardConfig, PCRMRewardTrainer

# Where no terminal shows a bar: least seconds between two lines, and the share of the time so far.
_QUIET, _SHARE = 10.0, 0.1


class Progress(TrainerCallback):
    """A bar on a terminal, and elsewhere lines: after the first step, every 10 seconds or more, and at the end."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc="    training", unit="step", disable=None)
        self.began = self.said = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        now, step, last = time.monotonic(), state.global_step, state.max_steps
        if self.bar.disable and (step in (1, last) or now - self.said >= max(_QUIET, _SHARE * (now - self.began))):
            self.said = now
            left = (now - self.began) / step * (last - step)
            print(f"    step {step} of {last}" + (f", {_duration(left)} left" if step < last else ""), flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def _duration(seconds: float) -> str:
    """About how long, as people say it."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def load_model(path: str | Path, seed: int, max_length: int | None = None) -> Any:
    """Load a reward model of a checkpoint, for sequences of at most `max_length` tokens.

    A checkpoint without a scalar head gets a random one. Other weights that it lacks are named on the terminal.
    """
    torch.manual_seed(seed)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers reports the head that is missing, as it should be, in ten lines
    try:
        model, report = _pretrained.load_model(
            AutoModelForSequenceClassification, path, num_labels=1, dtype=torch.float32, output_loading_info=True
        )
    finally:
        logging.set_verbosity(before)
    missing = sorted(key for key in report["missing_keys"] if key.startswith(f"{model.base_model_prefix}."))
    if missing:
        print(f"    {path} has no weights for {', '.join(map(printable, missing[:5]))}: {len(missing)} start random")
    _pretrained.longest(str(path), model, None, max_length)
    return model


def constraint_fields(constraint: Constraint | None, **with_constraint: Any) -> dict[str, Any]:
    """The fields `pcrm_*` of the trainer's arguments for a constraint; None is the plain loss.

    Args:
        with_constraint: More fields of a constrained model.
    """
    if constraint is None:
        return {"pcrm_prior": "fixed", "pcrm_delta": math.inf}
    names = ("beta1", "beta2", "beta3", "floor", "cap")
    return {f"pcrm_{name}": getattr(constraint, name) for name in names} | with_constraint


def is_finished(folder: Path, marker: str, recipe: dict[str, Any]) -> bool:
    """Whether the folder has a model that was trained by this recipe, to its end."""
    file = folder / marker
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")) == recipe


def train(
    folder: Path,
    marker: str,
    recipe: dict[str, Any],
    model: Any,
    tokenizer: Any,
    dataset: Dataset,
    checked: Callable[[PCRMRewardTrainer], object] = lambda trainer: None,
    peft_config: Any = None,
    **settings: Any,
) -> Any:
    """Train a reward model into a folder, and return it.

    Args:
        folder: The output folder. It appears only when it is complete.
        marker: The name of the file in the folder that holds the recipe.
        recipe: Everything that the model depends on, as JSON.
        model, tokenizer, dataset: The arguments of the trainer.
        checked: Called with the trainer before the first step.
        peft_config: The configuration of an adapter to train instead of all weights.
        settings: Fields of `PCRMRewardConfig`.
    """
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that TRL and transformers change between them
        args = PCRMRewardConfig(
            output_dir=str(scratch),
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,  # the bar is Progress's
            **settings,
        )
        trainer = PCRMRewardTrainer(
            model,
            args,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[Progress()],
            peft_config=peft_config,
        )
        trainer.remove_callback(PrinterCallback)
        checked(trainer)
        trainer.train()
        trainer.save_model(str(scratch))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    # Last: a folder without the marker counts as not finished.
    (folder / marker).write_text(json.dumps(recipe), encoding="utf-8")
    return model
