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

// WinProbability is what pcrm.WinProbability documents, for the packages that do not import it.
func WinProbability(margin, delta float64) float64 {
	if !(delta > 0) {
		return math.NaN()
	}
	m := math.Abs(margin)
	if math.IsNaN(m) {
		return m
	}
	against := 0.0
	if 2*m < delta { // and not m < delta/2, which rounds a subnormal delta
		low, high := winOdds(m, delta)
		low *= math.Exp(-m)
		against = low / (low + high)
	}
	if margin < 0 {
		return against
	}
	return 1 - against
}

// WinNLL is -log WinProbability(margin, delta), without underflow: +Inf where that is 0.
func WinNLL(margin, delta float64) float64 {
	m := math.Abs(margin)
	if !(2*m < delta) {
		if margin < 0 {
			return math.Inf(1)
		}
		return 0
	}
	low, high := winOdds(m, delta)
	u := math.Exp(-m) * low
	if margin < 0 {
		return m + math.Log((u+high)/low)
	}
	return math.Log1p(u / high)
}

// winOdds are the odds, exp(-m)*low to high, of the choice that a margin of -m or m speaks
// against, for 0 <= m < delta/2. All factors are positive, and their terms add up but for
// delta - 2m, which is rounded once: nothing cancels.
func winOdds(m, delta float64) (low, high float64) {
	low = -math.Expm1(2*m-delta) * (1 + math.Exp(-delta-m))
	high = -math.Expm1(-delta-2*m) * (1 + math.Exp(m-delta))
	return low, high
}
