// Package trace checks what a training run computed. [Verify] reads the losses and gradients
// that the run recorded, recomputes them and reports where they differ.
package trace
