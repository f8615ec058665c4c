"""TRL's reward and DPO trainers with the prior-constrained loss.

    from pcrm.trl import PCRMRewardConfig, PCRMRewardTrainer     # instead of RewardConfig, RewardTrainer
    from pcrm.trl import PCRMDPOConfig, PCRMDPOTrainer           # instead of DPOConfig, DPOTrainer

Everything else of a script stays as it is. Or leave the script as it is, too: `enable()`, or
`pcrm run script.py`, puts these classes behind TRL's own names.

Where the seam is:

- The loss is swapped in `PCRMRewardTrainer.compute_loss` (reward.py) and `PCRMDPOTrainer._compute_loss` (dpo.py).
- The prior travels as the data set's column `prior` (`pcrm.training.prior_column`), then as the batch's key `prior`
  (collator.py), which `ConstrainedTrainer._unpack` (trainer.py) takes out before the model sees the batch.
- The other hooks of transformers and TRL are in trainer.py, which hands on to rankings.py and prioritized.py, and in
  `pcrm.training`, which needs no TRL.
- configs.py has the fields `pcrm_*`, token_scores.py what the token form and demonstrations read out of the model,
  patch.py `enable()`, command.py `pcrm reward` and `pcrm dpo`, dry_run.py their `--dry-run`.
"""

from .configs import PCRMArguments, PCRMDPOConfig, PCRMRewardConfig
from .dpo import PCRMDPOTrainer
from .patch import enable
from .reward import PCRMRewardTrainer

__all__ = ["PCRMArguments", "PCRMDPOConfig", "PCRMDPOTrainer", "PCRMRewardConfig", "PCRMRewardTrainer", "enable"]
