"""Checks of the training data before training: what stops a run, and what deserves a warning."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from accelerate import PartialState

from ..data.check_preferences import check_dataset
from ..data.preferences import listed

logger = logging.getLogger(__name__)

_SHOWN = 16  # characters on each side of the joint between prompt and response


def check_columns(columns: Collection[str], data: str) -> None:
    """Check that rows are pairs, rankings or tokenized pairs, judging by their columns.

    Args:
        columns: The names of the columns.
        data: What the message calls the data, such as a file's name.

    Raises:
        ValueError: A column is missing.
    """
    tokenized = any("ids" in column.split("_") for column in columns)
    if tokenized or "responses" in columns or {"chosen", "rejected"} <= set(columns):
        return
    raise ValueError(
        f"{data} must have the columns chosen and rejected (and prompt, if they do not begin with it), or prompt, responses "
        f"and ratings for rankings, got {listed(columns)}: rename its columns"
    )


def check_tokenizer(dataset: Any, name: str, processing_class: Any, args: Any) -> None:
    """Check that the tokenizer has what TRL needs to prepare a data set.

    Args:
        dataset: A `datasets.Dataset` or `IterableDataset` of pairs.
        name: TRL's name for the data set, such as `train`.
        processing_class: The tokenizer, or a processor that contains one.
        args: TRL's arguments. Only those of reward models can set a template or a token.

    Raises:
        ValueError: The rows are messages and there is no chat template, or they are plain text and there is no
            end-of-sequence token.
    """
    row = next(iter(dataset), None)
    if row is None or "chosen" not in row or "chosen_ids" in row:
        return
    if not isinstance(row["chosen"], str):
        if not _has_chat_template(processing_class):
            option = "set chat_template_path, " if hasattr(args, "chat_template_path") else ""
            raise ValueError(
                f"the tokenizer must have a chat template, because the {name} data set holds messages, got none: {option}save "
                "one as chat_template.jinja in the model's folder, or start from a chat model"
            )
        return
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer.eos_token is None:
        example = f", such as eos_token={tokenizer.sep_token!r}" if tokenizer.sep_token is not None else ""
        option = f"set eos_token to one of its tokens{example}, or " if hasattr(args, "eos_token") else ""
        raise ValueError(
            f"the tokenizer must have an eos_token, which TRL appends to the plain texts of the {name} data set, got none: "
            f"{option}add one to tokenizer_config.json in the model's folder"
        )


def _has_chat_template(processing_class: Any) -> bool:
    if getattr(processing_class, "chat_template", None) is not None:
        return True
    try:
        processing_class.get_chat_template()
    except NotImplementedError:  # Mistral's own tokenizer formats messages without a template
        return True
    except (ValueError, AttributeError):
        return False
    return True


def joint_of(dataset: Any) -> str | None:
    """The place where the first row's prompt and chosen response meet; None unless both are plain text."""
    row: Mapping[str, Any] = dataset[0] if getattr(dataset, "num_rows", 0) else {}
    prompt, chosen = row.get("prompt"), row.get("chosen")
    if not isinstance(prompt, str) or not isinstance(chosen, str):
        return None
    return f"{prompt[-_SHOWN:]!r} + {chosen[:_SHOWN]!r}"


def warn_of_faults(dataset: Any, name: str) -> None:
    """Log one line for each fault that `check_dataset` finds in the training data, in the main process.

    Args:
        dataset: A `datasets.Dataset`. An iterable one is skipped, because the check would read all of it.
        name: TRL's name for the data set, `train` for training data.
    """
    if name != "train" or not hasattr(dataset, "num_rows") or not PartialState().is_main_process:
        return
    for f in check_dataset(dataset):
        places = "; ".join(map(str, f.examples))
        logger.warning(
            f"the {name} data set has {f.message}: {f.count:,} of {f.total:,} ({places}). To fix: {f.remedy}. Run `pcrm check` for details"
        )
