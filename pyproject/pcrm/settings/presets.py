"""The published settings, from the table that Go owns (`pcrm/presets.toml`)."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from .. import _check

_TABLE = Path(__file__).parent.parent / "_native" / "presets.toml"


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """The published settings by name: `prior`, and the betas, `delta`, or `low` and `high`."""
    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))


def lookup(name: Any, prefix: str = "") -> dict[str, Any]:
    """The published setting of that name; `prefix` is what the message puts before `preset`.

    Raises:
        ValueError: there is no preset of that name; the message lists them.
    """
    return presets()[_check.one_of(f"{prefix}preset", name, sorted(presets()))]
