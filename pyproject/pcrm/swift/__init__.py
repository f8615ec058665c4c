"""ms-swift's `--rlhf_type rm` and `--rlhf_type dpo` with the prior constraint.

    swift rlhf --rlhf_type rm --loss_type pcrm --external_plugins $(python -m pcrm.swift) ...

ms-swift imports the file `plugin/pcrm_plugin.py`. It hooks `register.py` into ms-swift's `TrainerFactory`, which then reads
the arguments (`arguments.py`, without ms-swift). If they ask for the loss `pcrm`, it creates one of our trainers
(`trainers.py`, with priors from `data.py`). Everything else stays ms-swift's.
"""
