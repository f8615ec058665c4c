package pcrm_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/diff/fd"

	"github.com/pcrm-project/pcrm/pcrm"
)

func TestSpan(t *testing.T) {
	for _, c := range []struct {
		chosen, rejected []int64
		pad              int64
		start, end       int
	}{
		{[]int64{1, 2, 3, 0}, []int64{1, 9, 0, 0}, 0, 1, 3},
		{[]int64{1, 2, 0, 0}, []int64{1, 2, 0, 0}, 0, 3, 4}, // equal rows: the last position
		{[]int64{1, 2}, []int64{1, 2}, pcrm.NoPad, 1, 2},
		{[]int64{1, 2, 0, 0}, []int64{1, 2, 5, 0}, 0, 2, 3}, // one is the start of the other
		{[]int64{0, 0, 2, 3}, []int64{0, 0, 4, 0}, 0, 2, 4}, // a pad id in the prompt does not end a response
		{[]int64{1, 2, 3, 0}, []int64{1, 9, 0, 0}, pcrm.NoPad, 1, 4},
		{[]int64{1, 2}, []int64{1, 2, 3, 4}, pcrm.NoPad, 2, 4}, // rows of unequal length
		{[]int64{1, 2}, []int64{1, 2, 3, 0}, 0, 2, 3},
		{[]int64{1, 2}, []int64{1, 2, 0, 0}, 0, 3, 4}, // equal except for padding
		{[]int64{1, 2}, []int64{1, 2, 0, 5}, 0, 3, 4},
		{[]int64{1}, nil, 0, 0, 1},
		{nil, nil, 0, 0, 0},
	} {
		for _, tier := range tiers() {
			forceTier(t, tier)
			start, end := pcrm.Span(c.chosen, c.rejected, c.pad)
			assert.Equal(t, [2]int{c.start, c.end}, [2]int{start, end}, "%+v", c)
			start, end = pcrm.Span(c.rejected, c.chosen, c.pad)
			assert.Equal(t, [2]int{c.start, c.end}, [2]int{start, end}, "swapped %+v", c)
		}
	}
}

// naiveSpan implements the definition, one position at a time, on rows padded to the same width.
func naiveSpan(chosen, rejected []int64, pad int64) (int, int) {
	width := max(len(chosen), len(rejected))
	at := func(ids []int64, i int) int64 {
		if i < len(ids) {
			return ids[i]
		}
		return pad
	}
	start := 0
	for start < width && at(chosen, start) == at(rejected, start) {
		start++
	}
	if start == width {
		return max(width-1, 0), width
	}
	end := start
	for _, ids := range [][]int64{chosen, rejected} {
		i := start
		for i < len(ids) && (pad == pcrm.NoPad || ids[i] != pad) {
			i++
		}
		end = max(end, i)
	}
	return start, end
}

func FuzzSpan(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0}, []byte{1, 9, 0, 0}, int64(0))
	f.Add([]byte{1, 2}, []byte{1, 2, 0, 5}, int64(0))
	f.Add([]byte("a prompt of more than eight tokens, and this"), []byte("a prompt of more than eight tokens, and that one"), int64('t'))
	f.Add([]byte{}, []byte{7}, int64(pcrm.NoPad))
	f.Fuzz(func(t *testing.T, chosen, rejected []byte, pad int64) {
		ids := func(b []byte) []int64 {
			var x []int64
			for _, v := range b {
				x = append(x, int64(v))
			}
			return x
		}
		wantStart, wantEnd := naiveSpan(ids(chosen), ids(rejected), pad)
		for _, tier := range tiers() {
			forceTier(t, tier)
			start, end := pcrm.Span(ids(chosen), ids(rejected), pad)
			if start != wantStart || end != wantEnd {
				t.Fatalf("%s: [%d, %d), want [%d, %d)", tier, start, end, wantStart, wantEnd)
			}
		}
	})
}

// tokenBatch returns rows of every kind: equal, one a prefix of the other, different from the start,
// with and without padding.
func tokenBatch(rows, width int) (chosen, rejected []float64, chosenIDs, rejectedIDs []int64, delta []float64) {
	r := rand.New(rand.NewPCG(uint64(rows), uint64(width)))
	for i := range rows {
		a, b := make([]int64, width), make([]int64, width)
		common := r.IntN(width)
		for k := range common {
			a[k] = 1 + r.Int64N(50)
			b[k] = a[k]
		}
		for k := common; k < common+r.IntN(width-common+1); k++ {
			a[k] = 1 + r.Int64N(50)
		}
		for k := common; k < common+r.IntN(width-common+1); k++ {
			b[k] = 1 + r.Int64N(50)
		}
		if i%5 == 4 {
			copy(b, a)
		}
		chosenIDs, rejectedIDs = append(chosenIDs, a...), append(rejectedIDs, b...)
		for range width {
			chosen, rejected = append(chosen, r.NormFloat64()*3), append(rejected, r.NormFloat64()*3)
		}
		delta = append(delta, []float64{4.5, inf, 0.5 + 20*r.Float64()}[i%3])
	}
	return
}

