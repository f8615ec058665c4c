"""LLaMA-Factory's `stage: rm` and `stage: dpo` with the prior constraint.

    pcrm llamafactory train config.yaml

replaces `llamafactory-cli train config.yaml`. `keys.py` decides which configurations use the constraint and which are
rejected; it does not need LLaMA-Factory. `arguments.py`, `data.py` and `trainers.py` contain the replacements for its
classes. `patch.py` installs them and runs its command line.
"""
