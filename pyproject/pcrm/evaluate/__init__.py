"""What a reward model's scores are like: scoring, statistics, the report, and optimization against the scores."""

# How a reward model computes its scores. Here, so that a command's --help need not load torch.
DTYPES = ("float32", "bfloat16", "float16")
