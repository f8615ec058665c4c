"""Each prompt goes through the model once: rows of a batch share what they begin with.

    >>> with pcrm.prefix_sharing.share_prefixes(model):
    ...     trainer.train()

Both responses of a pair begin with their prompt, and in a ranking all responses do. `enable` makes a decoder compute
such a prefix once for all of them, with the same outputs and gradients to rounding.
"""

from .plan import Packed, pack
from .sharing import PrefixSharingError, disable, enable, is_enabled, saved_share, share_prefixes, why_not

__all__ = [
    "Packed",
    "PrefixSharingError",
    "disable",
    "enable",
    "is_enabled",
    "pack",
    "saved_share",
    "share_prefixes",
    "why_not",
]
