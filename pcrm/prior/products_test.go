package prior

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm/internal/testkit"
	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

// The kernel at every length around its step and at every alignment. The rows are surrounded by NaN,
// which would show in the sum. Products of float32 are exact in float64, so the error of n additions in
// any order is less than n roundings of the sum of the absolute values.
func TestProductsTiers(t *testing.T) {
	if tier.Best() == tier.Scalar {
		t.Skip("this processor has no SIMD tier")
	}
	r := rand.New(rand.NewPCG(11, 12))
	row := func(n, offset int) []float32 {
		all := make([]float32, 16+offset+n+16)
		for i := range all {
			all[i] = float32(math.NaN())
		}
		x := all[16+offset : 16+offset+n]
		for i := range x {
			x[i] = float32(r.NormFloat64() * math.Pow(10, float64(r.IntN(9)-4)))
		}
		return x
	}
	for n := range 100 {
		for offset := range 8 {
			a, b := row(n, offset), row(n, (3*offset)%8)
			absolute := 0.0
			for i := range a {
				absolute += math.Abs(float64(a[i]) * float64(b[i]))
			}
			for _, name := range testkit.Tiers()[tier.AVX2:] {
				testkit.ForceTier(t, name)
				ab, aa, bb := products32(a, b)
				wantAB, wantAA, wantBB := scalarProducts(a, b)
				eps := float64(n) * 0x1p-53
				require.InDelta(t, wantAB, ab, eps*absolute, "%s, %d elements at %d", name, n, offset)
				require.InDelta(t, wantAA, aa, eps*wantAA)
				require.InDelta(t, wantBB, bb, eps*wantBB)
			}
		}
	}
}
