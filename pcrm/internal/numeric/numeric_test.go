package numeric

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
)

// WinNLL is -log WinProbability. The tests of package pcrm compare WinProbability with its definition.
func TestWinNLL(t *testing.T) {
	for _, delta := range []float64{1e-300, 1e-9, 0.5, 4, 40, 1e6, math.Inf(1)} {
		for _, share := range []float64{0, 1e-12, 0.1, 0.5, 0.9, 0.999999} {
			m := share * min(delta, 80) / 2
			for _, m := range []float64{m, -m} {
				want := -math.Log1p(-WinProbability(-m, delta))
				if m < 0 {
					want = -math.Log(WinProbability(m, delta))
				}
				assert.InEpsilon(t, want, WinNLL(m, delta), 2e-15, "%v of %v", m, delta)
			}
		}
		assert.InDelta(t, math.Ln2, WinNLL(0, delta), 1e-15)
	}
	assert.Equal(t, 0.0, WinNLL(2, 4))
	assert.Equal(t, math.Inf(1), WinNLL(-2, 4))
	// Where the probability underflows.
	assert.Equal(t, 1000.0, WinNLL(-1000, 1e6))
	assert.Equal(t, 1000.0, WinNLL(-1000, math.Inf(1)))
}
