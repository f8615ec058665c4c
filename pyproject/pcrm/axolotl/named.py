"""Whether a configuration of Axolotl names pcrm. Every run of Axolotl asks this, so the module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def names_pcrm(cfg: Mapping[str, Any], argv: list[str]) -> bool:
    """Whether a key, a loss or a flag of the command line names pcrm, rightly or wrongly."""
    in_file = any(is_key(name) or is_loss(name, value) for name, value in lines(cfg))
    return in_file or any(word.startswith("--pcrm") for word in argv)


def lines(cfg: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its value, `trl.beta` for a key below another one."""
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            yield from lines(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def is_key(name: str) -> bool:
    """Whether a key looks like pcrm's."""
    return name.rpartition(".")[2].startswith("pcrm")


def is_loss(name: str, value: Any) -> bool:
    """Whether the value of a key makes pcrm a loss."""
    return "loss" in name.rpartition(".")[2] and "pcrm" in str(value)
