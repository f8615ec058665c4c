"""What is wrong with the training data, said before training."""

from __future__ import annotations

import logging
from typing import Any

from accelerate import PartialState

from ..data.check_preferences import check_dataset

logger = logging.getLogger(__name__)


def warn_of_faults(dataset: Any, name: str) -> None:
    """Log a line for each thing that `check_dataset` finds in training data, in the main process.

    Args:
        dataset: A `datasets.Dataset`. An iterable one is not looked at, as that would read all of it.
        name: What TRL calls it, `train` for training data.
    """
    if name != "train" or not hasattr(dataset, "num_rows") or not PartialState().is_main_process:
        return
    for f in check_dataset(dataset):
        places = "; ".join(map(str, f.examples))
        logger.warning(
            f"the {name} data set has {f.message}: {f.count:,} of {f.total:,} ({places}). To do: {f.remedy}. `pcrm check` says more"
        )
