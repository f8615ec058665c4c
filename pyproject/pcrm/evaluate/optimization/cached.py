"""Cached files and folders: sampled responses, their scores, trained policies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..._version import __version__


def make_once(path: Path, recipe: dict[str, Any], make: Callable[[], object]) -> None:
    """Call `make`, which creates `path`, unless the same recipe and version of pcrm created it before.

    The recipe is in `NAME.recipe.json` beside it. It is written last: without it, `path` counts as missing.
    """
    recipe = json.loads(json.dumps(recipe | {"pcrm": __version__}))
    marker = path.with_name(f"{path.name}.recipe.json")
    if path.exists() and marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == recipe:
        return
    marker.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make()
    marker.write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
