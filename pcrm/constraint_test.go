package pcrm_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

func TestConstraintDelta(t *testing.T) {
	alpaca := pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -5}
	for s, want := range map[float64]float64{1: 4.99, 0.9: 6.10, 0.7: 9.27, 0.5: 14.96, 0: 9995} {
		assert.InDelta(t, want, alpaca.Delta(s), 0.005, "s=%v", s)
		assert.Equal(t, alpaca.Delta(s)/2, alpaca.Target(s))
	}
	clipped := pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -5, Floor: 6, Cap: 9}
	assert.Equal(t, 6.0, clipped.Delta(1))
	assert.Equal(t, 9.0, clipped.Delta(0))
	assert.InDelta(t, 6.10, clipped.Delta(0.9), 0.005)
	assert.Equal(t, 4.5, pcrm.Fixed(4.5).Delta(0))
	assert.Equal(t, 4.5, pcrm.Fixed(4.5).Delta(1))
	assert.Equal(t, inf, pcrm.Fixed(inf).Delta(0.3))
	assert.True(t, math.IsNaN(alpaca.Delta(math.NaN())))
}

func TestConstraintValidate(t *testing.T) {
	good := pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -5}
	require.NoError(t, good.Validate())
	require.NoError(t, pcrm.Fixed(inf).Validate())
	require.NoError(t, pcrm.Constraint{Beta1: 10, Beta2: 0, Beta3: -5}.Validate(), "delta(0) = +Inf is unconstrained")
	require.NoError(t, pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -20, Floor: 2}.Validate(), "the floor saves the far end")
	ends := ": a ceiling of 0 or less would reward ties and reversals"
	for message, c := range map[string]pcrm.Constraint{
		"delta must be greater than 0 on all of [0, 1], got -10.009990009990009 at similarity 1" + ends: {Beta1: 10, Beta2: 0.001, Beta3: -20},
		"delta must be greater than 0 on all of [0, 1], got -1 at similarity 0" + ends:                  {Beta1: -2, Beta2: 1, Beta3: 1},
		"delta must be greater than 0 on all of [0, 1], got NaN at similarity 0" + ends:                 {Beta3: 5},
		"beta1 must be a number, got NaN":              {Beta1: math.NaN()},
		"beta1 must be finite, got +Inf":               {Beta1: inf},
		"beta2 must be at least 0, got -1":             {Beta1: 10, Beta2: -1},
		"beta3 must be finite, got -Inf":               {Beta2: 1, Beta3: -inf},
		"floor must be at least 0, got -1":             {Beta2: 1, Beta3: 4, Floor: -1},
		"floor must be at most cap, which is 4, got 5": {Beta2: 1, Beta3: 4, Floor: 5, Cap: 4},
	} {
		assert.EqualError(t, c.Validate(), message)
	}
}

func TestRandomConstraint(t *testing.T) {
	c := pcrm.Random(4, 5, 7)
	require.NoError(t, c.Validate())
	assert.True(t, c.IsRandom())
	assert.False(t, pcrm.Fixed(4).IsRandom())
	for u, want := range map[float64]float64{0: 4, 0.25: 4.25, 1: 5} {
		assert.Equal(t, want, c.Delta(u))
		assert.Equal(t, want/2, c.Target(u))
	}
	assert.True(t, math.IsNaN(c.Delta(math.NaN())))
	require.NoError(t, pcrm.Random(4, 4, 0).Validate(), "a range of one number")
	dst := make([]float64, 2)
	require.NoError(t, pcrm.Deltas(dst, []float64{0, 0.5}, c))
	assert.Equal(t, []float64{4, 4.5}, dst)

	for message, c := range map[string]pcrm.Constraint{
		"low must be finite and greater than 0, got 0: a ceiling of 0 or less would reward ties and reversals":            pcrm.Random(0, 1, 0),
		"low must be finite and greater than 0, got NaN: a ceiling of 0 or less would reward ties and reversals":          pcrm.Random(math.NaN(), 1, 0),
		"low must be finite and greater than 0, got +Inf: a ceiling of 0 or less would reward ties and reversals":         pcrm.Random(inf, inf, 0),
		"high must be finite and at least low, which is 4, got 3":                                                         pcrm.Random(4, 3, 0),
		"high must be finite and at least low, which is 4, got NaN":                                                       pcrm.Random(4, math.NaN(), 0),
		"high must be finite and at least low, which is 4, got +Inf":                                                      pcrm.Random(4, inf, 0),
		"beta1, beta2, beta3, floor and cap must not be set with low 4 and high 5: a random constraint does not use them": {Low: 4, High: 5, Cap: 4.5},
	} {
		err := c.Validate()
		assert.EqualError(t, err, message)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
	}
}

