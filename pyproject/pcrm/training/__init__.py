"""The parts of constrained training that all frameworks share. TRL is not required.

`pcrm.trl`, `pcrm.openrlhf` and the other integrations are built from these modules:

- arguments.py: the configuration fields `pcrm_*`.
- prior_column.py, batch_prior.py: the prior of each pair, computed before training or in each batch.
- fit.py: fits a constraint to targets; writes and reads `pcrm.toml`.
- metrics.py, binding.py: the metrics `pcrm/*`, and the warning about a constraint that does not bind.
- trainer.py: the hooks of `transformers.Trainer` that combine these parts.
"""
