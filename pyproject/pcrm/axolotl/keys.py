"""Decide which configurations train with pcrm, and reject others that name it."""

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
    """Reject a configuration that names pcrm but would train with another loss, or whose constraint is invalid.

    Args:
        cfg: The configuration as in the file, plus what Axolotl read from the command line.
        argv: The command line.

    Raises:
        ValueError: A key is wrong; the message names the first.
        TypeError, OSError: As in `PCRMArguments.pcrm_settings`.
    """
    for name, value in lines(cfg):
        _check_key(name, value)
    for word in argv:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--pcrm") and name not in cfg:
            raise ValueError(f"{name} must be set in the YAML file, got the flag {word}, which Axolotl does not read")
    given = {name: cfg[name] for name in FIELDS if name in cfg}
    _check_task(cfg, next(iter(given), None))
    arguments = _DPOArguments if cfg.get("rl") else PCRMArguments
    # Apply the schema first, as Axolotl does: YAML reads 1e-3 as a string.
    arguments(**PCRMKeys(**given).model_dump(exclude_none=True)).pcrm_settings()


def _check_key(name: str, value: Any) -> None:
    if is_loss(name, value):
        if name != "dpo_loss_type":
            raise ValueError(f"{name} must be one of Axolotl's losses, got {value!r}: set pcrm in dpo_loss_type")
        if "pcrm" not in value:
            raise ValueError(f"dpo_loss_type must contain pcrm or TRL's losses, got {value}")
    if not is_key(name):
        return
    above, _, key = name.rpartition(".")
    if key not in FIELDS:
        near = hint(key, FIELDS) or f": the keys are {', '.join(FIELDS)}"
        raise ValueError(f"{name} is not a key of pcrm{near}")
    if above:
        raise ValueError(f"{key} must be a top-level key, got {name}: do not indent it")
    if value is None:
        raise ValueError(f"{name} must have a value, got none: set one, or remove the line")


def _check_task(cfg: Mapping[str, Any], name: str | None) -> None:
    rl, losses = cfg.get("rl"), cfg.get("dpo_loss_type") or []
    if "pcrm" in losses:
        if rl != "dpo":
            raise ValueError(f"rl must be dpo with dpo_loss_type: [pcrm], got {rl!r}")
        if (trainer := cfg.get("trainer_cls")) not in (None, DPO_TRAINER):
            raise ValueError(
                f"trainer_cls must not be set with dpo_loss_type: [pcrm], which uses pcrm's trainer, got {trainer}"
            )
    elif rl == "dpo":
        raise ValueError(f"dpo_loss_type must contain pcrm where {name} is set, got {losses or 'none'}")
    elif rl or not cfg.get("reward_model"):
        found = f"rl: {rl}" if rl else "neither"
        raise ValueError(f"{name} must be used with {_HOW}, got {found}")
    elif cfg.get("sample_packing"):
        raise ValueError("sample_packing must be false for a reward model with pcrm, got true")
