"""Our trainers in ms-swift's `TrainerFactory`, for runs that ask for the loss `pcrm`."""

# ms-swift is in an environment of its own, not in that of the type checker.
# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from typing import Any

from swift.dataset import RowPreprocessor
from swift.trainers import TrainerFactory

from .arguments import LOSS, losses_of, prepare


def register() -> None:
    """Let ms-swift make our trainers where its arguments ask for the loss `pcrm`.

    Raises:
        RuntimeError: this is a run of Megatron-SWIFT, whose trainers are others.
    """
    if any(name.startswith("swift.megatron.") for name in sys.modules):
        raise RuntimeError("the plugin of pcrm works with `swift rlhf`, not with `megatron rlhf`")
    their_args, their_trainer = TrainerFactory.get_training_args, TrainerFactory.get_trainer_cls

    def get_training_args(args: Any) -> Any:
        # The last step of reading the arguments, before the model and the data are loaded.
        if prepare(args) and "prior" not in RowPreprocessor.standard_keys:
            RowPreprocessor.standard_keys.append("prior")  # the columns that survive ms-swift's preprocessing
        return their_args(args)

    def get_trainer_cls(args: Any) -> Any:
        if LOSS not in losses_of(args):
            return their_trainer(args)
        from . import trainers

        return trainers.ConstrainedDPOTrainer if args.rlhf_type == "dpo" else trainers.ConstrainedRewardTrainer

    TrainerFactory.get_training_args = get_training_args
    TrainerFactory.get_trainer_cls = get_trainer_cls
