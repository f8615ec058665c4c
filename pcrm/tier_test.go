package pcrm_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

// tiers are those that this machine has.
func tiers() []string {
	var have []string
	before := pcrm.Tier()
	for _, name := range []string{"scalar", "avx2", "avx512"} {
		if pcrm.SetTier(name) == nil {
			have = append(have, name)
		}
	}
	_ = pcrm.SetTier(before)
	return have
}

// forceTier is undone when the test ends.
func forceTier(t testing.TB, name string) {
	before := pcrm.Tier()
	require.NoError(t, pcrm.SetTier(name))
	t.Cleanup(func() { _ = pcrm.SetTier(before) })
}