// The documented loop, literally, on every tier.
func TestTokenLossIsTheDocumentedLoop(t *testing.T) {
	for _, tier := range tiers() {
		forceTier(t, tier)
		tokenLoop[float64](t, 1e-13)
		tokenLoop[float32](t, 2e-6)
	}
}

func tokenLoop[F pcrm.Float](t *testing.T, tolerance float64) {
	for _, shape := range [][2]int{{1, 1}, {7, 13}, {16, 257}, {3, 5000}, {4100, 3}} {
		rows, width := shape[0], shape[1]
		c64, r64, chosenIDs, rejectedIDs, d64 := tokenBatch(rows, width)
		chosen, rejected, delta := to[F](c64), to[F](r64), to[F](d64)
		for _, reduction := range []pcrm.Reduction{pcrm.Mean, pcrm.Sum, pcrm.None} {
			o := pcrm.RewardOptions{Reduction: reduction, LabelSmoothing: 0.1, CenterRewardsCoefficient: 0.02}
			losses, gradChosen, gradRejected := make([]F, rows), make([]F, rows*width), make([]F, rows*width)
			for i := range gradChosen {
				gradChosen[i], gradRejected[i] = 7, 7
			}
			got, err := pcrm.TokenLoss(losses, gradChosen, gradRejected, chosen, rejected, chosenIDs, rejectedIDs, delta, 0, o)
			require.NoError(t, err)
			scale, want := 1.0, 0.0
			if reduction == pcrm.Mean {
				scale = 1 / float64(rows)
			}
			for i := range rows {
				row := i * width
				start, end := naiveSpan(chosenIDs[row:row+width], rejectedIDs[row:row+width], 0)
				length, mean := float64(end-start), 0.0
				for k := range width {
					w, l := float64(chosen[row+k]), float64(rejected[row+k])
					loss, g := pcrm.PairLoss(w-l, float64(delta[i]), 0.1)
					pull := 2 * 0.02 * (w + l)
					if k < start || k >= end {
						g, pull = 0, 0
					} else {
						mean += (loss + 0.02*(w+l)*(w+l)) / length
					}
					// No term of a gradient is greater than 1 + |pull|.
					allowed := tolerance * scale / length * (1 + math.Abs(pull))
					if math.Abs((pull+g)*scale/length-float64(gradChosen[row+k])) > allowed ||
						math.Abs((pull-g)*scale/length-float64(gradRejected[row+k])) > allowed {
						t.Fatalf("%v row %d position %d: %v %v", shape, i, k, gradChosen[row+k], gradRejected[row+k])
					}
				}
				require.InEpsilon(t, mean, float64(losses[i]), tolerance)
				want += mean
			}
			require.InEpsilon(t, want*scale, got, tolerance)
		}
	}
}

func TestTokenLossGradient(t *testing.T) {
	rows, width := 5, 6
	chosen, rejected, chosenIDs, rejectedIDs, delta := tokenBatch(rows, width)
	n := rows * width
	gradChosen, gradRejected := make([]float64, n), make([]float64, n)
	o := pcrm.RewardOptions{CenterRewardsCoefficient: 0.01}
	_, err := pcrm.TokenLoss(nil, gradChosen, gradRejected, chosen, rejected, chosenIDs, rejectedIDs, delta, 0, o)
	require.NoError(t, err)
	numeric := fd.Gradient(nil, func(x []float64) float64 {
		loss, err := pcrm.TokenLoss(nil, nil, nil, x[:n], x[n:], chosenIDs, rejectedIDs, delta, 0, o)
		require.NoError(t, err)
		return loss
	}, append(append([]float64{}, chosen...), rejected...), &fd.Settings{Formula: fd.Central, Step: 1e-5})
	assert.InDeltaSlice(t, numeric, append(gradChosen, gradRejected...), 1e-8)
}

// Values outside the span are ignored, and a NaN inside affects only its row.
func TestTokenLossNaN(t *testing.T) {
	nan := math.NaN()
	ids, other := []int64{1, 2, 3, 0, 1, 2, 0, 0}, []int64{1, 4, 0, 0, 1, 3, 0, 0}
	chosen := []float64{nan, 1, 2, nan, nan, nan, nan, nan}
	rejected := []float64{inf, 0, 1, inf, 0, 0, 0, 0}
	losses, gradChosen, gradRejected := make([]float64, 2), make([]float64, 8), make([]float64, 8)
	_, err := pcrm.TokenLoss(losses, gradChosen, gradRejected, chosen, rejected, ids, other, []float64{4, 4}, 0, pcrm.RewardOptions{})
	require.NoError(t, err)
	assert.False(t, math.IsNaN(losses[0]))
	assert.True(t, math.IsNaN(losses[1]))
	assert.Equal(t, []float64{0, 0, 0}, []float64{gradChosen[0], gradChosen[3], gradChosen[4]})
	assert.True(t, math.IsNaN(gradChosen[5]))

	_, err = pcrm.TokenLoss(losses, nil, nil, chosen, rejected, ids, other, []float64{4, 4}, 0, pcrm.RewardOptions{CheckFinite: true})
	assert.EqualError(t, err, "chosen_rewards[5] must be finite, got NaN")
	_, err = pcrm.TokenLoss(losses, nil, nil, rejected, chosen, ids, other, []float64{4, 4}, 0, pcrm.RewardOptions{CheckFinite: true})
	assert.EqualError(t, err, "rejected_rewards[5] must be finite, got NaN")
}

