"""Our trainers behind TRL's own names: `enable()` and `pcrm run`, for scripts that stay as they are."""

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
            raise ValueError(f"{names[0]} is set, but loss_type is {self.loss_type}: add 'pcrm' to it")


class _Enabled(ConstrainedTrainer):
    # What tags, model card, citation and default output folder say: TRL's own until the constraint is asked for.
    _ours: ClassVar[type[Any]]

    def _read(self, args: Any, model: Any) -> Any:
        if args is None or isinstance(args, self.config_class):
            args = super()._read(args, model)
        else:
            self.constrained = False  # TRL's own, from before `enable`
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
        # TRL ignores what it does not know, and a misspelt constraint would train another loss.
        remaining = super().set_defaults_with_config(**kwargs)
        known = {action.dest for action in self._actions}
        ours = sorted(name for name in known if name.startswith("pcrm"))
        for key in kwargs.keys() - known:
            if key.startswith("pcrm"):
                near = hint(key, ours) or f": the keys are {', '.join(ours) or 'none here'}"
                raise ValueError(f"{key} is not a key of this configuration{near}")
            if near := hint(key, known):
                warnings.warn(f"{key} is not a key of this configuration, and TRL ignores it{near}", stacklevel=2)
        return remaining


def replace_in_trl(**behind: type) -> None:
    """Put classes behind TRL's names, and our parser behind that of its scripts."""
    for module in (trl, trl.trainer):
        for name, ours in behind.items():
            setattr(module, name, ours)
    trl.TrlParser = _Parser


def enable() -> None:
    """Put pcrm's trainers and configurations behind TRL's names, in this process.

    From then on `trl.DPOTrainer` trains with the constrained loss where its configuration says
    `loss_type: [pcrm]`, and `trl.RewardTrainer` where its configuration sets a field `pcrm_*`.
    Otherwise both do what they did, and `trl.TrlParser` refuses an unknown key `pcrm*` in a YAML
    file. Call it before the script imports them by name; `pcrm run script.py` does that.
    """
    replace_in_trl(
        RewardConfig=_EnabledRewardConfig,
        RewardTrainer=_EnabledRewardTrainer,
        DPOConfig=_EnabledDPOConfig,
        DPOTrainer=_EnabledDPOTrainer,
    )
    # Where some scripts import them from. Not so the configurations: one that the script made before
    # could not be pickled under a name that is another's, and TRL's own refuse what they do not know.
    for module, ours in (("reward_trainer", _EnabledRewardTrainer), ("dpo_trainer", _EnabledDPOTrainer)):
        setattr(importlib.import_module(f"trl.trainer.{module}"), ours.__name__.removeprefix("_Enabled"), ours)
