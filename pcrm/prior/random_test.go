package prior_test

import (
	"math"
	"slices"
	"testing"
	"testing/quick"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm/prior"
)

// Computed by the Python lines in the documentation of RandomUniform.
func TestRandomUniformVectors(t *testing.T) {
	for _, c := range []struct {
		seed             uint64
		chosen, rejected []int64
		want             float64
	}{
		{42, []int64{1, 2, 3}, []int64{1, 9}, 0x1.529836p-1},
		{1, nil, nil, 0x1.38c184p-1},
		{0, []int64{1}, nil, 0x1.0a14a8p-2},
		{math.MaxUint64, []int64{-1, -5}, []int64{math.MaxInt64}, 0x1.d6a5d8p-2},
	} {
		assert.Equal(t, c.want, prior.RandomUniform(c.seed, c.chosen, c.rejected, prior.NoPad), "%+v", c)
	}
	assert.Equal(t, 0x1.529836p-1, prior.RandomUniform(42, []int32{1, 2, 3}, []int32{1, 9}, prior.NoPad))
	assert.Equal(t, prior.RandomUniform(3, []int64{-1}, []int64{2}, 0), prior.RandomUniform(3, []int32{-1}, []int32{2}, 0), "a negative id")
}

func TestRandomUniformProperties(t *testing.T) {
	const pad = 0
	require.NoError(t, quick.Check(func(seed uint64, chosen, rejected []int64, pads uint8) bool {
		u := prior.RandomUniform(seed, chosen, rejected, pad)
		padded := prior.RandomUniform(seed, append(slices.Clone(chosen), make([]int64, pads%9)...), append(slices.Clone(rejected), make([]int64, pads%5)...), pad)
		return u >= 0 && u < 1 && float64(float32(u)) == u && u == padded
	}, nil))
	ids := []int64{5, 0, 7}
	u := prior.RandomUniform(1, ids, ids[:1], pad)
	assert.NotEqual(t, u, prior.RandomUniform(2, ids, ids[:1], pad), "another seed")
	assert.NotEqual(t, u, prior.RandomUniform(1, ids[:1], ids, pad), "swapped")
	assert.NotEqual(t, u, prior.RandomUniform(1, []int64{5, 7}, ids[:1], pad), "a pad id inside counts")
	assert.NotEqual(t, u, prior.RandomUniform(1, ids[:2], []int64{7, 5}, prior.NoPad), "ids that moved from one response to the other")
}

// 64 bins of 40,000 pairs that differ only in one small id. Chi squared with 63
// degrees of freedom is below 124 with probability 1 - 6e-6.
func TestRandomUniformIsUniform(t *testing.T) {
	var bins [64]float64
	for i := range int64(200) {
		for j := range int64(200) {
			bins[int(64*prior.RandomUniform(uint64(i), []int64{1, 2}, []int64{1, j}, prior.NoPad))]++
		}
	}
	chi := 0.0
	for _, n := range bins {
		chi += (n - 625) * (n - 625) / 625
	}
	assert.Less(t, chi, 124.0)
}

func TestRandomUniforms(t *testing.T) {
	chosen, chosenOffsets, rejected, rejectedOffsets := raggedIDs[int32, int64](3000)
	dst, single := make([]float64, 3000), make([]float32, 1)
	require.NoError(t, prior.RandomUniforms(dst, 9, chosen, chosenOffsets, rejected, rejectedOffsets, prior.NoPad))
	for i, u := range dst {
		require.NoError(t, prior.RandomUniforms(single, 9, chosen, chosenOffsets[i:i+2], rejected, rejectedOffsets[i:i+2], prior.NoPad))
		require.Equal(t, u, float64(single[0]), "the same in any batch and precision")
	}
	assert.EqualError(t, prior.RandomUniforms(dst, 9, chosen, chosenOffsets[1:], rejected, rejectedOffsets, prior.NoPad), "chosen_ids must have 3001 offsets for 3000 rows, got 3000")
	assert.EqualError(t, prior.RandomUniforms(dst, 9, chosen, chosenOffsets, rejected, rejectedOffsets[1:], prior.NoPad), "rejected_ids must have 3001 offsets for 3000 rows, got 3000")
}
