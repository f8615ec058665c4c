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

var inf = math.Inf(1)

// The gradient against central differences. Their step of 1e-5 gives an error of
// about 1e-10 (h^2 L”'/6) plus 1e-16/1e-5 of rounding times the loss.
func TestPairLossGradient(t *testing.T) {
	for _, delta := range []float64{1e-3, 0.5, 4.5, 30, 1000, inf} {
		for _, e := range []float64{0, 0.1, 0.49} {
			for m := -40.0; m <= 40; m += 0.7 {
				loss, grad := pcrm.PairLoss(m, delta, e)
				numeric := fd.Derivative(func(x float64) float64 { l, _ := pcrm.PairLoss(x, delta, e); return l }, m,
					&fd.Settings{Formula: fd.Central, Step: 1e-5})
				assert.InDelta(t, numeric, grad, 4e-11+4.4e-11*(math.Abs(m)+loss), "m=%v delta=%v e=%v", m, delta, e)
			}
		}
	}
}

func TestPairLossProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		delta, m := math.Exp(r.NormFloat64()*2), r.NormFloat64()*10
		loss, grad := pcrm.PairLoss(m, delta, 0)
		mirror, mirrorGrad := pcrm.PairLoss(delta-m, delta, 0)
		assert.InEpsilon(t, loss, mirror, 1e-12, "symmetric about delta/2")
		assert.InDelta(t, grad, -mirrorGrad, 1e-14, "antisymmetric gradient")
		least, zero := pcrm.PairLoss(delta/2, delta, 0)
		assert.InDelta(t, 0, zero, 4.5e-16, "the target is delta/2")
		assert.InEpsilon(t, 2*math.Log1p(math.Exp(-delta/2)), least, 1e-12, "the floor is 2 softplus(-delta/2)")
		assert.GreaterOrEqual(t, loss, least*(1-1e-12))

		smoothed, smoothedGrad := pcrm.PairLoss(m, delta, 0.2)
		assert.InEpsilon(t, loss+0.2*delta, smoothed, 1e-12, "smoothing adds e*delta")
		assert.Equal(t, grad, smoothedGrad, "and moves no gradient")

		bt, btGrad := pcrm.PairLoss(m, inf, 0)
		assert.InEpsilon(t, math.Max(-m, 0)+math.Log1p(math.Exp(-math.Abs(m))), bt, 1e-14, "unconstrained is Bradley-Terry")
		assert.InDelta(t, -1/(1+math.Exp(m)), btGrad, 1e-15)
	}
}

// The values listed in the documentation of PairLoss.
func TestPairLossSpecialCases(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct{ m, delta, e, loss, grad float64 }{
		{nan, 4, 0, nan, nan},
		{nan, inf, 0, nan, nan},
		{1, nan, 0, nan, nan},
		{inf, 4, 0, inf, 1},
		{-inf, 4, 0, inf, -1},
		{inf, inf, 0, 0, 0},
		{-inf, inf, 0, inf, -1},
		{inf, inf, 0.1, inf, 0.1},
		{-inf, inf, 0.1, inf, -0.9},
		{1e4, 4, 0, 1e4 - 4, 1},
		{-1e4, 4, 0, 1e4, -1},
		{-1e300, inf, 0, 1e300, -1},
	} {
		loss, grad := pcrm.PairLoss(c.m, c.delta, c.e)
		if math.IsNaN(c.loss) {
			assert.True(t, math.IsNaN(loss) && math.IsNaN(grad), "%+v: %v %v", c, loss, grad)
			continue
		}
		assert.Equal(t, c.loss, loss, "%+v", c)
		assert.Equal(t, c.grad, grad, "%+v", c)
	}
}

func batch(n int) (chosen, rejected, delta []float64) {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	for i := range n {
		chosen = append(chosen, r.NormFloat64()*4)
		rejected = append(rejected, r.NormFloat64()*4)
		d := 1 + 20*r.Float64()
		if i%3 == 2 {
			d = inf
		}
		delta = append(delta, d)
	}
	return
}

// The gradient of a whole batch, with finite and infinite deltas, against finite differences of
// its loss.
func TestRewardLossGradient(t *testing.T) {
	for _, reduction := range []pcrm.Reduction{pcrm.Mean, pcrm.Sum} {
		o := pcrm.RewardOptions{Reduction: reduction, LabelSmoothing: 0.1, CenterRewardsCoefficient: 0.01}
		n := 7
		chosen, rejected, delta := batch(n)
		gradChosen, gradRejected := make([]float64, n), make([]float64, n)
		_, err := pcrm.RewardLoss(nil, gradChosen, gradRejected, chosen, rejected, delta, o)
		require.NoError(t, err)
		numeric := fd.Gradient(nil, func(x []float64) float64 {
			loss, err := pcrm.RewardLoss(nil, nil, nil, x[:n], x[n:], delta, o)
			require.NoError(t, err)
			return loss
		}, append(append([]float64{}, chosen...), rejected...), &fd.Settings{Formula: fd.Central, Step: 1e-5})
		assert.InDeltaSlice(t, numeric, append(gradChosen, gradRejected...), 1e-8)
	}
}

// The documented loop, literally, for sizes around a block.
func TestRewardLossIsTheDocumentedLoop(t *testing.T) {
	t.Run("float64", func(t *testing.T) { documentedLoop[float64](t, 1e-13) })
	t.Run("float32", func(t *testing.T) { documentedLoop[float32](t, 1e-6) })
}

