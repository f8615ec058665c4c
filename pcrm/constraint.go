package pcrm

import (
	"math"
	"slices"
	"sort"

	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
)

// Float is what scores, similarities and deltas may be made of.
type Float interface{ float32 | float64 }

// Constraint maps the prior similarity s of two responses to the ceiling delta
// of their margin (arXiv 2404.00978, section 3.2):
//
//	delta(s) = beta1/(s+beta2) + beta3, clipped to [Floor, Cap]
//
// s has no unit and lies in [0, 1]; delta is in units of the score. The curve is
// monotone in s, so a constraint is usable exactly when delta is positive at both
// ends, which [Constraint.Validate] checks.
//
// A random constraint (see [Random]) has Low and High instead, and a number u in
// the place of s, which prior.RandomUniform makes of a pair and Seed:
//
//	delta(u) = low + (high-low)*u
type Constraint struct {
	Beta1, Beta2, Beta3 float64

	// Floor and Cap clip delta. Zero means none: delta must be positive anyway,
	// and a cap of zero would forbid every margin.
	Floor, Cap float64

	// Low and High bound a random delta; both zero means that the constraint is the
	// curve. Seed is where its randomness begins: another seed, other deltas.
	Low, High float64
	Seed      uint64
}

// Fixed returns the constraint whose delta is the same for every pair. +Inf is
// allowed and gives the Bradley-Terry loss.
func Fixed(delta float64) Constraint {
	// beta2 = 1 keeps 0/(s+beta2) from being 0/0 at s = 0.
	return Constraint{Beta2: 1, Beta3: delta}
}

// Random returns the constraint whose delta is uniform in [low, high), drawn for
// each pair from what the pair is: the same in every epoch, batch and process
// (arXiv 2404.00978, section 4: U(4, 5) and U(5, 6)).
func Random(low, high float64, seed uint64) Constraint {
	return Constraint{Low: low, High: high, Seed: seed}
}

// IsRandom reports whether Delta wants a prior.RandomUniform and no similarity.
func (c Constraint) IsRandom() bool { return c.Low != 0 || c.High != 0 }

// Delta returns delta(s) for one similarity, or delta(u) for one random number. It
// checks nothing: see [Constraint.Validate] and [Deltas]. NaN gives NaN.
func (c Constraint) Delta(s float64) float64 {
	if c.IsRandom() {
		// The conversion keeps a platform with fused multiply-add from rounding once.
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

// Target returns delta(s)/2, the margin at which the loss of such a pair is least.
func (c Constraint) Target(s float64) float64 { return c.Delta(s) / 2 }

// Validate reports whether delta is a positive number for every s in [0, 1].
//
// Errors: a NaN or infinite beta1 or beta2, a NaN beta3, beta2 < 0, a floor or cap
// that is NaN or negative, floor > cap, delta(0) <= 0 or delta(1) <= 0. beta3 and
// cap may be +Inf. A random constraint: not 0 < low <= high < +Inf, or a beta, a
// floor or a cap, which it has no use for.
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
		// Not d <= 0: with beta1 = beta2 = 0 the curve is NaN at s = 0.
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

// Deltas writes delta(s) of every similarity to dst, in float64 rounded once; for a
// random constraint, s holds the numbers that prior.RandomUniforms writes.
//
// Errors: a constraint that fails [Constraint.Validate], slices of different
// lengths, a similarity outside [0, 1] or NaN (named by its index); dst is then
// undefined. Empty slices are allowed.
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

// leastSpread is how far apart the two quantiles of a fit must be: ten times what the
// rounding of a float32 prior may part them by. It also bounds beta1, whose rounding
// moves a target by 2^-52/leastSpread of it at most.
const leastSpread = 1e-6

// leastBeta2 keeps a fitted delta finite at s = 0.
const leastBeta2 = 1e-6

// straight bounds (s_lo+beta2)/(s_hi-s_lo) of a fit. There the curve is nearly a straight line between
// the two quantiles, off by 2.4 % of the targets' range at most; more would only cost digits.
const straight = 10

// Fit returns the constraint whose target margin delta/2 is targetAlike at the hi
// quantile of the similarities, targetUnlike at the lo quantile, and midway between
// the two at the median s_mid of the similarities that lie between these quantiles:
// half of the pairs get more than (targetAlike+targetUnlike)/2, and half get less.
// With d = s_hi - s_lo and e = s_mid - s_lo,
//
//	s_lo + beta2 = e d/(d-2e), at most 10 d; beta2 at least 1e-6
//	beta1 = 2 (targetUnlike - targetAlike) (s_lo+beta2) (s_hi+beta2)/d
//	beta3 = 2 targetAlike - beta1/(s_hi+beta2)
//
// and floor = 2 targetAlike and cap = 2 targetUnlike, which keep delta positive and
// bounded outside the two quantiles. The curve is convex: where s_mid is at or above the
// middle of the two quantiles, it is nearly a straight line and below midway at s_mid. Where
// most pairs lie close to s_lo > 0, the least beta2 is above midway there.
// Quantiles interpolate linearly (NumPy's default).
//
// A margin m is a win probability of sigmoid(m): for one of p, take log(p/(1-p)).
//
// Errors, each an [*ArgumentError]: no similarities, one outside [0, 1], quantiles that
// are not 0 <= lo < hi <= 1, targets that are not 0 < targetAlike < targetUnlike or
// so large that a beta overflows, and similarities whose two quantiles are less than
// 1e-6 apart: no curve has two targets there.
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
	// The conversions keep a platform with fused multiply-add from rounding once.
	slope := 2 * (targetUnlike - targetAlike) / (sHi - sLo)
	c.Beta1 = slope * (sLo + c.Beta2) * (sHi + c.Beta2)
	c.Beta3 = 2*targetAlike - float64(slope*(sLo+c.Beta2))
	if err := c.Validate(); err != nil { // a target near the greatest float64
		return Constraint{}, err
	}
	return c, nil
}

// fitBeta2 returns the beta2 of a curve that is midway at the median of the similarities
// between lo and hi, or the nearest one in range.
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
