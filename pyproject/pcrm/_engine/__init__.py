"""The computation of a loss: choose Go, CUDA or torch for each batch, and connect the result to torch's graph."""
