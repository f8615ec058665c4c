"""Prefix sharing: compute common beginnings of a batch's rows, such as a prompt, only once.

    >>> with pcrm.prefix_sharing.share_prefixes(model):
    ...     trainer.train()

Both responses of a pair start with the same prompt, and so do all responses of a ranking. `enable` makes a decoder compute
such a prefix once for all of them, with the same outputs and gradients up to rounding.
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
