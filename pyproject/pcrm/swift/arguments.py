"""Read the constraint from ms-swift's arguments and the environment. Does not require ms-swift."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import _check
from ..losses import warn_of_smoothing
from ..settings import Task
from ..training.arguments import ConstraintArguments, merged

LOSS = "pcrm"
CONFIG, ENCODER = "PCRM_CONFIG", "PCRM_PRIOR_MODEL"
TASKS: dict[str, Task] = {"rm": "reward", "dpo": "dpo"}  # by --rlhf_type


@dataclass
class _Arguments(ConstraintArguments):
    _pcrm_encoder: ClassVar[str] = ENCODER


@dataclass
class _DPOArguments(_Arguments):
    _pcrm_task: ClassVar[Task] = "dpo"


def from_environment(task: Task) -> ConstraintArguments:
    """Return the settings that the environment names. ms-swift rejects flags that it does not know.

    Raises:
        ValueError: An encoder is set without a file that asks for it.
    """
    if os.environ.get(ENCODER) and not os.environ.get(CONFIG):
        raise ValueError(
            f"{CONFIG} must be a pcrm.toml with prior = 'cosine' where {ENCODER} is set, got none: set it, or unset {ENCODER}"
        )
    arguments = _DPOArguments if task == "dpo" else _Arguments
    return arguments(pcrm_config=os.environ.get(CONFIG) or None, pcrm_prior_model=os.environ.get(ENCODER) or None)


def prepare(args: Any) -> bool:
    """Check ms-swift's arguments, and merge the settings that they share with `pcrm.toml`.

    Args:
        args: The arguments of any training run. For the tasks in `TASKS`, `center_rewards_coefficient`, `beta` and
            `label_smoothing` are set from the file if they still have their defaults.

    Returns:
        Whether the arguments ask for the loss `pcrm`.

    Raises:
        TypeError, ValueError: An argument does not work with the loss or contradicts the file; the environment sets up
            the loss without an argument that asks for it; or the file has a wrong setting.
        OSError: The file cannot be read.
    """
    types = losses_of(args)
    if LOSS not in types:
        for name in (CONFIG, ENCODER):
            if os.environ.get(name):
                raise ValueError(
                    f"--loss_type must be {LOSS} where {name} is set, got {' '.join(types) or None}: add --loss_type {LOSS}, "
                    f"or unset {name}"
                )
        return False
    task = TASKS.get(getattr(args, "rlhf_type", ""))
    if task is None:
        raise ValueError(
            f"--rlhf_type must be rm or dpo with --loss_type {LOSS}, got {getattr(args, 'rlhf_type', None)}"
        )
    if types.count(LOSS) > 1:
        raise ValueError(f"--loss_type must contain {LOSS} exactly once, got {' '.join(types)}")
    for name in ("packing", "padding_free"):
        if getattr(args, name):
            raise ValueError(
                f"--{name} must be false with --loss_type {LOSS}, got true: it concatenates the responses of a batch"
            )
    settings = from_environment(task).pcrm_settings()
    if task == "reward":
        _take(args, "center_rewards_coefficient", settings.center_rewards_coefficient, None)
        if args.center_rewards_coefficient is not None:
            _check.at_least_0("--center_rewards_coefficient", args.center_rewards_coefficient)
        warn_of_smoothing(settings.label_smoothing, settings.constraint)
        return True
    if settings.label_smoothing and (others := smoothed_by_others(types)):
        raise ValueError(
            f"label_smoothing in {os.environ[CONFIG]} must be 0 with --loss_type {' '.join(types)}, got "
            f"{settings.label_smoothing}: {' and '.join(others)} would use it too. Set --label_smoothing instead"
        )
    _take(args, "label_smoothing", settings.label_smoothing, 0)
    _take(args, "beta", settings.dpo_beta, 0.1)
    _check.positive("--beta", args.beta)
    if not smoothed_by_others(types):
        warn_of_smoothing(_check.label_smoothing(args.label_smoothing), settings.constraint)
    return True


def losses_of(args: Any) -> list[str]:
    """The loss types in ms-swift's arguments, which contain None, one name or a list."""
    given = args.loss_type
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)


def smoothed_by_others(types: list[str]) -> list[str]:
    """The losses in a mix for which ms-swift's `label_smoothing` is a parameter of their own."""
    return [name for name in ("exo_pair", "robust") if name in types]


def _take(args: Any, name: str, of_file: float, default: float | None) -> None:
    """Set ms-swift's flag from the file, unless both are set."""
    value = getattr(args, name)
    contradiction = f"--{name} must be {of_file}, as in {os.environ.get(CONFIG)}, or left out, got {value}"
    setattr(args, name, merged(value, of_file, default, contradiction))
