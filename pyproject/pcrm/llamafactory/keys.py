"""Decide whether a configuration of LLaMA-Factory asks for the constraint, and reject what does not work with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ..training.arguments import ConstraintArguments, hint

# The stages that train on pairs.
STAGES = ("rm", "dpo")
# Environment variables that make LLaMA-Factory train without our trainers, and the reason.
_ELSEWHERE = {
    "USE_RAY": "Ray's workers reload LLaMA-Factory without the constraint",
    "USE_MCA": "Megatron's trainers compute their own loss",
    "USE_V1": "LLaMA-Factory's v1 has its own trainers",
}


@dataclass
class Keys(ConstraintArguments):
    """The keys `pcrm_*` of a configuration of LLaMA-Factory."""

    __doc__ = f"{__doc__}\n{ConstraintArguments.__doc__}"

    pcrm_prefix_sharing: bool = field(
        default=False,
        metadata={"help": "Whether to compute the prompt of a pair once for both responses."},
    )


NAMES = tuple(f.name for f in dataclasses.fields(Keys))


def check_names(names: Iterable[str]) -> None:
    """Reject misspelled keys of ours.

    LLaMA-Factory rejects them too, but without a suggestion, and ignores them if ALLOW_EXTRA_ARGS is set.

    Raises:
        ValueError: A key starts with `pcrm` and is unknown.
    """
    for name in names:
        if name.lower().startswith("pcrm") and name not in NAMES:
            raise ValueError(f"{name} is not a key of this configuration{hint(name, NAMES) or _all_names()}")


def _all_names() -> str:
    return f": the keys are {', '.join(NAMES)}"


def is_constrained(stage: str, pref_loss: str | None, given: Collection[str], losses: Collection[str]) -> bool:
    """Return whether a configuration asks for the constraint.

    Args:
        stage: The key `stage`.
        pref_loss: The key `pref_loss`; None if it is not set.
        given: The keys `pcrm_*` that are set.
        losses: The values of `pref_loss` that LLaMA-Factory accepts.

    Raises:
        ValueError: The stage or the loss contradicts the constraint, or the loss is unknown; LLaMA-Factory would silently
            use `sigmoid` then.
    """
    if pref_loss is not None and pref_loss not in ("pcrm", *losses):
        known = ("pcrm", *losses)
        near = hint(pref_loss, known)
        raise ValueError(f"pref_loss must be one of {', '.join(known)}, got {pref_loss!r}{near}")
    if pref_loss != "pcrm" and not given:
        return False
    what = "pref_loss is 'pcrm'" if pref_loss == "pcrm" else f"{next(iter(given))} is set"
    if stage not in STAGES:
        raise ValueError(f"stage must be rm or dpo where {what}, got {stage!r}: only these train on pairs")
    if stage == "dpo" and pref_loss not in (None, "pcrm"):
        raise ValueError(f"pref_loss must be 'pcrm' where {what}, got {pref_loss!r}")
    return True


def check_environment(environment: Mapping[str, str]) -> None:
    """Reject ways of training that bypass our trainers.

    Raises:
        ValueError: One of them is enabled.
    """
    for name, reason in _ELSEWHERE.items():
        if (value := environment.get(name, "0")).lower() in ("true", "y", "1"):  # as LLaMA-Factory reads it
            raise ValueError(f"{name} must not be set with the constraint, got {value!r}: {reason}")
