"""The scores of sampled responses by a reward model, kept in a file."""

from __future__ import annotations

from pathlib import Path

from ...data.sources import open_source
from ..reward_model import RewardModel
from ..score_rows import add_scores
from ..statistics import Floats
from .pools import columns, made


def score_responses(model: RewardModel, source: str, out: Path, split: str = "train") -> list[Floats]:
    """The scores of the `responses` in each row of a file: from `out` if they are there, else computed into it.

    Raises:
        OSError, ValueError: as `pcrm score`.
    """
    rows = open_source(source, split)
    recipe = {"model": model.identity, "rows": rows.identity, "dtype": model.dtype, "max_length": model.max_length}
    made(out, recipe, lambda: add_scores(rows, out, model, ("responses",)))
    return columns(str(out), ("scores",))[0]
