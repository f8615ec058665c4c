package pcrm

import (
	"math"
	"slices"
	"sort"

	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
)

// Float is the type constraint of scores, similarities and deltas.
type Float interface{ float32 | float64 }

// Constraint maps the prior similarity s of two responses to the ceiling delta
// of their margin (arXiv 2404.00978, section 3.2):
//
//	delta(s) = beta1/(s+beta2) + beta3, clipped to [Floor, Cap]
//
// s has no unit and lies in [0, 1]; delta is in units of the score. The curve is
// monotone in s, so a constraint is valid if and only if delta is positive at both
// ends, which [Constraint.Validate] checks.
//
// A random constraint (see [Random]) has Low and High instead. Its argument is not s but
// a number u in [0, 1), which prior.RandomUniform derives from the pair and Seed:
//
//	delta(u) = low + (high-low)*u
type Constraint struct {
	Beta1, Beta2, Beta3 float64

	// Floor and Cap clip delta. Zero means no clipping: delta must be positive anyway,
	// and a cap of zero would forbid every margin.
	Floor, Cap float64

	// Low and High bound a random delta. If both are zero, the constraint is the curve.
	// Seed selects the random deltas.
	Low, High float64
	Seed      uint64
}

// Fixed returns the constraint with the same delta for every pair. +Inf is allowed and
// gives the Bradley-Terry loss.
func Fixed(delta float64) Constraint {
	// beta2 = 1 keeps 0/(s+beta2) from being 0/0 at s = 0.
	return Constraint{Beta2: 1, Beta3: delta}
}

// Random returns the constraint whose delta is uniform in [low, high). The delta of a
// pair depends only on the seed and the pair, so it is the same in every epoch, batch
// and process (arXiv 2404.00978, section 4, uses U(4, 5) and U(5, 6)).
func Random(low, high float64, seed uint64) Constraint {
	return Constraint{Low: low, High: high, Seed: seed}
}

// IsRandom reports whether Delta expects a prior.RandomUniform instead of a similarity.
func (c Constraint) IsRandom() bool { return c.Low != 0 || c.High != 0 }

// Delta returns delta(s) for one similarity, or delta(u) for one random number. NaN
// gives NaN. Delta does not check its arguments; see [Constraint.Validate] and [Deltas].
func (c Constraint) Delta(s float64) float64 {
	if c.IsRandom() {
		// The conversion rounds the product, also on platforms with fused multiply-add.
		return c.Low + float64((c.High-c.Low)*s)
	}
	d := c.Beta1/(s+c.Beta2) + c.Beta3
	if d < c.Floor && c.Floor != 0 {
		return c.Floor
	}
	if d > c.Cap && c.Cap != 0 {
		return c.Cap
	}
	return d
}

// Target returns delta(s)/2, the margin that minimizes the loss of a pair with similarity s.
func (c Constraint) Target(s float64) float64 { return c.Delta(s) / 2 }

// Validate returns an error unless delta is a positive number for every s in [0, 1].
//
// Errors, each an [*ArgumentError]: a NaN or infinite beta1 or beta2; a beta3 that is NaN
// or -Inf; beta2 < 0; a floor or cap that is NaN or negative; an infinite floor;
// floor > cap; delta(0) <= 0 or delta(1) <= 0. beta3 and cap may be +Inf. For a random
// constraint: not 0 < low <= high < +Inf; a beta, floor or cap, which it does not use.
func (c Constraint) Validate() error {
	if c.IsRandom() {
		return c.validateRandom()
	}
	for _, p := range []struct {
		name     string
		value    float64
		infinite bool
		least    float64
	}{
		{"beta1", c.Beta1, false, math.Inf(-1)},
		{"beta2", c.Beta2, false, 0},
		{"beta3", c.Beta3, true, math.Inf(-1)},
		{"floor", c.Floor, false, 0},
		{"cap", c.Cap, true, 0},
	} {
		switch {
		case math.IsNaN(p.value):
			return argErr(p.name, -1, "must be a number, got NaN")
		case math.IsInf(p.value, -1) || math.IsInf(p.value, 1) && !p.infinite:
			return argErr(p.name, -1, "must be finite, got %v", p.value)
		case p.value < p.least:
			return argErr(p.name, -1, "must be at least %v, got %v", p.least, p.value)
		}
	}
	if c.Cap != 0 && c.Floor > c.Cap {
		return argErr("floor", -1, "must be at most cap, which is %v, got %v", c.Cap, c.Floor)
	}
	for _, s := range []float64{0, 1} {
		// Not d <= 0, because with beta1 = beta2 = 0 the curve is NaN at s = 0.
		if d := c.Delta(s); !(d > 0) {
			return argErr("delta", -1, "must be greater than 0 on all of [0, 1], got %v at similarity %v: "+
				"a ceiling of 0 or less would reward ties and reversals", d, s)
		}
	}
	return nil
}

func (c Constraint) validateRandom() error {
	curve := c
	curve.Low, curve.High, curve.Seed = 0, 0, 0
	switch {
	case !(c.Low > 0) || math.IsInf(c.Low, 1):
		return argErr("low", -1, "must be finite and greater than 0, got %v: "+
			"a ceiling of 0 or less would reward ties and reversals", c.Low)
	case !(c.High >= c.Low) || math.IsInf(c.High, 1):
		return argErr("high", -1, "must be finite and at least low, which is %v, got %v", c.Low, c.High)
	case curve != Constraint{}:
		return argErr("beta1, beta2, beta3, floor and cap", -1, "must not be set with low %v and high %v: a random constraint does not use them", c.Low, c.High)
	}
	return nil
}

