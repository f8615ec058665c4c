"""The dtypes and the reductions of the losses, with their codes in Go and in the CUDA kernels."""

from __future__ import annotations

from typing import Literal

import torch

# The compute dtype for each dtype of the scores. The loss is returned in it.
COMPUTE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}

# The codes of the CUDA kernels, in the order of gpu/kernels.h. Go takes the size of an element instead.
CUDA_CODES = {dtype: code for code, dtype in enumerate(COMPUTE)}

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")  # in the order of their codes, as in pcrm.Reduction
REDUCTION_CODES = {name: code for code, name in enumerate(REDUCTIONS)}
MEAN, NONE = REDUCTION_CODES["mean"], REDUCTION_CODES["none"]
