"""Which configurations train with pcrm, and what the others that name it are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..settings import Task
from ..training.arguments import hint
from ..trl import PCRMArguments
from .arguments import FIELDS, PCRMKeys
from .named import is_key, is_loss, lines

DPO_TRAINER = "pcrm.axolotl.trainers.ConstrainedDPOTrainer"

_HOW = "rl: dpo with dpo_loss_type: [pcrm], or reward_model: true"


@dataclass
class _DPOArguments(PCRMArguments):
    _pcrm_task: ClassVar[Task] = "dpo"


def check(cfg: Mapping[str, Any], argv: list[str]) -> None:
    """Refuse a configuration that names pcrm and would train with another loss, or whose constraint is wrong.

    Args:
        cfg: The configuration as it is in the file, with what Axolotl took of the command line.
        argv: The command line.

    Raises:
        ValueError: of the first key that is wrong.
        TypeError, OSError: as from `PCRMArguments.pcrm_settings`.
    """
    for name, value in lines(cfg):
        _check_key(name, value)
    for word in argv:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--pcrm") and name not in cfg:
            raise ValueError(f"{word} must be in the YAML file, got a flag: Axolotl does not read it. Set {name} there")
    given = {name: cfg[name] for name in FIELDS if name in cfg}
    _check_task(cfg, next(iter(given), None))
    arguments = _DPOArguments if cfg.get("rl") else PCRMArguments
    # The schema first, as Axolotl applies it: YAML has a text for 1e-3.
    arguments(**PCRMKeys(**given).model_dump(exclude_none=True)).pcrm_settings()


def _check_key(name: str, value: Any) -> None:
    if is_loss(name, value):
        if name != "dpo_loss_type":
            raise ValueError(f"{name} must be a loss of Axolotl's, got {value!r}: pcrm is a loss of dpo_loss_type")
        if "pcrm" not in value:
            raise ValueError(f"dpo_loss_type must contain pcrm or losses of TRL's, got {value}")
    if not is_key(name):
        return
    above, _, key = name.rpartition(".")
    if key not in FIELDS:
        near = hint(key, FIELDS) or f": the keys are {', '.join(FIELDS)}"
        raise ValueError(f"{name} is not a key of pcrm{near}")
    if above:
        raise ValueError(f"{key} must not be indented, got {name}")
    if value is None:
        raise ValueError(f"{name} must have a value, got nothing: set it, or remove the line")


def _check_task(cfg: Mapping[str, Any], name: str | None) -> None:
    rl, losses = cfg.get("rl"), cfg.get("dpo_loss_type") or []
    if "pcrm" in losses:
        if rl != "dpo":
            raise ValueError(f"rl must be dpo with dpo_loss_type: [pcrm], got {rl!r}")
        if (trainer := cfg.get("trainer_cls")) not in (None, DPO_TRAINER):
            raise ValueError(
                f"trainer_cls must not be set with dpo_loss_type: [pcrm], got {trainer}: it is pcrm's trainer"
            )
    elif rl == "dpo":
        raise ValueError(f"dpo_loss_type must contain pcrm where {name} is set, got {losses or 'none'}")
    elif rl or not cfg.get("reward_model"):
        found = f"rl: {rl}" if rl else "neither"
        raise ValueError(f"{name} requires {_HOW}, got {found}")
    elif cfg.get("sample_packing"):
        raise ValueError("sample_packing must be false for a reward model with pcrm, got true")
