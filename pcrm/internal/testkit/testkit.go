// Package testkit contains helpers that the tests of several packages share.
package testkit

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

// Tiers returns the names of the tiers that this machine supports.
func Tiers() (names []string) {
	for t := tier.Scalar; t <= tier.Best(); t++ {
		names = append(names, t.String())
	}
	return names
}

// ForceTier selects a tier until the test ends.
func ForceTier(t testing.TB, name string) {
	before := tier.Current().String()
	require.NoError(t, tier.Set(name))
	t.Cleanup(func() { _ = tier.Set(before) })
}

// CloseTo asserts |got-want| <= relative*|want| + absolute.
func CloseTo(t testing.TB, want, got, relative, absolute float64, msg ...any) {
	t.Helper()
	assert.InDelta(t, want, got, relative*math.Abs(want)+absolute, msg...)
}

// Convert returns x in another precision.
func Convert[To, From float32 | float64](x []From) []To {
	y := make([]To, len(x))
	for i, v := range x {
		y[i] = To(v)
	}
	return y
}
