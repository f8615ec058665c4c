package bridge

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Estimates are JSON: a value and two ends, null if an end is infinite.
func TestStatistics(t *testing.T) {
	decode := func(text string, err error) (e map[string][]*float64) {
		t.Helper()
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal([]byte(text), &e))
		return e
	}
	// A resample of three pairs often has a mean below 0, for which no temperature is finite.
	e := decode(Pairs(3, address([]float64{3, 1, -2}), 0, 0))
	assert.Equal(t, 2./3, *e["accuracy"][0])
	require.Len(t, e["temperature"], 3)
	assert.NotNil(t, e["temperature"][1])
	assert.Nil(t, e["temperature"][2])
	assert.NotContains(t, e, "violation_rate")

	scores, ratings, offsets := []float64{1, 2, 3, 1, 2}, []float64{1, 3, 2, 1, 2}, []int64{0, 3, 5}
	spearman, kendall := make([]float64, 2), make([]float64, 2)
	e = decode(Rankings(2, 5, address(spearman), address(kendall), address(scores), address(ratings), address(offsets)))
	assert.InDelta(t, 0.75, *e["spearman_rating"][0], 1e-15)
	assert.InDeltaSlice(t, []float64{1. / 3, 1}, kendall, 1e-15)
	e = decode(Lengths(2, 5, address(scores), address(ratings), address(offsets)))
	assert.Len(t, e, 1)

	bins := make([]float64, 50)
	_, err := Reliability(2, address(bins), address([]float64{800, -800}), 0)
	require.NoError(t, err)
	assert.Equal(t, []float64{2, 1, 0.5}, []float64{bins[9], bins[19], bins[29]})
	_, err = Reliability(2, address(bins), address([]float64{1, -1}), address([]float64{2, 2}))
	require.NoError(t, err)
	assert.Equal(t, []float64{2, 1, 0.5}, []float64{bins[9], bins[19], bins[29]}, "a margin at its target is certain")

	_, err = Pairs(0, 0, 0, 0)
	assert.EqualError(t, err, "ValueError: margins must have at least one number, got none")
	_, err = Lowess(1, address(bins), address(bins), address(bins), 2, 0, 0)
	assert.EqualError(t, err, "ValueError: frac must be in [0, 1], got 2")
	score, feature := []float64{5, 7}, []float64{10, 20}
	_, err = Calibrate(2, address(score), address(score), address(feature), "penalty", 0.1, 0, 0, 0)
	require.NoError(t, err)
	assert.Equal(t, []float64{4, 5}, score)
	_, err = Calibrate(2, address(score), address(score), address(feature), "mean", 1, 0, 0, 0)
	assert.EqualError(t, err, `ValueError: method must be lowess, uniform or penalty, got "mean"`)
	e = decode(Calibrated(2, address(score), address([]float64{-1, 1})))
	assert.Equal(t, 0.5, *e["flip_rate"][0])
	_, err = Reliability(1, 0, address(bins), 0) // no memory for the bins
	assert.ErrorContains(t, err, "RuntimeError: pcrm: internal error")
}

// Policies are a JSON list. Each has the number of pools that it averages.
func TestPolicies(t *testing.T) {
	scores, gold, offsets := []float64{1, 2, 3, 5, 4}, []float64{10, 20, 60, 0, 2}, []int64{0, 3, 5}
	type point struct {
		Pools     int
		Estimates map[string][]float64
	}
	var points []point
	text, err := BestOfN(2, 5, 2, address(scores), address(gold), address(offsets), address([]int64{1, 3}))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(text), &points))
	assert.Equal(t, 2, points[0].Pools)
	assert.Equal(t, 1, points[1].Pools)
	assert.InDeltaSlice(t, []float64{60, 60, 60}, points[1].Estimates["gold"], 1e-12)

	text, err = SoftmaxPolicy(2, 5, 1, address(scores), address(gold), address(offsets), address([]float64{0}))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(text), &points))
	assert.InDelta(t, 4, points[0].Estimates["proxy"][0], 1e-15)

	text, err = Reference(2, 5, address(scores), address(gold), address(offsets))
	require.NoError(t, err)
	assert.Contains(t, text, `"proxy/sd":[`)

	_, err = BestOfN(2, 5, 1, address(scores), address(gold), address(offsets), address([]int64{4}))
	assert.EqualError(t, err, "ValueError: counts[0] must be from 1 to 3, the size of the largest pool, got 4")
}
