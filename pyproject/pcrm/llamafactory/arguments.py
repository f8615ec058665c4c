"""LLaMA-Factory's arguments plus the keys of the constraint."""

# LLaMA-Factory is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from llamafactory.hparams import FinetuningArguments
from transformers import HfArgumentParser

from .. import _check
from ..losses import warn_of_smoothing
from ..training.arguments import given, merged
from .keys import Keys, check_environment, check_names, is_constrained

_LOSSES: tuple[str, ...] = get_args(get_type_hints(FinetuningArguments)["pref_loss"])


@dataclass
class ConstrainedArguments(Keys, FinetuningArguments):
    """`FinetuningArguments` plus the keys of the constraint.

    Attributes:
        constrained: Whether the configuration asks for the constraint.
    """

    pref_loss: str | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, metadata={"help": f"The type of DPO loss to use: pcrm, {', '.join(_LOSSES)}."}
    )

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Keys).items():
            # YAML reads `inf` as a string.
            if float in get_args(kind) and isinstance(value := getattr(self, name), str):
                setattr(self, name, _number(value))
        self.constrained = is_constrained(self.stage, self.pref_loss, given(self), _LOSSES)
        # LLaMA-Factory then runs the checks of its sigmoid loss, which allows label smoothing.
        self.pref_loss = "sigmoid" if self.constrained or self.pref_loss is None else self.pref_loss
        super().__post_init__()
        if not self.constrained:
            return
        self.pref_loss = "pcrm"
        check_environment(os.environ)
        settings = self.pcrm_settings()
        if self.stage == "dpo":
            self._take("pref_beta", settings.dpo_beta, 0.1)
            self._take("dpo_label_smoothing", settings.label_smoothing, 0.0)
            _check.positive("pref_beta", self.pref_beta)
            warn_of_smoothing(_check.label_smoothing(self.dpo_label_smoothing), settings.constraint)

    @property
    def _pcrm_task(self) -> Any:
        return "dpo" if self.stage == "dpo" else "reward"

    def _take(self, name: str, of_file: float, default: float) -> None:
        """Set LLaMA-Factory's key from the file, unless both are set."""
        value = getattr(self, name)
        contradiction = f"{name} must be {of_file}, as in {self.pcrm_config}, or left out, got {value}"
        setattr(self, name, merged(value, of_file, default, contradiction))


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text  # rejected by name later


def parse(args: dict[str, Any] | list[str]) -> ConstrainedArguments:
    """Parse the arguments of LLaMA-Factory's command line that concern the constraint.

    Args:
        args: The keys of a file, or flags, as LLaMA-Factory's `read_args` returns them.

    Raises:
        TypeError, ValueError: A key is unknown or out of range, or contradicts another one.
        OSError: A file cannot be read.
    """
    parser = HfArgumentParser(ConstrainedArguments)  # pyright: ignore[reportArgumentType]
    if isinstance(args, dict):
        check_names(args)
        return parser.parse_dict(args, allow_extra_keys=True)[0]
    check_names(flag.removeprefix("--").split("=")[0] for flag in args if flag.startswith("--"))
    return parser.parse_args_into_dataclasses(args=args, return_remaining_strings=True)[0]
