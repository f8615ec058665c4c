"""`pcrm demo`: two small reward models on the same pairs, plain and constrained, and what the constraint does."""