func documentedLoop[F pcrm.Float](t *testing.T, tolerance float64) {
	for _, n := range []int{1, 2, 4095, 4096, 4097, 10000} {
		c64, r64, d64 := batch(n)
		chosen, rejected, delta := to[F](c64), to[F](r64), to[F](d64)
		for _, reduction := range []pcrm.Reduction{pcrm.Mean, pcrm.Sum, pcrm.None} {
			o := pcrm.RewardOptions{Reduction: reduction, LabelSmoothing: 0.1, CenterRewardsCoefficient: 0.02}
			losses, gradChosen, gradRejected := make([]F, n), make([]F, n), make([]F, n)
			total, err := pcrm.RewardLoss(losses, gradChosen, gradRejected, chosen, rejected, delta, o)
			require.NoError(t, err)
			scale, want := 1.0, 0.0
			if reduction == pcrm.Mean {
				scale = 1 / float64(n)
			}
			for i := range n {
				w, l := float64(chosen[i]), float64(rejected[i])
				loss, g := pcrm.PairLoss(w-l, float64(delta[i]), 0.1)
				loss += 0.02 * (w + l) * (w + l)
				want += loss
				pull := 2 * 0.02 * (w + l)
				if math.Abs(loss-float64(losses[i])) > tolerance*loss ||
					math.Abs((g+pull)*scale-float64(gradChosen[i])) > tolerance*scale ||
					math.Abs((pull-g)*scale-float64(gradRejected[i])) > tolerance*scale {
					t.Fatalf("n=%d pair %d: %v %v %v", n, i, losses[i], gradChosen[i], gradRejected[i])
				}
			}
			assert.InEpsilon(t, want*scale, total, tolerance)
		}
	}
}

func TestRewardLossPropagatesNaN(t *testing.T) {
	grad, other := make([]float32, 2), make([]float32, 2)
	loss, err := pcrm.RewardLoss(nil, grad, other, []float32{float32(math.NaN()), 1}, []float32{0, 0}, []float32{4, 4}, pcrm.RewardOptions{})
	require.NoError(t, err)
	assert.True(t, math.IsNaN(loss))
	assert.True(t, math.IsNaN(float64(grad[0])))
	assert.False(t, math.IsNaN(float64(grad[1])), "a pair's gradient is its own")
}

func TestRewardLossErrors(t *testing.T) {
	one, two := []float64{1}, []float64{1, 2}
	for _, c := range []struct {
		message                 string
		chosen, rejected, delta []float64
		losses, grad            []float64
		o                       pcrm.RewardOptions
	}{
		{message: "chosen_rewards must have at least one score, got none"},
		{message: "rejected_rewards must have 2 elements, like chosen_rewards, got 1", chosen: two, rejected: one, delta: two},
		{message: "delta must have 2 elements, like chosen_rewards, got 1", chosen: two, rejected: two, delta: one},
		{message: "delta[1] must be greater than 0, got -3", chosen: two, rejected: two, delta: []float64{1, -3}},
		{message: "delta[0] must be greater than 0, got 0", chosen: one, rejected: one, delta: []float64{0}},
		{message: "delta[0] must be greater than 0, got NaN", chosen: one, rejected: one, delta: []float64{math.NaN()}},
		{message: "gradRejected must have 1 elements, like chosen_rewards, got 0", chosen: one, rejected: one, delta: one, grad: one},
		{message: "losses must have 1 elements, like chosen_rewards, got 0", chosen: one, rejected: one, delta: one, o: pcrm.RewardOptions{Reduction: pcrm.None}},
		{message: "reduction must be Mean, Sum or None, got 3", o: pcrm.RewardOptions{Reduction: 3}},
		{message: "label_smoothing must be in [0, 0.5), got 0.5", o: pcrm.RewardOptions{LabelSmoothing: 0.5}},
		{message: "label_smoothing must be in [0, 0.5), got NaN", o: pcrm.RewardOptions{LabelSmoothing: math.NaN()}},
		{message: "center_rewards_coefficient must be at least 0 and finite, got -1", o: pcrm.RewardOptions{CenterRewardsCoefficient: -1}},
		{message: "center_rewards_coefficient must be at least 0 and finite, got +Inf", o: pcrm.RewardOptions{CenterRewardsCoefficient: inf}},
		{message: "chosen_rewards[1] must be finite, got +Inf", chosen: []float64{1, inf}, rejected: two, delta: two, o: pcrm.RewardOptions{CheckFinite: true}},
		{message: "rejected_rewards[0] must be finite, got NaN", chosen: two, rejected: []float64{math.NaN(), 1}, delta: two, o: pcrm.RewardOptions{CheckFinite: true}},
	} {
		_, err := pcrm.RewardLoss(c.losses, c.grad, nil, c.chosen, c.rejected, c.delta, c.o)
		assert.EqualError(t, err, c.message)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
	}
}

func TestRewardLossAllocatesNothing(t *testing.T) {
	chosen, rejected, delta := batch(100)
	grad, other := make([]float64, 100), make([]float64, 100)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		_, _ = pcrm.RewardLoss(nil, grad, other, chosen, rejected, delta, pcrm.RewardOptions{})
	}))
}
