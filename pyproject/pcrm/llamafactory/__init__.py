"""LLaMA-Factory's `stage: rm` and `stage: dpo` with the prior constraint.

    pcrm llamafactory train config.yaml

in the place of `llamafactory-cli train config.yaml`. `keys.py` says what asks for the constraint and what is refused,
and needs no LLaMA-Factory. `arguments.py`, `data.py` and `trainers.py` have what goes into the places of its classes;
`patch.py` puts it there and runs its command line.
"""
