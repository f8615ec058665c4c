"""Axolotl's trainers with pcrm's loss."""

# Axolotl is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from axolotl.core.trainers.trl import AxolotlRewardTrainer
from axolotl.core.training_args import AxolotlRewardConfig
from axolotl.integrations.base import PluginManager

from ..trl import PCRMDPOConfig, PCRMDPOTrainer, PCRMRewardConfig, PCRMRewardTrainer
from .arguments import FIELDS


@dataclass
class ConstrainedDPOConfig(PCRMDPOConfig, AxolotlDPOConfig):
    """Axolotl's DPO arguments plus the fields of the constraint."""


@dataclass
class ConstrainedRewardConfig(PCRMRewardConfig, AxolotlRewardConfig):
    """Axolotl's reward model arguments plus the fields of the constraint."""


class ConstrainedDPOTrainer(PCRMDPOTrainer, AxolotlDPOTrainer):
    """Axolotl's DPO trainer with the prior-constrained loss."""

    config_class = ConstrainedDPOConfig

    def __init__(self, model: Any, ref_model: Any = None, args: Any = None, **kwargs: Any) -> None:
        super().__init__(model, ref_model, _with_constraint(args, ConstrainedDPOConfig), **kwargs)


class ConstrainedRewardTrainer(PCRMRewardTrainer, AxolotlRewardTrainer):
    """Axolotl's reward trainer with the prior-constrained loss."""

    config_class = ConstrainedRewardConfig

    # Axolotl passes the data sets' names to every reward trainer except its own.
    def __init__(self, model: Any, args: Any = None, dataset_tags: Any = None, **kwargs: Any) -> None:
        super().__init__(model, _with_constraint(args, ConstrainedRewardConfig), **kwargs)


def check_trainer(trainer: Any) -> None:
    """Check that the trainer is pcrm's.

    Raises:
        RuntimeError: It is another plugin's.
    """
    if not isinstance(trainer, ConstrainedDPOTrainer | ConstrainedRewardTrainer):
        name = f"{type(trainer).__module__}.{type(trainer).__name__}"
        raise RuntimeError(
            f"the trainer must be pcrm's, got {name}, which has a different loss: remove the plugin that provides it, or pcrm's keys"
        )


def _with_constraint(args: Any, kind: type[Any]) -> Any:
    """Return the arguments that Axolotl created, plus pcrm's keys from its configuration."""
    made = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init}
    cfg = PluginManager.get_instance().cfg
    return kind(**made | {name: cfg[name] for name in FIELDS if cfg.get(name) is not None})
