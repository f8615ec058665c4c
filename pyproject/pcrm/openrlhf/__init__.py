"""OpenRLHF's losses, trainers and data set with the prior constraint.

    trainer.loss_fn = pcrm.openrlhf.PCRMPairWiseLoss(constraint)

or, with no line of Python, `pcrm openrlhf train_rm ...` in the place of
`python -m openrlhf.cli.train_rm ...`. The losses need torch alone; the trainers and the
data set need OpenRLHF, 0.10 or newer, and are imported when they are first asked for.
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
