package pcrm_test

import (
	"math/rand"
	"reflect"
	"testing"
	"testing/quick"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

// pairs is a random batch for testing/quick.
type pairs struct{ chosen, rejected, delta []float64 }

func (pairs) Generate(r *rand.Rand, size int) reflect.Value {
	var p pairs
	for range 1 + r.Intn(10*size) {
		// Sums and differences of multiples of 1/8 are exact.
		p.chosen = append(p.chosen, float64(r.Intn(200)-100)/8)
		p.rejected = append(p.rejected, float64(r.Intn(200)-100)/8)
		p.delta = append(p.delta, []float64{inf, 0.5 + 20*r.Float64()}[r.Intn(2)])
	}
	return reflect.ValueOf(p)
}

func forEachTier(t *testing.T, property any) {
	for _, tier := range tiers() {
		t.Run(tier, func(t *testing.T) {
			forceTier(t, tier)
			assert.NoError(t, quick.Check(property, &quick.Config{MaxCount: 50}))
		})
	}
}

// reward returns the loss, the losses and both gradients.
func (p pairs) reward(t *testing.T, o pcrm.RewardOptions) (loss float64, losses, gradChosen, gradRejected []float64) {
	n := len(p.chosen)
	losses, gradChosen, gradRejected = make([]float64, n), make([]float64, n), make([]float64, n)
	loss, err := pcrm.RewardLoss(losses, gradChosen, gradRejected, p.chosen, p.rejected, p.delta, o)
	require.NoError(t, err)
	return
}

// Only the margin matters: adding a constant to all scores changes nothing, and the two gradients
// are opposite.
func TestLossIsOfTheMargin(t *testing.T) {
	forEachTier(t, func(p pairs) bool {
		loss, _, gradChosen, gradRejected := p.reward(t, pcrm.RewardOptions{})
		for i := range p.chosen {
			assert.Equal(t, gradChosen[i], -gradRejected[i])
			p.chosen[i] += 3.5
			p.rejected[i] += 3.5
		}
		moved, _, movedChosen, _ := p.reward(t, pcrm.RewardOptions{})
		return loss == moved && assert.ObjectsAreEqual(gradChosen, movedChosen)
	})
}

// A pair's loss does not depend on its neighbors or its position, so the loss of a batch is the sum
// of its parts, and the mean is that sum divided by n.
func TestBatchIsItsParts(t *testing.T) {
	forEachTier(t, func(p pairs) bool {
		o := pcrm.RewardOptions{Reduction: pcrm.Sum, LabelSmoothing: 0.1, CenterRewardsCoefficient: 0.01}
		sum, losses, grad, _ := p.reward(t, o)
		n := len(p.chosen)
		part := pairs{p.chosen[n/3:], p.rejected[n/3:], p.delta[n/3:]}
		_, partLosses, partGrad, _ := part.reward(t, o)
		o.Reduction = pcrm.Mean
		mean, _, _, _ := p.reward(t, o)
		total := 0.0
		for _, l := range losses {
			total += l
		}
		closeTo(t, total, sum, 1e-13, 0)
		closeTo(t, sum/float64(n), mean, 1e-15, 0)
		return assert.ObjectsAreEqual(losses[n/3:], partLosses) && assert.ObjectsAreEqual(grad[n/3:], partGrad)
	})
}

// The three forms are the same loss: DPO with beta 1 and a reference of 0, and the token form with
// rows of one position, equal the reward loss.
func TestFormsAgree(t *testing.T) {
	forEachTier(t, func(p pairs) bool {
		n := len(p.chosen)
		want, _, wantGrad, _ := p.reward(t, pcrm.RewardOptions{LabelSmoothing: 0.2})
		grad, other, zeros := make([]float64, n), make([]float64, n), make([]float64, n)
		dpo, err := pcrm.DPOLoss(nil, grad, other, nil, nil, p.chosen, p.rejected, zeros, zeros, p.delta, pcrm.DPOOptions{Beta: 1, LabelSmoothing: 0.2})
		require.NoError(t, err)
		closeTo(t, want, dpo, 1e-13, 0)
		require.InDeltaSlice(t, wantGrad, grad, 1e-15)

		ids := make([]int64, n)
		token, err := pcrm.TokenLoss(nil, grad, other, p.chosen, p.rejected, ids, ids, p.delta, 0, pcrm.RewardOptions{LabelSmoothing: 0.2})
		require.NoError(t, err)
		closeTo(t, want, token, 1e-13, 0)
		return assert.InDeltaSlice(t, wantGrad, grad, 1e-15)
	})
}
