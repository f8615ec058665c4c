"""What a reward model's scores are like: scoring, statistics, the report, and optimization against the scores."""
