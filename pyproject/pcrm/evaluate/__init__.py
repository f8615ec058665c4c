"""Evaluation of reward models: scoring, statistics, the report, and optimization against the scores."""

# The dtypes in which a reward model computes. Here, so that --help does not load torch.
DTYPES = ("float32", "bfloat16", "float16")