func TestDeltas(t *testing.T) {
	c := pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -5}
	dst := make([]float32, 3)
	require.NoError(t, pcrm.Deltas(dst, []float32{0, 0.5, 1}, c))
	for i, s := range []float64{0, 0.5, 1} {
		assert.Equal(t, float32(c.Delta(s)), dst[i])
	}
	require.NoError(t, pcrm.Deltas(nil, []float32{}, c))
	assert.EqualError(t, pcrm.Deltas(dst, []float32{0, 0.5, 1.5}, c), "similarities[2] must be in [0, 1], got 1.5")
	assert.EqualError(t, pcrm.Deltas(dst, []float32{0, float32(math.NaN()), 1}, c), "similarities[1] must be in [0, 1], got NaN")
	assert.EqualError(t, pcrm.Deltas(dst, []float32{0}, c), "dst must have 1 elements, like similarities, got 3")
	assert.Error(t, pcrm.Deltas(dst, dst, pcrm.Constraint{}))
}

func TestFitReachesItsTargets(t *testing.T) {
	var s []float64
	for i := range 101 {
		s = append(s, float64(i)/100)
	}
	c, err := pcrm.Fit(s, 1, 3, 0.05, 0.95)
	require.NoError(t, err)
	require.NoError(t, c.Validate())
	assert.InDelta(t, 1, c.Target(0.95), 1e-12)
	assert.InDelta(t, 3, c.Target(0.05), 1e-12)
	assert.Equal(t, 1.0, c.Target(1), "floor")
	assert.Equal(t, 3.0, c.Target(0), "cap")
}

func TestFitIsMidwayAtTheMedian(t *testing.T) {
	c, err := pcrm.Fit([]float64{0.1, 0.3, 0.9}, 1, 3, 0, 1)
	require.NoError(t, err)
	// e = 0.2 and d = 0.8: the pole is 0.4 below 0.1. beta1 = 2*2*0.4*1.2/0.8, beta3 = 2 - 2.4/1.2.
	assert.InDelta(t, 0.3, c.Beta2, 1e-15)
	assert.InDelta(t, 2.4, c.Beta1, 1e-14)
	assert.InDelta(t, 0, c.Beta3, 1e-14)
	for s, want := range map[float64]float64{0.1: 3, 0.3: 2, 0.9: 1} {
		assert.InDelta(t, want, c.Target(s), 1e-14)
	}
	// Pairs tied at an end get its target whatever the curve is, so they do not affect the median.
	tied, err := pcrm.Fit([]float64{0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 0.9}, 1, 3, 0, 1)
	require.NoError(t, err)
	assert.Equal(t, c, tied)
}

func TestFitWhereNoCurveIsMidway(t *testing.T) {
	for name, c := range map[string]struct {
		s      []float64
		beta2  float64
		middle float64 // target at 0.5
	}{
		"median in the middle":    {[]float64{0.2, 0.5, 0.8}, 5.8, 1 + 2*0.5*10/10.5},
		"median above the middle": {[]float64{0.2, 0.7, 0.8}, 5.8, 1 + 2*0.5*10/10.5},
		"nothing between":         {[]float64{0.2, 0.2, 0.8}, 5.8, 1 + 2*0.5*10/10.5},
		"pole within [0, 1]":      {[]float64{0.4, 0.41, 0.8}, 1e-6, 1 + 2*0.75*0.4/0.5},
	} {
		got, err := pcrm.Fit(c.s, 1, 3, 0, 1)
		require.NoError(t, err)
		assert.InDelta(t, c.beta2, got.Beta2, 1e-14, name)
		assert.InDelta(t, c.middle, got.Target(0.5), 1e-5, name)
	}
}

// At the least allowed spread, wherever it lies, rounding moves the targets by a relative
// 2^-52/1e-6 = 2.2e-10.
func TestFitOfCloseSimilarities(t *testing.T) {
	for _, s := range []float64{0, 0.001, 0.5, 1 - 1.01e-6} {
		c, err := pcrm.Fit([]float64{s, s + 1.01e-6}, 1, 3, 0, 1)
		require.NoError(t, err)
		assert.InEpsilon(t, 3, c.Target(s), 3e-10, "%v", s)
		assert.InEpsilon(t, 1, c.Target(s+1.01e-6), 3e-10, "%v", s)
	}
}

