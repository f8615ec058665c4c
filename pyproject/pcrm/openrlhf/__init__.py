"""OpenRLHF's losses, trainers and data set with the prior constraint.

    trainer.loss_fn = pcrm.openrlhf.PCRMPairWiseLoss(constraint)

Or write no Python at all: run `pcrm openrlhf train_rm ...` instead of `python -m openrlhf.cli.train_rm ...`.
The losses need only torch. The trainers and the data set need OpenRLHF 0.10 or newer, and are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from .losses import PCRMDPOLoss, PCRMPairWiseLoss

if TYPE_CHECKING:
    from .training import PCRMDPOTrainer, PCRMRewardDataset, PCRMRewardModelTrainer

__all__ = ["PCRMDPOLoss", "PCRMDPOTrainer", "PCRMPairWiseLoss", "PCRMRewardDataset", "PCRMRewardModelTrainer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import training

    return getattr(training, name)
