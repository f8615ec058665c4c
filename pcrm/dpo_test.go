package pcrm_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/diff/fd"

	"github.com/pcrm-project/pcrm/pcrm"
)

// logps returns policy chosen, policy rejected, reference chosen and reference rejected.
func logps(n int) (x [4][]float64, delta []float64) {
	r := rand.New(rand.NewPCG(uint64(n), 9))
	for range n {
		for k := range x {
			x[k] = append(x[k], float64(float32(-5-195*r.Float64())))
		}
		delta = append(delta, []float64{float64(float32(2 + 20*r.Float64())), inf}[r.IntN(2)])
	}
	return
}

// The documented loop, for sizes around a block, on every tier.
func TestDPOLossIsTheDocumentedLoop(t *testing.T) {
	for _, tier := range tiers() {
		forceTier(t, tier)
		dpoLoop[float64](t, 1e-13)
		dpoLoop[float32](t, 1.2e-7) // rounded once
	}
}

func dpoLoop[F pcrm.Float](t *testing.T, tolerance float64) {
	for _, n := range []int{1, 2, 63, 64, 65, 2000} {
		x, delta := logps(n)
		for _, reduction := range []pcrm.Reduction{pcrm.Mean, pcrm.Sum, pcrm.None} {
			o := pcrm.DPOOptions{Beta: 0.1, LabelSmoothing: 0.1, Reduction: reduction, CheckFinite: true}
			losses, gradChosen, gradRejected := make([]F, n), make([]F, n), make([]F, n)
			chosenRewards, rejectedRewards := make([]F, n), make([]F, n)
			got, err := pcrm.DPOLoss(losses, gradChosen, gradRejected, chosenRewards, rejectedRewards,
				to[F](x[0]), to[F](x[1]), to[F](x[2]), to[F](x[3]), to[F](delta), o)
			require.NoError(t, err)
			scale, want := 1.0, 0.0
			if reduction == pcrm.Mean {
				scale = 1 / float64(n)
			}
			for i := range n {
				w, l := 0.1*(x[0][i]-x[2][i]), 0.1*(x[1][i]-x[3][i])
				loss, g := pcrm.PairLoss(w-l, delta[i], 0.1)
				want += loss
				closeTo(t, loss, float64(losses[i]), tolerance, 0)
				closeTo(t, 0.1*g*scale, float64(gradChosen[i]), tolerance, 1e-15*scale)
				closeTo(t, -0.1*g*scale, float64(gradRejected[i]), tolerance, 1e-15*scale)
				closeTo(t, w, float64(chosenRewards[i]), tolerance, 0)
				closeTo(t, l, float64(rejectedRewards[i]), tolerance, 0)
			}
			closeTo(t, want*scale, got, 1e-13, 0)

			without, err := pcrm.DPOLoss(losses, nil, nil, nil, nil,
				to[F](x[0]), to[F](x[1]), to[F](x[2]), to[F](x[3]), to[F](delta), o)
			require.NoError(t, err)
			assert.Equal(t, got, without, "the loss does not depend on what else is wanted")
		}
	}
}

func TestDPOLossGradient(t *testing.T) {
	n := 7
	x, delta := logps(n)
	o := pcrm.DPOOptions{Beta: 0.05, LabelSmoothing: 0.1}
	gradChosen, gradRejected := make([]float64, n), make([]float64, n)
	_, err := pcrm.DPOLoss(nil, gradChosen, gradRejected, nil, nil, x[0], x[1], x[2], x[3], delta, o)
	require.NoError(t, err)
	numeric := fd.Gradient(nil, func(p []float64) float64 {
		loss, err := pcrm.DPOLoss(nil, nil, nil, nil, nil, p[:n], p[n:], x[2], x[3], delta, o)
		require.NoError(t, err)
		return loss
	}, slices.Concat(x[0], x[1]), &fd.Settings{Formula: fd.Central, Step: 1e-4})
	assert.InDeltaSlice(t, numeric, slices.Concat(gradChosen, gradRejected), 1e-9)
}

// A policy equal to its reference has a margin of 0, and delta = +Inf is plain DPO.
func TestDPOLossInvariants(t *testing.T) {
	x, _ := logps(3)
	free := []float64{inf, inf, inf}
	loss, err := pcrm.DPOLoss(nil, nil, nil, nil, nil, x[0], x[1], x[0], x[1], free, pcrm.DPOOptions{Beta: 0.1})
	require.NoError(t, err)
	assert.InDelta(t, math.Ln2, loss, 1e-14)
	rewards := make([]float64, 3)
	loss, err = pcrm.DPOLoss(nil, nil, nil, rewards, nil, []float64{math.NaN(), 1, 1}, x[1], x[2], x[3], free, pcrm.DPOOptions{Beta: 0.1})
	require.NoError(t, err)
	assert.True(t, math.IsNaN(loss) && math.IsNaN(rewards[0]) && !math.IsNaN(rewards[1]))
}

func TestDPOLossErrors(t *testing.T) {
	one, two := []float64{1}, []float64{1, 2}
	ok := pcrm.DPOOptions{Beta: 0.1}
	for _, c := range []struct {
		message            string
		losses, grad, rew  []float64
		pc, pr, rc, rr, de []float64
		o                  pcrm.DPOOptions
	}{
		{message: "policy_chosen_logps must have at least one log probability, got none", o: ok},
		{message: "beta must be greater than 0 and finite, got 0", pc: one},
		{message: "beta must be greater than 0 and finite, got +Inf", pc: one, o: pcrm.DPOOptions{Beta: inf}},
		{message: "label_smoothing must be in [0, 0.5), got -1", pc: one, o: pcrm.DPOOptions{Beta: 1, LabelSmoothing: -1}},
		{message: "policy_rejected_logps must have 2 elements, like policy_chosen_logps, got 1", pc: two, pr: one, o: ok},
		{message: "reference_chosen_logps must have 2 elements, like policy_chosen_logps, got 1", pc: two, pr: two, rc: one, o: ok},
		{message: "reference_rejected_logps must have 2 elements, like policy_chosen_logps, got 0", pc: two, pr: two, rc: two, o: ok},
		{message: "delta must have 2 elements, like policy_chosen_logps, got 1", pc: two, pr: two, rc: two, rr: two, de: one, o: ok},
		{message: "losses must have 1 elements, like policy_chosen_logps, got 0", pc: one, pr: one, rc: one, rr: one, de: one, o: pcrm.DPOOptions{Beta: 1, Reduction: pcrm.None}},
		{message: "gradRejected must have 1 elements, like policy_chosen_logps, got 0", pc: one, pr: one, rc: one, rr: one, de: one, grad: one, o: ok},
		{message: "chosenRewards must have 1 elements, like policy_chosen_logps, got 2", pc: one, pr: one, rc: one, rr: one, de: one, rew: two, o: ok},
		{message: "delta[0] must be greater than 0, got -1", pc: one, pr: one, rc: one, rr: one, de: []float64{-1}, o: ok},
		{message: "reference_chosen_logps[1] must be finite, got -Inf", pc: two, pr: two, rc: []float64{1, -inf}, rr: two, de: two, o: pcrm.DPOOptions{Beta: 1, CheckFinite: true}},
	} {
		_, err := pcrm.DPOLoss(c.losses, c.grad, nil, c.rew, nil, c.pc, c.pr, c.rc, c.rr, c.de, c.o)
		assert.EqualError(t, err, c.message)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
	}
}
