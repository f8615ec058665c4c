"""Use the prioritized sampler in a trainer: rounds, weights, and the state in a checkpoint.

The sampler itself is `pcrm.methods.prioritized.PrioritizedSampler`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from ..methods.prioritized import PrioritizedSampler
from .collator import INDEX

Tensor = torch.Tensor

_STATE_FILE = "pcrm_sampler.safetensors"


class Rounds(Protocol):
    """A sampler that draws in rounds."""

    def set_round(self, number: int, /) -> None: ...


class RoundsByEpoch(TrainerCallback):
    """Start a round of the sampler at each epoch. Data loaders do not do so for a sampler that they shard."""

    def __init__(self, sampler: Rounds) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.set_round(int(state.epoch or 0))  # a resumed run may start within an epoch


def sampler_of(dataset: Any, args: Any) -> PrioritizedSampler:
    """Create a sampler of the rows of prepared training data from the arguments `pcrm_priority_*`.

    Raises:
        ValueError: The data set is iterable.
    """
    if not hasattr(dataset, "num_rows"):
        raise ValueError(f"pcrm_priority_alpha must be 0 with an iterable data set, got {args.pcrm_priority_alpha}")
    return PrioritizedSampler(
        dataset.num_rows,
        alpha=args.pcrm_priority_alpha,
        epsilon=args.pcrm_priority_epsilon,
        seed=args.seed if args.data_seed is None else args.data_seed,
        num_samples=args.pcrm_priority_samples,
    )


def with_index(dataset: Any) -> Any:
    """Return the data set with each row's index in the column `INDEX`."""
    if INDEX in dataset.column_names:  # added by another trainer, whose rows may differ
        dataset = dataset.remove_columns(INDEX)
    return dataset.add_column(INDEX, range(dataset.num_rows))


def weighted_mean(
    sampler: PrioritizedSampler,
    losses: Tensor,
    index: Tensor,
    slopes: Tensor,
    gather: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]],
) -> Tensor:
    """Return the weighted mean of the losses of the drawn pairs, and pass their slopes to the sampler.

    Args:
        losses: Loss of each pair, shape (B,).
        index: Row index of each pair, shape (B,).
        slopes: dL/dm of each pair, shape (B,).
        gather: Collects the values of all processes.

    Raises:
        ValueError: A slope is not finite.
    """
    rows, priorities = gather((index, slopes.abs()))
    for i in (~priorities.isfinite()).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"row {rows[i].item()} of the prepared training data (trainer.train_dataset) must have finite scores to "
            f"get a priority, got {priorities[i].item():g} as the slope of its loss: lower the learning rate, or train "
            "in float32 or bfloat16"
        )
    sampler.update(rows, priorities)
    return (sampler.weights(index).to(losses) * losses).mean()


def save_sampler(sampler: PrioritizedSampler, checkpoint: str) -> None:
    """Write the sampler's state to a checkpoint's folder."""
    state = sampler.state_dict()
    state["round"] = torch.tensor(state["round"])
    save_file(state, Path(checkpoint) / _STATE_FILE)


def load_sampler(sampler: PrioritizedSampler, checkpoint: str) -> None:
    """Load the sampler's state from a checkpoint's folder.

    Raises:
        ValueError: The checkpoint has no state, or the state belongs to other data.
    """
    file = Path(checkpoint) / _STATE_FILE
    if not file.is_file():
        raise ValueError(
            f"{checkpoint} must contain {_STATE_FILE} to resume with pcrm_priority_alpha, got a checkpoint "
            "that was saved without it: resume with pcrm_priority_alpha=0, or start a new run from its weights"
        )
    state: dict[str, Any] = load_file(file)
    try:
        sampler.load_state_dict(state | {"round": int(state["round"])})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