func TestFitErrors(t *testing.T) {
	s := []float64{0.1, 0.9}
	for _, c := range []struct {
		s                     []float64
		alike, unlike, lo, hi float64
		message               string
	}{
		{s, 0, 3, 0.05, 0.95, "target_alike must be greater than 0, got 0: a ceiling of 0 or less would reward ties and reversals"},
		{s, math.NaN(), 3, 0.05, 0.95, "target_alike must be greater than 0, got NaN: a ceiling of 0 or less would reward ties and reversals"},
		{s, 3, 3, 0.05, 0.95, "target_unlike must be finite and greater than target_alike, which is 3, got 3"},
		{s, 3, 2, 0.05, 0.95, "target_unlike must be finite and greater than target_alike, which is 3, got 2"},
		{s, 3, math.NaN(), 0.05, 0.95, "target_unlike must be finite and greater than target_alike, which is 3, got NaN"},
		{s, 1, inf, 0.05, 0.95, "target_unlike must be finite and greater than target_alike, which is 1, got +Inf"},
		{s, 1, math.MaxFloat64, 0.05, 0.95, "beta1 must be finite, got +Inf"},
		{s, 1, 3, 0.5, 0.5, "quantiles must satisfy 0 <= low < high <= 1, got (0.5, 0.5)"},
		{s, 1, 3, 0.9, 0.1, "quantiles must satisfy 0 <= low < high <= 1, got (0.9, 0.1)"},
		{s, 1, 3, -0.1, 0.5, "quantiles must satisfy 0 <= low < high <= 1, got (-0.1, 0.5)"},
		{s, 1, 3, 0.5, 1.1, "quantiles must satisfy 0 <= low < high <= 1, got (0.5, 1.1)"},
		{s, 1, 3, math.NaN(), 0.5, "quantiles must satisfy 0 <= low < high <= 1, got (NaN, 0.5)"},
		{nil, 1, 3, 0.05, 0.95, "similarities must have at least one number, got none"},
		{[]float64{0.5, 2}, 1, 3, 0.05, 0.95, "similarities[1] must be in [0, 1], got 2"},
		{[]float64{0.5, math.NaN()}, 1, 3, 0.05, 0.95, "similarities[1] must be in [0, 1], got NaN"},
		{[]float64{0.5, 0.5}, 1, 3, 0.05, 0.95, "similarities must differ by at least 1e-06 between the quantiles 0.05 and 0.95, got 0.5 and 0.5: this prior does not tell pairs apart. Use another prior or a fixed delta"},
		{[]float64{0.7590721249580383, 0.7590721249580383}, 1, 3, 0, 1, "similarities must differ by at least 1e-06 between the quantiles 0 and 1, got 0.7590721 and 0.7590721: this prior does not tell pairs apart. Use another prior or a fixed delta"},
		{[]float64{0.5, 0.5 + 9e-7}, 1, 3, 0, 1, "similarities must differ by at least 1e-06 between the quantiles 0 and 1, got 0.5 and 0.5000009: this prior does not tell pairs apart. Use another prior or a fixed delta"},
	} {
		_, err := pcrm.Fit(c.s, c.alike, c.unlike, c.lo, c.hi)
		assert.EqualError(t, err, c.message)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
	}
}

func TestPresets(t *testing.T) {
	p, err := pcrm.LookupPreset("alpaca/length_ratio")
	require.NoError(t, err)
	assert.Equal(t, pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -5}, p.Constraint)
	assert.Equal(t, "length_ratio", p.Prior)
	for _, name := range []string{"alpaca", "tldr"} {
		for _, prior := range []string{"length_ratio", "cosine", "fixed", "random"} {
			p, err := pcrm.LookupPreset(name + "/" + prior)
			require.NoError(t, err)
			assert.Equal(t, prior, p.Prior)
			assert.NoError(t, p.Constraint.Validate())
			// The paper's deltas at s = 1 are all close to 5, the random ones around 4.5 or 5.5.
			assert.InDelta(t, 5, p.Constraint.Delta(1), 1, p.Name)
		}
	}
	_, err = pcrm.LookupPreset("alpaca/typo")
	assert.ErrorContains(t, err, `preset must be one of alpaca/cosine, alpaca/fixed, alpaca/length_ratio, alpaca/random, dpo/`)
	assert.ErrorContains(t, err, `, got "alpaca/typo"`)
}
