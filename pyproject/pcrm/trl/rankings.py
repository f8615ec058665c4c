"""Rankings in a trainer: rows of several responses become pairs, with a weight each and in batches by prompt.

Two columns join the data set. PROMPT tells which prompt a pair is of. WEIGHT is what its loss is multiplied with, so that
each prompt counts once however many comparisons it has:

    weight = pairs / (prompts * pairs of this prompt)

whose mean over the pairs is 1. Without the column each pair counts once.
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
    """Batches of whole prompts: all pairs of a prompt one after another, and in one batch wherever they fit.

    The prompts come in an order that is drawn anew in each round. A batch begins with the next prompt, and those of the
    following prompts join it that fill it best. Only if none fits is a prompt split between two batches. Every process
    draws the same order. The pairs of a prompt stay in that of the data.

    Args:
        prompts: Which prompt each pair is of, any integers, shape (n,).
        batch_size: Pairs of a batch of one process.
        seed: Of the draws.
    """

    # Prompts that wait to fill a batch: enough to find one of most sizes, and few beside those of an epoch.
    _WAITING = 64

    def __init__(self, prompts: np.ndarray, batch_size: int, seed: int) -> None:
        order = np.argsort(prompts, kind="stable")
        ends = np.flatnonzero(np.diff(prompts[order])) + 1
        # By the first pair of each prompt, and not by the number that it happens to have.
        self._pairs_of = sorted((pairs.tolist() for pairs in np.split(order, ends)), key=lambda pairs: pairs[0])
        self._size = len(prompts)
        self.batch_size, self.seed, self._round = batch_size, seed, 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self._round)
        drawn = iter(torch.randperm(len(self._pairs_of), generator=generator).tolist())
        waiting: list[list[int]] = []
        room = self.batch_size
        while True:
            waiting += [self._pairs_of[prompt] for prompt in islice(drawn, self._WAITING - len(waiting))]
            if not waiting:
                return
            fitting = [k for k, pairs in enumerate(waiting) if len(pairs) <= room]
            begins = room == self.batch_size or not fitting
            pairs = waiting.pop(0 if begins else max(fitting, key=lambda k: len(waiting[k])))
            yield from pairs[:room]
            if len(pairs) > room:
                waiting.insert(0, pairs[room:])
            room -= min(len(pairs), room)
            room = room or self.batch_size

    def set_round(self, number: int) -> None:
        """Draw the order of this round next."""
        self._round = number


class Rankings:
    """What `pcrm_ranking_weights` and `pcrm_group_by_prompt` do with the data sets of a trainer.

    Attributes:
        sampler: Of the training data, which come first, where its batches hold a prompt's pairs together.
    """

    sampler: PromptGroupedSampler | None = None

    def __init__(self, args: Any) -> None:
        self._args = args
        # As it was given: the DPO trainer tells TRL's constructor another one.
        self._losses: list[str] = list(getattr(args, "loss_type", ["pcrm"]))
        self._trained = False  # whether the training data came

    def as_pairs(self, dataset: Any, name: str) -> tuple[Any, bool]:
        """Return the data set with its rankings as pairs, before TRL prepares it, and whether it had rankings.

        Args:
            dataset: A `datasets.Dataset` or `IterableDataset`.
            name: What TRL calls it in messages, such as `train`.

        Raises:
            ValueError: A row is no ranking, no row holds a comparison, or a setting does not go with the data.
        """
        columns = dataset.column_names or list(next(iter(dataset)))
        if "responses" in columns:
            return self._compared(dataset, name, columns), True
        # Prepared before, by another trainer: what its rankings became is in its columns.
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
        """Return the data set that TRL prepared with the column WEIGHT, and make the sampler, where they are asked for.

        Args:
            ranked: Whether it had rankings.

        Raises:
            ValueError: The data set is an iterable one, or another setting does not go with the weights or the groups.
        """
        args, first, self._trained = self._args, not self._trained, True
        by_prompt, grouped = self._weighs_prompts(ranked), first and self._groups(ranked)
        if by_prompt:
            self._check_weights()
        if not hasattr(dataset, "num_rows"):
            for wanted, name in (
                (by_prompt, "pcrm_ranking_weights='pair'"),
                (args.pcrm_group_by_prompt, "pcrm_group_by_prompt=False"),
            ):
                if wanted:
                    raise ValueError(
                        f"an iterable data set must be trained with {name}: how many pairs a prompt has is not known before"
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
                f"the {name} data set must have no column {taken[0]!r} beside 'responses', as each comparison has one of its "
                "own: write the pairs with `pcrm pairs` and add it to them"
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
            raise ValueError(f"the {name} data set must have responses with different ratings, got ties only")
        return dataset

    def _wants_prompts(self, ranked: bool) -> bool:
        return self._weighs_prompts(ranked) or (not self._trained and self._groups(ranked))

    def _weighs_prompts(self, ranked: bool) -> bool:
        return (self._args.pcrm_ranking_weights or ("prompt" if ranked else "pair")) == "prompt"

    def _groups(self, ranked: bool) -> bool:
        asked = self._args.pcrm_group_by_prompt
        # Another order that was asked for stays.
        return (ranked and not self._ordered_otherwise) if asked is None else asked

    @property
    def _ordered_otherwise(self) -> bool:
        """Whether another setting orders the training data."""
        strategy = getattr(self._args, "train_sampling_strategy", "random")
        return bool(self._args.pcrm_priority_alpha) or strategy != "random"

    def _check_weights(self) -> None:
        """Refuse what the weights would not reach."""
        args = self._args
        for name, value, allowed in (
            ("pcrm_priority_alpha", args.pcrm_priority_alpha, 0.0),
            ("pcrm_sft_eta", args.pcrm_sft_eta, 0.0),
            ("loss_type", self._losses, ["pcrm"]),
        ):
            if value != allowed:
                raise ValueError(
                    f"{name} must be {allowed!r} where each prompt counts once, got {value!r}: set pcrm_ranking_weights='pair'"
                )


def _mapped(dataset: Any, function: Any, description: str, **options: Any) -> Any:
    described = {"desc": description} if hasattr(dataset, "num_rows") else {}
    # The other processes find what the main one left, by its fingerprint.
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
                f"the {name} data set, row {index}: {error.message}. `pcrm pairs --on-error skip` leaves such rows out"
            ) from None
        prompt = _number_of(row["prompt"] if row.get("prompt") is not None else ["row", index])
        found += [pair | {PROMPT: prompt} for pair in compared]
    # A batch of ties alone has no pair to take the names from, and needs all columns.
    names = dict.fromkeys(name for pair in found for name in pair) or [*columns, *ADDED, PROMPT]
    return {name: [pair.get(name) for pair in found] for name in names}


def _with_prompt(batch: Any) -> dict[str, list[int]]:
    return {PROMPT: [_number_of(prompt) for prompt in batch["prompt"]]}


def _number_of(prompt: Any) -> int:
    """The same for equal prompts, in every process."""
    text = json.dumps(prompt, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
