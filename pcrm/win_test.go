package pcrm_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

var winDeltas = []float64{1e-9, 0.01, 1, 2, 4, 6, 12, 40, 700, inf}

// slope returns the derivative of the expected loss p L(m) + (1-p) L(-m) with respect to m.
func slope(p, m, delta float64) float64 {
	_, right := pcrm.PairLoss(m, delta, 0)
	_, wrong := pcrm.PairLoss(-m, delta, 0)
	return p*right - (1-p)*wrong
}

// At the optimum of the expected loss, found by bisection, the win probability is that of the loss.
func TestWinProbabilityIsThatOfTheOptimum(t *testing.T) {
	for _, delta := range winDeltas[1:] {
		for _, p := range []float64{1e-4, 0.03, 0.25, 0.5, 0.6, 0.75, 0.9, 0.99} {
			low, high := -min(delta/2, 50), min(delta/2, 50)
			assert.LessOrEqual(t, slope(p, low, delta), 0.0)
			assert.GreaterOrEqual(t, slope(p, high, delta), 0.0)
			for range 100 {
				if middle := low + (high-low)/2; slope(p, middle, delta) < 0 {
					low = middle
				} else {
					high = middle
				}
			}
			// The slope has the rounding of terms of up to 1, and delta's size moves it by delta/4.
			assert.InDelta(t, p, pcrm.WinProbability(low, delta), 4e-15/min(delta, 1), "p %v, delta %v", p, delta)
		}
	}
}

// Beyond a target, every expected loss decreases towards it, so the nearest P is 1 or 0.
func TestWinProbabilityBeyondTheTargets(t *testing.T) {
	for _, delta := range winDeltas[:7] {
		for _, m := range []float64{delta / 2, delta, 3 * delta, 1000, 1e308, inf} {
			assert.Equal(t, 1.0, pcrm.WinProbability(m, delta))
			assert.Equal(t, 0.0, pcrm.WinProbability(-m, delta))
			if m > delta/2 && m < inf {
				for _, p := range []float64{0, 0.3, 1} {
					assert.Positive(t, slope(p, m, delta))
					assert.Negative(t, slope(p, -m, delta))
				}
			}
		}
		below := math.Nextafter(delta/2, 0)
		assert.Less(t, 0.0, pcrm.WinProbability(-below, delta))
		assert.InDelta(t, 1, pcrm.WinProbability(below, delta), 1e-15)
	}
}

func TestWinProbabilityProperties(t *testing.T) {
	for _, delta := range winDeltas {
		before := 0.0
		reach := min(delta/2, 30)
		for i := -500; i <= 500; i++ {
			m := reach * float64(i) / 500
			p := pcrm.WinProbability(m, delta)
			assert.GreaterOrEqual(t, p, before, "monotone in m, at %v of delta %v", m, delta)
			assert.Equal(t, 1-pcrm.WinProbability(-math.Abs(m), delta), pcrm.WinProbability(math.Abs(m), delta), "symmetric")
			sigmoid := 1 / (1 + math.Exp(-m))
			switch {
			case math.IsInf(delta, 1):
				assert.InEpsilon(t, sigmoid, p, 1e-15)
			case m > 0:
				assert.GreaterOrEqual(t, p, sigmoid-0x1p-52, "sigmoid is underconfident")
			case m < 0:
				assert.LessOrEqual(t, p, sigmoid+0x1p-52)
			}
			before = p
		}
	}
	// A small delta has only the ratio of the two: sinh(x) is x, and cosh(x) is 1.
	assert.InEpsilon(t, (1+0.4)/2, pcrm.WinProbability(0.2e-9, 1e-9), 1e-9)
	assert.InEpsilon(t, 5.0/6, pcrm.WinProbability(5e-324, 15e-324), 1e-15, "subnormal")
	assert.InEpsilon(t, math.Exp(-700), pcrm.WinProbability(-700, 1e6), 1e-15, "a large delta is none")
}

func TestWinProbabilitySpecialCases(t *testing.T) {
	for _, delta := range winDeltas {
		assert.Equal(t, 0.5, pcrm.WinProbability(0, delta))
		assert.Equal(t, 0.5, pcrm.WinProbability(math.Copysign(0, -1), delta))
		assert.True(t, math.IsNaN(pcrm.WinProbability(math.NaN(), delta)))
		assert.Equal(t, 1.0, pcrm.WinProbability(inf, delta))
		assert.Equal(t, 0.0, pcrm.WinProbability(-inf, delta))
	}
	for _, delta := range []float64{0, -1, -inf, math.NaN()} {
		assert.True(t, math.IsNaN(pcrm.WinProbability(1, delta)))
	}
}

func TestWinProbabilities(t *testing.T) {
	t.Run("float32", testWinProbabilities[float32])
	t.Run("float64", testWinProbabilities[float64])
}

func testWinProbabilities[F pcrm.Float](t *testing.T) {
	margins, deltas := []F{0, 1, -1, 5, F(math.NaN())}, []F{1, 4, F(inf), 4, 4}
	dst := make([]F, 5)
	require.NoError(t, pcrm.WinProbabilities(dst, margins, deltas))
	for i := range margins {
		want := F(pcrm.WinProbability(float64(margins[i]), float64(deltas[i])))
		assert.True(t, dst[i] == want || want != want && dst[i] != dst[i], "%d: %v, not %v", i, dst[i], want)
	}
	require.NoError(t, pcrm.WinProbabilities[F](nil, nil, nil))

	for message, err := range map[string]error{
		"dst must have 5 elements, like margins, got 4":   pcrm.WinProbabilities(dst[:4], margins, deltas),
		"delta must have 5 elements, like margins, got 3": pcrm.WinProbabilities(dst, margins, deltas[:3]),
		"delta[1] must be greater than 0, got 0":          pcrm.WinProbabilities(dst[:2], margins[:2], []F{1, 0}),
		"delta[0] must be greater than 0, got -2":         pcrm.WinProbabilities(dst[:1], margins[:1], []F{-2}),
		"delta[0] must be greater than 0, got NaN":        pcrm.WinProbabilities(dst[:1], margins[:1], []F{F(math.NaN())}),
		"delta[0] must be greater than 0, got -Inf":       pcrm.WinProbabilities(dst[:1], margins[:1], []F{F(-inf)}),
	} {
		assert.EqualError(t, err, message)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
	}
}
