"""`pcrm reward --dry-run` and `pcrm dpo --dry-run`: describe the training run without training."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers.trainer_pt_utils import get_model_param_count
from transformers.trainer_utils import get_last_checkpoint

from .. import prefix_sharing
from .._printable import printable
from ..settings.fitted import formula
from ..training import fit
from .collator import WEIGHT, similarities
from .dpo import PCRMDPOTrainer
from .reward import PCRMRewardTrainer
from .trainer import ConstrainedTrainer, Prepared

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Batches in which repeated tokens are counted, as in training.
_BATCHES = 4
# Characters shown at each end of a long text.
_SHOWN = 300
_WIDTH = 110


class Ended(Exception):
    """Ends a dry run; TRL's scripts would otherwise go on and save the model."""


class _DryRunTrainer(ConstrainedTrainer):
    """Mixin that precedes our trainer in the bases. It writes no file; its `train` prints and ends the script."""

    keeps_fit: ClassVar[bool] = False

    def __init__(self, model: Any, args: Any, **rest: Any) -> None:
        # The constructor of transformers creates the folder, and a repository on the hub.
        kept = args.output_dir, args.push_to_hub
        with tempfile.TemporaryDirectory() as folder:
            args.output_dir, args.push_to_hub = folder, False
            try:
                super().__init__(model, args=args, **rest)  # the DPO trainer's second argument differs
            finally:
                args.output_dir, args.push_to_hub = kept

    def train(self, resume_from_checkpoint: Any = None, **_: Any) -> Any:
        checkpoint = self._resumed(resume_from_checkpoint) if resume_from_checkpoint else None
        text = describe(self, checkpoint)  # in every process: their data loaders communicate
        if self.is_world_process_zero():
            print(f"{text}\n\nNothing was trained (--dry-run)")
        raise Ended

    def _resumed(self, given: Any) -> str:
        """Use the curve of the checkpoint that a run would resume from, and return its folder."""
        output_dir: Any = self.args.output_dir
        # True means the last checkpoint, as in transformers.
        last = get_last_checkpoint(output_dir) if given is True and os.path.isdir(output_dir) else None
        checkpoint = last if given is True else given
        if checkpoint is None or not os.path.isdir(checkpoint):
            raise ValueError(f"resume_from_checkpoint must be a checkpoint's folder, got {given!r}")
        if self._fitted:
            self._use(fit.resumed(self.settings, checkpoint))
        return checkpoint


class DryRunRewardTrainer(_DryRunTrainer, PCRMRewardTrainer):
    __doc__ = _DryRunTrainer.__doc__


class DryRunDPOTrainer(_DryRunTrainer, PCRMDPOTrainer):
    __doc__ = _DryRunTrainer.__doc__

    def _precompute_ref_logps(self, dataset: Any, *arguments: Any) -> Any:
        # It would take a pass over all data. TRL rejects iterable data sets here.
        return super()._precompute_ref_logps(dataset, *arguments) if _size(dataset) is None else dataset


def describe(trainer: ConstrainedTrainer, checkpoint: str | None = None) -> str:
    """Describe a training run: data, constraint, loss, steps, model, and the first pair as the model reads it.

    It draws the first batches of the training data, in every process.

    Args:
        trainer: One of our trainers, before training.
        checkpoint: Folder of the checkpoint to resume from, if any.

    Raises:
        ValueError: The training data are empty.
    """
    loader = trainer.get_train_dataloader() if _size(trainer.train_dataset) != 0 else ()
    batches = list(itertools.islice(loader, _BATCHES))
    if not batches:
        raise ValueError(
            f"the train data set must have a batch of pairs after TRL prepared it, got {_size(trainer.train_dataset)} pairs: raise "
            "max_length, or use more data"
        )
    sections = {
        "Data": _data(trainer),
        "Constraint": _constraint(trainer, checkpoint),
        "Loss": [*_loss(trainer), ("shared prefixes", _sharing(trainer, batches))],
        "Steps": _steps(trainer, loader),
        "Model": _model(trainer),
    }
    lines = []
    for name, rows in sections.items():
        lines += [name, *(f"  {label:<17}{text}".rstrip() for label, text in rows)]
    return "\n".join([*lines, *_sample(trainer, batches[0])])


def _size(dataset: Any) -> int | None:
    return getattr(dataset, "num_rows", None)


