"""Detect whether a configuration of Axolotl names pcrm. Every run of Axolotl imports this module, so it must stay light."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def names_pcrm(cfg: Mapping[str, Any], argv: list[str]) -> bool:
    """Return whether a key, a loss or a flag of the command line names pcrm, correctly or not."""
    in_file = any(is_key(name) or is_loss(name, value) for name, value in lines(cfg))
    return in_file or any(word.startswith("--pcrm") for word in argv)


def lines(cfg: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key with its value; a nested key is `trl.beta`."""
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            yield from lines(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def is_key(name: str) -> bool:
    """Return whether a key looks like one of pcrm's."""
    return name.rpartition(".")[2].startswith("pcrm")


def is_loss(name: str, value: Any) -> bool:
    """Return whether a key sets pcrm as a loss."""
    return "loss" in name.rpartition(".")[2] and "pcrm" in str(value)
