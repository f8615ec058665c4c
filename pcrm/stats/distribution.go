package stats

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/floats"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
)

// Quantiles writes the quantiles p of x to dst. They interpolate linearly between the two
// order statistics around p(n-1), NumPy's default. x is not modified.
//
// Errors, each a *pcrm.ArgumentError: dst and p of different lengths; a p outside
// [0, 1]; no elements in x; an element of x that is not finite.
func Quantiles(dst, x, p []float64) error {
	if len(dst) != len(p) {
		return argument.Errorf("dst", -1, "must have %d elements, like p, got %d", len(p), len(dst))
	}
	for i, q := range p {
		if !(q >= 0 && q <= 1) {
			return argument.Errorf("p", i, "must be in [0, 1], got %v", q)
		}
	}
	if len(x) == 0 {
		return argument.Errorf("x", -1, "must have at least one number, got none")
	}
	if err := checkFinite("x", x); err != nil {
		return err
	}
	sorted := slices.Clone(x)
	slices.Sort(sorted)
	for i, q := range p {
		dst[i] = numeric.Quantile(sorted, q)
	}
	return nil
}

// meanSD returns the mean and the standard deviation, with the number of elements as divisor.
// gonum's stat has both, but would pull its linear algebra into the extension.
func meanSD(x []float64) (mean, sd float64) {
	n := float64(len(x))
	mean = floats.Sum(x) / n
	sum := 0.0
	for _, v := range x {
		sum += (v - mean) * (v - mean)
	}
	return mean, math.Sqrt(sum / n)
}

// Histogram counts the elements of x in len(dst) equal bins of [low, high]. All bins except
// the last are open on the right, and elements outside are not counted. The edges are
// low + i (high-low)/len(dst).
//
// Errors, each a *pcrm.ArgumentError: no bins; bounds that are not finite or do not
// satisfy low < high; an element of x that is not finite.
func Histogram(dst []int64, x []float64, low, high float64) error {
	if len(dst) == 0 {
		return argument.Errorf("dst", -1, "must have at least one bin, got none")
	}
	if !(low < high) || math.IsInf(high-low, 0) {
		return argument.Errorf("low", -1, "must be finite and less than high, which is %v, got %v", high, low)
	}
	if err := checkFinite("x", x); err != nil {
		return err
	}
	clear(dst)
	last := len(dst) - 1
	width := (high - low) / float64(len(dst))
	for _, v := range x {
		if v < low || v > high {
			continue
		}
		i := min(int((v-low)/width), last)
		// Rounding may move the quotient across an edge.
		if v < low+float64(i)*width {
			i--
		} else if i < last && v >= low+float64(i+1)*width {
			i++
		}
		dst[i]++
	}
	return nil
}
