package pcrm_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

func TestLengthRatio(t *testing.T) {
	for _, c := range []struct {
		chosen, rejected []int64
		pad              int64
		want             float64
	}{
		{[]int64{1, 2, 3}, []int64{1, 9}, pcrm.NoPad, 0.5},
		{[]int64{1, 2, 3, 0}, []int64{1, 9, 0, 0}, 0, 0.5},
		{[]int64{1, 2, 3, 0}, []int64{1, 9}, 0, 0.5}, // rows of different widths
		{[]int64{1, 2}, []int64{1, 2}, pcrm.NoPad, 1},
		{[]int64{1, 2, 0}, []int64{1, 2, 0}, 0, 1}, // the authors' script says 0
		{nil, nil, pcrm.NoPad, 1},
		{[]int64{1, 2}, []int64{1}, pcrm.NoPad, 0},
		{[]int64{1, 0, 2, 0}, []int64{1, 0, 3, 4}, 0, 0.5}, // a pad id in the prompt ends nothing
		{[]int64{1, 2, 0}, []int64{1, 3, 0}, pcrm.NoPad, 1},
	} {
		assert.Equal(t, c.want, pcrm.LengthRatio(c.chosen, c.rejected, c.pad), "%v", c)
		assert.Equal(t, c.want, pcrm.LengthRatio(c.rejected, c.chosen, c.pad), "swapped %v", c)
	}
}

func TestLengthRatios(t *testing.T) {
	dst := make([]float32, 2)
	chosen, rejected := []int64{1, 2, 3, 7, 8}, []int64{1, 9, 7, 8}
	require.NoError(t, pcrm.LengthRatios(dst, chosen, []int64{0, 3, 5}, rejected, []int64{0, 2, 4}, pcrm.NoPad))
	assert.Equal(t, []float32{0.5, 1}, dst)
	require.NoError(t, pcrm.LengthRatios([]float32{}, []int32(nil), []int64{0}, nil, []int64{0}, pcrm.NoPad))
	for message, offsets := range map[string][]int64{
		"chosen_ids have 2 offsets, 2 rows need 3":       {0, 5},
		"chosen_ids[2] has offset 6, must be in [3, 5]":  {0, 3, 6},
		"chosen_ids[2] has offset 1, must be in [3, 5]":  {0, 3, 1},
		"chosen_ids[0] has offset -1, must be in [0, 5]": {-1, 3, 5},
	} {
		assert.EqualError(t, pcrm.LengthRatios(dst, chosen, offsets, rejected, []int64{0, 2, 4}, pcrm.NoPad), message)
	}
	assert.ErrorContains(t, pcrm.LengthRatios(dst, chosen, []int64{0, 3, 5}, rejected, []int64{0}, pcrm.NoPad), "rejected_ids have 1 offsets")
}