// Deltas writes delta(s) of every similarity to dst, computed in float64 and rounded once.
// For a random constraint, s holds the numbers that prior.RandomUniforms writes. Empty
// slices are allowed.
//
// Errors, each an [*ArgumentError]: slices of different lengths; a constraint that fails
// [Constraint.Validate]; a similarity that is NaN or outside [0, 1] (the message names its
// index). After an error the contents of dst are undefined.
func Deltas[F Float](dst, s []F, c Constraint) error {
	if len(dst) != len(s) {
		return argErr("dst", -1, "must have %d elements, like similarities, got %d", len(s), len(dst))
	}
	if err := c.Validate(); err != nil {
		return err
	}
	for i, v := range s {
		if !(v >= 0 && v <= 1) {
			return argErr("similarities", i, "must be in [0, 1], got %v", v)
		}
		dst[i] = F(c.Delta(float64(v)))
	}
	return nil
}

// leastSpread is the least distance between the two quantiles of a fit. It is ten times the
// difference that the rounding of a float32 prior can make. It also bounds beta1, whose
// rounding moves a target by a relative 2^-52/leastSpread at most.
const leastSpread = 1e-6

// leastBeta2 keeps a fitted delta finite at s = 0.
const leastBeta2 = 1e-6

// straight bounds (s_lo+beta2)/(s_hi-s_lo) of a fit. At this value the curve between the two
// quantiles is nearly a straight line: it deviates by at most 2.4 % of the targets' range. A
// larger value would only lose precision.
const straight = 10

// Fit returns the constraint whose target margin delta/2 is targetAlike at the hi
// quantile of the similarities and targetUnlike at the lo quantile. At s_mid, the median of
// the similarities between these two quantiles, the target is midway between the two: half
// of these pairs get a target above (targetAlike+targetUnlike)/2, and half below. With
// d = s_hi - s_lo and e = s_mid - s_lo,
//
//	s_lo + beta2 = e d/(d-2e), at most 10 d; beta2 at least 1e-6
//	beta1 = 2 (targetUnlike - targetAlike) (s_lo+beta2) (s_hi+beta2)/d
//	beta3 = 2 targetAlike - beta1/(s_hi+beta2)
//
// The floor is 2 targetAlike and the cap is 2 targetUnlike, which keep delta positive and
// bounded outside the two quantiles. The curve is convex. If s_mid is at or above the
// middle of the two quantiles, the curve is nearly a straight line and its target at s_mid
// is below midway. If most pairs lie close to s_lo > 0, the least beta2 puts the target at
// s_mid above midway. Quantiles interpolate linearly (NumPy's default).
//
// A margin m corresponds to a win probability of sigmoid(m). For a win probability of p,
// set a target of log(p/(1-p)).
//
// Errors, each an [*ArgumentError]: targets that do not satisfy
// 0 < targetAlike < targetUnlike < +Inf, or that are so large that a beta overflows;
// quantiles that do not satisfy 0 <= lo < hi <= 1; no similarities; a similarity that is
// NaN or outside [0, 1]; similarities whose two quantiles are less than 1e-6 apart.
func Fit[F Float](similarities []F, targetAlike, targetUnlike, lo, hi float64) (Constraint, error) {
	if err := (Targets{targetAlike, targetUnlike}).Validate(); err != nil {
		return Constraint{}, err
	}
	switch {
	case !(0 <= lo && lo < hi && hi <= 1):
		return Constraint{}, argErr("quantiles", -1, "must satisfy 0 <= low < high <= 1, got (%v, %v)", lo, hi)
	case len(similarities) == 0:
		return Constraint{}, argErr("similarities", -1, "must have at least one number, got none")
	}
	sorted := make([]float64, len(similarities))
	for i, v := range similarities {
		if !(v >= 0 && v <= 1) {
			return Constraint{}, argErr("similarities", i, "must be in [0, 1], got %v", v)
		}
		sorted[i] = float64(v)
	}
	slices.Sort(sorted)
	sLo, sHi := numeric.Quantile(sorted, lo), numeric.Quantile(sorted, hi)
	if sHi-sLo < leastSpread {
		return Constraint{}, argErr("similarities", -1, "must differ by at least %v between the quantiles %v and %v, got %.7g and %.7g: "+
			"this prior does not tell pairs apart. Use another prior or a fixed delta", leastSpread, lo, hi, sLo, sHi)
	}
	c := Constraint{Beta2: fitBeta2(sorted, sLo, sHi), Floor: 2 * targetAlike, Cap: 2 * targetUnlike}
	// The conversion rounds the product, also on platforms with fused multiply-add.
	slope := 2 * (targetUnlike - targetAlike) / (sHi - sLo)
	c.Beta1 = slope * (sLo + c.Beta2) * (sHi + c.Beta2)
	c.Beta3 = 2*targetAlike - float64(slope*(sLo+c.Beta2))
	if err := c.Validate(); err != nil { // a target near the greatest float64
		return Constraint{}, err
	}
	return c, nil
}

// fitBeta2 returns the beta2 for which the curve is midway at the median of the similarities
// between lo and hi, or the nearest beta2 in range.
func fitBeta2(sorted []float64, lo, hi float64) float64 {
	between := sorted[sort.Search(len(sorted), func(i int) bool { return sorted[i] > lo }):]
	between = between[:sort.SearchFloat64s(between, hi)]
	d := hi - lo
	pole := straight * d
	if len(between) > 0 {
		if e := numeric.Quantile(between, 0.5) - lo; 2*e < d {
			pole = min(pole, e*d/(d-2*e))
		}
	}
	return max(pole-lo, leastBeta2)
}
