"""How a loss is computed: the choice of Go, CUDA or torch for each batch, and the way into torch's graph."""
