"""Register our trainers in ms-swift's `TrainerFactory`, for runs that ask for the loss `pcrm`."""

# ms-swift is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from typing import Any

from swift.dataset import RowPreprocessor
from swift.trainers import TrainerFactory

from .arguments import LOSS, losses_of, prepare


def register() -> None:
    """Make ms-swift use our trainers if its arguments ask for the loss `pcrm`.

    Raises:
        RuntimeError: This is a run of Megatron-SWIFT, which has different trainers.
    """
    if any(name.startswith("swift.megatron.") for name in sys.modules):
        raise RuntimeError("the plugin of pcrm must be used with `swift rlhf`, got `megatron rlhf`")
    their_args, their_trainer = TrainerFactory.get_training_args, TrainerFactory.get_trainer_cls

    def get_training_args(args: Any) -> Any:
        # The last step of reading the arguments, before the model and the data are loaded.
        if prepare(args) and "prior" not in RowPreprocessor.standard_keys:
            RowPreprocessor.standard_keys.append("prior")  # the columns that ms-swift's preprocessing keeps
        return their_args(args)

    def get_trainer_cls(args: Any) -> Any:
        if LOSS not in losses_of(args):
            return their_trainer(args)
        from . import trainers

        return trainers.ConstrainedDPOTrainer if args.rlhf_type == "dpo" else trainers.ConstrainedRewardTrainer

    TrainerFactory.get_training_args = get_training_args
    TrainerFactory.get_trainer_cls = get_trainer_cls