func TestTokenLossErrors(t *testing.T) {
	four, ids := []float64{1, 2, 3, 4}, []int64{1, 2, 3, 4}
	type call struct {
		losses, grad, chosen, rejected, delta []float64
		chosenIDs, rejectedIDs                []int64
		o                                     pcrm.RewardOptions
	}
	for message, c := range map[string]call{
		"chosen_rewards must have at least one score, got none":                     {delta: four},
		"delta must have one element per row of chosen_rewards, got 3 for 4 scores": {chosen: four, delta: four[:3]},
		"delta must have one element per row of chosen_rewards, got 0 for 4 scores": {chosen: four},
		"rejected_rewards must have 4 elements, like chosen_rewards, got 1":         {chosen: four, rejected: four[:1], delta: four[:2]},
		"chosen_ids must have 4 elements, like chosen_rewards, got 3":               {chosen: four, rejected: four, delta: four[:2], chosenIDs: ids[:3]},
		"rejected_ids must have 4 elements, like chosen_rewards, got 0":             {chosen: four, rejected: four, delta: four[:2], chosenIDs: ids},
		"gradRejected must have 4 elements, like chosen_rewards, got 0":             {chosen: four, rejected: four, delta: four[:2], chosenIDs: ids, rejectedIDs: ids, grad: make([]float64, 4)},
		"losses must have 2 elements, like delta, got 4":                            {chosen: four, rejected: four, delta: four[:2], chosenIDs: ids, rejectedIDs: ids, losses: make([]float64, 4)},
		"delta[1] must be greater than 0, got -1":                                   {chosen: four, rejected: four, delta: []float64{1, -1}, chosenIDs: ids, rejectedIDs: ids},
		"label_smoothing must be in [0, 0.5), got 0.7":                              {chosen: four, o: pcrm.RewardOptions{LabelSmoothing: 0.7}},
	} {
		_, err := pcrm.TokenLoss(c.losses, c.grad, nil, c.chosen, c.rejected, c.chosenIDs, c.rejectedIDs, c.delta, 0, c.o)
		assert.EqualError(t, err, message)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
	}
}

// Arbitrary token ids and scores give no panic, zeros outside the span, and a loss that is the mean of
// the rows' losses.
func FuzzTokenLoss(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0, 1, 9, 0, 0}, uint8(1), float32(1), float32(4))
	f.Add([]byte{1, 2, 3, 0, 1, 9, 0, 0, 5, 5, 5, 5, 5, 5, 5, 5}, uint8(2), float32(-200), float32(math.Inf(1)))
	f.Fuzz(func(t *testing.T, b []byte, rows uint8, score, delta float32) {
		n := len(b) / 2
		if rows == 0 || n == 0 || n%int(rows) != 0 || !(delta > 0) || score-score != 0 {
			t.Skip()
		}
		width := n / int(rows)
		chosenIDs, rejectedIDs, chosen, rejected := make([]int64, n), make([]int64, n), make([]float32, n), make([]float32, n)
		for i := range n {
			chosenIDs[i], rejectedIDs[i] = int64(b[i]), int64(b[n+i])
			chosen[i], rejected[i] = score*float32(i%7)/7, float32(i%5)
		}
		deltas, losses := make([]float32, rows), make([]float32, rows)
		for i := range deltas {
			deltas[i] = delta
		}
		first := 0.0
		for k, tier := range tiers() {
			forceTier(t, tier)
			gradChosen, gradRejected := make([]float32, n), make([]float32, n)
			loss, err := pcrm.TokenLoss(losses, gradChosen, gradRejected, chosen, rejected, chosenIDs, rejectedIDs, deltas, 0, pcrm.RewardOptions{})
			require.NoError(t, err)
			sum := 0.0
			for i := range int(rows) {
				sum += float64(losses[i])
				start, end := naiveSpan(chosenIDs[i*width:(i+1)*width], rejectedIDs[i*width:(i+1)*width], 0)
				for p := range width {
					if g := gradChosen[i*width+p]; (p < start || p >= end) && g != 0 || g != -gradRejected[i*width+p] {
						t.Fatalf("gradient %v at %d of row %d, span [%d, %d)", g, p, i, start, end)
					}
				}
			}
			if math.IsInf(sum, 0) {
				continue // a loss over MaxFloat32
			}
			if k == 0 {
				first = loss
			}
			// float32 against float64 (see bounds), and the rounding of each loss.
			closeTo(t, first, loss, 2e-6, 1e-37, tier)
			closeTo(t, loss, sum/float64(rows), 1e-6, 1e-37, tier)
		}
	})
}
