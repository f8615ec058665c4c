package ids

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/pcrm-project/pcrm/pcrm/internal/testkit"
)

func TestFirstDifferenceAndFirstEqual(t *testing.T) {
	for _, name := range testkit.Tiers() {
		testkit.ForceTier(t, name)
		for n := range 40 {
			a, b := make([]int64, n), make([]int64, n+3)
			for i := range n {
				a[i], b[i] = int64(i)<<33+7, int64(i)<<33+7
			}
			assert.Equal(t, n, FirstDifference(a, b))
			assert.Equal(t, n, FirstDifference(b, a))
			assert.Equal(t, n, FirstEqual(a, 8))
			for i := range n {
				b[i] ^= 1 << 40 // differs in the high half only
				assert.Equal(t, i, FirstDifference(a, b), "%v n=%d", name, n)
				b[i] ^= 1 << 40
				assert.Equal(t, i, FirstEqual(a, a[i]), "%v n=%d", name, n)
				// A match past the end does not count.
				assert.Equal(t, i, FirstEqual(a[:i], a[i]))
			}
		}
	}
}
