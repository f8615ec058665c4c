"""The functions of flash_attn's module of that name that OpenRLHF calls, in plain torch."""

import torch
from einops import rearrange

__all__ = ["index_first_axis", "pad_input", "rearrange", "unpad_input"]


def index_first_axis(x, indices):
    return x[indices]


def unpad_input(x, attention_mask):
    """The rows of x (B, L, ...) that are no padding, their places, the sequences' bounds and their greatest length."""
    lengths = attention_mask.sum(1, dtype=torch.int32)
    indices = attention_mask.flatten().nonzero().flatten()
    bounds = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return x.flatten(0, 1)[indices], indices, bounds, int(lengths.max()), lengths


def pad_input(x, indices, batch, seqlen):
    """The inverse of `unpad_input`, with zeros for the padding."""
    padded = x.new_zeros((batch * seqlen, *x.shape[1:]))
    padded[indices] = x
    return padded.unflatten(0, (batch, seqlen))
