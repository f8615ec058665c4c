"""`pcrm llamafactory`: LLaMA-Factory's own command line with the prior-constrained loss."""

from __future__ import annotations

import dataclasses

from ._parser import Parser

_ABOUT = """\
Run `llamafactory-cli train` with the prior-constrained loss, for `stage: rm` and `stage: dpo`. To
use the loss, set `pref_loss: pcrm` or any of the keys below in the configuration. All other keys
are LLaMA-Factory's own; `pcrm llamafactory train --help` lists them.

Start it with either launcher:

  one machine:  pcrm llamafactory train config.yaml [key=value ...]
  torchrun:     torchrun --nproc_per_node 8 -m pcrm.llamafactory train config.yaml

As with llamafactory-cli, several GPUs or FORCE_TORCHRUN=1 start torchrun.
"""
_EXAMPLES = (
    "pcrm llamafactory train reward.yaml",
    "pcrm llamafactory train dpo.yaml pref_loss=pcrm pcrm_prior=lexical",
)


def main(argv: list[str]) -> int:
    from ..llamafactory.keys import Keys

    parser = Parser(
        "pcrm llamafactory",
        _ABOUT,
        *_EXAMPLES,
        usage="pcrm llamafactory train config.yaml [key=value ...]",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=("train",), help="LLaMA-Factory's command")
    keys = parser.add_argument_group("keys of the configuration")
    for field in dataclasses.fields(Keys):
        keys.add_argument(f"--{field.name}", action="store_true", help=field.metadata["help"])
    parser.parse_args(argv[:1])
    from ..llamafactory import patch

    patch.train(argv[1:])
    return 0
