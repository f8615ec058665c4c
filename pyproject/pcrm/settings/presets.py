"""The published settings, read from Go's table (`pcrm/presets.toml`)."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from .. import _check

_TABLE = Path(__file__).parent.parent / "_native" / "presets.toml"


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the published settings by name: each has `prior`, and the betas, `delta`, or `low` and `high`."""
    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))


def lookup(name: Any, prefix: str = "") -> dict[str, Any]:
    """Return a published setting by its name. Messages put `prefix` before `preset`.

    Raises:
        ValueError: There is no preset of that name. The message lists the presets.
    """
    return presets()[_check.one_of(f"{prefix}preset", name, sorted(presets()))]
