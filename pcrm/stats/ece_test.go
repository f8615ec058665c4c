package stats

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
)

// The accuracy of a model at a confidence. The shapes are those of benchmarks/calibration.py.
var miscalibrated = map[string]func(confidence, size float64) float64{
	"too sure": func(c, size float64) float64 {
		return numeric.Sigmoid((1 - size) * math.Log(c/(1-c)))
	},
	"one bin": func(c, size float64) float64 {
		if binOf(c) == 5 {
			return c - size
		}
		return c
	},
	"in turns": func(c, size float64) float64 {
		if binOf(c)%2 == 0 {
			return max(c-size, 0)
		}
		return min(c+size, 1)
	},
}

// The approximate 95% interval contains the true value at least 90% of the time, whatever the
// individual gaps are. With a true coverage of 95%, 200 draws fall below 90% in one of 500 cases. The
// draws are seeded.
func TestCalibrationErrorCovers(t *testing.T) {
	const draws = 200
	for name, accuracy := range miscalibrated {
		for _, size := range []float64{0, 0.1, 0.3} {
			for _, scale := range []float64{1.5, 4} { // most pairs in the middle, or in the last bin
				r := rand.New(rand.NewPCG(1, uint64(100*size+scale)))
				margins := make([]float64, 400_000)
				draw := func(margins []float64) {
					for i := range margins {
						m := math.Abs(scale * r.NormFloat64())
						if r.Float64() > accuracy(numeric.Sigmoid(m), size) {
							m = -m
						}
						margins[i] = m
					}
				}
				want := 0.0
				if draw(margins); size > 0 {
					want = ECE(Reliability(margins))
				}
				for _, n := range []int{100, 500, 2000} {
					covered := 0
					for range draws {
						draw(margins[:n])
						value, low, high := CalibrationError(Reliability(margins[:n]))
						assert.True(t, 0 <= low && low <= value && value <= high && high <= 1)
						if low <= want && want <= high {
							covered++
						}
					}
					assert.GreaterOrEqual(t, float64(covered)/draws, 0.9,
						fmt.Sprintf("%s, %v of %v: true error %.3f, %d pairs", name, size, scale, want, n))
				}
			}
		}
	}
}

// The corrected estimate is unbiased where the plug-in estimate consists of bias only.
func TestCalibrationErrorIsLessBiasedThanThePlugIn(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var plugIn, corrected float64
	margins := make([]float64, 500)
	for range 200 {
		for i := range margins {
			m := math.Abs(1.5 * r.NormFloat64())
			if r.Float64() > numeric.Sigmoid(0.7*m) { // a true error of .053
				m = -m
			}
			margins[i] = m
		}
		bins := Reliability(margins)
		value, _, _ := CalibrationError(bins)
		plugIn += ECE(bins) / 200
		corrected += value / 200
	}
	// The standard error of both means is .0015.
	assert.InDelta(t, 0.053, corrected, 0.008)
	assert.Greater(t, plugIn, 0.053+0.012)
}

func TestCalibrationErrorOfFewPairs(t *testing.T) {
	log3 := math.Log(3) // sigmoid is 3/4
	for name, margins := range map[string][]float64{
		"one, right": {log3}, "one, wrong": {-log3}, "one, certain": {800}, "one, certain and wrong": {-800},
		"ties": {0, 0, 0}, "all right": {1, 2, 3, 4}, "as sure as right": {log3, log3, log3, -log3},
	} {
		value, low, high := CalibrationError(Reliability(margins))
		assert.True(t, 0 <= low && low <= value && value <= high && high <= 1, "%s: %v, %v to %v", name, value, low, high)
		assert.Greater(t, high, 0.15, "%s: so few pairs show little", name)
	}
	// Twenty of twenty are right at a confidence of 1. With an accuracy of .89 this happens one in ten
	// times, with .83 one in forty.
	sure := make([]float64, 20)
	for i := range sure {
		sure[i] = 800
	}
	value, low, high := CalibrationError(Reliability(sure))
	assert.InDeltaSlice(t, []float64{0, 0}, []float64{value, low}, 1e-12)
	assert.True(t, 0.11 < high && high < 0.17, "%v", high)
	// With a million pairs the error is certain: two thirds are right at a confidence of 3/4.
	many := make([]float64, 999_999)
	for i := range many {
		many[i] = math.Copysign(log3, float64(i%3)-0.5)
	}
	value, low, high = CalibrationError(Reliability(many))
	assert.InDelta(t, 0.75-2./3, value, 1e-4)
	assert.InDelta(t, 4*math.Sqrt(2./9/1e6), high-low, 2e-4)

	value, low, high = CalibrationError(Reliability(nil))
	assert.True(t, math.IsNaN(value) && math.IsNaN(low) && math.IsNaN(high))
}

// The moments of a folded normal against their integrals.
func TestFolded(t *testing.T) {
	for _, c := range []struct{ d, sd float64 }{{0, 1}, {0.05, 0.08}, {0.3, 0.01}, {2, 3}} {
		var want [4]float64 // raw moments by the midpoint rule, 12 standard deviations wide
		const steps = 200_000
		width := 24.0 / steps
		for i := range steps {
			z := -12 + (float64(i)+0.5)*width
			weight := math.Exp(-z*z/2) / math.Sqrt(2*math.Pi) * width
			x := math.Abs(c.d + c.sd*z)
			for k, power := 0, 1.0; k < 4; k, power = k+1, power*x {
				want[k] += weight * power
			}
		}
		mean, variance, third := folded(c.d, c.sd)
		m := want[1]
		assert.InDelta(t, m, mean, 1e-8*c.sd)
		assert.InDelta(t, want[2]-m*m, variance, 1e-7*c.sd*c.sd)
		assert.InDelta(t, want[3]-3*m*want[2]+2*m*m*m, third, 1e-6*c.sd*c.sd*c.sd)
	}
	mean, variance, third := folded(0.2, 0)
	assert.Equal(t, []float64{0.2, 0, 0}, []float64{mean, variance, third})
}
