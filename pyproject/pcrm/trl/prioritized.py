"""The prioritized sampler in a trainer: rounds, weights, and its state in a checkpoint.

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
    """A sampler whose draws go by rounds."""

    def set_round(self, number: int, /) -> None: ...


class RoundsByEpoch(TrainerCallback):
    """An epoch is a round of the sampler: loaders do not tell it to a sampler that they share out."""

    def __init__(self, sampler: Rounds) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.set_round(int(state.epoch or 0))  # in the middle of one where a run is resumed


def sampler_of(dataset: Any, args: Any) -> PrioritizedSampler:
    """Return a sampler of the rows of prepared training data, with the arguments `pcrm_priority_*`.

    Raises:
        ValueError: the data set is an iterable one.
    """
    if not hasattr(dataset, "num_rows"):
        raise ValueError("pcrm_priority_alpha needs a data set whose rows can be drawn, not an iterable one")
    return PrioritizedSampler(
        dataset.num_rows,
        alpha=args.pcrm_priority_alpha,
        epsilon=args.pcrm_priority_epsilon,
        seed=args.seed if args.data_seed is None else args.data_seed,
        num_samples=args.pcrm_priority_samples,
    )


def with_index(dataset: Any) -> Any:
    """Return the data set with each row's place in the column `INDEX`."""
    if INDEX in dataset.column_names:  # of another trainer, which may have had other rows
        dataset = dataset.remove_columns(INDEX)
    return dataset.add_column(INDEX, range(dataset.num_rows))


def weighted_mean(
    sampler: PrioritizedSampler,
    losses: Tensor,
    index: Tensor,
    slopes: Tensor,
    gather: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]],
) -> Tensor:
    """Return the mean of the drawn pairs' losses with their weights, and tell the sampler the slopes.

    Args:
        losses: The loss of each pair, shape (B,).
        index: Which rows the pairs are, shape (B,).
        slopes: dL/dm of each pair, shape (B,).
        gather: What makes the values of all processes of those of this one.

    Raises:
        ValueError: a slope is not finite.
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
    """Write the sampler's state into the folder of a checkpoint."""
    state = sampler.state_dict()
    state["round"] = torch.tensor(state["round"])
    save_file(state, Path(checkpoint) / _STATE_FILE)


def load_sampler(sampler: PrioritizedSampler, checkpoint: str) -> None:
    """Set the sampler to the state in the folder of a checkpoint.

    Raises:
        ValueError: the checkpoint has none, or one of other data.
    """
    file = Path(checkpoint) / _STATE_FILE
    if not file.is_file():
        raise ValueError(
            f"{checkpoint} must hold {_STATE_FILE} to be resumed with pcrm_priority_alpha, got a checkpoint "
            "that was saved without it: resume with pcrm_priority_alpha=0, or start a new run from its weights"
        )
    state: dict[str, Any] = load_file(file)
    try:
        sampler.load_state_dict(state | {"round": int(state["round"])})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
