"""TRL's reward and DPO trainers with the prior-constrained loss.

    from pcrm.trl import PCRMRewardConfig, PCRMRewardTrainer     # instead of RewardConfig, RewardTrainer
    from pcrm.trl import PCRMDPOConfig, PCRMDPOTrainer           # instead of DPOConfig, DPOTrainer

Everything else of a script stays as it is. Or leave the script as it is, too: `enable()`, or
`pcrm run script.py`, puts these classes behind TRL's own names.
"""

from .configs import PCRMArguments, PCRMDPOConfig, PCRMRewardConfig
from .dpo import PCRMDPOTrainer
from .patch import enable
from .reward import PCRMRewardTrainer

__all__ = ["PCRMArguments", "PCRMDPOConfig", "PCRMDPOTrainer", "PCRMRewardConfig", "PCRMRewardTrainer", "enable"]
