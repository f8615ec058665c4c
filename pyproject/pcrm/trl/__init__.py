"""TRL's reward and DPO trainers with the prior-constrained loss.

    from pcrm.trl import PCRMRewardConfig, PCRMRewardTrainer     # instead of RewardConfig, RewardTrainer
    from pcrm.trl import PCRMDPOConfig, PCRMDPOTrainer           # instead of DPOConfig, DPOTrainer

Everything else in your script stays the same. To leave the script unmodified, use `enable()` or `pcrm run script.py`:
they put these classes behind TRL's own names.

How the integration works:

- The loss is swapped in `PCRMRewardTrainer.compute_loss` (reward.py) and `PCRMDPOTrainer._compute_loss` (dpo.py).
- The prior is the data set's column `prior` (`pcrm.training.prior_column`), then the batch's key `prior` (collator.py).
  `ConstrainedTrainer._unpack` (trainer.py) removes it before the model sees the batch.
- The other hooks of transformers and TRL are in trainer.py, which uses rankings.py and prioritized.py, and in
  `pcrm.training`, which does not need TRL.
- configs.py defines the fields `pcrm_*`. token_scores.py reads what the token form and demonstrations need from the model.
  patch.py has `enable()`, command.py `pcrm reward` and `pcrm dpo`, dry_run.py their `--dry-run`.
"""

from .configs import PCRMArguments, PCRMDPOConfig, PCRMRewardConfig
from .dpo import PCRMDPOTrainer
from .patch import enable
from .reward import PCRMRewardTrainer

__all__ = ["PCRMArguments", "PCRMDPOConfig", "PCRMDPOTrainer", "PCRMRewardConfig", "PCRMRewardTrainer", "enable"]