def _data(trainer: ConstrainedTrainer) -> Iterator[tuple[str, str]]:
    args: Any = trainer.args
    data: Any = trainer.train_dataset
    size = _size(data)
    # TRL does not prepare data sets with images.
    prepared = trainer.prepared or {"train": Prepared(size, size, size, ranked=False)}
    for name, counts in prepared.items():
        yield name, _counted(counts, args.max_length)
    if (joint := prepared[next(iter(prepared))].joint) is not None:
        yield "text", f"prompt + response, with nothing between them: {joint}"
    counted = "prompt" if WEIGHT in (data.column_names or ()) else "pair"
    yield "weights", f"each {counted} counts once"
    if trainer.sampler is not None:
        order = "drawn in proportion to the slope of their loss (pcrm_priority_alpha)"
    elif trainer._rankings.sampler is not None:
        order = "pairs grouped by prompt, prompts shuffled"
    elif size is None:
        order = "as in the data set"
    elif (strategy := getattr(args, "train_sampling_strategy", "random")) != "random":
        order = f"{strategy} (train_sampling_strategy)"
    else:
        order = "shuffled"
    yield "order", order


def _counted(counts: Prepared, max_length: int | None) -> str:
    kind = "rankings" if counts.ranked else "pairs"
    if counts.rows is None or counts.pairs is None or counts.kept is None:
        return f"{kind}, an iterable data set"
    text = f"{counts.rows:,} {kind}"
    if counts.ranked:
        text += f" with {counts.pairs:,} pairs"
    if counts.kept != counts.pairs:
        text += f", {counts.kept:,} kept: TRL drops {counts.pairs - counts.kept:,} that exceed max_length={max_length}"
    return text


def _constraint(trainer: ConstrainedTrainer, checkpoint: str | None) -> Iterator[tuple[str, str]]:
    args: Any = trainer.args
    c, prior = trainer.constraint, trainer.settings.prior
    if trainer._prior_column.trained_has_column:
        recorded = args._pcrm_recorded
        source = "the column 'prior' of the data" + (f", recorded as {recorded}" if recorded else "")
    else:
        source = {
            "length_ratio": "length_ratio, computed from the token ids of each batch",
            "lexical": "lexical, computed from the texts",
            "cosine": f"cosine, computed from the texts with {args.pcrm_prior_model}",
            "fixed": "none (fixed)",
            "random": f"none (random, seed {c.seed})",
        }.get(prior, prior)
    yield "prior", source
    if c.is_random:
        yield "curve", f"delta is uniform between {c.low:g} and {c.high:g}"
        return
    if prior == "fixed":
        yield "curve", f"delta = {c.delta(1.0):g} for every pair" + (": no constraint" if c.beta3 == math.inf else "")
        return
    yield "curve", formula(c)
    yield "", _origin(trainer, checkpoint)
    # All pairs of a column; otherwise the pairs that a fit uses.
    collator: Any = trainer.data_collator
    s = similarities(trainer.settings, trainer.train_dataset, collator.collator)
    at = np.quantile(s, _QUANTILES)
    for label, values in (
        (f"of {len(s):,} pairs", [f"{q:.0%}" for q in _QUANTILES]),
        ("similarity s", [f"{v:.3f}" for v in at]),
        ("target delta / 2", [f"{v:.3g}" for v in c.target(at)]),
    ):
        yield label, f"{values[0]:>5}" + "".join(f"{v:>8}" for v in values[1:])


def _origin(trainer: ConstrainedTrainer, checkpoint: str | None) -> str:
    args: Any = trainer.args
    c = trainer.constraint
    if trainer._fitted and checkpoint is not None and os.path.isfile(os.path.join(checkpoint, fit.FILE)):
        return f"from {checkpoint}, from which the run resumes"
    if trainer._fitted and c.floor is not None and c.cap is not None:
        path = Path(args.output_dir, fit.FILE)
        return (
            f"fitted to the training data for targets {c.floor / 2:.4g} to {c.cap / 2:.4g}; the run writes it to {path}"
        )
    if args.pcrm_config is not None:
        return f"from {args.pcrm_config}"
    return f"from the preset {args.pcrm_preset}" if args.pcrm_preset is not None else "from the settings"


