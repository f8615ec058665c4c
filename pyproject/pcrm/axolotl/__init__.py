"""Axolotl's `rl: dpo` and `reward_model: true` with the prior-constrained loss, enabled in its YAML file.

    dpo_loss_type: [pcrm]     # for DPO
    pcrm_prior: lexical       # any key pcrm_* for a reward model, optional for DPO

Axolotl loads `PCRMPlugin` automatically, through the entry point of group `axolotl.plugins` in pyproject.toml.

How the integration works:

- plugin.py has the hooks that Axolotl calls. It imports the modules below only if named.py finds pcrm in the configuration.
- keys.py checks the configuration: a run that names pcrm either trains with it or stops before anything is loaded.
- arguments.py adds the keys to Axolotl's schema: the fields of `pcrm.trl.PCRMArguments`.
- trainers.py puts pcrm's trainers before Axolotl's in the bases, so that its optimizers, schedules and parallelism still work.
- reward_data.py keeps the texts and the column `prior` of a reward model's data, which Axolotl drops.
"""
