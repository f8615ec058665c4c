// Package numeric has the numbers that several packages compute.
package numeric

import "math"

// Quantile interpolates linearly between the two order statistics around p(n-1), NumPy's
// default. sorted has at least one element and p is in [0, 1].
func Quantile(sorted []float64, p float64) float64 {
	at := p * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) || sorted[i] == sorted[i+1] { // of infinities there is no difference
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Sigmoid is 1/(1 + exp(-x)); for very negative x, exp(x) to the last bit.
func Sigmoid(x float64) float64 {
	if x < 0 {
		e := math.Exp(x)
		return e / (1 + e)
	}
	return 1 / (1 + math.Exp(-x))
}
