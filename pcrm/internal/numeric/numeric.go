// Package numeric contains numerical functions that several packages use.
package numeric

import "math"

// Quantile interpolates linearly between the two order statistics around p(n-1), as NumPy does
// by default. sorted must have at least one element, and p must be in [0, 1].
func Quantile(sorted []float64, p float64) float64 {
	at := p * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) || sorted[i] == sorted[i+1] { // the difference of infinities would be NaN
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Sigmoid returns 1/(1 + exp(-x)). For very negative x it is exp(x) to the last bit.
func Sigmoid(x float64) float64 {
	if x < 0 {
		e := math.Exp(x)
		return e / (1 + e)
	}
	return 1 / (1 + math.Exp(-x))
}

// WinProbability implements pcrm.WinProbability for packages that do not import pcrm.
func WinProbability(margin, delta float64) float64 {
	if !(delta > 0) {
		return math.NaN()
	}
	m := math.Abs(margin)
	if math.IsNaN(m) {
		return m
	}
	against := 0.0
	if 2*m < delta { // m < delta/2 would round a subnormal delta
		low, high := winOdds(m, delta)
		low *= math.Exp(-m)
		against = low / (low + high)
	}
	if margin < 0 {
		return against
	}
	return 1 - against
}

// WinNLL returns -log WinProbability(margin, delta) without underflow. It is +Inf if the probability is 0.
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

// winOdds returns the odds, exp(-m)*low to high, of the choice against which the margin speaks,
// for 0 <= m < delta/2. All factors are positive, and apart from delta - 2m, which is rounded
// once, only terms of one sign are added, so nothing cancels.
func winOdds(m, delta float64) (low, high float64) {
	low = -math.Expm1(2*m-delta) * (1 + math.Exp(-delta-m))
	high = -math.Expm1(-delta-2*m) * (1 + math.Exp(m-delta))
	return low, high
}
