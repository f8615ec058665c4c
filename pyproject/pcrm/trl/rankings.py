"""Train on rankings: rows of several responses become weighted pairs, batched by prompt.

Two columns are added to the data set. PROMPT identifies the prompt of a pair. WEIGHT multiplies the loss of a pair, so that
each prompt counts once, however many comparisons it has:

    weight = pairs / (prompts * pairs of this prompt)

Its mean over the pairs is 1. Without this column, each pair counts once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import Sampler

from ..data.preferences import RowError
from ..data.rankings import ADDED, pairs
from .collator import WEIGHT

PROMPT = "pcrm_prompt"


class PromptGroupedSampler(Sampler[int]):
    """Sample whole prompts: the pairs of a prompt follow each other, and share a batch wherever they fit.

    The prompts are shuffled anew in each round. A batch starts with the next prompt and is filled with those of the
    following prompts that fit best. A prompt is split between two batches only if none fits. Every process draws the same
    order. The pairs of a prompt keep the order of the data.

    Args:
        prompts: The prompt of each pair, as arbitrary integers, shape (n,).
        batch_size: Pairs per batch of one process.
        seed: Seed of the shuffling.
    """

    # Prompts that wait to fill a batch: enough to find most sizes, and few compared with an epoch.
    _WAITING = 64

    def __init__(self, prompts: np.ndarray, batch_size: int, seed: int) -> None:
        order = np.argsort(prompts, kind="stable")
        ends = np.flatnonzero(np.diff(prompts[order])) + 1
        # Sorted by the first pair of each prompt, because the prompts' numbers are arbitrary.
        self._pairs_of = sorted((pairs.tolist() for pairs in np.split(order, ends)), key=lambda pairs: pairs[0])
        self._size = len(prompts)
        self.batch_size, self.seed, self._round = batch_size, seed, 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self._round)
        drawn = iter(torch.randperm(len(self._pairs_of), generator=generator).tolist())
        waiting: list[list[int]] = []
        free = self.batch_size
        while True:
            waiting += [self._pairs_of[prompt] for prompt in islice(drawn, self._WAITING - len(waiting))]
            if not waiting:
                return
            fitting = [k for k, pairs in enumerate(waiting) if len(pairs) <= free]
            begins = free == self.batch_size or not fitting
            pairs = waiting.pop(0 if begins else max(fitting, key=lambda k: len(waiting[k])))
            yield from pairs[:free]
            if len(pairs) > free:
                waiting.insert(0, pairs[free:])
            free -= min(len(pairs), free)
            free = free or self.batch_size

    def set_round(self, number: int) -> None:
        """Set the round, which determines the next order."""
        self._round = number


class Rankings:
    """Apply `pcrm_ranking_weights` and `pcrm_group_by_prompt` to the data sets of a trainer, the training data first.

    Attributes:
        sampler: The sampler of the training data, if it groups the pairs of a prompt.
    """

    sampler: PromptGroupedSampler | None = None

    def __init__(self, args: Any) -> None:
        self._args = args
        # As given by the user: the DPO trainer changes it for TRL's constructor.
        self._losses: list[str] = list(getattr(args, "loss_type", ["pcrm"]))
        self._trained = False  # whether the training data were seen

    def as_pairs(self, dataset: Any, name: str) -> tuple[Any, bool]:
        """Convert rankings to pairs before TRL prepares the data set; return it and whether it had rankings.

        Args:
            dataset: A `datasets.Dataset` or `IterableDataset`.
            name: TRL's name for it in messages, such as `train`.

        Raises:
            ValueError: A row is not a ranking, no row contains a comparison, or a setting does not work with the data.
        """
        columns = dataset.column_names or list(next(iter(dataset)))
        if "responses" in columns:
            return self._compared(dataset, name, columns), True
        # The data set may have been prepared by another trainer. Its columns tell.
        ranked = WEIGHT in columns
        if PROMPT not in columns and self._wants_prompts(ranked):
            if "prompt" not in columns:
                raise ValueError(
                    f"the {name} data set must have a column 'prompt' with pcrm_group_by_prompt=True or "
                    f"pcrm_ranking_weights='prompt', got {', '.join(columns)}: trl.extract_prompt makes one"
                )
            dataset = _mapped(dataset, _with_prompt, f"Looking for equal prompts in the {name} dataset")
        return dataset, ranked

    def finish(self, dataset: Any, ranked: bool) -> Any:
        """Add the column WEIGHT to the data set that TRL prepared, and create the sampler, if they are asked for.

        Args:
            ranked: Whether the data set had rankings.

        Raises:
            ValueError: The data set is iterable, or another setting does not work with the weights or the groups.
        """
        args, first, self._trained = self._args, not self._trained, True
        by_prompt, grouped = self._weighs_prompts(ranked), first and self._groups(ranked)
        if by_prompt:
            self._check_weights()
        if not hasattr(dataset, "num_rows"):
            for wanted, name, allowed, got in (
                (by_prompt, "pcrm_ranking_weights", "'pair'", "'prompt'"),
                (args.pcrm_group_by_prompt, "pcrm_group_by_prompt", "False", "True"),
            ):
                if wanted:
                    raise ValueError(
                        f"{name} must be {allowed} with an iterable data set, because the number of pairs per prompt is not known "
                        f"in advance, got {got}"
                    )
            return dataset
        if WEIGHT in dataset.column_names:
            dataset = dataset.remove_columns(WEIGHT)
        if not by_prompt and not grouped:
            return dataset
        prompts = np.asarray(dataset.with_format("numpy")[PROMPT][:])
        if grouped:
            seed = args.seed if args.data_seed is None else args.data_seed
            self.sampler = PromptGroupedSampler(prompts, args.train_batch_size, seed)
        if by_prompt:
            _, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
            dataset = dataset.add_column(WEIGHT, len(prompts) / (len(counts) * counts[inverse]))
        return dataset

    def _compared(self, dataset: Any, name: str, columns: list[str]) -> Any:
        if taken := [column for column in ("prior", "margin") if column in columns]:
            raise ValueError(
                f"the {name} data set must not have a column {taken[0]!r} with rankings ('responses'), because each comparison "
                "needs its own value, got one: write the pairs with `pcrm pairs` and add the column to them"
            )
        dataset = _mapped(
            dataset,
            _pairs_of,
            f"Comparing the responses of the {name} dataset",
            with_indices=True,
            remove_columns=columns,
            fn_kwargs={"name": name},
        )
        if hasattr(dataset, "num_rows") and not dataset.num_rows:
            raise ValueError(f"the {name} data set must have responses with different ratings, got only ties")
        return dataset

    def _wants_prompts(self, ranked: bool) -> bool:
        return self._weighs_prompts(ranked) or (not self._trained and self._groups(ranked))

    def _weighs_prompts(self, ranked: bool) -> bool:
        return (self._args.pcrm_ranking_weights or ("prompt" if ranked else "pair")) == "prompt"

    def _groups(self, ranked: bool) -> bool:
        asked = self._args.pcrm_group_by_prompt
        # An order that the user asked for is kept.
        return (ranked and not self._ordered_otherwise) if asked is None else asked

    @property
    def _ordered_otherwise(self) -> bool:
        """Whether another setting orders the training data."""
        strategy = getattr(self._args, "train_sampling_strategy", "random")
        return bool(self._args.pcrm_priority_alpha) or strategy != "random"

    def _check_weights(self) -> None:
        """Reject settings that the weights would not reach."""
        args = self._args
        for name, value, allowed in (
            ("pcrm_priority_alpha", args.pcrm_priority_alpha, 0.0),
            ("pcrm_sft_eta", args.pcrm_sft_eta, 0.0),
            ("loss_type", self._losses, ["pcrm"]),
        ):
            if value != allowed:
                raise ValueError(
                    f"{name} must be {allowed!r} if each prompt counts once, got {value!r}: set pcrm_ranking_weights='pair'"
                )


def _mapped(dataset: Any, function: Any, description: str, **options: Any) -> Any:
    described = {"desc": description} if hasattr(dataset, "num_rows") else {}
    # The other processes reuse the main one's result, by its fingerprint.
    with PartialState().main_process_first():
        return dataset.map(function, batched=True, **options, **described)


def _pairs_of(batch: Any, indices: list[int], *, name: str) -> dict[str, list[Any]]:
    columns = list(batch)
    found: list[dict[str, Any]] = []
    for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
        row = dict(zip(columns, values, strict=True))
        try:
            compared = pairs(row)
        except RowError as error:
            raise ValueError(
                f"the {name} data set, row {index}: {error.message}. To skip such rows, use `pcrm pairs --on-error skip`"
            ) from None
        prompt = _number_of(row["prompt"] if row.get("prompt") is not None else ["row", index])
        found += [pair | {PROMPT: prompt} for pair in compared]
    # A batch with only ties has no pair to take the names from, and needs all columns.
    names = dict.fromkeys(name for pair in found for name in pair) or [*columns, *ADDED, PROMPT]
    return {name: [pair.get(name) for pair in found] for name in names}


def _with_prompt(batch: Any) -> dict[str, list[int]]:
    return {PROMPT: [_number_of(prompt) for prompt in batch["prompt"]]}


def _number_of(prompt: Any) -> int:
    """A number that is the same for equal prompts, in every process."""
    text = json.dumps(prompt, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
