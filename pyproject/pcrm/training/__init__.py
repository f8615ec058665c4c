"""What a trainer needs for the constraint, whoever wrote it; TRL need not be installed.

`pcrm.trl`, `pcrm.openrlhf` and the other seams are made of these parts:

- arguments.py: the fields `pcrm_*`, for a configuration.
- prior_column.py, batch_prior.py: the prior of each pair, before training or in a batch.
- fit.py: targets become a constraint, written into `pcrm.toml` and read from there.
- metrics.py, binding.py: the metrics `pcrm/*`, and the message of a constraint that does not bind.
- trainer.py: the hooks of `transformers.Trainer` that put these together.
"""
