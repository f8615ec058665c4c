"""Put our trainers behind TRL's own names: `enable()` and `pcrm run`, for unmodified scripts."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import trl
import trl.trainer
from trl import DPOTrainer, RewardTrainer

from ..training.arguments import given, hint
from .configs import PCRMDPOConfig, PCRMRewardConfig
from .dpo import PCRMDPOTrainer
from .reward import PCRMRewardTrainer
from .trainer import ConstrainedTrainer


@dataclass
class _EnabledRewardConfig(PCRMRewardConfig):
    __doc__ = PCRMRewardConfig.__doc__

    @property
    def pcrm_enabled(self) -> bool:
        return bool(given(self))


@dataclass
class _EnabledDPOConfig(PCRMDPOConfig):
    __doc__ = PCRMDPOConfig.__doc__

    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata=dict(PCRMDPOConfig.__dataclass_fields__["loss_type"].metadata),
    )

    @property
    def pcrm_enabled(self) -> bool:
        return "pcrm" in self.loss_type

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pcrm_enabled and (names := given(self)):
            raise ValueError(f"loss_type must contain 'pcrm' where {names[0]} is set, got {self.loss_type}")


class _Enabled(ConstrainedTrainer):
    # Source of tags, model card, citation and default output folder; they are TRL's own unless the constraint is used.
    _ours: ClassVar[type[Any]]

    def _read(self, args: Any, model: Any) -> Any:
        if args is None or isinstance(args, self.config_class):
            args = super()._read(args, model)
        else:
            self.constrained = False  # TRL's own configuration, from before `enable`
        if self.constrained:
            for name in ("_name", "_tag_names", "_paper"):
                setattr(self, name, getattr(self._ours, name))
        return args


class _EnabledRewardTrainer(_Enabled, PCRMRewardTrainer):
    __doc__ = PCRMRewardTrainer.__doc__
    config_class = _EnabledRewardConfig
    _ours = PCRMRewardTrainer
    _name, _tag_names, _paper = RewardTrainer._name, RewardTrainer._tag_names, RewardTrainer._paper


class _EnabledDPOTrainer(_Enabled, PCRMDPOTrainer):
    __doc__ = PCRMDPOTrainer.__doc__
    config_class = _EnabledDPOConfig
    _ours = PCRMDPOTrainer
    _name, _tag_names, _paper = DPOTrainer._name, DPOTrainer._tag_names, DPOTrainer._paper


class _Parser(trl.TrlParser):
    __doc__ = trl.TrlParser.__doc__

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        # TRL ignores unknown keys, and a misspelled key of the constraint would train a different loss.
        remaining = super().set_defaults_with_config(**kwargs)
        known = {action.dest for action in self._actions}
        ours = sorted(name for name in known if name.startswith("pcrm"))
        for key in kwargs.keys() - known:
            if key.startswith("pcrm"):
                near = hint(key, ours) or f": the keys are {', '.join(ours) or 'none here'}"
                raise ValueError(f"{key} is not a key of this configuration{near}")
            if near := hint(key, known):
                warnings.warn(f"{key} is not a key of this configuration, so TRL ignores it{near}", stacklevel=2)
        return remaining


def replace_in_trl(**behind: type) -> None:
    """Put classes behind TRL's names, and our parser behind the parser of its scripts."""
    for module in (trl, trl.trainer):
        for name, ours in behind.items():
            setattr(module, name, ours)
    trl.TrlParser = _Parser


def enable() -> None:
    """Put pcrm's trainers and configurations behind TRL's names, in this process.

    From then on, `trl.DPOTrainer` trains with the constrained loss if its configuration sets `loss_type: [pcrm]`, and
    `trl.RewardTrainer` does if its configuration sets a field `pcrm_*`. Otherwise both behave as before. `trl.TrlParser`
    also rejects unknown keys `pcrm*` in a YAML file. Call this function before the script imports the trainers by name;
    `pcrm run script.py` does that.
    """
    replace_in_trl(
        RewardConfig=_EnabledRewardConfig,
        RewardTrainer=_EnabledRewardTrainer,
        DPOConfig=_EnabledDPOConfig,
        DPOTrainer=_EnabledDPOTrainer,
    )
    # Some scripts import the trainers from these modules. The configurations stay: pickling one that the script created
    # before would fail, and TRL's own configurations reject unknown fields anyway.
    for module, ours in (("reward_trainer", _EnabledRewardTrainer), ("dpo_trainer", _EnabledDPOTrainer)):
        setattr(importlib.import_module(f"trl.trainer.{module}"), ours.__name__.removeprefix("_Enabled"), ours)