def _loss(trainer: ConstrainedTrainer) -> Iterator[tuple[str, str]]:
    args: Any = trainer.args
    if hasattr(args, "loss_type"):
        weights = args.loss_weights or [1.0] * len(args.loss_type)
        mixed = [f"{w:g} {name}" if w != 1 else name for name, w in zip(args.loss_type, weights, strict=True)]
        smoothing = args._pcrm_label_smoothing
        more = {"beta": args.beta}
        yield "form", " + ".join(mixed)
    else:
        smoothing = trainer.settings.label_smoothing
        more = {"center_rewards_coefficient": args.center_rewards_coefficient, "pcrm_sft_eta": args.pcrm_sft_eta}
        yield "form", trainer.settings.form
    for name, value in (more | {"label_smoothing": smoothing}).items():
        if value:
            yield name, f"{value:g}"


def _sharing(trainer: ConstrainedTrainer, batches: list[Any]) -> str:
    shares = [prefix_sharing.saved_share(b["input_ids"], b["attention_mask"]) for b in batches]
    where = f"the first {len(batches)} batches" if len(batches) > 1 else "the first batch"
    share = f"{sum(shares) / len(shares):.0%} of the tokens in {where} repeat the start of another row"
    args: Any = trainer.args
    return f"on (pcrm_prefix_sharing=True): {share}" if args.pcrm_prefix_sharing else f"off: {share}"


def _steps(trainer: ConstrainedTrainer, loader: Any) -> Iterator[tuple[str, str]]:
    args = trainer.args
    total = trainer.get_total_train_batch_size(args)
    accumulated = args.gradient_accumulation_steps
    processes = f"{args.world_size} process{'es' if args.world_size != 1 else ''}"
    yield "pairs per step", f"{total:,} = {args.train_batch_size} in a batch x {processes} x {accumulated} accumulated"
    by_epoch = max(math.ceil(len(loader) / accumulated), 1) if _size(trainer.train_dataset) is not None else None
    if args.max_steps > 0:
        steps = args.max_steps
        epochs = f" (max_steps), {steps / by_epoch:.3g} epochs of {by_epoch:,}" if by_epoch else " (max_steps)"
    else:
        assert by_epoch is not None  # transformers rejects an iterable data set without max_steps
        steps = math.ceil(args.num_train_epochs * by_epoch)
        epochs = f", {args.num_train_epochs:g} epochs of {by_epoch:,}"
    yield "steps", f"{steps:,}{epochs}"
    schedule = f"{_word(args.lr_scheduler_type)}, {args.get_warmup_steps(steps):,} warmup steps"
    yield "learning rate", f"{args.learning_rate:g}, {schedule}"
    yield (
        "optimizer",
        f"{_word(args.optim)}, weight decay {args.weight_decay:g}, gradients clipped at {args.max_grad_norm:g}",
    )


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))


def _model(trainer: ConstrainedTrainer) -> Iterator[tuple[str, str]]:
    model, args = trainer.model, trainer.args
    yield "class", type(model).__name__
    counts = (get_model_param_count(model, trainable_only=only) for only in (True, False))
    yield "parameters", "{:,} trained of {:,}".format(*counts)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    autocast = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    text = f"{' and '.join(dtypes)} weights" + (f", computed in {autocast}" if autocast else "")
    yield "dtype", f"{text}, on {args.device.type}"


def _sample(trainer: ConstrainedTrainer, batch: Any) -> Iterator[str]:
    """The first pair of the first batch, as the model reads it."""
    pairs, longest = len(batch["input_ids"]) // 2, batch["input_ids"].shape[1]
    about = f"First pair of {pairs} in the first batch, padded to {longest} tokens"
    if "prior" in batch:
        s, c = float(batch["prior"][0]), trainer.constraint
        about += f"; {'' if c.is_random else f's = {s:.3f}, '}delta = {c.delta(s):.3g}"
    yield about
    tokenizer: Any = trainer.processing_class
    for name, row in (("chosen", 0), ("rejected", pairs)):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        tokens = f"{len(ids)} tokens"
        if "completion_mask" in batch:
            tokens += f", {int(batch['completion_mask'][row].sum())} in the response"
        yield f"  {name}, {tokens}:"
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        yield from (f"    {line}" for line in _shown(text))


def _shown(text: str) -> list[str]:
    if len(text) > 2 * _SHOWN:
        left_out = len(text) - 2 * _SHOWN
        text = f"{text[:_SHOWN]} [... {left_out:,} characters ...] {text[-_SHOWN:]}"
    # Line feeds and control characters are shown escaped.
    return textwrap.wrap(printable(text), _WIDTH, drop_whitespace=False, break_on_hyphens=False)
