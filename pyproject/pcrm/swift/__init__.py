"""ms-swift's `--rlhf_type rm` and `--rlhf_type dpo` with the prior constraint.

    swift rlhf --rlhf_type rm --loss_type pcrm --external_plugins $(python -m pcrm.swift) ...

`plugin/pcrm_plugin.py` is the file that ms-swift imports. It puts `register.py` into ms-swift's `TrainerFactory`, which
looks at the arguments (`arguments.py`, without ms-swift) and makes one of our trainers (`trainers.py`, with the priors of
`data.py`) if they ask for the loss `pcrm`. All else stays ms-swift's.
"""
