"""Reward-model and DPO training whose score margins stay where the data says they should.

The loss of a pair with margin m = r_w - r_l and constraint delta is

    L(m) = -log sigmoid(m) - log sigmoid(delta - m)

where delta is a function of how alike the two responses are ("Prior Constraints-based
Reward Model Training for Aligning Large Language Models", arXiv 2404.00978). Start with
`PCRMLoss` or `PCRMDPOLoss` in a loop of your own, `pcrm.functional` for the bare functions, or `pcrm.trl`
for TRL's trainers.
"""

from . import backends, functional, priors
from ._engine.trace import trace
from ._version import __version__
from .losses import PCRMDPOLoss, PCRMLoss
from .settings import Constraint, margin_of

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
]
