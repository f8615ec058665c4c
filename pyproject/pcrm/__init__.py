"""Reward-model and DPO training with a target margin for each pair.

The loss of a pair with margin m = r_w - r_l and constraint delta is

    L(m) = -log sigmoid(m) - log sigmoid(delta - m)

where delta depends on how similar the two responses are ("Prior Constraints-based
Reward Model Training for Aligning Large Language Models", arXiv 2404.00978). Use
`PCRMLoss` or `PCRMDPOLoss` in your own training loop, `pcrm.functional` for plain functions,
or `pcrm.trl` for TRL's trainers.

torch is imported only when something first needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import backends, functional, priors
    from ._engine.trace import trace
    from ._version import __version__
    from .losses import PCRMDPOLoss, PCRMLoss
    from .settings import Constraint, margin_of, win_probability

__all__ = [
    "Constraint",
    "PCRMDPOLoss",
    "PCRMLoss",
    "__version__",
    "backends",
    "functional",
    "margin_of",
    "priors",
    "trace",
    "win_probability",
]

_MODULES = ("backends", "functional", "priors")
_MODULE_OF = {
    "Constraint": "settings",
    "PCRMDPOLoss": "losses",
    "PCRMLoss": "losses",
    "__version__": "_version",
    "margin_of": "settings",
    "trace": "_engine.trace",
    "win_probability": "settings",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value  # later lookups find it directly
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
